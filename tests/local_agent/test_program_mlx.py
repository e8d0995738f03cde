"""What stands before `mlx_lm.server`: it loads nothing and fetches nothing that a request names."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from local_agent.programs.iir_mlx import Guarded, Watched, Wrong, arguments, cleaned, has_left


def body(**fields: Any) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(cleaned(json.dumps(fields).encode()))
    return found


def test_nothing_that_is_loaded_is_left_in_a_request() -> None:
    asked = body(
        model="../other", draft_model="a/b", adapters="/etc", messages=[], top_p=0.5, seed=7
    )
    assert asked == {"messages": [], "top_p": 0.5, "seed": 7}


def test_stream_options_without_usage_are_completed() -> None:
    assert body(stream_options={})["stream_options"] == {"include_usage": False}
    assert body(stream_options={"include_usage": True})["stream_options"] == {"include_usage": True}


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "http://169.254.169.254/latest"}},
        {"type": "image_url", "image_url": "https://host.example/x.png"},
        {"type": "input_image", "image_url": "file:///etc/passwd"},
        {"type": "image", "image": "http://127.0.0.1:5000/"},
    ],
)
def test_a_picture_elsewhere_is_refused(part: dict[str, Any]) -> None:
    with pytest.raises(Wrong, match="nothing is fetched"):
        body(messages=[{"role": "user", "content": [{"type": "text", "text": "?"}, part]}])


def test_a_picture_in_the_request_goes_on() -> None:
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
    message = {"role": "user", "content": [part]}
    assert body(messages=[message])["messages"] == [message]


@pytest.mark.parametrize("raw", [b"{", b"[]", b"7", b"\xff", b"[" * 100_000])
def test_what_is_no_request_is_refused(raw: bytes) -> None:
    with pytest.raises(Wrong):
        cleaned(raw)


def test_its_own_arguments_are_not_the_server_s() -> None:
    options, rest = arguments(["--name", "org/m", "--model", "./qwen", "--port", "1"])
    assert (options.name, rest) == ("org/m", ["--model", "./qwen", "--port", "1"])


def test_generation_ends_between_two_tokens_when_the_client_has_left() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        inner = SimpleNamespace(generate=lambda: ("context", iter("abc")), is_healthy=True)
        watched = Watched(inner, ours)
        assert watched.is_healthy
        context, pieces = watched.generate()
        assert (context, next(pieces), has_left(ours)) == ("context", "a", False)
        theirs.close()
        assert has_left(ours)
        with pytest.raises(ConnectionResetError):
            next(pieces)


class FakeHandler(BaseHTTPRequestHandler):
    """What of `mlx_lm.server.APIHandler` is called and overridden, in its version 0.32.2."""

    generator: Any
    object_type = "text_completion"
    seen: list[dict[str, Any]]

    def __init__(self, *args: Any) -> None:
        self.response_generator = self.generator
        super().__init__(*args)

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append(asked)
        if asked.get("fails"):
            raise ValueError("max_tokens must be at least 0")
        if asked.get("breaks"):
            raise RuntimeError("of /home/somebody")
        answer = self.generate_response(asked)
        self._set_completion_headers(404 if asked.get("unknown") else 200)
        self.end_headers()
        self.wfile.write(json.dumps([answer, self.completion_usage_response()]).encode())

    def generate_response(self, asked: Any) -> dict[str, Any]:
        return {"model": asked.get("model", "default_model"), "system_fingerprint": "Linux-6.18"}

    def completion_usage_response(self) -> dict[str, Any]:
        return {"model": "default_model", "object": "chat.completion", "usage": {}}

    def _set_completion_headers(self, status_code: int = 200) -> None:
        self.send_response(status_code)


Ask = Callable[..., httpx.Response]


@pytest.fixture
def generator() -> Any:
    return SimpleNamespace(is_healthy=True, model_provider=SimpleNamespace(model=object()))


@pytest.fixture
def seen() -> list[dict[str, Any]]:
    return []


@pytest.fixture
def ask(generator: Any, seen: list[dict[str, Any]]) -> Iterator[Ask]:
    """Serve, and ask."""
    values = {"served_name": "org/m", "generator": generator, "seen": seen}
    handler = type("Handler", (Guarded, FakeHandler), values)
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    with httpx.Client(base_url=base, trust_env=False, timeout=30) as client:
        yield client.request
    server.shutdown()
    server.server_close()
    thread.join()


def test_it_answers_under_the_model_s_own_name(ask: Ask, seen: list[dict[str, Any]]) -> None:
    found = ask("POST", "/v1/completions", json={"model": "/etc", "prompt": "x"})
    assert found.status_code == 200
    assert seen == [{"prompt": "x"}]
    named = {"model": "org/m", "system_fingerprint": "mlx_lm"}
    assert found.json() == [named, {**named, "object": "text_completion", "usage": {}}]
    assert "access-control-allow-origin" not in found.headers


@pytest.mark.parametrize(
    ("asked", "status", "words"),
    [
        ({"fails": True}, 400, "max_tokens must be at least 0"),
        ({"breaks": True}, 500, "the engine failed: RuntimeError"),
        ({"messages": [{"content": [{"image": "http://x"}]}]}, 400, "nothing is fetched"),
    ],
)
def test_what_it_raises_is_an_answer(ask: Ask, asked: object, status: int, words: str) -> None:
    found = ask("POST", "/v1/chat/completions", json=asked)
    assert (found.status_code, found.json()["error"]["message"].endswith(words)) == (status, True)


def test_a_request_that_can_not_be_generated_for_is_no_unknown_model(ask: Ask) -> None:
    assert ask("POST", "/v1/completions", json={"unknown": True}).status_code == 400


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/metrics"),
        ("GET", "/v1/models/x"),
        ("POST", "/chat/completions"),
        ("OPTIONS", "/v1/completions"),
    ],
)
def test_there_is_nothing_else(
    ask: Ask, seen: list[dict[str, Any]], method: str, path: str
) -> None:
    assert ask(method, path).status_code == 404
    assert seen == []


def test_it_is_not_well_before_it_has_loaded(ask: Ask, generator: Any) -> None:
    assert ask("GET", "/health").status_code == 200
    generator.model_provider.model = None
    assert ask("GET", "/health").status_code == 503
    assert [model["id"] for model in ask("GET", "/v1/models").json()["data"]] == ["org/m"]
