"""The programs in C: they compile, the mock answers as OpenAI would, the clients count right."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from benchmarks import native
from benchmarks.native import Load, Upstream
from tests.threaded import served_by

pytestmark = pytest.mark.skipif(not native.has_compiler(), reason=native.NO_COMPILER)
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="session")
def programs() -> Path:
    return native.build()


@pytest.fixture
def upstream(programs: Path) -> Iterator[Upstream]:
    running = Upstream(programs)
    yield running
    running.stop()


@pytest.fixture
def load(programs: Path) -> Load:
    return Load(programs)


def post(port: int, content: dict[str, object]) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", CHAT, json.dumps(content))
    response = connection.getresponse()
    body = response.read()
    connection.close()
    return response, body


def body_file(folder: Path, **more: object) -> Path:
    path = folder / "body.json"
    path.write_text(json.dumps({"model": "m", "messages": [], **more}))
    return path


def test_what_is_built_is_not_built_again(tmp_path: Path) -> None:
    folder = native.build(tmp_path)
    built = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert set(built) == set(native.PROGRAMS)
    assert native.build(tmp_path) == folder
    assert {path.name: path.stat().st_mtime_ns for path in folder.iterdir()} == built


def test_the_mock_answers_a_chat(upstream: Upstream) -> None:
    response, body = post(upstream.port, {"model": "m", "messages": []})
    assert (response.status, response.getheader("content-type")) == (200, "application/json")
    answer = json.loads(body)
    assert answer["object"] == "chat.completion"
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["usage"]["total_tokens"] == 44


def test_the_mock_streams_as_many_chunks_as_it_was_told(upstream: Upstream) -> None:
    upstream.shape(chunks=5, delay_us=1000)
    response, body = post(upstream.port, {"model": "a/b", "stream": True})
    assert (response.getheader("content-type") or "").startswith("text/event-stream")
    *events, done, rest = body.decode().split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["model"] for chunk in chunks} == {"a/b"}
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0]["role"] == "assistant"
    assert [delta.get("content", "")[:1] for delta in deltas] == ["@", "@", "@", "@", ""]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


def test_the_mock_reads_chunked_bodies_and_keeps_the_connection(upstream: Upstream) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=10)
    for _ in range(2):
        pieces = iter([b'{"model": "m", ', b'"stream": ', b"true}"])
        connection.request("POST", CHAT, pieces, encode_chunked=True)
        assert connection.getresponse().read().endswith(b"data: [DONE]\n\n")
    connection.close()


def test_the_load_client_counts_what_the_upstream_served(
    upstream: Upstream, load: Load, tmp_path: Path
) -> None:
    answer = load.requests(
        upstream.port, CHAT, body_file(tmp_path), key="k", connections=4, seconds=0.2
    )
    connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=10)
    connection.request("GET", "/stats")
    served = json.loads(connection.getresponse().read())["requests"] - 1  # this question
    connection.close()
    assert (answer["non_2xx"], answer["errors"]) == (0, 0)
    assert answer["requests"] == served > 10
    assert 0 < answer["p50_us"] <= answer["p90_us"] <= answer["p99_us"] <= answer["max_us"]


class Scripted(BaseHTTPRequestHandler):
    """Answers by what the bearer key says: `chunked`, `refuse` or `hang-up`."""

    protocol_version = "HTTP/1.1"
    seen: dict[str, int]

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        word = self.headers["authorization"].removeprefix("Bearer ")
        self.seen[word] = self.seen.get(word, 0) + 1
        if word == "hang-up":
            self.close_connection = True
        elif word == "chunked":
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            self.wfile.write(b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        else:
            self.send_response(429)
            self.send_header("content-length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def scripted() -> Iterator[tuple[int, dict[str, int]]]:
    seen: dict[str, int] = {}
    handler = type("Handler", (Scripted,), {"seen": seen})
    with served_by(handler) as port:
        yield port, seen


@pytest.mark.parametrize(
    ("word", "counter"), [("chunked", "requests"), ("refuse", "non_2xx"), ("hang-up", "errors")]
)
def test_the_load_client_tells_answers_from_refusals_and_breaks(
    scripted: tuple[int, dict[str, int]], load: Load, tmp_path: Path, word: str, counter: str
) -> None:
    port, seen = scripted
    answer = load.requests(port, "/", body_file(tmp_path), key=word, connections=1, seconds=0.2)
    counts = {name: answer[name] for name in ("requests", "non_2xx", "errors")}
    assert counts == {"requests": 0, "non_2xx": 0, "errors": 0, counter: seen[word]}
    assert seen[word] > 0


def test_the_stream_client_counts_streams_and_chunks(
    upstream: Upstream, load: Load, tmp_path: Path
) -> None:
    upstream.shape(chunks=6, delay_us=2000)
    body = body_file(tmp_path, stream=True)
    answer = load.streams(upstream.port, CHAT, body, key="k", count=8, timeout_s=10)
    assert (answer["finished"], answer["failed"], answer["unfinished"]) == (8, 0, 0)
    assert answer["chunks"] == 8 * 5  # the last chunk of a stream has no content, so no stamp
    assert 0 < answer["lag_p50_us"] <= answer["lag_p99_us"]


def test_an_answer_that_is_no_stream_has_failed(
    upstream: Upstream, load: Load, tmp_path: Path
) -> None:
    answer = load.streams(upstream.port, CHAT, body_file(tmp_path), key="k", count=2, timeout_s=1)
    assert answer["finished"] == 0
    assert answer["failed"] + answer["unfinished"] == 2
