from __future__ import annotations

import os
from pathlib import Path

import pytest

from local_agent.process.environment import MARKER, child_env
from local_agent.process.log import WorkerLog, cause_of
from local_agent.process.mask import Mask
from local_agent.process.records import Record, Records, file_stem


def write(fd: int, text: str) -> None:
    os.write(fd, text.encode())


def test_the_tail_is_of_this_run_only(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path / "logs" / "a.log", 1000)
    fd = log.open()
    write(fd, "one\n\ntwo\n")
    assert log.tail(5) == ["one", "two"]
    assert log.tail(1) == ["two"]
    os.close(fd)
    again = log.open()
    assert log.tail(5) == []
    write(again, "three\n")
    assert log.tail(5) == ["three"]
    os.close(again)
    assert (tmp_path / "logs" / "a.log").stat().st_mode & 0o777 == 0o600


def test_a_log_stays_bounded_while_the_child_holds_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    log = WorkerLog(path, 100)
    fd = log.open()
    for number in range(50):
        write(fd, f"line {number:05d}\n")
        log.trim()
        assert path.stat().st_size <= 111
    os.close(fd)
    kept = tmp_path / "a.log.1"
    assert kept.stat().st_size <= 111
    assert log.tail(1) == ["line 00049"]
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.log", "a.log.1"]


def test_a_log_that_is_gone_breaks_nothing(tmp_path: Path) -> None:
    log = WorkerLog(tmp_path / "a.log", 1)
    log.trim()
    assert log.tail(3) == []


@pytest.mark.parametrize(
    ("code", "lines", "cause"),
    [
        (1, [], "the engine exited with code 1"),
        (-9, ["all is well"], "the engine was ended by SIGKILL"),
        (-200, [], "the engine was ended by signal 200"),
        (
            1,
            [
                "0.00.008.628 E cmn  common_init_: failed to load model '/home/me/m/bad.gguf'",
                'File "/usr/lib/python3.11/site-packages/x.py", line 3',
                "ValueError: cannot read /private/weights.bin from http://10.1.2.3:80/x at 10.1.2.3",
            ],
            (
                "the engine exited with code 1: cmn common_init_: failed to load model 'bad.gguf';"
                " ValueError: cannot read weights.bin from … at …"
            ),
        ),
    ],
)
def test_the_cause_says_what_went_wrong_and_not_where(
    code: int, lines: list[str], cause: str
) -> None:
    assert cause_of(code, lines) == cause


# as vLLM 0.32 wrote it, shortened
VLLM = [
    "(APIServer pid=1) WARNING 11-25 21:25:38 [utils.py:255] can cause `OSError: Too many open files`",
    "(Worker pid=40) ERROR 11-25 21:27:37 [executor.py:953] WorkerProc failed to start.",
    "(Worker pid=40) ERROR 11-25 21:27:37 [executor.py:953]     raise ValueError(",
    "(Worker pid=40) ERROR 11-25 21:27:37 [executor.py:953] ValueError: No memory for the cache blocks.",
    *["(EngineCore pid=27) ERROR 11-25 21:27:43 [core.py:1510]   File x"] * 100,
    "(EngineCore pid=27) ERROR 11-25 21:27:43 [core.py:1510] Exception: WorkerProc failed",
    *["  File x"] * 100,
    "    raise RuntimeError(",
    "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
]


def test_a_cause_that_is_said_to_stand_above_is_found_there() -> None:
    found = cause_of(1, VLLM)
    assert found == "the engine exited with code 1: ValueError: No memory for the cache blocks."
    killed = [
        "(APIServer pid=9) ERROR 11-25 21:53:56 [a.py:906]     raise self._format(outputs) from None",
        "(APIServer pid=9) ERROR 11-25 21:53:56 [a.py:906] vllm.EngineDeadError: Encountered an issue.",
        "See stack trace (above) for the root cause.",
    ]
    assert cause_of(0, killed).startswith("the engine exited with code 0: vllm.EngineDeadError: E")


def test_a_long_cause_is_cut() -> None:
    assert len(cause_of(1, ["error " + "x" * 5000])) < 400


def test_a_child_gets_what_it_needs_and_no_secret() -> None:
    parent = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "LC_ALL": "C",
        "TMPDIR": "/tmp/x",
        "PYTHONPATH": ".",
        "EXTERNAL_OPENAI_KEY": "sk-secret",
        "HF_TOKEN": "hf_secret",
        "AGENT_TOKEN_FILE": "/secret",
        "DATABASE_URL": "postgresql://u:secret@h/d",
        "HTTPS_PROXY": "http://u:secret@proxy",
        "LC_secret": "secret",
    }
    env = child_env(parent, {"PATH": "/own"}, "mark")
    assert "secret" not in str(env)
    assert env["PATH"] == "/own"
    assert {env["HOME"], env["LC_ALL"], env["TMPDIR"]} == {"/home/me", "C", "/tmp/x"}
    assert env[MARKER] == "mark"


def record(name: str) -> Record:
    return Record(
        name=name, marker="k", config_hash="h", port=1, owner_pid=1, owner_create_time=2.0
    )


def test_records_survive_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    records = Records(tmp_path / "run")
    assert records.all() == []
    records.write(record("org/m"))
    foreign = tmp_path / "run" / "worker-x.json"
    foreign.write_text("{")
    assert records.all() == [record("org/m")]
    records.remove("org/m")
    records.remove("org/m")
    assert records.all() == []
    assert foreign.exists()


def test_two_models_never_share_a_file() -> None:
    names = ["a/b", "a_b", "A_B", "a:b", "../a", "", "a" * 300, "a" * 301, "é", "smollm2-135m"]
    stems = [file_stem(name) for name in names]
    assert len({stem.lower() for stem in stems}) == len(names)
    assert all("/" not in stem and len(stem) < 120 for stem in stems)
    assert file_stem("smollm2-135m") == "worker-smollm2-135m"


def test_a_log_that_is_taken_over_begins_with_the_line_that_is_being_written(
    tmp_path: Path,
) -> None:
    path = tmp_path / "w.log"
    WorkerLog(path, 1000).resume()  # nothing was written yet
    path.write_bytes(b"old\ntoken s3cr")
    log = WorkerLog(path, 1000, Mask(["s3cret"]))
    log.resume()
    with path.open("ab") as child:
        child.write(b"et\nnew\n")
    assert log.tail(10) == ["token ***", "new"]
