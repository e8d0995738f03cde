"""What names in the registry may look like."""

from __future__ import annotations

import re
from typing import Final

from router.domain import LONGEST_MODEL, is_model_name
from router.store.errors import InvalidValue

_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
# What Kubernetes takes as the name of an object (RFC 1123, subdomain).
_OBJECT: Final = re.compile(r"[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def label(value: str, what: str) -> str:
    """Return `value` if it can name a provider, key or agent.

    Raises:
        InvalidValue: it can't; `what` says in the message whose name it is.
    """
    if not _LABEL.fullmatch(value):
        raise InvalidValue(
            f"the {what} must be 1 to 64 letters, digits, dots, dashes or underscores, "
            "the first a letter or digit"
        )
    return value


def variable(value: str) -> str:
    """Return `value` if it can name an environment variable, else raise `InvalidValue`."""
    if not _VARIABLE.fullmatch(value):
        raise InvalidValue("the key's environment variable must be letters, digits and underscores")
    return value


def model_name(value: str, what: str = "model id") -> str:
    """Return `value` if clients could send it as `model`, else raise `InvalidValue`."""
    if is_model_name(value):
        return value
    raise InvalidValue(
        f"the {what} must be 1 to {LONGEST_MODEL} printable characters without spaces"
    )


def object_name(value: str, what: str) -> str:
    """Return `value` if it can name an object of Kubernetes, else raise `InvalidValue`."""
    if not _OBJECT.fullmatch(value):
        raise InvalidValue(
            f"the {what} must be the name of an object of Kubernetes: small letters, digits, dots and "
            "dashes, the first and the last a letter or digit"
        )
    return value
