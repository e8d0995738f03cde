"""What the event stream of each API may hold, and what becomes of the rest.

Events pass as they came. Only what breaks the SDKs is dropped or turned into one error: fields
without data, empty data, data that is no JSON or no UTF-8, errors in shapes of other engines, an end
without the API's own end (observed with openai-python 3.54 and openai-node 6.49). What holds for every
API is applied where the stream is read, in `event_stream`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final, Literal, Protocol

import msgspec

from shared.http.anthropic_errors import anthropic_error_body, anthropic_stream_error
from shared.http.errors import ApiError, UpstreamAnswer
from shared.http.responses_errors import responses_stream_error
from shared.http.upstream_errors import is_error, status_of, upstream_error

_EMPTY = msgspec.Raw(b"[]")
_ERROR_NAMES = (b"event: error", b"event:error")
NULL = msgspec.Raw(b"null")
"""The value of what an event does not have."""


class Top(msgspec.Struct, gc=False):
    """The top level of an event's JSON, as far as anybody here looks at it."""

    error: msgspec.Raw = NULL
    object: msgspec.Raw = NULL
    type: msgspec.Raw = NULL
    choices: msgspec.Raw = NULL
    usage: msgspec.Raw = NULL
    response: msgspec.Raw = NULL
    message: msgspec.Raw = NULL


class Verdict(Enum):
    """What becomes of an event. `FAILED` is the last one too, and the API's own way to say so."""

    PASS = "pass"  # noqa: S105 - no password
    DROP = "drop"
    LAST = "last"
    FAILED = "failed"


# what each event is compared with: up to Python 3.11 an enumeration's members are found slowly
PASS, DROP = Verdict.PASS, Verdict.DROP


class StreamRules(Protocol):
    """The rules of one API; an instance serves any number of streams.

    `ends_with_done`: `[DONE]` is its end; else a stream that has nothing but that broke off. `usual`, if
    there is one, decodes the data of events without a name that `judge` passes once a stream has begun, and
    raises what msgspec raises for all that may be something else: nearly every event at a part of the cost.
    """

    ends_with_done: bool
    usual: Callable[[bytes], object] | None

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


class _Usual(msgspec.Struct, gc=False):
    """A chunk of a chat or completion that holds nothing of what `ChatRules` looks for."""

    object: Literal["chat.completion.chunk", "text_completion"]
    error: None = None
    usage: None = None
    response: None = None
    message: None = None


_decode_usual = msgspec.json.Decoder(_Usual).decode


class ChatRules:
    """Chat and text completions; `[DONE]` ends them.

    `hides_usage`: the client did not ask for the chunk with the usage, which many would stumble
    over, since it has no choices.
    """

    ends_with_done = True
    usual: Callable[[bytes], object] | None = staticmethod(_decode_usual)

    def __init__(self, *, hides_usage: bool = False) -> None:
        self._hides_usage = hides_usage

    def judge(self, event: bytes, data: bytes, top: Top) -> Verdict:
        """See `StreamRules.judge`."""
        if is_error(top.error, top.object) or (
            not event.startswith(b"data:") and _has_line(event, *_ERROR_NAMES)
        ):
            raise self.failure(data)
        if data == b"{}":
            return DROP  # a ping: SDKs make a chunk without choices of it
        if self._hides_usage and top.usage != NULL and top.choices == _EMPTY:
            return DROP
        return PASS

    def failure(self, data: bytes) -> UpstreamAnswer:
        """See `StreamRules.failure`."""
        return upstream_error(status_of(data), data)

    def error_event(self, error: ApiError) -> bytes:
        """See `StreamRules.error_event`."""
        return error.event()


class ResponsesRules:
    """OpenAI's Responses: named events, of which one of four ends the stream."""

    ends_with_done = False
    usual: Callable[[bytes], object] | None = None
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
        return PASS

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
    usual: Callable[[bytes], object] | None = None

    def judge(self, event: bytes, data: bytes, top: Top) -> Verdict:
        """See `StreamRules.judge`."""
        kind = bytes(top.type)
        if kind == b'"message_stop"':
            return Verdict.LAST
        if kind == b'"error"' or is_error(top.error, top.object) or event.startswith(_ERROR_NAMES):
            raise self.failure(data)
        return PASS

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


def _has_line(event: bytes, *lines: bytes) -> bool:
    found = event.splitlines()
    return any(line in found for line in lines)
