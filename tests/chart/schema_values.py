"""Values that a JSON schema allows, for property tests; as much of JSON Schema as the chart's schema uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

Schema = Mapping[str, Any]
_FREE: st.SearchStrategy[Any] = st.just(
    {}
)  # an object that the schema says nothing about: Kubernetes' own


def values_of(schema: Schema, root: Schema) -> st.SearchStrategy[Any]:
    """Return a strategy for what a schema allows; objects have some of their keys."""
    if "$ref" in schema:
        return values_of(root["definitions"][schema["$ref"].rpartition("/")[2]], root)
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if "oneOf" in schema:
        return st.one_of([values_of(one, root) for one in schema["oneOf"]])
    kind = schema["type"]
    return _KINDS[kind if isinstance(kind, str) else kind[0]](schema, root)


def _object(schema: Schema, root: Schema) -> st.SearchStrategy[Any]:
    properties = {name: values_of(one, root) for name, one in schema.get("properties", {}).items()}
    if not properties:
        return _FREE
    needed = {name: properties[name] for name in schema.get("required", [])}
    optional = {name: one for name, one in properties.items() if name not in needed}
    found = st.fixed_dictionaries(needed, optional=optional)
    return found.filter(bool) if schema.get("minProperties") else found


def _array(schema: Schema, root: Schema) -> st.SearchStrategy[Any]:
    return st.lists(
        values_of(schema["items"], root),
        min_size=schema.get("minItems", 0),
        max_size=2,
        unique_by=repr,
    )


def _string(schema: Schema, root: Schema) -> st.SearchStrategy[str]:
    if "pattern" in schema:
        return st.from_regex(schema["pattern"], fullmatch=True, alphabet=_ASCII)
    return st.text(_ASCII, min_size=schema.get("minLength", 0), max_size=20)


def _integer(schema: Schema, root: Schema) -> st.SearchStrategy[int]:
    return st.integers(schema["minimum"], schema["maximum"])


def _number(schema: Schema, root: Schema) -> st.SearchStrategy[float]:
    return st.floats(schema["minimum"], schema["maximum"])


_ASCII = st.characters(min_codepoint=32, max_codepoint=126)
_KINDS: Mapping[str, Callable[[Schema, Schema], st.SearchStrategy[Any]]] = {
    "object": _object,
    "array": _array,
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": lambda schema, root: st.booleans(),
}
