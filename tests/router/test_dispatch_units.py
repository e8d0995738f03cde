"""The meter and the dispatcher on their own: outcomes, tokens, and what is never retried."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from router.dispatch.dispatcher import Dispatcher
from router.dispatch.meter import Meter, Tokens, tokens_of
from router.dispatch.trip import header_safe
from router.domain import (
    Call,
    Candidate,
    Catalog,
    Deployment,
    DeploymentEntry,
    Endpoint,
    EndpointId,
    ModelEntry,
    ModelName,
    Outcome,
    Probed,
    Provider,
    Ranked,
    RequestFacts,
    Zone,
)
from router.errors import NoEndpoint
from router.fleet.membership import Membership
from router.fleet.registry import Fleet
from router.ports import Backend, OutcomeSink, RoutingPolicy
from shared.http.errors import ApiError, BadRequest, Unavailable, UpstreamInterrupted
from shared.http.exchange import Reply

FACTS = RequestFacts(request_id="r", model=ModelName("m"), stream=True, path="/chat/completions")
CALL = Call(FACTS, {})


class FakeClock:
    """A clock that ticks once per look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1
        return self.now


async def send(*chunks: bytes, error: ApiError | None = None) -> AsyncIterator[bytes]:
    for chunk in chunks:
        yield chunk
    if error is not None:
        raise error


def outcome_of(*usage: bytes, error: ApiError | None = None) -> Outcome:
    meter = Meter(FakeClock())
    meter.take(Reply(200, [], send(), is_stream=True, usage=lambda: usage))
    if error is not None:
        meter.fail(error)
    return meter.outcome(EndpointId("e"), 1)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (b'{"prompt_tokens":3,"completion_tokens":4}', (3, 4)),
        (b'{"prompt_tokens":3}', (3, None)),
        (b'{"prompt_tokens":-3}', (None, None)),
        (b'{"prompt_tokens":1e99}', (None, None)),
        (b'{"prompt_tokens":' + b"9" * 30 + b"}", (None, None)),
        (b"7", (None, None)),
        (b"[" * 60_000, (None, None)),
        (b'{"input_tokens":3,"output_tokens":4}', (3, 4)),
    ],
)
def test_the_tokens_that_an_upstream_reports(
    usage: bytes, tokens: tuple[int | None, int | None]
) -> None:
    outcome = outcome_of(usage)
    assert (outcome.input_tokens, outcome.output_tokens) == tokens


def test_later_usage_knows_better_and_earlier_fills_its_gaps() -> None:
    start = b'{"input_tokens":7,"output_tokens":1}'
    assert tokens_of((start, b'{"output_tokens":9}')) == Tokens(7, 9)
    cached = b'{"input_tokens":7,"cache_read_input_tokens":24,"cache_creation_input_tokens":2}'
    assert tokens_of((cached,)) == Tokens(33, None, 24)
    assert tokens_of(()) == Tokens()


@pytest.mark.parametrize(
    ("usage", "cached"),
    [
        # vLLM and OpenAI in chat, with or without --enable-prompt-tokens-details; Responses
        (b'{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":8,"audio_tokens":0}}', 8),
        (b'{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":0}}', 0),
        (b'{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":null}}', None),
        (b'{"prompt_tokens":9,"prompt_tokens_details":null}', None),
        (b'{"prompt_tokens":9,"prompt_tokens_details":[7]}', None),
        (b'{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":"8"}}', None),
        (b'{"prompt_tokens":9,"prompt_tokens_details":{"cached_tokens":-8}}', None),
        (b'{"input_tokens":9,"input_tokens_details":{"cached_tokens":8}}', 8),
        (b'{"prompt_tokens":9}', None),
    ],
)
def test_what_was_cached_is_told_apart_and_costs_nothing_of_the_rest(
    usage: bytes, cached: int | None
) -> None:
    outcome = outcome_of(usage)
    assert (outcome.input_tokens, outcome.cached_tokens) == (9, cached)


def test_times_and_errors() -> None:
    outcome = outcome_of()
    assert (outcome.ttft_s, outcome.total_s, outcome.error) == (1, 2, None)
    assert outcome_of(error=UpstreamInterrupted("x")).error == "upstream_interrupted"
    assert Meter(FakeClock()).outcome(EndpointId("e"), 1).ttft_s is None


class FakeBackend(Backend):
    """Answers each endpoint with an error or with chunks."""

    def __init__(self, **answers: ApiError | Sequence[bytes]) -> None:
        self._answers = answers
        self.asked: list[str] = []

    @asynccontextmanager
    async def send(self, deployment: Deployment, call: Call) -> AsyncIterator[Reply]:
        self.asked.append(deployment.endpoint.id)
        answer = self._answers[deployment.endpoint.id]
        if isinstance(answer, ApiError):
            raise answer
        yield Reply(200, [], send(*answer), is_stream=True)

    async def probe(self, endpoint: Endpoint) -> Probed:
        """Have nothing to ask."""
        return Probed()


class InOrder(RoutingPolicy):
    """Ranks as it comes; nothing at all if told so."""

    def __init__(self, *, is_empty: bool = False) -> None:
        self._is_empty = is_empty
        self.observed: list[Outcome] = []

    def rank(self, facts: RequestFacts, candidates: Sequence[Candidate]) -> Sequence[Ranked]:
        return [] if self._is_empty else [Ranked(candidate, "in-order") for candidate in candidates]

    def observe(self, facts: RequestFacts, outcome: Outcome) -> None:
        self.observed.append(outcome)


class Kept(OutcomeSink):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.outcomes: list[Outcome] = []

    def record(self, facts: RequestFacts, outcome: Outcome) -> None:
        self.outcomes.append(outcome)


def fleet_of(*names: str) -> Fleet:
    def endpoint_of(provider: Provider) -> Endpoint:
        return Endpoint(
            id=EndpointId(provider.name), base_url="http://x/v1", backend="fake", zone=Zone.LOCAL
        )

    fleet = Fleet(Membership(lambda: 0.0, 30.0), endpoint_of)
    providers = {
        name: Provider(name=name, dialect="fake", base_url="http://x", zone=Zone.LOCAL)
        for name in names
    }
    rows = tuple(DeploymentEntry(provider=name, upstream_name="m") for name in names)
    model = ModelEntry(id=ModelName("m"), deployments=rows)
    fleet.swap(Catalog(providers=providers, models=(model,)))
    return fleet


def dispatcher_of(
    fleet: Fleet,
    backend: Backend,
    sink: Kept,
    policy: RoutingPolicy | None = None,
    attempts: int = 2,
) -> Dispatcher:
    return Dispatcher(
        fleet=fleet,
        policy=policy or InOrder(),
        backends={"fake": backend},
        sinks=(sink,),
        clock=FakeClock(),
        max_attempts=attempts,
    )


async def test_attempts_end_with_the_first_reply() -> None:
    fleet, sink, policy = fleet_of("a", "b", "c"), Kept(), InOrder()
    backend = FakeBackend(a=Unavailable("no"), b=[b"x"], c=[b"y"])
    async with dispatcher_of(fleet, backend, sink, policy).dispatch(CALL) as found:
        assert [chunk async for chunk in found.reply.chunks] == [b"x"]
        assert (found.attempts, found.ranked.reason, found.model) == (2, "failover", "m")
        assert fleet.in_flight() == 1
    assert fleet.in_flight() == 0
    assert [(o.endpoint, o.attempt, o.error) for o in sink.outcomes] == [
        ("a", 1, "unavailable"),
        ("b", 2, None),
    ]
    assert policy.observed == sink.outcomes


async def test_attempts_have_a_limit_and_the_last_error_tells_the_route() -> None:
    sink = Kept()
    backend = FakeBackend(a=Unavailable("1"), b=Unavailable("2"), c=[b"y"])
    with pytest.raises(Unavailable, match="2") as failed:
        async with dispatcher_of(fleet_of("a", "b", "c"), backend, sink).dispatch(CALL):
            raise AssertionError("committed")
    assert backend.asked == ["a", "b"]
    assert dict(failed.value.headers)["x-iir-attempts"] == "2"
    assert dict(failed.value.headers)["x-iir-endpoint"] == "b"


async def test_an_error_that_another_attempt_cant_mend_ends_it() -> None:
    backend = FakeBackend(a=BadRequest("no"), b=[b"x"])
    with pytest.raises(BadRequest):
        async with dispatcher_of(fleet_of("a", "b"), backend, Kept()).dispatch(CALL):
            raise AssertionError("committed")
    assert backend.asked == ["a"]


async def test_nothing_is_tried_once_a_reply_was_handed_out() -> None:
    sink = Kept()
    backend = FakeBackend(a=[b"x"], b=[b"y"])
    with pytest.raises(Unavailable):
        async with dispatcher_of(fleet_of("a", "b"), backend, sink).dispatch(CALL):
            raise Unavailable("later")
    assert backend.asked == ["a"]
    assert [o.error for o in sink.outcomes] == ["unavailable"]


async def test_a_cancelled_attempt_is_abandoned() -> None:
    sink, fleet = Kept(), fleet_of("a", "b")
    entered = asyncio.Event()

    async def call() -> None:
        backend = FakeBackend(a=[b"x"], b=[b"y"])
        async with dispatcher_of(fleet, backend, sink).dispatch(CALL):
            entered.set()
            await asyncio.get_running_loop().create_future()

    task = asyncio.create_task(call())
    await entered.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [(o.endpoint, o.error) for o in sink.outcomes] == [("a", "abandoned")]
    assert fleet.in_flight() == 0


async def test_a_policy_may_find_nobody_fit() -> None:
    dispatcher = dispatcher_of(fleet_of("a"), FakeBackend(a=[b"x"]), Kept(), InOrder(is_empty=True))
    with pytest.raises(NoEndpoint):
        async with dispatcher.dispatch(CALL):
            raise AssertionError("committed")


def test_a_header_holds_printable_ascii_only() -> None:
    assert header_safe("org/m-1.5:8b") == "org/m-1.5:8b"
    assert header_safe("ä\r\nset-cookie: x\x7f") == "???set-cookie: x?"
