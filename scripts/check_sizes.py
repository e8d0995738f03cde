"""Hold modules, functions and nesting to the sizes that the style allows: part of `make lint`."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("router", "local_agent", "shared", "scripts", "benchmarks", "tests")
MODULE_LINES = 400
FUNCTION_LINES = 50
NESTING = 3
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_LOOPS = (ast.For, ast.AsyncFor, ast.While)
_BLOCKS = (*_LOOPS, ast.If, ast.With, ast.AsyncWith, ast.Try, ast.Match)


def findings(path: Path) -> Iterator[str]:
    """Yield one line for each limit that the module breaks, as seen from the project's folder."""
    text = path.read_text(encoding="utf-8")
    lines = text.count("\n")
    if lines > MODULE_LINES:
        yield f"{path}: {lines} lines, {MODULE_LINES} allowed"
    if is_test(path):
        return
    for node in ast.walk(ast.parse(text, str(path))):
        if not isinstance(node, _FUNCTIONS):
            continue
        length = (node.end_lineno or node.lineno) - node.lineno + 1
        if length > FUNCTION_LINES:
            yield f"{path}:{node.lineno} {node.name}: {length} lines, {FUNCTION_LINES} allowed"
        depth = nesting(node.body)
        if depth > NESTING:
            yield f"{path}:{node.lineno} {node.name}: {depth} blocks deep, {NESTING} allowed"


def is_test(path: Path) -> bool:
    """Say whether only the module has a limit: a test is one scenario, however long and nested."""
    return path.parts[0] == "tests" and path.parts[1] != "soak"


def nesting(body: list[ast.stmt]) -> int:
    """Return how deep the blocks of a function's body go; an `elif` is as deep as its `if`."""
    return max((_depth(statement) for statement in body), default=0)


def _depth(statement: ast.stmt) -> int:
    if not isinstance(statement, _BLOCKS):
        return 0  # functions inside are judged by themselves
    deepest = nesting(list(_inner(statement)))
    if isinstance(statement, ast.If) and _is_elif(statement):
        return max(1 + deepest, _depth(statement.orelse[0]))
    return 1 + deepest


def _is_elif(statement: ast.If) -> bool:
    return len(statement.orelse) == 1 and isinstance(statement.orelse[0], ast.If)


def _inner(statement: ast.stmt) -> Iterator[ast.stmt]:
    """Yield the statements inside a block, its branches and handlers among them."""
    is_elif = isinstance(statement, ast.If) and _is_elif(statement)
    for name in ("body", "finalbody") if is_elif else ("body", "orelse", "finalbody"):
        yield from getattr(statement, name, [])
    for part in (*getattr(statement, "handlers", []), *getattr(statement, "cases", [])):
        yield from part.body


def main() -> int:
    """Check every module of the project; 1 if one is too big."""
    paths = sorted(path for folder in FOLDERS for path in Path(folder).rglob("*.py"))
    found = [line for path in paths for line in findings(path)]
    print("\n".join(found) if found else f"sizes: {len(paths)} modules within the limits")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
