"""The program that an `mlx_lm` worker runs: `mlx_lm.server`, held to one model and to what it was given.

By itself that server loads whatever model, adapter or draft model a request names, fetches pictures from
any address, quotes requests in its log, and is "ok" before it has loaded anything.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import select
import socket
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from http.server import BaseHTTPRequestHandler
from typing import Any

_LOOPBACK = "127.0.0.1"
_MOST_BODY_BYTES = 32 * 1024 * 1024
_GENERATING = frozenset({"/v1/chat/completions", "/v1/completions"})
_FOREIGN = ("model", "draft_model", "adapters")
"""Fields of a request by which the server would load something."""


class Wrong(ValueError):
    """A request that is answered with 400; the message says why."""


def arguments(argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Parse what is ours; the rest is for `mlx_lm.server`."""
    parser = argparse.ArgumentParser(prog="iir_mlx", allow_abbrev=False)
    parser.add_argument("--name", required=True, help="the name to serve under")
    return parser.parse_known_args(argv)


def cleaned(raw: bytes) -> bytes:
    """Return the request without what would load something or fetch something.

    Raises:
        Wrong: it is no request, or names a picture that would have to be fetched.
    """
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError):
        raise Wrong("the request is no JSON") from None
    if not isinstance(body, dict):
        raise Wrong("the request must be a JSON object")
    for message in body.get("messages") or ():
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if _is_fetched(part):
                raise Wrong("pictures are taken as data: URLs only; nothing is fetched")
    options = body.get("stream_options")
    if isinstance(options, dict):
        # the server takes for granted that it is there
        body["stream_options"] = {**options, "include_usage": bool(options.get("include_usage"))}
    return json.dumps({k: v for k, v in body.items() if k not in _FOREIGN}).encode()


def _is_fetched(part: Any) -> bool:
    found = part.get("image_url", part.get("image")) if isinstance(part, dict) else None
    url = found.get("url") if isinstance(found, dict) else found
    return url is not None and not str(url).startswith("data:")


def has_left(connection: socket.socket) -> bool:
    """Tell whether the client has closed its side; it sends nothing after its request."""
    try:
        readable, _, _ = select.select([connection], [], [], 0)
        return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""
    except (OSError, ValueError):
        return True


class Watched:
    """The server's generator, which stops between two tokens when the client has left."""

    def __init__(self, inner: Any, connection: socket.socket) -> None:
        """Watch the connection of one request."""
        self._inner = inner
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def generate(self, *args: Any, **kwargs: Any) -> tuple[Any, Iterator[Any]]:
        """Return the context and the pieces."""
        context, pieces = self._inner.generate(*args, **kwargs)
        return context, self._while_connected(pieces)

    def _while_connected(self, pieces: Iterator[Any]) -> Iterator[Any]:
        for piece in pieces:
            if has_left(self._connection):
                raise ConnectionResetError  # the server then tells the model to stop
            yield piece


class Guarded(BaseHTTPRequestHandler):
    """What stands before `mlx_lm.server.APIHandler`: the part of it that the server lacks."""

    served_name: str
    response_generator: Any
    object_type: str
    has_begun = False

    def do_GET(self) -> None:
        """Tell health and the list; nothing of the rest."""
        if self.path == "/health":
            self._tell_health()
        elif self.path == "/v1/models":
            self._say(
                200, {"object": "list", "data": [{"id": self.served_name, "object": "model"}]}
            )
        else:
            self._say(404, _error("there is no such route"))

    def do_OPTIONS(self) -> None:
        """Web pages have no business here."""
        self._say(404, _error("there is no such route"))

    def do_POST(self) -> None:
        """Generate, for the routes that do."""
        if self.path not in _GENERATING:
            self._say(404, _error("there is no such route"))
            return
        generator = self.response_generator
        try:
            body = cleaned(self._body())
            self.rfile = io.BytesIO(body)
            self.headers.replace_header("Content-Length", str(len(body)))
            self.response_generator = Watched(generator, self.connection)
            super().do_POST()  # type: ignore[misc] # the server has it
        except ConnectionError:
            self.close_connection = True
        except Exception as error:  # noqa: BLE001 - its checks raise whatever they raise
            self._refuse(error)
        finally:
            self.response_generator = generator

    def generate_response(self, *args: Any, **kwargs: Any) -> Any:
        """Return the server's answer under the model's own name."""
        return self._named(super().generate_response(*args, **kwargs))  # type: ignore[misc] # likewise

    def completion_usage_response(self, *args: Any, **kwargs: Any) -> Any:
        """Return the last event of a stream, with the kind that the others have."""
        found = super().completion_usage_response(*args, **kwargs)  # type: ignore[misc] # likewise
        return self._named({**found, "object": self.object_type})

    def send_response(self, code: int, message: str | None = None) -> None:
        """Note that the answer has begun."""
        self.has_begun = True
        super().send_response(code, message)

    def _named(self, answer: dict[str, Any]) -> dict[str, Any]:
        # its own fingerprint tells the host's kernel
        return {**answer, "model": self.served_name, "system_fingerprint": "mlx_lm"}

    def _set_completion_headers(self, status_code: int = 200) -> None:
        # 404 is what it says of every request that it can't generate for
        status = 400 if status_code == 404 else status_code
        super()._set_completion_headers(status)  # type: ignore[misc] # likewise

    def _set_cors_headers(self) -> None:
        """Web pages have no business here."""

    def log_message(self, *_: Any) -> None:
        """No line for each request."""

    def _body(self) -> bytes:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MOST_BODY_BYTES:
            raise Wrong("the request needs a content-length, of 32 MiB at most")
        return bytes(self.rfile.read(int(length)))

    def _tell_health(self) -> None:
        generator = self.response_generator
        if not generator.is_healthy:
            sys.stderr.write("error: the model can't be loaded, or MLX has failed\n")
            sys.stderr.flush()
            os._exit(1)  # nothing would ever be generated: the agent begins anew
        is_loaded = generator.model_provider.model is not None
        self._say(200 if is_loaded else 503, {"status": "ok" if is_loaded else "loading"})

    def _refuse(self, error: Exception) -> None:
        if self.has_begun:
            self.close_connection = True
            return
        is_wrong = isinstance(error, ValueError | AssertionError | TypeError | KeyError)
        text = str(error) if is_wrong else f"the engine failed: {type(error).__name__}"
        self._say(400 if is_wrong else 500, _error(text, is_wrong=is_wrong))

    def _say(self, status: int, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _error(message: str, *, is_wrong: bool = True) -> dict[str, Any]:
    kind = "invalid_request_error" if is_wrong else "server_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def main(argv: Sequence[str] | None = None) -> None:
    """Run `mlx_lm.server` until SIGTERM, whose default action ends the process at once."""
    options, rest = arguments(sys.argv[1:] if argv is None else argv)
    server: Any = importlib.import_module("mlx_lm.server")
    handler = type("Handler", (Guarded, server.APIHandler), {"served_name": options.name})
    # the version is pinned, and has no other place for a handler
    run = server._run_http_server  # noqa: SLF001
    server._run_http_server = partial(run, handler_class=handler)  # noqa: SLF001
    sys.argv = ["mlx_lm.server", *rest]
    server.main()


if __name__ == "__main__":
    main()
