"""The fenced blocks of the documents, each with the comment before it that says how it is tested.

<!-- runs -->               it runs, in the order of the page, against a router and an agent
<!-- runs: until Ctrl-C --> the same for one command that goes on by itself
<!-- runs: and fails -->    the same for what ends with an error
<!-- runs: until it prints --> the same for a look that is taken again until it prints the block after it
<!-- prints -->             its lines are lines of what the block before it printed, or whole words of them, in
                           this order; `…` is anything within a line
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
    *("a Mac", "a GPU", "a cloud", "a cluster", "the network"),
    *("another machine", "a newer release", "a quiet machine"),
)

_COMMENT = re.compile(r"<!--.*?-->(?:\n\s*```)?", re.DOTALL)
_KNOWN = re.compile(
    r"<!-- (?:runs(?:: until Ctrl-C|: until it prints|: and fails)?|prints|agent\.yaml|(?:tested|needs): \S[^\n]*) -->\n\s*```"
    r"|<!-- (?:Written by|bench:) .* -->(?:\n\s*```)?",  # what scripts write and look for
    re.DOTALL,
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


def unknown_marks(path: Path, text: str) -> list[str]:
    """Return a document's comments that mean nothing, or stand before no block."""
    return [
        f"{path}:{text.count(chr(10), 0, found.start()) + 1}: {found[0].splitlines()[0]}"
        for found in _COMMENT.finditer(text)
        if not _KNOWN.fullmatch(found[0])
    ]


def missing_lines(expected: str, output: str) -> list[str]:
    """Return the lines of `expected` that `output` does not have, in this order."""
    rows = [" ".join(row.split()) for row in output.splitlines()]
    missing, begin = [], 0
    for line in filter(str.strip, expected.splitlines()):
        pattern = _row_with(line)
        found = next((n for n in range(begin, len(rows)) if pattern.search(rows[n])), None)
        if found is None:
            missing.append(line)
        else:
            begin = found + 1
    return missing


def _row_with(line: str) -> re.Pattern[str]:
    """Return what finds the words of a line in a row, each as a whole."""
    parts = filter(None, (" ".join(part.split()) for part in line.split("…")))
    return re.compile(".*?".join(rf"(?<!\w){re.escape(part)}(?!\w)" for part in parts))
