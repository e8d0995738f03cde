"""Who may do what. Decided by the route, from the snapshot; whatever declares nothing is refused.

Never by `request.url`: a malformed Host header makes it differ from what was routed
(CVE-2026-48710), so nothing here reads a path.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import TypeVar

import msgspec
from starlette.types import Scope as AsgiScope

from router.domain import ApiKey, KeyId, Scope, ShownCredential
from router.fleet.registry import Fleet
from shared.http.asgi import header
from shared.http.errors import Forbidden, Unauthorized
from shared.http.origin import OriginRules, is_local

Handler = TypeVar("Handler", bound=Callable[..., object])
_MARK = "iir_access"
_PREFIX_LENGTH = 8
_KEY_START = "sk-iir-"
_LONGEST_KEY = 256
_HINTS = {Scope.ADMIN: " --scope admin (or open the page: ROUTER_PUBLIC_ROUTES=docs,metrics)"}


class Caller(msgspec.Struct, frozen=True):
    """Who sent a request: a key, or anybody on this machine in open mode.

    `agent` is there if it is an agent; `is_next` if that uses the credential which follows its
    present one.
    """

    key_id: KeyId | None = None
    agent: ShownCredential | None = None
    name: str = ""
    is_next: bool = False


class Access:
    """Answers one question: may this request do what its route does?"""

    def __init__(self, fleet: Fleet, rules: OriginRules, public: frozenset[str]) -> None:
        self._fleet = fleet
        self._rules = rules
        self._public = public

    @property
    def stamp(self) -> int:
        """Return what is another number once keys, or anything else of the catalog, have changed."""
        return self._fleet.catalog.version

    def is_open(self, scope: AsgiScope) -> bool:
        """Tell whether no key is needed: none was ever made, and both ends are on loopback."""
        return self._fleet.catalog.is_open and is_local(scope)

    def require(self, scope: AsgiScope, needed: Scope) -> Caller:
        """Return the caller, or refuse.

        Raises:
            Unauthorized: no key, or none that is known.
            Forbidden: a known key without the scope `needed`, or a foreign page in open mode.
        """
        if needed is not Scope.AGENT and self.is_open(scope):
            self._rules.check_origin(scope)
            return Caller()
        key = self._key(scope, needed)
        if needed not in key.scopes:
            raise Forbidden(
                f"This key may not do that: it lacks the scope {needed.value!r}. Make one with: "
                f"iir keys create --name NAME --scope {needed.value}"
            )
        agent = None if key.agent is None else ShownCredential(int(key.agent), key.prefix)
        return Caller(key.id, agent, key.name, key.is_next)

    def agent_of(self, scope: AsgiScope) -> Caller | None:
        """Return the agent whose credential came with a request that needs none, if one did."""
        try:
            return self.require(scope, Scope.AGENT)
        except (Unauthorized, Forbidden):
            return None

    def check_route(self, scope: AsgiScope) -> Caller | None:
        """Return who may do what a FastAPI route does, as `allow` declares; None if it is open to everybody.

        Raises:
            ApiError: see `require`.
        """
        mark = getattr(scope.get("endpoint"), _MARK, None)
        if mark is None:
            raise Forbidden("This route is not open to anybody.")
        return self.check(scope, *mark)

    def check(self, scope: AsgiScope, needed: Scope | None, name: str = "") -> Caller | None:
        """Return the caller of a route that needs this; None if it is open to everybody.

        Raises:
            ApiError: see `require`.
        """
        return None if needed is None or name in self._public else self.require(scope, needed)

    def _key(self, scope: AsgiScope, needed: Scope) -> ApiKey:
        given = header(scope, b"authorization")
        if given is None and (key := header(scope, b"x-api-key")) is not None:
            given = b"Bearer " + key  # Anthropic's SDK sends its keys like this
        if given is None:
            raise Unauthorized(
                "An API key is needed: send `Authorization: Bearer sk-iir-…`. Make one on the "
                f"router's machine with: iir keys create --name NAME{_HINTS.get(needed, '')}"
            )
        scheme, _, token = given.partition(b" ")
        found = self._find(token.strip()) if scheme.lower() == b"bearer" else None
        if found is None:
            raise Unauthorized(
                "This API key is not known here, or it was revoked. List keys with: iir keys list; "
                f"make one with: iir keys create --name NAME{_HINTS.get(needed, '')}"
            )
        return found

    def _find(self, token: bytes) -> ApiKey | None:
        if len(token) > _LONGEST_KEY:
            return None
        text = token.decode("latin-1")
        start = len(_KEY_START)
        key = self._fleet.catalog.keys.get(text[start : start + _PREFIX_LENGTH])
        # an unknown prefix costs the same comparison as a known one
        digest = key.digest if key is not None else "0" * 64
        matches = hmac.compare_digest(hashlib.sha256(token).hexdigest(), digest)
        return key if matches else None


def allow(needed: Scope | None, name: str = "") -> Callable[[Handler], Handler]:
    """Declare what a FastAPI route needs; None: nothing.

    `name` is what `ROUTER_PUBLIC_ROUTES` may list to open it.
    """

    def mark(handler: Handler) -> Handler:
        setattr(handler, _MARK, (needed, name))
        return handler

    return mark
