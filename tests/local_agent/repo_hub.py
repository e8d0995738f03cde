"""A small model hub: a repository's files with their digests, ranges, gates and breaks.

It needs the standard library only, so that it also runs in a container: `python3 repo_hub.py PORT
{"hold": 1000}`.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c" * 40
TOKEN = "hf_made_up_for_this_test"
WEIGHTS = bytes(range(256)) * 12_000
TINY = {
    "config.json": b'{"model_type": "tiny"}',
    "tokenizer.json": b"{}",
    "README.md": b"no engine reads me",
    "model.safetensors": WEIGHTS,
}
LOADED = {name: content for name, content in TINY.items() if name != "README.md"}
"""What an engine loads of it, and nothing else comes."""
SIZE = sum(len(content) for content in LOADED.values())


class FakeHub:
    """Serves `org/tiny`; the fields say how it behaves from now on.

    `cut` is where each answer with weights ends early; `hold` keeps weights back after that many bytes,
    until it is set to None; `asked` are the paths and ranges that were asked for.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self.files = dict(TINY)
        self.is_gated = False
        self.is_lying = False
        self.is_loud = False
        self.cut: int | None = None
        self.hold: int | None = None
        self.released = threading.Event()
        self.asked: list[tuple[str, str | None]] = []
        self.tokens: set[str | None] = set()
        self._server = ThreadingHTTPServer((host, port), _Handler)
        self._server.hub = self  # type: ignore[attr-defined] # the handler finds it there
        self.url = f"http://{host}:{self._server.server_address[1]}"

    def __enter__(self) -> FakeHub:  # noqa: PYI034 - typing has no Self before Python 3.11
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Serve in a thread."""
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        """Serve until it is closed."""
        self._server.serve_forever(poll_interval=0.01)

    def release(self) -> None:
        """Send what was held back."""
        self.hold = None
        self.released.set()

    def close(self) -> None:
        """Stop serving."""
        self.release()
        self._server.shutdown()
        self._server.server_close()

    def info(self) -> dict[str, Any]:
        """Describe the repository as the hub's API does."""
        return {"sha": COMMIT, "siblings": [self._sibling(name) for name in self.files]}

    def digest(self, name: str) -> str:
        """Return a file's digest: its SHA-256 if it is large, else git's."""
        content = self.files[name] + (b"?" if self.is_lying else b"")
        if name.endswith((".safetensors", ".gguf")):
            return hashlib.sha256(content).hexdigest()
        return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

    def _sibling(self, name: str) -> dict[str, Any]:
        size, digest = len(self.files[name]), self.digest(name)
        is_large = name.endswith(".safetensors")
        more = {"lfs": {"sha256": digest, "size": size}} if is_large else {"blobId": digest}
        return {"rfilename": name, "size": size, **more}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Stay quiet."""

    @property
    def hub(self) -> FakeHub:
        found = self.server.hub  # type: ignore[attr-defined] # see FakeHub
        assert isinstance(found, FakeHub)
        return found

    def do_HEAD(self) -> None:
        self._serve(has_body=False)

    def do_GET(self) -> None:
        self._serve(has_body=True)

    def _serve(self, *, has_body: bool) -> None:
        hub = self.hub
        hub.asked.append((self.path, self.headers.get("range")))
        if hub.is_loud:
            sys.stdout.write(f"{self.path} {self.headers.get('range')}\n")
            sys.stdout.flush()  # for `docker logs`
        hub.tokens.add(self.headers.get("authorization"))
        if hub.is_gated and self.headers.get("authorization") != f"Bearer {TOKEN}":
            self._answer(401, b"", has_body=has_body)
        elif self.path.startswith("/api/models/org/tiny/revision/main"):
            self._answer(200, json.dumps(hub.info()).encode(), has_body=has_body)
        elif found := re.fullmatch(r"/org/tiny/resolve/(?:main|c{40})/([\w.]+)", self.path):
            self._file(found[1], has_body=has_body)
        else:
            self._answer(404, b"", has_body=has_body)

    def _file(self, name: str, *, has_body: bool) -> None:
        if name not in self.hub.files:
            self._answer(404, b"", has_body=has_body)
            return
        content, digest = self.hub.files[name], self.hub.digest(name)
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("range", ""))
        start = int(found[1]) if found else 0
        headers = {
            "etag": f'"{digest}"',
            "x-linked-etag": f'"{digest}"',
            "x-linked-size": str(len(content)),
            "x-repo-commit": COMMIT,
        }
        if start:
            headers["content-range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._answer(206 if start else 200, content[start:], headers, has_body=has_body)

    def _answer(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, *, has_body: bool
    ) -> None:
        self.send_response_only(status)
        for name, value in {**(headers or {}), "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        hub, is_large = self.hub, len(body) > 100_000
        try:
            if has_body and is_large and hub.hold is not None:
                self.wfile.write(body[: hub.hold])
                body = body[hub.hold :]
                hub.released.wait(30)
            if has_body and is_large and hub.cut is not None:
                self.wfile.write(body[: hub.cut])
                self.close_connection = True
            elif has_body:
                self.wfile.write(body)
        except OSError:
            self.close_connection = True  # the client has left


if __name__ == "__main__":
    hub = FakeHub("0.0.0.0", int(sys.argv[1]))
    for name, value in json.loads(sys.argv[2]).items():
        setattr(hub, name, value)
    hub.serve()
