"""One call to an upstream that is no stream: what is an answer, and what is an error of which kind."""

from __future__ import annotations

import json

import pytest

from shared.http.errors import (
    UpstreamFailed,
    UpstreamInterrupted,
)
from shared.http.exchange import HELD_BYTES, exchange
from shared.http.upstream_errors import upstream_error
from tests.shared.exchanges import (
    JSON,
    REQUEST,
    SSE,
    FakeTransport,
    failure_of,
    parts_of,
)


async def test_an_error_without_end_is_not_read_whole() -> None:
    transport = FakeTransport(*[b"x" * HELD_BYTES] * 9, status=500, headers=JSON)
    async with exchange(transport, REQUEST) as reply:
        with pytest.raises(UpstreamFailed):
            await reply.whole()
    assert transport.reads < 4


async def test_a_status_that_does_not_exist_is_not_passed_on() -> None:
    transport = FakeTransport(b"{}", status=799, headers=JSON)
    assert isinstance(await failure_of(transport), UpstreamFailed)


@pytest.mark.parametrize(
    ("code", "status"),
    [(400, 400), ("429", 429), (503, 503), (401, 502), ("403", 502), (200, 502), ("x", 502)],
)
async def test_an_error_without_a_status_has_the_one_its_code_says(
    code: object, status: int
) -> None:
    body = json.dumps({"error": {"message": "broke", "code": code}}).encode()
    assert (await failure_of(FakeTransport(b"data: " + body + b"\n\n"))).status == status
    assert (await failure_of(FakeTransport(body, headers=JSON))).status == status


async def test_a_plain_answer_is_held_until_it_is_whole() -> None:
    transport = FakeTransport(b'{"a"', b":1}", headers=JSON)
    async with exchange(transport, REQUEST) as reply:
        assert (transport.reads, reply.is_stream) == (2, False)
        assert reply.body == await reply.whole() == b'{"a":1}'
    assert transport.finished == 0


async def test_a_plain_answer_that_breaks_off_commits_nothing() -> None:
    lost = UpstreamInterrupted("lost")
    assert await failure_of(FakeTransport(b'{"a"', headers=JSON, error=lost)) is lost


async def test_a_long_plain_answer_is_passed_on_as_it_comes() -> None:
    block = b"x" * (HELD_BYTES // 2)
    transport = FakeTransport(block, block, block, block, headers=JSON)
    async with exchange(transport, REQUEST) as reply:
        assert (transport.reads, reply.body) == (3, None)
        assert b"".join([part async for part in reply.chunks]) == block * 4


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", b"application/json"),
        (b" \n", b"application/json"),
        (b"", b"text/plain"),
        (b"{", b"application/json; charset=utf-8"),
        (b"[1]", b"application/json"),
        (b"<html>sign in</html>", b"text/html"),
        (b"<html>sign in</html>", b"Text/HTML; charset=utf-8"),
    ],
)
async def test_a_200_that_is_no_answer_fails(body: bytes, content_type: bytes) -> None:
    transport = FakeTransport(body, headers=[(b"content-type", content_type)])
    failed = await failure_of(transport)
    assert isinstance(failed, UpstreamFailed)
    assert "sign in" not in failed.message


@pytest.mark.parametrize(
    "body",
    [
        b'{"error":{"message":"broke"}}',
        b'{"error":"broke"}',
        b'{"object":"error","message":"broke"}',
    ],
)
async def test_a_200_with_an_error_fails(body: bytes) -> None:
    failed = await failure_of(FakeTransport(body, headers=JSON))
    assert (failed.message, failed.status) == ("broke", 502)


async def test_what_is_too_long_to_parse_passes() -> None:
    body = b'{"error":"x"}' + b" " * 300_000
    assert await parts_of(FakeTransport(body, headers=JSON)) == ([body], None)


@pytest.mark.parametrize("status", [200, 201, 204])
@pytest.mark.parametrize("body", [b"RIFF", b"upstream connect error 10.1.2.3:8080", b""])
async def test_a_success_without_json_is_no_answer_whatever_it_calls_itself(
    status: int, body: bytes
) -> None:
    headers = [(b"content-type", b"text/plain")]
    failed = await failure_of(FakeTransport(body, status=status, headers=headers))
    assert isinstance(failed, UpstreamFailed)
    assert "10.1.2.3" not in failed.message


@pytest.mark.parametrize("status", [300, 302, 307, 399])
async def test_a_redirect_is_not_followed(status: int) -> None:
    headers = [(b"location", b"http://169.254.169.254/")]
    failed = await failure_of(FakeTransport(b"", status=status, headers=headers))
    assert isinstance(failed, UpstreamFailed)
    assert "169.254" not in failed.message


async def test_an_errors_body_is_held_whatever_it_is() -> None:
    transport = FakeTransport(b"<html>", status=502, headers=SSE)
    async with exchange(transport, REQUEST) as reply:
        assert (reply.status, reply.is_stream) == (502, False)
        assert await reply.whole() == b"<html>"


@pytest.mark.parametrize(
    ("body", "message", "type_", "code"),
    [
        (b'{"error":{"message":"m","type":"t","code":"c"}}', "m", "t", "c"),
        (b'{"error":{"message":"m","type":"t","code":400}}', "m", "t", "400"),
        (b'{"error":{"message":"m"}}', "m", "server_error", "upstream_error"),
        (b'{"error":"m"}', "m", "server_error", "upstream_error"),
        (b'{"object":"error","message":"m","type":"t","code":500}', "m", "t", "500"),
        (b'{"detail":"internal-host"}', None, "server_error", "upstream_error"),
        (b'{"error":{"message":5}}', None, "server_error", "upstream_error"),
        (b"<html>internal-host</html>", None, "server_error", "upstream_error"),
        (b'{"error":{"message":"\xff internal-host"}}', None, "server_error", "upstream_error"),
        (b"[" * 100_000, None, "server_error", "upstream_error"),
        (b"", None, "server_error", "upstream_error"),
    ],
)
def test_an_error_in_any_shape_becomes_one_of_ours(
    body: bytes, message: str | None, type_: str, code: str
) -> None:
    error = upstream_error(500, body, [(b"content-type", b"x"), (b"retry-after", b"3")])
    assert error.message == message or (message is None and "status 500" in error.message)
    assert (error.type, error.code) == (type_, code)
    assert error.headers == (("retry-after", "3"),)
    shown = json.loads(error.body())["error"]
    assert shown.keys() >= {"message", "type", "param", "code"}
    assert shown["message"] == error.message
    assert b"internal-host" not in error.body()


@pytest.mark.parametrize(
    ("status", "is_retryable"),
    [
        (400, False),
        (404, False),
        (408, True),
        (422, False),
        (429, True),
        (500, True),
        (501, True),
        (529, True),
    ],
)
def test_what_is_worth_another_attempt(status: int, is_retryable: bool) -> None:
    error = upstream_error(status, b"")
    assert error.is_retryable is is_retryable
    assert error.type == ("invalid_request_error" if status < 500 else "server_error")


def test_a_whole_envelope_goes_on_as_it_came() -> None:
    body = b'{ "error": {"message": "m", "type": "t", "param": "p", "code": null, "x": [1.50]} }'
    assert upstream_error(429, body).body() == body


@pytest.mark.parametrize("code", ["400", '"x"'])
def test_an_envelope_that_lacks_keys_is_completed(code: str) -> None:
    body = f'{{"error":{{"message":"m","code":{code},"n_ctx":2048}}}}'.encode()
    shown = json.loads(upstream_error(400, body).body())["error"]
    assert shown == {
        "message": "m",
        "type": "invalid_request_error",
        "param": None,
        "code": code.strip('"'),
        "n_ctx": 2048,
    }
