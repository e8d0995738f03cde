"""Whether Kubernetes would take an object: its own schemas, and ours for what comes as a CRD."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
from kubernetes_validate.utils import schema_contents
from referencing import Registry, Resource

from tests.chart.rendering import Object

VERSIONS = ("1.29", "1.30", "1.31", "1.32", "1.33", "1.34", "1.35")
SCHEMAS = Path(__file__).parent / "schemas"
_CORE = {
    "v1",
    "apps/v1",
    "autoscaling/v2",
    "networking.k8s.io/v1",
    "policy/v1",
    "rbac.authorization.k8s.io/v1",
}


def is_core(one: Object) -> bool:
    """Return whether Kubernetes itself knows an object's kind."""
    return one["apiVersion"] in _CORE


def check(one: Object, kubernetes: str) -> None:
    """Check an object.

    Raises:
        jsonschema.ValidationError: a field is unknown, missing, or holds what it may not.
    """
    if is_core(one):
        _validator(one["kind"], one["apiVersion"], kubernetes).validate(one)
    else:
        _own_validator(one["kind"]).validate(one)


@cache
def _validator(kind: str, api_version: str, kubernetes: str) -> Any:
    """Return the check of one kind; `kubernetes_validate` itself reads a megabyte for each object."""
    folder = f"kubernetes-json-schema/v{kubernetes}.0-local-strict"
    group, _, version = api_version.rpartition("/")
    name = "-".join(filter(None, (kind.lower(), group.partition(".")[0], version)))
    schema = schema_contents(f"{folder}/{name}.json", kubernetes)
    registry = Resource.from_contents(schema) @ _definitions(folder, kubernetes)
    return jsonschema.Draft202012Validator(schema, registry=registry)


@cache
def _definitions(folder: str, kubernetes: str) -> Any:
    found: Registry[Any] = Registry()
    return (
        Resource.from_contents(schema_contents(f"{folder}/_definitions.json", kubernetes)) @ found
    )


@cache
def _own_validator(kind: str) -> Any:
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{kind}.json").read_text()))
