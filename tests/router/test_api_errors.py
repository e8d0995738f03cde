"""Requests that can't be served: each gets an error that says what to do, in the one envelope."""

from __future__ import annotations

import gzip
import json
from typing import Any

import anyio
import pytest

from shared.testing.raw_client import call_raw, connected, render_request
from tests.router.harness import StartRouter
from tests.router.scenes import CHAT, chat, error_of, one_engine

JSON = {"content-type": "application/json"}
HEADS = ("/v1/models", "/v1/models/tiny", "/health", "/livez", "/readyz", "/metrics")
GETS = (*HEADS, "/docs")
POSTS = (CHAT, "/v1/completions", "/v1/embeddings")


async def test_what_does_not_exist(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        unknown = (
            *("/", "/v1", "/v1/", "/v2/models", "/v1/chat", "/v1/responses", "/favicon.ico"),
            *(f"{path}/" for path in (*POSTS, "/v1/models", "/health", "/docs", "/metrics")),
            *("/docs/oauth2-redirect", "/docs/..%2f..%2fetc/passwd", "/redoc", "/openapi.json/"),
            *("/v1/models/none", "/v1/models/a/b/c", "/x" * 2000, "/%0d%0aset-cookie:x", "/\u00e4"),
        )
        for path in unknown:
            for method in ("GET", "POST"):
                answer = await scene.client.request(method, path, json=chat())
                assert answer.status_code in {404, 405}, (method, path)
                error_of(answer)
                assert "set-cookie" not in answer.headers
                assert "location" not in answer.headers
        model = await scene.client.get("/v1/models/none")
        assert error_of(model)["code"] == "model_not_found"
        assert error_of(model)["param"] == "model"


async def test_other_methods(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        for paths, allowed in ((GETS, "GET"), (POSTS, "POST")):
            for path in paths:
                for method in ("GET", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH", "POST", "TRACE"):
                    if method == allowed or (method == "HEAD" and path in HEADS):
                        continue
                    answer = await scene.client.request(method, path)
                    assert answer.status_code == 405, (method, path)
                    assert allowed in answer.headers["allow"]
                    assert answer.headers["x-request-id"]
                    if method == "HEAD":
                        assert answer.content == b""
                    else:
                        assert error_of(answer)["code"] == "method_not_allowed"
                        assert allowed in answer.json()["error"]["message"]
        put = await scene.client.get("/internal/v1/agents/x")
        assert (put.status_code, put.headers["allow"]) == (405, "PUT")
        assert scene.engine.requests == []


BAD_BODIES: list[tuple[bytes, str, str | None]] = [
    (b"", "invalid_json", None),
    (b"{", "invalid_json", None),
    (b"[]", "invalid_json", None),
    (b'"tiny"', "invalid_json", None),
    (b'{"model":"tiny","x":NaN}', "invalid_json", None),
    (b'{"model":"tiny","x":"\xff"}', "invalid_json", None),
    (b'{"model":"tiny","x":"\\ud800"}', "invalid_json", None),
    (b'{"model":"tiny","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "invalid_json", None),
    (b"{}", "invalid_request", "model"),
    (b'{"model":null}', "invalid_request", "model"),
    (b'{"model":7}', "invalid_request", "model"),
    (b'{"model":""}', "invalid_request", "model"),
    (b'{"model":"' + b"x" * 300 + b'"}', "invalid_request", "model"),
    (b'{"model":"tiny","stream":"yes"}', "invalid_request", "stream"),
    (b'{"model":"tiny","stream":1}', "invalid_request", "stream"),
]


async def test_bodies_that_are_no_requests(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        for body, code, param in BAD_BODIES:
            for path in POSTS:
                answer = await scene.client.post(path, content=body, headers=JSON)
                error = error_of(answer)
                shown = (answer.status_code, error["code"], error["param"])
                assert shown == (400, code, param), body[:40]
                assert answer.headers["x-iir-error-origin"] == "client"
        assert scene.engine.requests == []


async def test_what_only_the_upstream_can_judge_goes_there(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        for raw in (b"9" * 5000, b"1e999", b"-0", b'{"a":1,"a":2}'):
            body = b'{"model":"tiny","messages":[{"role":"user","content":"a"}],"x":' + raw + b"}"
            answer = await scene.client.post(CHAT, content=body, headers=JSON)
            assert "x-iir-endpoint" in answer.headers  # whatever the engine makes of it
            assert raw in scene.engine.requests[-1].raw


NAMES = [
    "unknown",
    "ünknown 模型",
    "a\nb",
    "<script>",
    "x" * 256,
    "../../etc/passwd",
    "tiny ",
    "TINY",
]


async def test_an_unknown_model(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        for name in NAMES:
            answer = await scene.client.post(CHAT, json=chat(name))
            error = error_of(answer)
            assert (answer.status_code, error["code"], error["param"]) == (
                404,
                "model_not_found",
                "model",
            )
            assert "/v1/models" in error["message"]
        assert scene.engine.requests == []


async def test_a_body_over_the_limit_is_refused_before_it_is_read(
    start_router: StartRouter,
) -> None:
    async with one_engine(start_router, router_max_body_mb=1) as scene:
        declared = render_request("POST", CHAT, b"{", {"host": "x", "content-length": str(10**10)})
        async with connected(scene.router.base_url) as (reader, writer):
            writer.write(declared.replace(b"host: x", b"host: localhost"))
            with anyio.fail_after(5):
                found = await reader.readuntil(b"}}")
        assert found.startswith(b"HTTP/1.1 413")
        assert b"request_too_large" in found

        big = json.dumps(chat(x="y" * 2_000_000)).encode()
        answer = await scene.client.post(CHAT, content=big, headers=JSON)
        assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")
        assert "1 MiB" in answer.json()["error"]["message"]

        async def pieces() -> Any:
            for start in range(0, len(big), 65536):
                yield big[start : start + 65536]

        answer = await scene.client.post(CHAT, content=pieces(), headers=JSON)
        assert (answer.status_code, error_of(answer)["code"]) == (413, "request_too_large")
        fits = json.dumps(chat(x="y" * 900_000)).encode()
        assert (await scene.client.post(CHAT, content=fits, headers=JSON)).status_code == 200
        assert len(scene.engine.requests) == 1


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd"])
async def test_compressed_bodies_are_not_inflated(start_router: StartRouter, encoding: str) -> None:
    async with one_engine(start_router) as scene:
        body = gzip.compress(json.dumps(chat(x="y" * 10_000_000)).encode())
        headers = {**JSON, "content-encoding": encoding}
        answer = await scene.client.post(CHAT, content=body, headers=headers)
        assert (answer.status_code, error_of(answer)["code"]) == (415, "unsupported_media_type")
        assert scene.engine.requests == []


async def test_request_ids(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        for path in ("/health", "/nothing", "/v1/models"):
            kept = await scene.client.get(path, headers={"x-request-id": "my-id.1"})
            assert kept.headers["x-request-id"] == "my-id.1"
            made = await scene.client.get(path, headers={"x-request-id": "two words"})
            assert made.headers["x-request-id"].startswith("req_")
        ids = {
            (await scene.client.post(CHAT, json=chat())).headers["x-request-id"] for _ in range(3)
        }
        assert len(ids) == 3


async def test_a_defect_is_an_envelope_and_its_text_stays_here(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:

        def broken(*_: object) -> None:
            raise RuntimeError("secret detail")

        scene.router.router.fleet.resolve = broken  # type: ignore[method-assign,assignment] # a defect
        scene.router.router.fleet.models = broken  # type: ignore[method-assign,assignment]
        for answer in (
            await scene.client.post(CHAT, json=chat()),
            await scene.client.get("/v1/models"),
        ):
            assert (answer.status_code, error_of(answer)["code"]) == (500, "internal_error")
            assert "secret" not in answer.text
            assert "Traceback" not in answer.text


async def test_requests_in_other_forms_of_http(start_router: StartRouter) -> None:
    async with one_engine(start_router) as scene:
        for head in (
            b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx",
            b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
            b"POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            b"\x16\x03\x01\x02\x00",
        ):
            async with connected(scene.router.base_url) as (reader, writer):
                writer.write(head)
                writer.write_eof()
                found = await reader.read(-1)
            assert found.startswith(b"HTTP/1.1 40") or found == b"", head
        old = await call_raw(scene.router.base_url, "/health HTTP/1.0\r\nx:", method="GET")
        assert old[9:12] in {b"200", b"400", b"403"}
        assert scene.engine.requests == []
