"""What people see of a worker's log: the last lines, what follows, and no secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from local_agent.process.log import WorkerLog
from local_agent.process.mask import Mask, secrets_of
from local_agent.process.reading import LogReader

SECRET = "hf_topsecret"


class Desk:
    """A log of at most 100 bytes (and as many in its older part), and its reader."""

    def __init__(self, folder: Path, max_bytes: int = 100) -> None:
        self.path = folder / "a.log"
        self.log = WorkerLog(self.path, max_bytes)
        self.reader = LogReader(self.path, Mask([SECRET]))

    def write(self, text: str) -> None:
        fd = self.log.open()
        os.write(fd, text.encode())
        os.close(fd)

    def more(self) -> str:
        """Read until there is nothing more for now."""
        found = ""
        for _ in range(8):
            found += self.reader.more()
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def numbered(numbers: range) -> str:
    return "".join(f"line {number:04d}\n" for number in numbers)


def test_the_last_lines_and_a_line_that_has_no_end(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.write("one\n\ntwo\nthr")
    reader = LogReader(desk.path, Mask())
    assert reader.last(2) == b"\ntwo\n"
    assert reader.rest() == "thr"
    assert LogReader(desk.path, Mask()).last(0) == b""
    assert LogReader(desk.path, Mask()).last(99) == b"one\n\ntwo\n"


def test_the_last_lines_reach_into_the_older_part(desk: Desk) -> None:
    desk.write(numbered(range(11)))
    desk.log.trim()
    desk.write(numbered(range(11, 13)))
    reader = LogReader(desk.path, Mask())
    assert reader.last(4) == numbered(range(9, 13)).encode()


def test_a_rotation_before_the_last_lines_are_read_shows_nothing_twice(desk: Desk) -> None:
    desk.write(numbered(range(11)))
    reader = LogReader(desk.path, Mask())
    desk.log.trim()
    desk.write(numbered(range(11, 13)))
    assert reader.last(4) == numbered(range(9, 13)).encode()
    desk.write("after\n")
    assert "".join(reader.more() for _ in range(4)) == "after\n"


def test_no_log_is_empty_until_there_is_one(desk: Desk) -> None:
    assert desk.reader.last(10) == b""
    assert desk.more() == ""
    desk.write("first\n")
    assert desk.more() == "first\n"


def test_what_follows_comes_once_over_rotations_and_restarts(desk: Desk) -> None:
    found = ""
    for number in range(60):
        desk.write(numbered(range(number, number + 1)))  # each opens it anew, as a new worker does
        if number % 7 == 0:
            found += desk.more()
        desk.log.trim()
    assert found + desk.more() == numbered(range(60))


@settings(deadline=None, max_examples=50)
@given(cuts=st.lists(st.integers(1, 30), min_size=1, max_size=40), seed=st.integers(0, 2**16))
def test_no_secret_gets_out_however_the_output_is_cut(
    tmp_path_factory: pytest.TempPathFactory, cuts: list[int], seed: int
) -> None:
    desk = Desk(tmp_path_factory.mktemp("logs"), 10_000)
    text = (f"a {seed} {SECRET}{SECRET} b\nx\r{SECRET}\n") * 12
    found, at = "", 0
    for cut in cuts:
        desk.write(text[at : at + cut])
        at += cut
        found += desk.more()
    desk.write(text[at:])
    assert found + desk.more() == text.replace(SECRET, "***")


def test_a_secret_on_the_edge_of_an_endless_line_is_hidden(tmp_path: Path) -> None:
    desk = Desk(tmp_path, 10**6)
    for pad in range(64 * 1024 - 14, 64 * 1024 + 4):
        desk.write("x" * pad + SECRET + "y" * 300)
        shown = desk.more() + desk.reader.rest()
        assert "secret" not in shown
        assert shown.count("***") == 1
        desk.write("\n")
        desk.more()


def test_the_cause_of_an_end_hides_secrets_too(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path / "a.log", 1000, Mask([SECRET]))
    fd = log.open()
    os.write(fd, f"error: bad token {SECRET}\n".encode())
    os.close(fd)
    assert log.tail(1) == ["error: bad token ***"]


def test_which_variables_hold_secrets() -> None:
    environment = {
        "HF_TOKEN": "a1",
        "EXTERNAL_OPENAI_KEY": "a2",
        "token": "a3",
        "DB_PASSWORD": "a4",
        "AGENT_TOKEN_FILE": "/path",
        "MONKEY": "b",
        "PATH": "/bin",
    }
    assert sorted(secrets_of(environment)) == ["a1", "a2", "a3", "a4"]


def test_the_longest_secret_wins_and_short_ones_are_words() -> None:
    mask = Mask(["abcdef", "abcdefgh", "x", ""])
    assert mask.hide(b"x abcdefgh abcdef") == b"x *** ***"
    assert Mask().hide(b"abc") == b"abc"
