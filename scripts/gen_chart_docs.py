"""Write the table of values into the chart's README from the comments in `values.yaml`.

A comment that begins with `# --` describes the key below it; a key without one may only hold further keys.
`--check` writes nothing and fails if the table is out of date: part of `make lint`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from scripts.reference.writing import table, write_or_check

CHART = Path("worker_cluster/chart")
BEGIN = "<!-- values: written by `make docs` from values.yaml; edit the comments there -->\n"
END = "<!-- end of values -->\n"


class Value(NamedTuple):
    """One value of the chart: its path (`model.name`), its default as JSON, and what it means."""

    path: str
    default: str
    meaning: str


def values(text: str) -> list[Value]:
    """Return the documented values in the order of the file.

    Raises:
        ValueError: a key is neither described nor a group of keys that are.
    """
    defaults = yaml.safe_load(text)
    described = dict(_described(text))
    _check_all(defaults, described)
    return [
        Value(path, json.dumps(_at(defaults, path), ensure_ascii=False), meaning)
        for path, meaning in described.items()
    ]


def _described(text: str) -> Iterator[tuple[str, str]]:
    """Yield path and description of each described key."""
    open_keys: list[tuple[int, str]] = []
    meaning = ""
    for line in text.splitlines():
        comment = re.match(r" *# -- (.+)", line)
        key = re.match(r"( *)([\w-]+):", line)
        if comment:
            meaning = comment[1]
        elif key:
            indent = len(key[1])
            open_keys = [*(pair for pair in open_keys if pair[0] < indent), (indent, key[2])]
            if meaning:
                yield ".".join(name for _, name in open_keys), meaning
            meaning = ""


def _at(defaults: dict[str, Any], path: str) -> object:
    value: Any = defaults
    for name in path.split("."):
        value = value[name]
    return value


def _check_all(defaults: object, described: dict[str, str], path: str = "") -> None:
    if path in described:
        return
    if not isinstance(defaults, dict) or not defaults:
        raise ValueError(f"values.yaml: `{path}` has no description (a line `# -- …` above it)")
    for name, inner in defaults.items():
        _check_all(inner, described, f"{path}.{name}".lstrip("."))


def readme(old: str, text: str) -> str:
    """Return the README with the table of a `values.yaml` between its marks."""
    head, _, rest = old.partition(BEGIN)
    tail = rest.partition(END)[2]
    rows = [(f"`{one.path}`", f"`{one.default}`", one.meaning) for one in values(text)]
    return f"{head}{BEGIN}\n{table(('Value', 'Default', 'Meaning'), rows)}\n{END}{tail}"


def main(arguments: list[str]) -> int:
    """Write or check; return the exit code."""
    path = CHART / "README.md"
    return write_or_check(
        {path: readme(path.read_text(), (CHART / "values.yaml").read_text())}, arguments
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
