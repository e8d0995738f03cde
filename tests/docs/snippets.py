"""The fenced blocks of the documents, each with the comment before it that says how it is tested.

<!-- runs -->               it runs, in the order of the page, against a router and an agent
<!-- runs: until Ctrl-C --> the same for one command that goes on by itself
<!-- runs: and fails -->    the same for what ends with an error
<!-- prints -->             its lines stand in what the block before it printed; `…` is anything
<!-- agent.yaml -->         an agent takes it as its file
<!-- tested: PATH -->       a test or script elsewhere runs it
<!-- needs: WHAT -->        nothing here can run it: it begins with one of `NEEDS`
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

SPOKEN = frozenset({"sh", "bash", "shell", "console", "python", "py", "js", "javascript", "yaml"})
"""The languages whose blocks must say how they are tested."""

NEEDS = (
    *("a Mac", "a GPU", "a cloud", "the network"),
    *("another machine", "a newer release", "a quiet machine"),
)

_BLOCK = re.compile(
    r"(?:^[ ]*<!-- (?P<how>runs|prints|tested|needs|agent\.yaml)(?:: (?P<what>[^\n]*?))? -->\n\s*)?"
    r"^(?P<indent>[ ]*)```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^[ ]*```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Snippet:
    """A block: where it begins, its language, how it is tested, and its text."""

    path: Path
    line: int
    language: str
    how: str | None
    what: str | None
    text: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}"


def snippets(path: Path, text: str) -> list[Snippet]:
    """Return a document's blocks in order."""
    found = []
    for block in _BLOCK.finditer(text):
        indent = len(block["indent"])
        lines = [line[indent:] for line in block["text"].splitlines()]
        number = text.count("\n", 0, block.start("language")) + 1
        body = "\n".join(lines) + "\n"
        found.append(Snippet(path, number, block["language"], block["how"], block["what"], body))
    return found


def missing_lines(expected: str, output: str) -> list[str]:
    """Return the lines of `expected` that `output` does not have, in this order."""
    rest = " ".join(output.split())
    missing = []
    for line in filter(str.strip, expected.splitlines()):
        parts = [re.escape(" ".join(part.split())) for part in line.split("…")]
        found = re.search(" ?.*? ?".join(parts), rest)
        if found is None:
            missing.append(line)
        else:
            rest = rest[found.end() :]
    return missing
