from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from local_agent.host import host_facts
from local_agent.host.metal import Metal, ask_metal, chosen_limit_mb
from tests.local_agent.macos_outputs import SYSCTL_WIRED_LIMIT_SET


def test_facts_of_this_host() -> None:
    facts = host_facts(("json", "no_such_module_anywhere"))
    assert facts.platform in {"linux", "darwin"}
    assert facts.arch
    assert facts.memory_mb > 100
    assert facts.modules == {"json"}


def test_modules_that_engines_ask_for_are_looked_for() -> None:
    assert host_facts().modules <= {"xllamacpp"}


@pytest.mark.parametrize(
    ("device", "wired", "mb"),
    [
        # https://github.com/AlexsJones/llmfit/pull/754: 11.84 GiB of 16 on an M3
        ("12713115648\n", "iogpu.wired_limit_mb: 0\n", 12_124),
        ("", SYSCTL_WIRED_LIMIT_SET.partition(" ->")[0], 26_000),
        ("", "iogpu.wired_limit_mb: 0\n", None),
        ("Traceback", "", None),
        ("0", "", None),
    ],
)
def test_the_limit_of_metal_is_read_and_never_assumed(
    device: str, wired: str, mb: int | None
) -> None:
    assert chosen_limit_mb(device, wired) == mb


@pytest.mark.parametrize(
    ("said", "mb", "has_device"),
    [("12713115648\n", 12_124, True), ("", None, False), (None, None, None)],
    ids=["a Mac", "a virtual machine", "no answer"],
)
def test_whether_metal_has_a_device(
    said: str | None, mb: int | None, has_device: bool | None
) -> None:
    assert ask_metal(lambda _: said) == Metal(limit_mb=mb, has_device=has_device)


DEVICE, LIST = 0x7F0012345678, 0x7F0112345678
SELECTORS = {b"firstObject": 0x7F0212345678, b"recommendedMaxWorkingSetSize": 0x7F0312345678}
WORD, TEXT = ctypes.c_uint64, ctypes.c_char_p


def fake_metal(loaded: set[str], default: int, others: int) -> SimpleNamespace:
    """Return Metal and Objective-C's runtime: C functions that have no prototype yet."""
    answers = {
        (LIST, SELECTORS[b"firstObject"]): others,
        (DEVICE, SELECTORS[b"recommendedMaxWorkingSetSize"]): 12_713_115_648,
    }
    return SimpleNamespace(
        # a program that has not loaded CoreGraphics gets no default device
        MTLCreateSystemDefaultDevice=ctypes.CFUNCTYPE(WORD)(
            lambda: default if "CoreGraphics" in loaded else 0
        ),
        MTLCopyAllDevices=ctypes.CFUNCTYPE(WORD)(lambda: LIST),
        sel_registerName=ctypes.CFUNCTYPE(WORD, TEXT)(SELECTORS.__getitem__),
        objc_msgSend=ctypes.CFUNCTYPE(WORD, WORD, WORD)(lambda *asked: answers[asked]),
    )


@pytest.mark.parametrize(
    ("default", "others", "found"),
    [
        (DEVICE, DEVICE, Metal(limit_mb=12_124, has_device=True)),
        (0, DEVICE, Metal(limit_mb=12_124, has_device=True)),
        (0, 0, Metal(limit_mb=None, has_device=False)),
    ],
    ids=["a default device", "another one only", "none"],
)
def test_metal_is_asked_with_what_it_needs_for_a_device(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    default: int,
    others: int,
    found: Metal,
) -> None:
    loaded: set[str] = set()

    def load(path: str) -> SimpleNamespace:
        loaded.add(path.rpartition("/")[2])
        return fake_metal(loaded, default, others)

    def run(argv: Sequence[str]) -> str:
        exec(argv[-1], {})
        return capsys.readouterr().out

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert ask_metal(run) == found
