"""What `make k3s-up` leaves for the router, what `make k3s-down` takes away, what `make k3s-status` tells."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scripts.k3s.stage import Stage, said

# -- the router -----------------------------------------------------------------------------------


def test_the_router_gets_the_address_with_consent_only(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    env = stage.root / ".env"
    env.write_text("ROUTER_PORT=8010\n# mine\n")
    line = f"LLMD_ENDPOINT=http://127.0.0.1:{stage.port}"
    assert stage.run("up", "--port", str(stage.port)) == 0
    out, _ = said(capsys)
    assert env.read_text() == "ROUTER_PORT=8010\n# mine\n"
    assert f"echo '{line}' >> {env}" in out
    assert stage.run("up", "--yes") == 0
    assert env.read_text() == f"ROUTER_PORT=8010\n# mine\n{line}\n"
    assert "No router runs" in said(capsys)[0]


def test_an_address_in_the_environment_that_beats_ours_is_told(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.env["LLMD_ENDPOINT"] = "http://elsewhere:8000"
    assert stage.up() == 0
    assert "LLMD_ENDPOINT=http://elsewhere:8000, which beats .env" in said(capsys)[0]


# -- down, status ---------------------------------------------------------------------------------


def test_down_keeps_and_purge_takes_away_what_was_made(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.up() == 0
    env = stage.root / ".env"
    assert "LLMD_ENDPOINT" in env.read_text()
    assert stage.run("down", "--yes") == 0
    assert (stage.folder / "cluster").read_text().strip() == "0"
    assert "LLMD_ENDPOINT" not in env.read_text()
    assert stage.run("down", "--yes", "--purge") == 0
    assert not (stage.folder / "cluster").exists()
    left = {path.name for path in (stage.home / "k3s").iterdir()}
    assert left == {"lock"}
    said(capsys)
    assert stage.run("down") == 0
    assert "nothing to take down" in said(capsys)[0]


def test_a_cluster_that_nothing_can_stop_is_not_said_to_be_stopped(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.up() == 0
    stage.without("k3d")
    said(capsys)
    assert stage.run("down", "--yes") == 1
    out, err = said(capsys)
    assert "stopped" not in out
    assert "k3d is needed" in err


def test_down_leaves_an_address_that_is_another_ones(stage: Stage) -> None:
    assert stage.up() == 0
    env = stage.root / ".env"
    env.write_text("LLMD_ENDPOINT=http://another:8000\n")
    assert stage.run("down", "--yes") == 0
    assert env.read_text() == "LLMD_ENDPOINT=http://another:8000\n"


def test_down_in_a_dry_run_changes_nothing(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    assert stage.up() == 0
    stage.forget()
    for purge in ([], ["--purge"]):
        assert stage.run("down", "--dry-run", *purge) == 0
    out, _ = said(capsys)
    assert "would run: k3d cluster stop iir" in out
    assert "would run: k3d cluster delete iir" in out
    assert not any(word in line for line in stage.asked for word in ("stop", "delete"))
    assert "LLMD_ENDPOINT" in (stage.root / ".env").read_text()
    assert (stage.home / "k3s" / "choice.json").is_file()


def test_status_tells_what_runs(stage: Stage, capsys: pytest.CaptureFixture[str]) -> None:
    assert stage.run("status") == 1
    assert "make k3s-up" in said(capsys)[0]
    assert stage.up("--profile", "sim") == 0
    said(capsys)
    assert stage.run("status") == 0
    out, _ = said(capsys)
    for words in ("driver k3d, profile sim", "SIMULATOR", "release llm-d: deployed", "a-model"):
        assert words in out
    assert stage.run("down", "--yes") == 0
    said(capsys)
    assert stage.run("status") == 1
    assert "make k3s-doctor" in said(capsys)[0]


def test_a_record_that_cannot_be_read_is_not_guessed_at(
    stage: Stage, capsys: pytest.CaptureFixture[str]
) -> None:
    path: Path = stage.home / "k3s" / "choice.json"
    path.parent.mkdir()
    path.write_text("{")
    assert stage.run("down", "--yes", "--purge") == 1
    assert "k3d cluster list" in said(capsys)[1]
    assert stage.asked == []
