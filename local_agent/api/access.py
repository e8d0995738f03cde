"""Who may use the agent: programs on this machine, and the router with its access token."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from enum import Enum
from typing import TypeVar

from starlette.types import Scope

from shared.http.asgi import header, require_json
from shared.http.errors import Forbidden, Unauthorized
from shared.http.origin import OriginRules, is_local

Handler = TypeVar("Handler", bound=Callable[..., object])
_MARK = "iir_access"


class Need(str, Enum):
    """What a route needs."""

    NOTHING = "nothing"
    DATA = "data"
    CONTROL = "control"


class AgentAccess:
    """Answers one question: may this request do what its route does?"""

    def __init__(
        self, rules: OriginRules, access_token: str, public: frozenset[str] = frozenset()
    ) -> None:
        """Take who is trusted; `public` names the routes that everybody may ask (see `allow`)."""
        self._rules = rules
        self._token = access_token.encode()
        self._public = public

    def require(self, scope: Scope, need: Need) -> None:
        """Refuse a request that may not do what needs `need`.

        Raises:
            Unauthorized: it comes from elsewhere, without the router's token.
            Forbidden: a foreign web page sent it, or it wants to control from elsewhere.
            UnsupportedMediaType: a body that a web page could send without asking.
        """
        if need is Need.NOTHING:
            return
        if self._has_token(scope):
            if need is Need.CONTROL and not is_local(scope):
                raise Forbidden("The agent is controlled from its own machine only.")
            return
        if not is_local(scope):
            raise Unauthorized(
                "This agent answers its router and programs on its own machine only."
            )
        self._rules.check_origin(scope)
        if scope["method"] == "POST":
            require_json(scope)

    def check_route(self, scope: Scope) -> None:
        """Refuse a request that may not do what its FastAPI route does, as `allow` declares."""
        mark = getattr(scope.get("endpoint"), _MARK, None)
        if mark is None:
            raise Forbidden("This route is not open to anybody.")
        self.check(scope, *mark)

    def check(self, scope: Scope, needed: Need, name: str = "") -> None:
        """Refuse a request that may not do what a route does which needs this; see `require`."""
        self.require(scope, Need.NOTHING if name in self._public else needed)

    def _has_token(self, scope: Scope) -> bool:
        given = header(scope, b"authorization") or b""
        return hmac.compare_digest(given, b"Bearer " + self._token)


def allow(need: Need, name: str = "") -> Callable[[Handler], Handler]:
    """Declare what a FastAPI route needs.

    `name` is what `AGENT_PUBLIC_ROUTES` may list to open it.
    """

    def mark(handler: Handler) -> Handler:
        setattr(handler, _MARK, (need, name))
        return handler

    return mark
