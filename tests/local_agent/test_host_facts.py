from __future__ import annotations

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
