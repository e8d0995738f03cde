"""The JSON schema of the agent's YAML file, for editors: generated from the models in `config`."""

from __future__ import annotations

from typing import Any

from local_agent.config import AgentConfig
from local_agent.engines import AUTO, ENGINES

_VARIABLE = {"type": "string", "pattern": r"\$\{env\.[A-Za-z_][A-Za-z0-9_]*\}"}
_LIMITS = frozenset({"enum", "pattern"})
_NOT_TEXT = frozenset({"integer", "number", "boolean"})


def json_schema() -> dict[str, Any]:
    """Return the schema of the file as people write it: sizes with units, variables in any value."""
    schema = AgentConfig.model_json_schema(mode="validation")
    engine = schema["$defs"]["ModelConfig"]["properties"]["engine"]
    engine["enum"] = [AUTO, *ENGINES]
    found: dict[str, Any] = _with_variables(schema)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **found,
        "title": "The agent's YAML file",
    }


def _with_variables(value: Any) -> Any:
    """Allow `${env.NAME}` wherever not every text is allowed."""
    if isinstance(value, list):
        return [_with_variables(item) for item in value]
    if not isinstance(value, dict):
        return value
    inner = {key: _with_variables(item) for key, item in value.items()}
    if inner.get("type") not in _NOT_TEXT and not _LIMITS & inner.keys():
        return inner
    about = {key: inner.pop(key) for key in ("default", "description", "title") if key in inner}
    return {**about, "anyOf": [inner, _VARIABLE]}
