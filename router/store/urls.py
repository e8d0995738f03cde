"""Base URLs of providers: what form they may have in the registry."""

from __future__ import annotations

from router.store.errors import InvalidValue
from shared.http import base_url as base_urls


def normalise(base_url: str) -> str:
    """Return `base_url` in the one form that the registry stores: no trailing slash.

    Raises:
        InvalidValue: it is no http or https URL with a host, or holds more than address and path.
    """
    try:
        return base_urls.normalise(base_url)
    except ValueError as error:
        hint = "; name a --key-env instead" if "password" in str(error) else ""
        raise InvalidValue(f"{error}{hint}") from None
