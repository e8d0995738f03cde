"""One call to an upstream: what is known before anything is committed, and what leaves after."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from shared.http.errors import (
    ApiError,
    UpstreamAnswer,
    UpstreamFailed,
    UpstreamInterrupted,
)
from shared.http.exchange import HELD_BYTES, exchange
from shared.http.streams import ChatRules, MessagesRules, ResponsesRules, StreamRules
from shared.http.transport import InboundResponse, OutboundRequest, Transport
from shared.http.upstream_errors import upstream_error

SSE = ((b"Content-Type", b"text/event-stream; charset=utf-8"),)
JSON = ((b"content-type", b"application/json"),)
REQUEST = OutboundRequest(method="POST", url="http://127.0.0.1:1/")
CHUNK = b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


class FakeTransport(Transport):
    """Answers with given chunks; counts what was read and closed."""

    def __init__(
        self,
        *chunks: bytes,
        status: int = 200,
        headers: Sequence[tuple[bytes, bytes]] = SSE,
        error: ApiError | None = None,
    ) -> None:
        self._status, self._headers = status, headers
        self._chunks, self._error = iter(chunks), error
        self.reads = 0
        self.finished = self.closed = 0

    @property
    def status(self) -> int:
        return self._status

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        return self._headers

    @asynccontextmanager
    async def open(self, request: OutboundRequest) -> AsyncIterator[InboundResponse]:
        try:
            yield self
        finally:
            self.closed += 1

    async def read(self) -> bytes:
        for chunk in self._chunks:
            self.reads += 1
            return chunk
        if self._error is not None:
            raise self._error
        return b""

    async def finish(self) -> None:
        self.finished += 1

    async def aclose(self) -> None:
        """Have nothing to close."""


async def parts_of(transport: Transport) -> tuple[list[bytes], ApiError | None]:
    """Return what left, and the error that came after it."""
    found: list[bytes] = []
    async with exchange(transport, REQUEST) as reply:
        try:
            async for part in reply.chunks:
                found.append(part)
        except ApiError as error:
            return found, error
    return found, None


async def failure_of(transport: FakeTransport) -> ApiError:
    """Return the error that came before anything was committed."""
    with pytest.raises(ApiError) as failed:
        async with exchange(transport, REQUEST):
            raise AssertionError("committed")
    assert transport.closed == 1
    return failed.value


async def test_events_pass_byte_for_byte_up_to_done() -> None:
    late = b'data: {"choices":[]}\n\n'
    transport = FakeTransport(CHUNK, CHUNK + USAGE, DONE + late, late)
    assert await parts_of(transport) == ([CHUNK, CHUNK + USAGE, DONE], None)
    assert transport.reads == 3
    assert transport.finished == transport.closed == 1


@pytest.mark.parametrize("size", [1, 2, 7, 50])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
async def test_any_cut_of_a_stream_gives_the_same_bytes(size: int, end: bytes) -> None:
    odd = b": note\n\nid: 4\ndata: {}x\n\n".replace(b"{}x", CHUNK[6:-2])
    data = (CHUNK + odd + USAGE + DONE).replace(b"\n", end)
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    found, error = await parts_of(FakeTransport(*pieces))
    assert error is None
    # the LF of the very last CRLF may come too late: the answer ends at its CR
    assert b"".join(found) in {data, data.removesuffix(b"\n") if end == b"\r\n" else data}


BREAKS_SDKS = [
    b"retry: 3000\n\n",
    b"id: 1\n\n",
    b"event: ping\n\n",
    b"id: 4\nretry: 1\n\n",
    b"data:\n\n",
    b"data: \n\n",
    b"data: {}\n\n",
    b"event: ping\ndata: {}\n\n",
]


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("event", BREAKS_SDKS)
async def test_what_breaks_sdks_is_dropped(event: bytes, size: int) -> None:
    data = event + CHUNK + event + event + USAGE + DONE
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    found, error = await parts_of(FakeTransport(*pieces))
    assert (b"".join(found), error) == (CHUNK + USAGE + DONE, None)


@pytest.mark.parametrize(
    "event",
    [
        b"data: {\n\n",
        b"data: nonsense\n\n",
        b"data: [1]\n\n",
        b'data: {"a":"\xff"}\n\n',
        b"data: <p>\n\n",
    ],
)
async def test_what_is_no_json_ends_the_stream_with_an_error(event: bytes) -> None:
    found, error = await parts_of(FakeTransport(CHUNK, event, CHUNK, DONE))
    assert found == [CHUNK]
    assert isinstance(error, UpstreamFailed)


async def test_usage_is_noted_and_hidden_from_who_did_not_ask() -> None:
    hiding = ChatRules(hides_usage=True)
    for rules, seen in ((None, CHUNK + USAGE + DONE), (hiding, CHUNK + DONE)):
        async with exchange(FakeTransport(CHUNK, USAGE + DONE), REQUEST, rules) as reply:
            assert b"".join([part async for part in reply.chunks]) == seen
            assert json.loads(reply.usage()[-1]) == {"prompt_tokens": 1, "completion_tokens": 2}


RESPONSE_EVENTS = (
    b'event: response.created\ndata: {"type":"response.created","sequence_number":0}\n\n',
    b'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","delta":"a"}\n\n',
    b'event: response.completed\ndata: {"type":"response.completed","response":{"error":null}}\n\n',
)
MESSAGE_EVENTS = (
    b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n',
    b'event: ping\ndata: {"type": "ping"}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)


@pytest.mark.parametrize(
    ("rules", "events"), [(ResponsesRules(), RESPONSE_EVENTS), (MessagesRules(), MESSAGE_EVENTS)]
)
async def test_other_apis_end_in_their_own_way(
    rules: StreamRules, events: tuple[bytes, ...]
) -> None:
    transport = FakeTransport(*events, DONE, CHUNK)
    async with exchange(transport, REQUEST, rules) as reply:
        assert [part async for part in reply.chunks] == list(events)
    async with exchange(FakeTransport(*events[:-1]), REQUEST, rules) as reply:
        with pytest.raises(UpstreamInterrupted):
            _ = [part async for part in reply.chunks]
    with pytest.raises(UpstreamAnswer, match="broke"):
        async with exchange(FakeTransport(ERRORS["openai"]), REQUEST, rules):
            raise AssertionError("committed")


def test_anthropic_sdks_get_their_own_error_event() -> None:
    event = MessagesRules().error_event(UpstreamInterrupted("gone"))
    assert event.startswith(b"event: error\n")
    assert json.loads(event.split(b"data: ")[1])["error"]["message"] == "gone"


async def test_the_first_part_is_there_before_the_second_arrives() -> None:
    transport = FakeTransport(b": wait\n\n", b"event: x\n\n", CHUNK, CHUNK, DONE)
    async with exchange(transport, REQUEST) as reply:
        assert (reply.status, reply.is_stream, reply.body) == (200, True, None)
        assert transport.reads == 3
        assert await reply.chunks.__anext__() == b": wait\n\n" + CHUNK
        assert await reply.chunks.__anext__() == CHUNK


async def test_a_stream_may_be_nothing_but_its_end() -> None:
    assert await parts_of(FakeTransport(DONE)) == ([DONE], None)


async def test_an_end_without_its_blank_line_is_one() -> None:
    for last in (b"data: [DONE]", b"data: [DONE]\n", b"data: [DONE]\r\n"):
        assert await parts_of(FakeTransport(CHUNK, last)) == ([CHUNK, DONE], None)


async def test_done_within_a_text_is_no_end() -> None:
    text = b'data: {"choices":[{"delta":{"content":"data: [DONE]"}}]}\n\n'
    assert await parts_of(FakeTransport(text, CHUNK, DONE)) == ([text, CHUNK, DONE], None)


async def test_a_byte_order_mark_is_dropped() -> None:
    found, _ = await parts_of(FakeTransport(b"\xef\xbb", b"\xbf" + CHUNK, DONE))
    assert found == [CHUNK, DONE]


@pytest.mark.parametrize("rest", [b"", b'data: {"choices":'])
async def test_an_end_without_done_is_an_error(rest: bytes) -> None:
    found, error = await parts_of(FakeTransport(CHUNK, rest))
    assert found == [CHUNK]
    assert isinstance(error, UpstreamInterrupted)


@pytest.mark.parametrize("rest", [(), (b": only comments\n\n",), (b"data: {",)])
async def test_a_stream_that_ends_before_its_first_event_fails(rest: tuple[bytes, ...]) -> None:
    assert isinstance(await failure_of(FakeTransport(*rest)), UpstreamInterrupted)


async def test_a_stream_without_an_event_for_too_long_fails() -> None:
    comments = [b": " + b"x" * (HELD_BYTES // 4) + b"\n\n"] * 9
    transport = FakeTransport(*comments)
    assert isinstance(await failure_of(transport), UpstreamFailed)
    assert transport.reads < 6


@pytest.mark.parametrize("event", [b"retry: 1\n\n", b"data: {}\n\n", b"data:\n\n", b"\n"])
async def test_what_is_dropped_before_the_first_event_has_a_limit_too(event: bytes) -> None:
    transport = FakeTransport(*[event * (2**17 // len(event))] * 99)
    assert isinstance(await failure_of(transport), UpstreamFailed)
    assert transport.reads < 12


async def test_others_have_their_turn_while_a_piece_of_many_events_is_judged() -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    found, error = await parts_of(FakeTransport(CHUNK + b"retry: 1\n\n" * 100_000 + DONE))
    counting.cancel()
    assert (b"".join(found), error) == (CHUNK + DONE, None)
    assert turns > 50


async def test_an_error_without_end_is_not_read_whole() -> None:
    transport = FakeTransport(*[b"x" * HELD_BYTES] * 9, status=500, headers=JSON)
    async with exchange(transport, REQUEST) as reply:
        with pytest.raises(UpstreamFailed):
            await reply.whole()
    assert transport.reads < 4


async def test_a_status_that_does_not_exist_is_not_passed_on() -> None:
    transport = FakeTransport(b"{}", status=799, headers=JSON)
    assert isinstance(await failure_of(transport), UpstreamFailed)


async def test_an_error_in_the_first_chunk_behind_the_first_event_comes_after_it() -> None:
    found, error = await parts_of(FakeTransport(CHUNK + ERRORS["openai"]))
    assert found == [CHUNK]
    assert isinstance(error, UpstreamAnswer)


@pytest.mark.parametrize("first", [b"data: {\n\n", b"data: [1]\n\n", b"data: <html>\n\n"])
async def test_a_stream_that_starts_with_no_json_object_fails(first: bytes) -> None:
    failed = await failure_of(FakeTransport(first, CHUNK, DONE))
    assert isinstance(failed, UpstreamFailed)
    assert failed.is_retryable


ERRORS = {
    "openai": b'data: {"error":{"message":"broke","type":"server_error","code":"x"}}\n\n',
    "text": b'data: {"error": "broke"}\n\n',
    "old vLLM": b'data: {"object":"error","message":"broke","type":"InternalServerError"}\n\n',
    "named": b'event: error\ndata: {"error":{"message":"broke"}}\n\n',
    "message": b'event: error\ndata: {"message":"broke"}\n\n',
    "after an id": b'id: 1\r\nevent:error\r\ndata: {"message":"broke"}\r\n\r\n',
}


@pytest.mark.parametrize("event", ERRORS.values(), ids=ERRORS.keys())
async def test_an_error_as_first_event_fails_before_anything_is_committed(event: bytes) -> None:
    failed = await failure_of(FakeTransport(b": wait\n\n" + event, DONE))
    assert isinstance(failed, UpstreamAnswer)
    assert failed.message == "broke"
    assert (failed.status, failed.is_retryable) == (502, True)


@pytest.mark.parametrize("event", ERRORS.values(), ids=ERRORS.keys())
@pytest.mark.parametrize("together", [True, False])
async def test_an_error_in_a_stream_comes_once_and_ends_it(event: bytes, together: bool) -> None:
    late = (CHUNK, DONE)
    chunks = (CHUNK, CHUNK + event + CHUNK, *late) if together else (CHUNK, CHUNK, event, *late)
    found, error = await parts_of(FakeTransport(*chunks))
    assert found == [CHUNK, CHUNK]
    assert isinstance(error, UpstreamAnswer)
    assert error.message == "broke"


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"error":null,"choices":[]}\n\n',
        b'data: {"error":{},"choices":[]}\n\n',
        b'data: {"choices":[{"delta":{"content":"\\"error\\": {}"}}]}\n\n',
        b'data: {"choices":[{"delta":{"content":"an error event: error"}}]}\n\n',
        b'data: {"choices":[{"finish_reason":"error"}]}\n\n',
        b": error\n\n",
    ],
)
async def test_what_only_looks_like_an_error_passes(event: bytes) -> None:
    assert await parts_of(FakeTransport(CHUNK, event, DONE)) == ([CHUNK, event, DONE], None)


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


async def test_a_failure_between_events_passes_up() -> None:
    lost = UpstreamInterrupted("lost")
    assert await parts_of(FakeTransport(CHUNK, b"data: {", error=lost)) == ([CHUNK], lost)


async def test_an_event_without_end_is_bounded() -> None:
    block = b"x" * 1024 * 1024
    found, error = await parts_of(FakeTransport(CHUNK, b"data: ", *[block] * 20))
    assert found == [CHUNK]
    assert isinstance(error, UpstreamFailed)


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
