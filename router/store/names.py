"""What names in the registry may look like."""

from __future__ import annotations

import re
from typing import Final

from router.store.errors import InvalidValue

_LABEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_MOST_MODEL = 256


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
    raise InvalidValue(f"the {what} must be 1 to {_MOST_MODEL} printable characters without spaces")


def is_model_name(value: object) -> bool:
    """Tell whether clients could send `value` as `model`. Slashes are fine."""
    if not isinstance(value, str) or not 1 <= len(value) <= _MOST_MODEL:
        return False
    return all(c.isprintable() and not c.isspace() for c in value)
