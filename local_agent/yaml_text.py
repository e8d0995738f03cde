"""YAML as people write it: values with the lines they stand on, and one more entry."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

Loc = tuple[int | str, ...]

_MOST_NODES = 20_000


class YamlError(Exception):
    """The text is not usable; `line` starts at 1, `loc` is the field if it is one."""

    def __init__(self, message: str, *, line: int | None = None, loc: Loc = ()) -> None:
        """Hold what is wrong and where."""
        super().__init__(message)
        self.message = message
        self.line = line
        self.loc = loc


@dataclass(frozen=True, slots=True)
class Document:
    """A parsed text: plain values, and the nodes they came from."""

    data: Any
    node: yaml.Node | None

    def line_of(self, loc: Loc) -> int | None:
        """Return the line of a field, or of what holds it if it is not there itself."""
        node = self.node
        if node is None:
            return None
        line = node.start_mark.line
        for key in loc:
            found = _child(node, key)
            if found is None:
                break
            line, node = found
        return int(line) + 1


def parse(text: str) -> Document:
    """Read one YAML document.

    Raises:
        YamlError: it is not YAML, has a key twice, or refers to itself.
    """
    try:
        return _load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        raise YamlError(f"is not YAML: {error.problem or error.context}", line=line) from None
    except (yaml.YAMLError, ValueError) as error:
        raise YamlError(f"is not YAML: {str(error).splitlines()[0]}") from None
    except RecursionError:
        raise YamlError("is not usable: it is nested too deeply") from None


def _load(text: str) -> Document:
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return Document(None, None)
        _check(node)
        return Document(loader.construct_document(node), node)
    finally:
        loader.dispose()


def append_entry(text: str, key: str, entry: Mapping[str, object]) -> str:
    """Return the text with `entry` added to the list under `key`; the rest stays as it is.

    Raises:
        YamlError: the list is written in a way (`[…]`, `{…}`) that can't be added to as text.
    """
    document = parse(text)
    lines = text.splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    found = None if document.node is None else _child(document.node, key)
    if found is None:
        at, indent, new = len(lines), 2, [f"{key}:\n"]
    else:
        at, indent = _end_of_list(document.node, key)
        new = []
    new += _as_item(entry, indent)
    result = "".join([*lines[:at], *new, *lines[at:]])
    _verify(document, result, key, entry)
    return result


def _as_item(entry: Mapping[str, object], indent: int) -> list[str]:
    body = yaml.safe_dump(dict(entry), sort_keys=False, allow_unicode=True, width=10_000)
    first, *rest = body.splitlines()
    pad = " " * indent
    return [f"{pad}- {first}\n", *(f"{pad}  {line}\n" for line in rest)]


def _end_of_list(root: yaml.Node | None, key: str) -> tuple[int, int]:
    """Return the line after the list's last item, and the column of its dashes."""
    for name, value in _pairs(root):
        if name.value != key:
            continue
        if isinstance(value, yaml.ScalarNode) and value.value in {"", "null", "~"}:
            if value.value == "":
                return name.end_mark.line + 1, 2
        elif isinstance(value, yaml.SequenceNode) and not value.flow_style and value.value:
            return max(_last_line(item) for item in value.value) + 1, value.start_mark.column
    raise YamlError(f"the list {key!r} is not written as lines with dashes")


def _last_line(node: yaml.Node) -> int:
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        return max(_last_line(child) for child in _children(node))
    end = node.end_mark
    # A block scalar ends where the next token starts: at the beginning of a later line.
    return int(end.line - 1 if end.column == 0 and end.line > node.start_mark.line else end.line)


def _verify(before: Document, text: str, key: str, entry: Mapping[str, object]) -> None:
    """Compare the values, so that no odd layout can make us change what was there."""
    expected = dict(before.data or {})
    expected[key] = [*(expected.get(key) or []), dict(entry)]
    try:
        after = parse(text).data
    except YamlError:
        after = None
    if after != expected:
        raise YamlError("the layout of the file is one that can't be added to safely")


def _check(root: yaml.Node) -> None:
    """Refuse double keys, of which YAML would keep the last, and values that hold themselves.

    Raises:
        YamlError: with the line.
    """
    count = 0
    stack: list[tuple[yaml.Node, frozenset[int]]] = [(root, frozenset())]
    while stack:
        node, above = stack.pop()
        count += 1
        if id(node) in above or count > _MOST_NODES:
            raise YamlError("refers to itself or is too large", line=node.start_mark.line + 1)
        seen: set[str] = set()
        for name, _ in _pairs(node):
            if name.value in seen:
                raise YamlError(f"has {name.value!r} twice", line=name.start_mark.line + 1)
            seen.add(str(name.value))
        stack.extend((child, above | {id(node)}) for child in _children(node))


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    for _, value in _pairs(node):
        yield value


def _pairs(node: yaml.Node | None) -> list[tuple[yaml.Node, yaml.Node]]:
    return list(node.value) if isinstance(node, yaml.MappingNode) else []


def _child(node: yaml.Node, key: int | str) -> tuple[int, yaml.Node] | None:
    if isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
        item = node.value[key]
        return item.start_mark.line, item
    for name, value in _pairs(node):
        if name.value == key:
            return name.start_mark.line, value
    return None
