"""The inference routes of both services as plain ASGI in front of FastAPI: the hot path."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from starlette.types import ASGIApp, Receive, Scope, Send

from shared.contracts.apis import INFERENCE_PATHS, MESSAGES_PATHS
from shared.http.anthropic_errors import REQUEST_ID, anthropic_error_body
from shared.http.asgi import route_path
from shared.http.errors import ApiError, MethodNotAllowed
from shared.http.guard import RequestContext, request_context
from shared.http.keep_alive import KeepAlive, takes_comments
from shared.http.streams import STREAM_RULES


class InferenceFront(ABC):
    """Serves the inference paths, with and without `/v1` before them; hands everything else on."""

    def __init__(self, rest: ASGIApp, *, keep_alive_s: float, further: Iterable[str] = ()) -> None:
        """Stand in front of `rest`.

        Args:
            rest: what serves all other paths.
            keep_alive_s: how often a stream's client gets a comment while it waits; 0: never.
            further: paths that are served too, as they are.
        """
        self._rest = rest
        self._keep_alive_s = keep_alive_s
        self.paths = {f"{base}{path}": path for path in INFERENCE_PATHS for base in ("/v1", "")}
        self.paths.update({path: path for path in further})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI)."""
        path = self.paths.get(route_path(scope)) if scope["type"] == "http" else None
        if path is None:
            await self._rest(scope, receive, send)
            return
        self.set_id_header(path, request_context(scope))
        try:
            if scope["method"] != "POST":
                allow = (("allow", "POST"),)
                raise MethodNotAllowed(f"Use POST for {scope['path']}.", headers=allow)
            await self._serve(scope, receive, send, path)
        except ApiError as error:
            if path in MESSAGES_PATHS:
                error.reshape(anthropic_error_body(error))
            raise

    @staticmethod
    def set_id_header(path: str, context: RequestContext) -> None:
        """Tell where SDKs look for the id of a request to `path`."""
        if path in MESSAGES_PATHS:
            context.id_header = REQUEST_ID

    @abstractmethod
    async def _serve(self, scope: Scope, receive: Receive, send: Send, path: str) -> None:
        """Serve a POST to an inference path, given without `/v1`, or to a further one."""

    def _waiting(self, scope: Scope, send: Send, path: str, *, is_stream: bool) -> KeepAlive:
        """Return what keeps the client of a stream waiting; whole answers have no comments."""
        if not is_stream:
            return KeepAlive(send, every_s=0.0, error_event=ApiError.event)
        every_s = self._keep_alive_s if takes_comments(scope) else 0.0
        return KeepAlive(send, every_s=every_s, error_event=STREAM_RULES[path].error_event)
