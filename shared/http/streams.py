"""What the event stream of each API may hold, and what becomes of the rest.

Events pass as they came. Only what breaks the SDKs is dropped or turned into one error: fields
without data, empty data, data that is no JSON or no UTF-8, errors in shapes of other engines, an end
without the API's own end (observed with openai-python 3.54 and openai-node 6.49).

Per event this costs the framing and one partial decode; nothing is serialised again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from enum import Enum
from typing import Final, Protocol

import msgspec

from shared.http.anthropic_errors import anthropic_error_body, anthropic_stream_error
from shared.http.errors import ApiError, UpstreamAnswer, UpstreamFailed, UpstreamInterrupted
from shared.http.responses_errors import responses_stream_error
from shared.http.sse import SseFramer, event_data
from shared.http.transport import InboundResponse
from shared.http.upstream_errors import is_error, status_of, upstream_error

# What comes before the first event is held until it comes, so that an error there can fail over.
_HELD_BYTES = 1024 * 1024
# What is judged in one turn of the loop: it may be thousands of events without a word in them.
_TURN_BYTES = 16 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NULL = msgspec.Raw(b"null")
_ERROR_NAMES = (b"event: error", b"event:error")
DONE = b"[DONE]"


class Top(msgspec.Struct):
    """The top level of an event's JSON, as far as anybody here looks at it."""

    error: msgspec.Raw = _NULL
    object: msgspec.Raw = _NULL
    type: msgspec.Raw = _NULL
    choices: msgspec.Raw = _NULL
    usage: msgspec.Raw = _NULL
    response: msgspec.Raw = _NULL
    message: msgspec.Raw = _NULL


class _Nested(msgspec.Struct):
    usage: msgspec.Raw = _NULL


_decode = msgspec.json.Decoder(Top).decode
_decode_nested = msgspec.json.Decoder(_Nested).decode


class Verdict(Enum):
    """What becomes of an event. `FAILED` is the last one too, and the API's own way to say so."""

    PASS = "pass"  # noqa: S105 - no password
    DROP = "drop"
    LAST = "last"
    FAILED = "failed"


class StreamRules(Protocol):
    """The rules of one API; an instance serves any number of streams.

    `ends_with_done`: `[DONE]` is its end; else a stream that has nothing but that broke off.
    """

    ends_with_done: bool

    def judge(self, event: bytes, data: bytes, top: Top) -> Verdict:
        """Judge an event that holds a JSON object.

        Raises:
            ApiError: it reports an error, which the client has to get in another shape.
        """
        ...

    def failure(self, data: bytes) -> UpstreamAnswer:
        """Return the error that an event's data report."""
        ...

    def error_event(self, error: ApiError) -> bytes:
        """Return the event on which this API's SDKs raise."""
        ...


class ChatRules:
    """Chat and text completions; `[DONE]` ends them.

    `hides_usage`: the client did not ask for the chunk with the usage, which many would stumble
    over, since it has no choices.
    """

    ends_with_done = True

    def __init__(self, *, hides_usage: bool = False) -> None:
        self._hides_usage = hides_usage

    def judge(self, event: bytes, data: bytes, top: Top) -> Verdict:
        """See `StreamRules.judge`."""
        if is_error(top.error, top.object) or _has_line(event, b"event: error", b"event:error"):
            raise self.failure(data)
        if data == b"{}":
            return Verdict.DROP  # a ping: SDKs make a chunk without choices of it
        if self._hides_usage and top.usage != _NULL and bytes(top.choices) == b"[]":
            return Verdict.DROP
        return Verdict.PASS

    def failure(self, data: bytes) -> UpstreamAnswer:
        """See `StreamRules.failure`."""
        return upstream_error(status_of(data), data)

    def error_event(self, error: ApiError) -> bytes:
        """See `StreamRules.error_event`."""
        return error.event()


class ResponsesRules:
    """OpenAI's Responses: named events, of which one of four ends the stream."""

    ends_with_done = False
    _LAST = frozenset({b'"response.completed"', b'"response.incomplete"'})
    _FAILED = frozenset({b'"response.failed"', b'"error"'})

    def judge(self, event: bytes, data: bytes, top: Top) -> Verdict:
        """See `StreamRules.judge`."""
        kind = bytes(top.type)
        if kind in self._LAST:
            return Verdict.LAST
        if kind in self._FAILED:
            return Verdict.FAILED
        if is_error(top.error, top.object) or event.startswith(_ERROR_NAMES):
            raise self.failure(data)
        return Verdict.PASS

    def failure(self, data: bytes) -> UpstreamAnswer:
        """See `StreamRules.failure`."""
        return responses_stream_error(data)

    def error_event(self, error: ApiError) -> bytes:
        """See `StreamRules.error_event`.

        This is the API's own `error` event, on which SDKs do not raise, with the `error` that
        makes them.
        """
        reason = {"code": error.code, "message": error.message, "param": error.param}
        inner = {"type": error.type, **reason}
        body = {"type": "error", **reason, "error": inner}
        return b"event: error\ndata: " + msgspec.json.encode(body) + b"\n\n"


class MessagesRules:
    """Anthropic's Messages: named events; `message_stop` ends them.

    Its SDKs raise on events named `error` and drop those without a name, so errors of every shape
    are rendered anew.
    """

    ends_with_done = False

    def judge(self, event: bytes, data: bytes, top: Top) -> Verdict:
        """See `StreamRules.judge`."""
        kind = bytes(top.type)
        if kind == b'"message_stop"':
            return Verdict.LAST
        if kind == b'"error"' or is_error(top.error, top.object) or event.startswith(_ERROR_NAMES):
            raise self.failure(data)
        return Verdict.PASS

    def failure(self, data: bytes) -> UpstreamAnswer:
        """See `StreamRules.failure`."""
        return anthropic_stream_error(data)

    def error_event(self, error: ApiError) -> bytes:
        """See `StreamRules.error_event`; Anthropic's SDK raises on events of this name only."""
        return b"event: error\ndata: " + anthropic_error_body(error) + b"\n\n"


STREAM_RULES: Final[Mapping[str, StreamRules]] = {
    "/chat/completions": ChatRules(),
    "/completions": ChatRules(),
    "/responses": ResponsesRules(),
    "/messages": MessagesRules(),
}
"""By route: where an SDK that asked for a stream takes anything else for one without events."""


class EventStream(AsyncIterator[bytes]):
    """One stream on its way: whole events, several at once where they came at once.

    The iteration ends with the API's own end; it raises `ApiError` if the upstream reported an
    error, sent what is no event, or broke off. `usage` are the usage objects that went by, as JSON,
    whether or not the client got them. `reported` is the error of a stream that ended with its API's
    own event for one, which passes like any other.
    """

    __slots__ = (
        "_failure",
        "_first",
        "_framer",
        "_has_begun",
        "_is_done",
        "_response",
        "_rest",
        "_rules",
        "reported",
        "usage",
    )

    def __init__(self, response: InboundResponse, rules: StreamRules) -> None:
        self._response = response
        self._rules = rules
        self._framer = SseFramer()
        self._first = b""
        self._rest = b""
        self._failure: ApiError | None = None
        self._has_begun = False
        self._is_done = False
        self.reported: ApiError | None = None
        self.usage: list[bytes] = []

    async def begin(self) -> None:
        """Read up to the first event with data that may pass.

        Raises:
            ApiError: see the class; nothing was passed on.
        """
        held = b""
        seen = 0
        while not (self._has_begun and held):
            if self._failure is not None:
                raise self._failure
            # what is dropped counts as well: it may go on for ever
            if seen - self._framer.pending_bytes > _HELD_BYTES:
                raise UpstreamFailed("The upstream's stream does not come to its first event.")
            chunk = await self._read()
            seen += len(chunk)
            held += self._judge_all(self._feed(chunk)) if chunk else self._ending()
        self._first = held

    async def __anext__(self) -> bytes:
        """Return the next events."""
        if self._first:
            first, self._first = self._first, b""
            return first
        passed = b""
        while not passed:
            if self._failure is not None:
                raise self._failure
            if self._is_done:
                raise StopAsyncIteration
            chunk = await self._read()
            passed = self._judge_all(self._feed(chunk)) if chunk else self._ending()
        return passed

    async def _read(self) -> bytes:
        """Return the next piece, small enough to be judged while others wait."""
        if self._rest:
            await asyncio.sleep(0)
            chunk = self._rest
        else:
            chunk = await self._response.read()
        if len(chunk) > _TURN_BYTES:
            self._rest = chunk[_TURN_BYTES:]
            return chunk[:_TURN_BYTES]
        self._rest = b""
        return chunk

    def _feed(self, chunk: bytes) -> list[bytes]:
        events = self._framer.feed(chunk)
        if events and not self._has_begun:
            # SDKs would lose the first event with it
            events[0] = events[0].removeprefix(_BYTE_ORDER_MARK)
        return events

    def _ending(self) -> bytes:
        """Return the last event if only its blank line is missing.

        Raises:
            UpstreamInterrupted: the stream ended before it was done.
        """
        passed = self._judge_all([self._framer.pending])
        if self._failure is None and self._is_done:
            return passed.rstrip(b"\r\n") + b"\n\n"
        if isinstance(self._failure, UpstreamAnswer):
            raise self._failure  # its last event lacks the empty line, and is an error all the same
        raise UpstreamInterrupted("The upstream ended its stream before it was done.")

    def _judge_all(self, events: Sequence[bytes]) -> bytes:
        """Return what may pass, and note the end or the failure that follows it."""
        if len(events) == 1:  # nearly every chunk of an engine
            return self._passed(events[0])
        passed: list[bytes] = []
        for event in events:
            passed.append(self._passed(event))
            if self._is_done or self._failure is not None:
                break
        return b"".join(passed)

    def _passed(self, event: bytes) -> bytes:
        try:
            verdict = self._judge(event)
        except ApiError as error:
            self._failure = error
            return b""
        if verdict is Verdict.DROP:
            return b""
        if verdict is not Verdict.PASS:
            self._is_done = True
        return event

    def _judge(self, event: bytes) -> Verdict:
        data = event_data(event)
        if data is None:
            # `retry:`, `id:` and names without data make the SDKs parse nothing, and fail
            return Verdict.PASS if _is_comment(event) else Verdict.DROP
        if data.strip() == DONE:
            if not self._rules.ends_with_done:
                raise UpstreamInterrupted("The upstream ended its stream before it was done.")
            self._has_begun = True
            return Verdict.LAST
        if not data or data.isspace():
            return Verdict.DROP
        top = self._decoded(data)
        self._note_usage(top)
        verdict = self._rules.judge(event, data, top)
        if verdict is Verdict.FAILED:
            self.reported = self._rules.failure(data)
            if not self._has_begun:  # another endpoint may do better
                raise self.reported
        self._has_begun = True
        return verdict

    def _note_usage(self, top: Top) -> None:
        """Keep the first usage object and the last: some engines send one with every event."""
        usage = top.usage
        if top.response is not _NULL or top.message is not _NULL:
            usage = _nested_usage(top)
        if usage is _NULL or usage == _NULL:
            return
        del self.usage[1:]
        self.usage.append(bytes(usage))

    def _decoded(self, data: bytes) -> Top:
        try:
            if not data.isascii():
                data.decode()
            return _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UpstreamFailed("The upstream sent an event that is no JSON object.") from None


def _nested_usage(top: Top) -> msgspec.Raw:
    """Return the usage within a response (Responses) or a message (Messages)."""
    try:
        return _decode_nested(top.message if top.response is _NULL else top.response).usage
    except msgspec.DecodeError:
        return _NULL


def _is_comment(event: bytes) -> bool:
    return all(not line or line.startswith(b":") for line in event.splitlines())


def _has_line(event: bytes, *lines: bytes) -> bool:
    return not event.startswith(b"data:") and any(line in event.splitlines() for line in lines)
