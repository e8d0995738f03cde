"""A small image registry that serves one image as `docker save` gives it.

The parts of https://distribution.github.io/distribution/spec/api/ that a pull needs: a manifest, and the
blobs that it names. Container engines take 127.0.0.0/8 without TLS.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import re
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


class Registry:
    """Serves `NAME:TAG` on 127.0.0.1; `hold` keeps layers back after so many bytes while it is set."""

    def __init__(self, image: Any, name: str, tag: str) -> None:
        self.hold: int | None = None
        self.released = threading.Event()
        self._blobs: dict[str, bytes] = {}
        self._manifest = self._read(b"".join(image.save()))
        self._path = f"/v2/{name}/manifests/{tag}"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.registry = self  # type: ignore[attr-defined] # the handler finds it there
        self.port = int(self._server.server_address[1])
        self.image = f"127.0.0.1:{self.port}/{name}:{tag}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def release(self) -> None:
        """Send what was held back."""
        self.hold = None
        self.released.set()

    def close(self) -> None:
        """Stop serving."""
        self.release()
        self._server.shutdown()
        self._server.server_close()

    def find(self, path: str) -> tuple[str, bytes] | None:
        """Return the type and the bytes of what a path names."""
        if path == "/v2/":
            return "application/json", b"{}"
        digest = path.rpartition("/")[2]
        if path == self._path or ("/manifests/" in path and digest == _digest(self._manifest)):
            return _MANIFEST, self._manifest
        blob = self._blobs.get(digest) if "/blobs/" in path else None
        return None if blob is None else ("application/octet-stream", blob)

    def _read(self, saved: bytes) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(saved)) as archive:
            files = {each.name: each for each in archive.getmembers()}

            def content(name: str) -> bytes:
                found = files[name]
                if found.issym():  # layers that are the same
                    found = files[re.sub(r"^(\.\./)+", "", found.linkname)]
                source = archive.extractfile(found)
                assert source is not None
                return source.read()

            (listed,) = json.loads(content("manifest.json"))
            config = self._add(content(listed["Config"]), "container.image.v1+json")
            layers = [
                self._add(gzip.compress(content(name), 1, mtime=0), "image.rootfs.diff.tar.gzip")
                for name in listed["Layers"]
            ]
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": config,
            "layers": layers,
        }
        return json.dumps(manifest).encode()

    def _add(self, blob: bytes, kind: str) -> dict[str, Any]:
        digest = _digest(blob)
        self._blobs[digest] = blob
        media = f"application/vnd.docker.{kind}"
        return {"mediaType": media, "size": len(blob), "digest": digest}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Stay quiet."""

    def do_HEAD(self) -> None:
        self._serve(has_body=False)

    def do_GET(self) -> None:
        self._serve(has_body=True)

    def _serve(self, *, has_body: bool) -> None:
        registry = self.server.registry  # type: ignore[attr-defined] # see Registry
        found = registry.find(self.path)
        errors = {"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}
        kind, body = found or ("application/json", json.dumps(errors).encode())
        self.send_response_only(200 if found else 404)
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.send_header("docker-content-digest", _digest(body))
        self.end_headers()
        try:
            if has_body and "/blobs/" in self.path and registry.hold is not None:
                self.wfile.write(body[: registry.hold])
                body = body[registry.hold :]
                registry.released.wait(60)
            if has_body:
                self.wfile.write(body)
        except OSError:
            self.close_connection = True  # the engine has left


def _digest(blob: bytes) -> str:
    return f"sha256:{hashlib.sha256(blob).hexdigest()}"
