"""Which API a path belongs to, and how a stream of each looks where faults are put into it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from shared.testing.asks import Body
from shared.testing.dialect import Speaker, answer
from shared.testing.messages import answer_count, answer_message
from shared.testing.personas import COUNT_PATH, MESSAGES_PATH, RESPONSES_PATH, Api
from shared.testing.responses import answer_response
from shared.testing.steps import Answer

_ANSWERS: Mapping[str, Callable[[Body, Speaker], Answer]] = {
    RESPONSES_PATH: answer_response,
    MESSAGES_PATH: answer_message,
    COUNT_PATH: lambda body, speaker: answer_count(body),
}
_TEXT_EVENTS: Mapping[Api, tuple[bytes, bytes]] = {
    "chat": (b'data: {"choices":[{"index":0,"delta":{"content":"', b'"}}]}\n\n'),
    "responses": (
        (
            b"event: response.output_text.delta\n"
            b'data: {"type":"response.output_text.delta","sequence_number":0,"item_id":"msg_sim",'
            b'"output_index":0,"content_index":0,"logprobs":[],"delta":"'
        ),
        b'"}\n\n',
    ),
    "messages": (
        (
            b"event: content_block_delta\n"
            b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"'
        ),
        b'"}}\n\n',
    ),
}
_ENDS: Mapping[Api, tuple[bytes, ...]] = {
    "chat": (b"data: [DONE]",),
    "responses": (
        b"event: response.completed",
        b"event: response.incomplete",
        b"data: [DONE]",
    ),
    "messages": (b"event: message_stop", b"data: [DONE]"),
}


def answer_request(path: str, body: Body, speaker: Speaker) -> Answer:
    """Answer one inference request of any API.

    Raises:
        AskError: the request is wrong.
    """
    special = _ANSWERS.get(path)
    return answer(path, body, speaker) if special is None else special(body, speaker)


def around_text(api: Api) -> tuple[bytes, bytes]:
    """Return what stands before and behind the text in an event with a piece of text."""
    return _TEXT_EVENTS[api]


def name_line(api: Api) -> bytes:
    """Return the `event:` line of such an event; chat has none."""
    before = _TEXT_EVENTS[api][0]
    return before[: before.index(b"data:")]


def is_end(data: bytes, api: Api) -> bool:
    """Tell whether this event ends a stream of the API."""
    return data.startswith(_ENDS[api])
