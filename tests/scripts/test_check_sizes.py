from __future__ import annotations

import ast
from pathlib import Path

import pytest

from scripts.check_sizes import findings, main, nesting


def write(folder: Path, text: str) -> Path:
    path = folder / "module.py"
    path.write_text(text)
    return path


def test_a_module_within_the_limits_gives_no_finding(tmp_path: Path) -> None:
    assert list(findings(write(tmp_path, "def one():\n    return 1\n"))) == []


def test_a_long_module_is_found(tmp_path: Path) -> None:
    found = list(findings(write(tmp_path, "x = 1\n" * 401)))
    assert len(found) == 1
    assert "401 lines, 400 allowed" in found[0]


def test_a_long_function_is_found_with_its_line(tmp_path: Path) -> None:
    found = list(findings(write(tmp_path, "\ndef f():\n" + "    x = 1\n" * 50)))
    assert [line.split(":", 1)[1] for line in found] == ["2 f: 51 lines, 50 allowed"]


def test_only_the_module_of_tests_has_a_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    long_function = "def f():\n" + "    x = 1\n" * 400
    for folder, found in (("tests/router", 1), ("tests/soak", 2), ("router", 2)):
        Path(folder).mkdir(parents=True)
        assert len(list(findings(write(Path(folder), long_function)))) == found, folder


def test_every_folder_of_the_project_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [Path(name) for name in ("router/api", "tests/shared", "tests", "scripts")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        write(folder, "x = 1\n" * 401)
    assert main() == 1
    found = capsys.readouterr().out.splitlines()
    assert sorted(line.partition(":")[0] for line in found) == sorted(
        f"{folder}/module.py" for folder in folders
    )


@pytest.mark.parametrize(
    ("body", "depth"),
    [
        ("x = 1", 0),
        ("if a:\n  x = 1", 1),
        ("if a:\n  x = 1\nelif b:\n  x = 2\nelif c:\n  x = 3\nelse:\n  x = 4", 1),
        ("for a in b:\n  with c:\n    while d:\n      if e:\n        x = 1", 4),
        ("try:\n  x = 1\nexcept E:\n  if a:\n    x = 2", 2),
        ("if a:\n  x = 1\nelse:\n  for b in c:\n    x = 2", 2),
        ("match a:\n  case 1:\n    if b:\n      x = 1", 2),
        ("if a:\n  def inner():\n    if b:\n      if c:\n        if d:\n          pass", 1),
    ],
)
def test_nesting_counts_blocks(body: str, depth: int) -> None:
    assert nesting(ast.parse(body).body) == depth
