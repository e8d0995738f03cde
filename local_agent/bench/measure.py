"""Measures a model through the agent's own API, as a client of this machine sees it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from random import Random
from statistics import median
from typing import Any

import httpx

from local_agent.local_http import local_client
from shared.contracts.agents import PromptSpeed
from shared.kit.clock import Clock

PARALLEL = 4
_RUNS = 3
_PARALLEL_RUNS = 2
_ANSWER_TOKENS = 128
_SMALL_WORDS, _LARGE_WORDS = 24, 900
_CHAT = "/v1/chat/completions"
_FIRST_EVENT_S = 900.0
_TASK = "Count upwards from one, a number to a line, and never stop."
_WORDS = ("red", "stone", "river", "seven", "light", "under", "paper", "garden", "north", "wheel")


class BenchFailed(Exception):
    """A request of the measurement was not answered as it should be; the message says how."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One streamed answer. Times: seconds of the clock; `tokens` are those of the answer."""

    sent_at: float
    first_at: float
    last_at: float
    prompt_tokens: int
    tokens: int

    @property
    def ttft_s(self) -> float:
        """Return how long the first token took."""
        return self.first_at - self.sent_at

    @property
    def tokens_per_s(self) -> float:
        """Return the speed from the first token on, which came for the prompt."""
        return rate(self.tokens - 1, self.last_at - self.first_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured of one loaded model."""

    ttft: tuple[PromptSpeed, ...]
    tokens_per_s: float
    parallel_tokens_per_s: float


def rate(tokens: int, seconds: float) -> float:
    """Return tokens per second; 0 where too little came to tell."""
    return tokens / seconds if tokens > 0 and seconds > 0 else 0.0


def together(answers: Iterable[Answer]) -> float:
    """Return the tokens per second of answers that ran at once, from the first token of any to the last."""
    found = list(answers)
    first, last = min(one.first_at for one in found), max(one.last_at for one in found)
    return rate(sum(one.tokens for one in found) - 1, last - first)


def prompt(words: int, rng: Random) -> str:
    """Return a text of about so many words; each begins differently, so that no cache has it."""
    filling = (rng.choice(_WORDS) for _ in range(words))
    return f"{rng.randrange(10**9)} {' '.join(filling)}. {_TASK}"


def large_words(context_tokens: int | None) -> int:
    """Return how long the larger prompt may be, in words, which are up to two tokens each."""
    return _LARGE_WORDS if context_tokens is None else min(_LARGE_WORDS, context_tokens // 4)


def answer_tokens(context_tokens: int | None) -> int:
    """Return how many tokens an answer is asked for."""
    return _ANSWER_TOKENS if context_tokens is None else min(_ANSWER_TOKENS, context_tokens // 4)


class Measurer:
    """Asks one model of an agent."""

    def __init__(
        self,
        base_url: str,
        model: str,
        *,
        context_tokens: int | None,
        clock: Clock,
        rng: Random,
        in_flight: Callable[[int], AbstractContextManager[None]],
        may_go_on: bool = True,
    ) -> None:
        """Take whom to ask.

        Args:
            base_url: of the agent.
            model: an id that it knows.
            context_tokens: how much the model takes (None: it is not known).
            clock: tells seconds.
            rng: makes prompts that differ.
            in_flight: is entered for as long as so many requests are under way.
            may_go_on: whether the engine knows `ignore_eos`, which our own engines do or pass over.
        """
        self._url = f"{base_url}{_CHAT}"
        self._model = model
        self._clock = clock
        self._rng = rng
        self._in_flight = in_flight
        self._large_words = large_words(context_tokens)
        self._answer_tokens = answer_tokens(context_tokens)
        self._more: dict[str, Any] = {"ignore_eos": True} if may_go_on else {}

    def run(self) -> Figures:
        """Return the figures of the model, which is loaded.

        Raises:
            BenchFailed: it did not answer as it should.
        """
        timeout = httpx.Timeout(10.0, read=_FIRST_EVENT_S)
        with local_client(timeout) as client:
            self._ask(client, _SMALL_WORDS, 8)  # what the very first request costs is not its speed
            small = [self._ask(client, _SMALL_WORDS, self._answer_tokens) for _ in range(_RUNS)]
            large = [self._ask(client, self._large_words, 2) for _ in range(_RUNS)]
            rounds = [self._at_once(client) for _ in range(_PARALLEL_RUNS)]
        return Figures(
            ttft=(_speed(small), _speed(large)),
            tokens_per_s=round(median(one.tokens_per_s for one in small), 2),
            parallel_tokens_per_s=round(median(rounds), 2),
        )

    def _at_once(self, client: httpx.Client) -> float:
        texts = [prompt(_SMALL_WORDS, self._rng) for _ in range(PARALLEL)]
        with self._in_flight(PARALLEL), ThreadPoolExecutor(PARALLEL) as pool:
            ask = partial(self._stream, client, tokens=self._answer_tokens)
            return together(pool.map(ask, texts))

    def _ask(self, client: httpx.Client, words: int, tokens: int) -> Answer:
        with self._in_flight(1):
            return self._stream(client, prompt(words, self._rng), tokens=tokens)

    def _stream(self, client: httpx.Client, text: str, *, tokens: int) -> Answer:
        body = {
            "model": self._model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            **self._more,
        }
        sent_at = self._clock()
        try:
            with client.stream("POST", self._url, json=body) as response:
                if not response.is_success:
                    response.read()
                    raise BenchFailed(_said(response))
                return read_answer(events(response.iter_lines()), sent_at, self._clock)
        except httpx.HTTPError as error:
            raise BenchFailed(f"the agent did not answer: {type(error).__name__}") from error


def read_answer(found: Iterable[dict[str, Any]], sent_at: float, clock: Clock) -> Answer:
    """Return what a stream of chat events tells, looking at the clock as they come.

    Raises:
        BenchFailed: no token came, or an error in their place.
    """
    first_at = last_at = None
    chunks = 0
    usage: dict[str, Any] = {}
    for event in found:
        if "error" in event:
            raise BenchFailed(f"the answer broke off: {_message(event)}")
        usage = event.get("usage") or usage
        if _has_text(event):
            last_at = clock()
            first_at = last_at if first_at is None else first_at
            chunks += 1
    if first_at is None or last_at is None:
        raise BenchFailed("the model answered without a token")
    return Answer(
        sent_at=sent_at,
        first_at=first_at,
        last_at=last_at,
        prompt_tokens=int(usage.get("prompt_tokens") or 0),
        tokens=int(usage.get("completion_tokens") or chunks),
    )


def events(lines: Iterable[str]) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects of a stream of events, up to `[DONE]`."""
    for line in lines:
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or not data:
            continue
        if data == "[DONE]":
            return
        try:
            event = json.loads(data)
        except ValueError:
            raise BenchFailed("the answer holds an event that is no JSON") from None
        if isinstance(event, dict):
            yield event


def _has_text(event: dict[str, Any]) -> bool:
    """Tell whether a token came, of the answer or of what the model thinks before it."""
    for choice in event.get("choices") or ():
        delta = choice.get("delta") or {}
        if any(delta.get(name) for name in ("content", "reasoning_content", "reasoning")):
            return True
    return False


def _speed(answers: list[Answer]) -> PromptSpeed:
    middle = median(one.ttft_s for one in answers)
    tokens = int(median(one.prompt_tokens for one in answers))
    return PromptSpeed(prompt_tokens=tokens, ttft_ms=round(max(0.0, middle) * 1000, 1))


def _said(response: httpx.Response) -> str:
    try:
        return _message(response.json())
    except ValueError:
        return f"HTTP {response.status_code}"


def _message(body: object) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or "no reason was given")
