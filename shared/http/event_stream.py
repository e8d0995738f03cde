"""One event stream on its way: framed and judged as it comes, by the rules of its API.

Per event this costs the framing and one partial decode; nothing is serialised again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import msgspec

from shared.http.errors import ApiError, UpstreamAnswer, UpstreamFailed, UpstreamInterrupted
from shared.http.sse import SseFramer, event_data
from shared.http.streams import DROP, NULL, PASS, StreamRules, Top, Verdict
from shared.http.transport import InboundResponse

# What comes before the first event is held until it comes, so that an error there can fail over.
_HELD_BYTES = 1024 * 1024
# What is judged in one turn of the loop: it may be thousands of events without a word in them.
_TURN_BYTES = 16 * 1024
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
DONE = b"[DONE]"


class _Nested(msgspec.Struct):
    usage: msgspec.Raw = NULL


_decode = msgspec.json.Decoder(Top).decode
_decode_nested = msgspec.json.Decoder(_Nested).decode


class EventStream(AsyncIterator[bytes]):
    """One stream on its way: whole events, several at once where they came at once.

    The iteration ends with the API's own end; it raises `ApiError` if the upstream reported an
    error, sent what is no event, or broke off. `usage` are the usage objects that went by, as JSON,
    whether or not the client got them. `reported` is the error of a stream that ended with its API's
    own event for one, which passes like any other. `is_over`: nothing more has to be read, since the end
    or a failure follows what passed.
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
        "is_over",
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
        self.is_over = False
        self.reported: ApiError | None = None
        self.usage: list[bytes] = []

    @property
    def response(self) -> InboundResponse:
        """Return the answer that is being read."""
        return self._response

    @property
    def usual(self) -> Callable[[bytes], object] | None:
        """Return what tells events that pass without a further look: see `StreamRules`."""
        return self._rules.usual

    @property
    def has_rest(self) -> bool:
        """Tell whether something that was read waits for its turn."""
        return bool(self._rest)

    @property
    def is_between_events(self) -> bool:
        """Tell whether no part of an event was read without its end."""
        return not self._rest and not self._framer.pending_bytes

    async def begin(self) -> None:
        """Read up to the first event with data that may pass.

        Raises:
            ApiError: see the class; nothing was passed on.
        """
        held = b""
        seen = 0
        while not (self._has_begun and held):
            if self._failure is not None:
                raise self._failure.fresh()
            # what is dropped counts as well: it may go on for ever
            if seen - self._framer.pending_bytes > _HELD_BYTES:
                raise UpstreamFailed("The upstream's stream does not come to its first event.")
            chunk = await self._read()
            seen += len(chunk)
            held += self._judge_all(chunk) if chunk else self._ending()
        self._first = held

    async def __anext__(self) -> bytes:
        """Return the next events."""
        if self._first:
            first, self._first = self._first, b""
            return first
        passed = b""
        while not passed:
            if self._failure is not None:
                raise self._failure.fresh()
            if self._is_done:
                raise StopAsyncIteration
            chunk = await self._read()
            passed = self._judge_all(chunk) if chunk else self._ending()
        return passed

    def take_first(self) -> bytes:
        """Return what `begin` held; nothing was passed on before."""
        first, self._first = self._first, b""
        return first

    def take(self, chunk: bytes) -> bytes:
        """Return what may pass of a piece that was read by another way than this iteration.

        No more is judged than one turn of the loop may take: while `has_rest`, the next call is for that,
        and `chunk` is empty.
        """
        return self._judge_all(self._slice(chunk or self._rest))

    def give_back(self, passed: bytes) -> None:
        """Leave to the iteration what `take` or `judged` returned, with all that follows."""
        self._first = passed

    async def _read(self) -> bytes:
        """Return the next piece, small enough to be judged while others wait."""
        if self._rest:
            await asyncio.sleep(0)
            return self._slice(self._rest)
        return self._slice(await self._response.read())

    def _slice(self, chunk: bytes) -> bytes:
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
        event = self._framer.pending
        passed = self.judged(event, event_data(event))
        if self._failure is None and self._is_done:
            return passed.rstrip(b"\r\n") + b"\n\n"
        if isinstance(self._failure, UpstreamAnswer):
            raise self._failure.fresh()  # its last event lacks the empty line, and is an error all the same
        raise UpstreamInterrupted("The upstream ended its stream before it was done.")

    def _judge_all(self, chunk: bytes) -> bytes:
        """Return what may pass of a piece, and note the end or the failure that follows it."""
        data = self._framer.only_data(chunk)
        if data is not None:  # nearly every chunk of an engine
            return self.judged(chunk, data)
        passed: list[bytes] = []
        for event in self._feed(chunk):
            passed.append(self.judged(event, event_data(event)))
            if self.is_over:
                break
        return b"".join(passed)

    def judged(self, event: bytes, data: bytes | None) -> bytes:
        """Return the event if it may pass; between pieces, and with its data as `event_data` gives it."""
        try:
            verdict = self._judge(event, data)
        except ApiError as error:
            self._failure = error.fresh()
            self.is_over = True
            return b""
        if verdict is DROP:
            return b""
        if verdict is not PASS:
            self._is_done = self.is_over = True
        return event

    def _judge(self, event: bytes, data: bytes | None) -> Verdict:
        if data is None:
            # `retry:`, `id:` and names without data make the SDKs parse nothing, and fail
            return PASS if _is_comment(event) else DROP
        if not data.startswith(b"{"):
            if data.strip() == DONE:
                return self._judge_done()
            if not data or data.isspace():
                return DROP
        try:
            if not data.isascii():
                data.decode()  # msgspec does not look into the raw values
            top = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise UpstreamFailed("The upstream sent an event that is no JSON object.") from None
        if top.usage is not NULL or top.response is not NULL or top.message is not NULL:
            self._note_usage(top)
        verdict = self._rules.judge(event, data, top)
        if verdict is not PASS and verdict is Verdict.FAILED:
            self.reported = self._rules.failure(data)
            if not self._has_begun:  # another endpoint may do better
                raise self.reported
        self._has_begun = True
        return verdict

    def _note_usage(self, top: Top) -> None:
        """Keep the first usage object and the last: some engines send one with every event."""
        usage = top.usage
        if top.response is not NULL or top.message is not NULL:
            usage = _nested_usage(top)
        if usage == NULL:
            return
        del self.usage[1:]
        self.usage.append(bytes(usage))

    def _judge_done(self) -> Verdict:
        if not self._rules.ends_with_done:
            raise UpstreamInterrupted("The upstream ended its stream before it was done.")
        self._has_begun = True
        return Verdict.LAST


def _nested_usage(top: Top) -> msgspec.Raw:
    """Return the usage within a response (Responses) or a message (Messages)."""
    try:
        return _decode_nested(top.message if top.response is NULL else top.response).usage
    except msgspec.DecodeError:
        return NULL


def _is_comment(event: bytes) -> bool:
    return all(not line or line.startswith(b":") for line in event.splitlines())
