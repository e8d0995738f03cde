"""Who a request is for, as far as an upstream that shares fairly among tenants may know."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256

from router.domain import ApiKey, KeyId

_LENGTH = 16


class Tenants:
    """Names for keys' owners: always the same for a key, on every router, and nothing leads back to it.

    They are made when they are first asked for: most models have no use for them.
    """

    def __init__(self) -> None:
        """Know nobody."""
        self._keys: Mapping[str, ApiKey] = {}
        self._digests: dict[KeyId, str] | None = None
        self._names: dict[KeyId, str] = {}

    def swap(self, keys: Mapping[str, ApiKey]) -> None:
        """Take the keys of a new snapshot."""
        self._keys = keys
        self._digests = None
        self._names = {}

    def of(self, key: KeyId | None) -> str | None:
        """Return the name for a key's owner; None for nobody in particular (open mode)."""
        if key is None:
            return None
        known = self._names.get(key)
        if known is None:
            known = self._names[key] = self._made(key)
        return known

    def _made(self, key: KeyId) -> str:
        if self._digests is None:
            self._digests = {each.id: each.digest for each in self._keys.values()}
        # a key that was revoked while its request was on its way has no digest any more
        source = f"fairness {self._digests.get(key, key)}"
        return sha256(source.encode()).hexdigest()[:_LENGTH]
