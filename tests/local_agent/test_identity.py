"""Who the agent is: an id that stays, an incarnation that grows, a credential that may come."""

from __future__ import annotations

import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from local_agent.control.credential import Credential, is_exposed, load_credential
from local_agent.control.identity import (
    IdentityTaken,
    hold_identity,
    load_identity,
)

NOW_S = 1_700_000_000.0


def test_the_id_stays_and_all_else_is_new_with_each_start(tmp_path: Path) -> None:
    first = load_identity(tmp_path / "agent", "mac", lambda: NOW_S)
    second = load_identity(tmp_path / "agent", "mac", lambda: NOW_S + 1)
    assert uuid.UUID(first.agent_id)
    assert second.agent_id == first.agent_id
    assert (first.incarnation, second.incarnation) == (1_700_000_000_000, 1_700_000_001_000)
    assert len(first.access_token) > 40
    assert first.access_token != second.access_token
    assert first.access_token not in repr(first)
    assert load_identity(tmp_path / "other", "mac", lambda: NOW_S).agent_id != first.agent_id


@pytest.mark.parametrize("later_s", [0, -1, -3600, -86400 * 400, -NOW_S])
def test_a_clock_that_was_set_back_does_not_make_a_start_older(
    tmp_path: Path, later_s: float
) -> None:
    first = load_identity(tmp_path, "mac", lambda: NOW_S)
    second = load_identity(tmp_path, "mac", lambda: NOW_S + later_s)
    assert second.incarnation == first.incarnation + 1


@pytest.mark.parametrize("content", [b"", b"no uuid", b"\xff\xfe", b"\0" * 100])
def test_files_that_can_t_be_read_are_made_anew(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "id").write_bytes(content)
    (tmp_path / "incarnation").write_bytes(content)
    found = load_identity(tmp_path, "mac", lambda: NOW_S)
    assert uuid.UUID(found.agent_id)
    assert found.incarnation == 1_700_000_000_000
    assert load_identity(tmp_path, "mac", lambda: NOW_S).agent_id == found.agent_id
    assert not list(tmp_path.glob("*.new"))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"sk-iir-abcdefgh-secret", "sk-iir-abcdefgh-secret"),
        (b"  sk-iir-abcdefgh-secret\r\n", "sk-iir-abcdefgh-secret"),
        (b"", None),
        (b" \n", None),
        (b"two words", None),
        (b"two\nlines", None),
        ("schlüssel".encode(), None),
        (b"\xff\xfe\0", None),
        (b"nul\0", None),
    ],
)
def test_a_credential_is_one_printable_word(
    tmp_path: Path, content: bytes, expected: str | None
) -> None:
    path = tmp_path / "credential"
    assert load_credential(path) is None
    path.write_bytes(content)
    assert load_credential(path) == (None if expected is None else Credential(expected))


def test_a_folder_is_no_credential(tmp_path: Path) -> None:
    assert load_credential(tmp_path) is None


@pytest.mark.parametrize(("mode", "expected"), [(0o600, False), (0o644, True), (0o620, True)])
def test_a_credential_that_others_can_reach(tmp_path: Path, mode: int, expected: bool) -> None:
    path = tmp_path / "credential"
    assert not is_exposed(path)
    path.touch()
    path.chmod(mode)
    assert is_exposed(path) is expected


HOLDER = """
import sys, time
from pathlib import Path
from local_agent.control.identity import hold_identity
with hold_identity(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_an_identity_is_held_once_and_freed_however_its_holder_ends(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "agent")], cwd=root, stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(IdentityTaken), hold_identity(tmp_path / "agent"):
            pass
    finally:
        holder.kill()
        holder.communicate()
    for _ in range(2):
        with hold_identity(tmp_path / "agent"):
            pass
