"""The pump moves a stream exactly as the iteration does, at its pace and in turns that others bear."""

from __future__ import annotations

import asyncio
import gc
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.http.errors import UpstreamFailed, UpstreamInterrupted, UpstreamTimeout
from shared.http.streams import ChatRules, MessagesRules, ResponsesRules, StreamRules, Top, Verdict
from shared.http.transport import Timeouts
from shared.testing.raw_client import split_answer
from tests.shared.exchanges import CHUNK, DONE, ERRORS, MESSAGE_EVENTS, RESPONSE_EVENTS, USAGE
from tests.shared.pumps import HEAD, begun, chunk, outcome, until
from tests.shared.test_lean_properties import cut

TURN = 16 * 1024
USUAL = CHUNK.replace(b"{", b'{"object":"chat.completion.chunk",', 1)
EVENTS = [
    CHUNK,
    USUAL,
    USUAL,
    USUAL.replace(b"chat.completion.chunk", b"text_completion"),
    USUAL.replace(b"chat.completion.chunk", b"error"),
    USUAL.replace(b"chat.completion.chunk", b"\\u0065rror"),
    *[
        USUAL.replace(b"{", b'{"usage":%b,' % usage, 1)
        for usage in (b"null", b'{"prompt_tokens":1}')
    ],
    *[USUAL.replace(b"{", b'{"response":%b,' % value, 1) for value in (b"null", b'{"usage":{}}')],
    USUAL.replace(b"{", b'{"error":null,"message":null,', 1),
    USUAL.replace(b"{", b'{"error":null,"error":{"message":"broke"},', 1),
    USUAL.replace(b"{", b'{"error":{"message":"broke"},"error":null,', 1),
    USUAL.replace(b'"a"', '"ü€😀"'.encode()),
    USUAL.replace(b'"a"', b'"\xff"'),
    USUAL.replace(b'"a"', b'"a",,'),
    USUAL.replace(b'"a"', b"[" * 5000 + b"]" * 5000),
    USAGE.replace(b"{", b'{"object":"chat.completion.chunk",', 1),
    CHUNK.replace(b"\n", b"\r\n"),
    CHUNK.replace(b"\n", b"\r"),
    CHUNK.replace(b'"a"', '"ü€😀"'.encode()),
    CHUNK.replace(b'"a"', b'"' + b"x" * 300 + b'"'),
    CHUNK.replace(b'"a"', b'"' + b"x" * 5000 + b'"'),
    CHUNK.replace(b"data: ", b"data:"),
    CHUNK.replace(b'"index"', b'\ndata: "index"'),
    USAGE,
    USAGE.replace(b"[]", b'[{"index":0,"delta":{}}]'),
    b": comment\n\n",
    b"id: 1\nretry: 2\n\n",
    b"data: {}\n\n",
    b"data: \n\n",
    b"\n\n",
    *MESSAGE_EVENTS[:2],
    *RESPONSE_EVENTS[:2],
]
ENDS = [
    DONE,
    DONE + CHUNK,
    b"data: [DONE]",
    b"",
    b'data: {"choices":[}\n\n',
    b'data: {"a":"\xff"}\n\n',
    b"data: 1\n\n",
    MESSAGE_EVENTS[2],
    RESPONSE_EVENTS[2],
    b'data: {"type":"message_stop"}\n\n',
    b'data: {"type":"response.completed"}\n\n',
    b'data: {"type":"response.failed","response":{"error":{"code":"x","message":"broke"}}}\n\n',
    *ERRORS.values(),
]
SIZES = [b"%x\r\n", b"%X\r\n", b"%04x\r\n", b"%x;a=b\r\n", b'%x;a="b"\r\n']
RULES: dict[str, StreamRules] = {
    "chat": ChatRules(),
    "chat without usage": ChatRules(hides_usage=True),
    "responses": ResponsesRules(),
    "messages": MessagesRules(),
}


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Return the bytes of an answer: events, framed as upstreams may."""
    events = [
        CHUNK,
        *draw(st.lists(st.sampled_from(EVENTS), max_size=12)),
        draw(st.sampled_from(ENDS)),
    ]
    style = draw(st.sampled_from(["an event each", "all in one", "anywhere"]))
    body = b"".join(events)
    if style == "all in one":
        events = [body]
    elif style == "anywhere":
        events = cut(body, draw(st.lists(st.integers(0, 3000), max_size=8)))
    sizes = st.sampled_from([SIZES[0], *SIZES])
    chunks = [draw(sizes) % len(each) + each + b"\r\n" for each in events if each]
    return HEAD + b"".join(chunks) + draw(st.sampled_from([b"0\r\n\r\n", b"", b"zz\r\n"]))


def saying(text: bytes) -> bytes:
    return CHUNK.replace(b'"a"', b'"%b"' % text)


def at_chunks(wire: bytes) -> list[int]:
    return [found.end() for found in re.finditer(rb"\r\n", wire)]


@given(
    wire=streams(),
    places=st.lists(st.integers(0, 8000), max_size=12) | st.just(None),
    pauses=st.sets(st.integers(0, 10), max_size=3),
    ending=st.sampled_from(["eof", "reset"]),
    rules=st.sampled_from(sorted(RULES)),
)
@settings(deadline=None)
def test_both_ways_give_the_same(
    wire: bytes, places: list[int] | None, pauses: set[int], ending: str, rules: str
) -> None:
    pieces = cut(wire, at_chunks(wire) if places is None else places)

    async def scenario() -> None:
        pumped, iterated = [
            await outcome(
                pieces, is_pumped=is_pumped, ending=ending, rules=RULES[rules], pauses=pauses
            )
            for is_pumped in (True, False)
        ]
        assert split_answer(pumped.raw) == split_answer(iterated.raw)
        assert pumped.raw.endswith(b"0\r\n\r\n") == iterated.raw.endswith(b"0\r\n\r\n")
        assert pumped.failure is iterated.failure
        assert pumped.reported is iterated.reported
        assert pumped.usage == iterated.usage

    asyncio.run(scenario())


@pytest.mark.parametrize("size", SIZES)
async def test_what_comes_leaves_within_the_same_call_framed_as_we_do(size: bytes) -> None:
    scene = await begun()
    for length in (1, 3, 180, 200, 205, 210, 3900, 4100, 40_000):
        event = saying(b"x" * length)
        scene.upstream.data_received(size % len(event) + event + b"\r\n")
        while length > TURN and not scene.client.writes[-1].endswith(event + b"\r\n"):
            await asyncio.sleep(0)  # it is judged in several turns
        assert scene.client.writes[-1] == chunk(event)
    scene.come(CHUNK, DONE)
    await scene.ended()
    assert scene.passed().endswith(chunk(CHUNK + DONE) + b"0\r\n\r\n")
    assert scene.task.result() is None


LIKE_A_CHUNK = chunk(CHUNK)
TRAPS: dict[str, list[bytes]] = {
    "two events in a chunk": [chunk(CHUNK + CHUNK)],
    "an event and the end in a chunk": [chunk(CHUNK + DONE)],
    "an event in two chunks": [chunk(CHUNK[:20]), chunk(CHUNK[20:])],
    "a name, then what looks like an event": [chunk(b"event: x\n"), chunk(CHUNK)],
    "a comment's begin, then the same": [chunk(b": x\n"), chunk(CHUNK)],
    "a line end within": [chunk(b'data: {"choices":\r[]}\n\n')],
    "another line end within": [chunk(b'data: {"choices":\n[]}\n\n')],
    "two lines of data": [chunk(b'data: {"choices":\ndata: []}\n\n')],
    "a size in two pieces": [chunk(CHUNK) + b"1", LIKE_A_CHUNK, b": %b\n\n\r\n" % (b"x" * 0xFA)],
    "a chunk in a chunk": [
        b"%x\r\n: x\r\n\r\n" % (len(LIKE_A_CHUNK) + 12),
        LIKE_A_CHUNK,
        b": y\n\n\r\n",
    ],
    "a chunk longer than it says": [b"%x\r\n%b\r\n" % (len(CHUNK) - 2, CHUNK)],
    "a chunk shorter than it says": [b"%x\r\n%b\r\n" % (len(CHUNK) + 2, CHUNK), b"\r\n"],
    "rubbish": [b"x\r\n" + CHUNK + b"\r\n"],
    **{f"the event {event[:60]!r}": [chunk(event)] for event in [*EVENTS, *ENDS] if event},
}


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("trap", TRAPS)
async def test_only_whole_events_pass_without_a_look_at_the_rest(trap: str, rules: str) -> None:
    before = [HEAD + chunk(CHUNK), *[chunk(CHUNK)] * 8]
    pieces = [*before, *TRAPS[trap], chunk(CHUNK), chunk(DONE)]
    both = [
        await outcome(pieces, is_pumped=is_pumped, rules=RULES[rules])
        for is_pumped in (True, False)
    ]
    assert split_answer(both[0].raw) == split_answer(both[1].raw)
    assert (both[0].failure, both[0].reported) == (both[1].failure, both[1].reported)
    assert both[0].usage == both[1].usage


async def test_a_large_batch_leaves_in_turns_in_order() -> None:
    scene = await begun()
    events = [saying(b"%d" % number) for number in range(2000)]
    before = len(scene.client.raw)
    scene.come(*events)
    turns = 0
    while len(scene.passed()) < len(b"".join(events)):
        after = len(scene.client.raw)
        assert 0 < after - before <= TURN + 64
        before, turns = after, turns + 1
        if turns == 2:
            scene.come(saying(b"late"))  # has to wait for its turn
        await asyncio.sleep(0)
    scene.come(DONE)
    await scene.ended()
    body = split_answer(scene.client.raw)[1]
    assert body == b"".join([CHUNK, *events, saying(b"late"), DONE])


async def test_a_client_that_does_not_read_stops_the_upstream_until_it_does() -> None:
    scene = await begun()
    paused: list[bool] = []
    upstream = scene.upstream.transport
    scene.client.flow.pause_writing()
    before = len(scene.client.writes)
    scene.come(CHUNK)
    sent = 1
    while not upstream._is_paused:  # type: ignore[attr-defined] # the test's own wire
        scene.come(*[CHUNK] * 100)
        sent += 100
        await asyncio.sleep(0)
        paused.append(True)
    assert len(scene.client.writes) == before
    assert sent * len(CHUNK) < 512 * 1024
    scene.client.flow.resume_writing()
    await until(lambda: not upstream._is_paused)  # type: ignore[attr-defined] # likewise
    scene.come(CHUNK, DONE)
    await scene.ended()
    assert split_answer(scene.client.raw)[1] == CHUNK * (sent + 2) + DONE


async def test_a_cancellation_between_turns_says_goodbye_behind_a_whole_event() -> None:
    scene = await begun()
    scene.come(*[CHUNK] * 1000)
    scene.task.cancel()
    scene.come(CHUNK)
    await scene.ended()
    assert scene.task.cancelled()
    body = split_answer(scene.client.raw)[1]
    events, goodbye = body.rsplit(CHUNK, 1)
    assert events == CHUNK * (len(events) // len(CHUNK))
    assert b'"code":"shutting_down"' in goodbye
    assert scene.client.raw.endswith(b"0\r\n\r\n")
    assert scene.upstream.is_closed
    await asyncio.sleep(0)
    assert scene.defects == []


class Broken(ChatRules):
    """Has a defect."""

    def judge(self, event: bytes, data: bytes, top: Top) -> Verdict:
        if b"boom" in data:
            raise ZeroDivisionError
        return super().judge(event, data, top)


BAD, BOOM = b"data: {]}\n\n", CHUNK.replace(b'"a"', b'"boom"')


@pytest.mark.parametrize(
    "events", [[CHUNK], [CHUNK, CHUNK], [BAD], [CHUNK, BAD], [BOOM], [CHUNK, BOOM], [DONE]]
)
async def test_a_cancellation_in_the_turn_of_an_event_is_one(events: list[bytes]) -> None:
    scene = await begun(Broken())
    scene.task.cancel()
    scene.come(*events)
    scene.come(*events)
    await scene.ended()
    assert scene.task.cancelled()
    assert b"shutting_down" in scene.passed()
    assert scene.defects == []


@pytest.mark.parametrize("is_alone", [True, False])
async def test_a_defect_reaches_who_waits_and_nobody_else(is_alone: bool) -> None:
    scene = await begun(Broken())
    scene.come(*([BOOM] if is_alone else [CHUNK, BOOM]))
    scene.come(CHUNK)
    await scene.ended()
    assert isinstance(scene.task.exception(), ZeroDivisionError)
    assert not scene.client.raw.endswith(b"0\r\n\r\n")
    assert scene.upstream.is_closed
    assert scene.defects == []


async def test_a_cancellation_behind_a_defect_leaves_nothing_unsaid() -> None:
    scene = await begun(Broken())
    scene.come(BOOM)
    scene.task.cancel()
    await scene.ended()
    assert scene.task.cancelled()
    gc.collect()
    assert scene.defects == []


async def test_an_event_too_long_is_a_failure() -> None:
    scene = await begun()
    for _ in range(9):
        if not scene.upstream.is_closed:
            scene.come(b"data: " + b"x" * 2**20)
        await until(lambda: scene.upstream.listener is None or not scene.upstream.pieces)
    await scene.ended()
    assert isinstance(scene.task.result(), UpstreamFailed)
    assert b'"code":"upstream_failed"' in scene.passed()
    assert scene.defects == []


async def test_an_upstream_that_closes_ends_it_once() -> None:
    scene = await begun()
    scene.come(CHUNK)
    scene.upstream.data_received(b"no chunk")
    scene.upstream.connection_lost(None)
    scene.upstream.eof_received()
    await scene.ended()
    assert isinstance(scene.task.result(), UpstreamInterrupted)
    assert scene.passed().count(b"upstream_interrupted") == 1
    assert scene.passed().startswith(chunk(CHUNK))
    assert scene.upstream.listener is None
    assert scene.defects == []


async def test_an_upstream_that_falls_silent_is_too_late() -> None:
    scene = await begun(limits=Timeouts(connect_s=10, first_byte_s=10, idle_s=0.05))
    scene.come(CHUNK)
    await scene.ended()
    assert isinstance(scene.task.result(), UpstreamTimeout)
    assert scene.passed().startswith(chunk(CHUNK))


async def test_an_old_client_gets_the_events_without_chunks() -> None:
    scene = await begun(version="1.0")
    scene.come(CHUNK)
    scene.come(CHUNK, DONE)
    await scene.ended()
    assert scene.client.raw.split(b"\r\n\r\n", 1)[1] == CHUNK * 3 + DONE
