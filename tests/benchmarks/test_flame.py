"""The flame graph: what is drawn of the stacks that were seen, and what is said without any."""

from __future__ import annotations

import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks.flame import Recorder, draw, read_stacks
from benchmarks.processes import BenchError

STACKS = [
    "main (m.py:1);run (runners.py:2);serve (router/app.py:3);choose (router/x.py:4) 60",
    "main (m.py:1);run (runners.py:2);serve (router/app.py:3);send<b> (lib.py:5) 30",
    "main (m.py:1);run (runners.py:2);log (lib.py:6) 10",
    "",
]


def titles(picture: str) -> list[str]:
    """Return what the frames say when one points at them."""
    named = (
        each.text or "" for each in ET.fromstring(picture).iter() if each.tag.endswith("title")
    )
    return [text for text in named if "%" in text]


def test_the_way_in_is_left_out_and_every_frame_has_its_share() -> None:
    assert titles(draw(read_stacks(STACKS))) == [
        "run (runners.py:2): 100.0%",
        "serve (router/app.py:3): 90.0%",
        "choose (router/x.py:4): 60.0%",
        "send<b> (lib.py:5): 30.0%",
        "log (lib.py:6): 10.0%",
    ]


def test_what_is_too_narrow_to_see_is_not_drawn() -> None:
    lines = ["run;often 995", "run;seldom 5", "run;hardly 3"]
    assert [text.split(":")[0] for text in titles(draw(read_stacks(lines)))] == ["often"]


def program(folder: Path, body: str) -> Path:
    """Write a program that stands for py-spy."""
    path = folder / "py-spy"
    path.write_text(f"#!{sys.executable}\nimport sys\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_recorder_draws_what_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    body = "open(sys.argv[sys.argv.index('--output') + 1], 'w').write('run;one 3\\nrun;two 1\\n')"
    monkeypatch.setenv("PY_SPY", str(program(tmp_path, body)))
    recorder = Recorder(tmp_path / "assets" / "flame.svg")
    stacks = tmp_path / "stacks.txt"
    recorder.finish(recorder.begin(1, 0.2, stacks), stacks, within_s=30)
    assert titles(recorder.picture.read_text(encoding="utf-8")) == [
        "run: 100.0%",
        "one: 75.0%",
        "two: 25.0%",
    ]


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("sys.exit('Permission Denied: try again with sudo')", "Permission Denied"),
        ("open(sys.argv[sys.argv.index('--output') + 1], 'w').close()", "saw nothing"),
    ],
)
def test_a_recorder_that_sees_nothing_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, told: str
) -> None:
    monkeypatch.setenv("PY_SPY", str(program(tmp_path, body)))
    recorder = Recorder(tmp_path / "flame.svg")
    stacks = tmp_path / "stacks.txt"
    with pytest.raises(BenchError, match=told):
        recorder.finish(recorder.begin(1, 1, stacks), stacks, within_s=30)
    assert not recorder.picture.exists()


def test_without_py_spy_the_command_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("PY_SPY", raising=False)
    with pytest.raises(BenchError, match=r"py-spy \(PyPI\)"):
        Recorder()
