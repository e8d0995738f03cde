"""What one attempt did: when its first chunk came, how it ended, how many tokens it says it used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import msgspec

from router.domain import EndpointId, Outcome
from shared.http.errors import ApiError
from shared.http.exchange import Reply
from shared.kit.clock import Clock

# An upstream may report anything; counters can't go down, and the registry's integers have an end.
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


_NULL = msgspec.Raw(b"null")


class _Usage(msgspec.Struct):
    """OpenAI's names in chat and completions; in Responses, and Anthropic's, the other ones.

    Anthropic counts what is cached apart from `input_tokens`. The details hold `cached_tokens`: they are read
    apart, for whatever they are must not cost the rest.
    """

    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None
    input_tokens: _Tokens | None = None
    output_tokens: _Tokens | None = None
    cache_creation_input_tokens: _Tokens | None = None
    cache_read_input_tokens: _Tokens | None = None
    prompt_tokens_details: msgspec.Raw = _NULL
    input_tokens_details: msgspec.Raw = _NULL


class _Details(msgspec.Struct):
    cached_tokens: _Tokens | None = None


class Tokens(msgspec.Struct, frozen=True):
    """What an upstream reports; `cached`: how many of `taken` it had in its cache of prefixes."""

    taken: int | None = None
    made: int | None = None
    cached: int | None = None


_NONE = Tokens()
_decode_usage = msgspec.json.Decoder(_Usage).decode
_decode_details = msgspec.json.Decoder(_Details).decode


class Meter:
    """Watches one attempt. Nothing is parsed until it is over."""

    __slots__ = ("_clock", "_reply", "_ttft_s", "cause", "error", "started", "status")

    def __init__(self, clock: Clock) -> None:
        """Start the attempt now."""
        self._clock = clock
        self.started = clock()
        self._ttft_s: float | None = None
        self._reply: Reply | None = None
        self.status = 0
        self.error: str | None = None
        self.cause: ApiError | None = None

    def take(self, reply: Reply) -> None:
        """Note that the first chunk is in hand."""
        self._ttft_s = self._clock() - self.started
        self._reply = reply
        self.status = reply.status

    @property
    def failure(self) -> ApiError | None:
        """Return what broke off the answer after it had begun, or the error that it ended with."""
        return None if self._reply is None else self._reply.ended_by()

    def fail(self, error: ApiError) -> None:
        """Note what ended the attempt."""
        self.cause = error
        self.error = error.code[:64]  # an upstream's own codes have no bound
        self.status = self.status or error.status

    def outcome(self, endpoint: EndpointId, attempt: int) -> Outcome:
        """Return what became of the attempt."""
        tokens = tokens_of(self._reply.usage()) if self._reply is not None else _NONE
        return Outcome(
            endpoint=endpoint,
            attempt=attempt,
            status=self.status,
            ttft_s=self._ttft_s,
            total_s=self._clock() - self.started,
            input_tokens=tokens.taken,
            output_tokens=tokens.made,
            cached_tokens=tokens.cached,
            error=self.error,
        )


def tokens_of(usage: Sequence[bytes]) -> Tokens:
    """Return the tokens that these usage objects tell; the later ones know better."""
    if not usage:
        return _NONE
    taken: int | None = None
    made: int | None = None
    cached: int | None = None
    for raw in usage:
        try:
            found = _decode_usage(raw)
        except (msgspec.DecodeError, RecursionError):
            continue
        value = found.prompt_tokens
        value = _all_input(found) if value is None else value
        taken = taken if value is None else value
        value = found.completion_tokens
        value = found.output_tokens if value is None else value
        made = made if value is None else value
        value = _cached(found)
        cached = cached if value is None else value
    return Tokens(taken, made, cached)


def _cached(usage: _Usage) -> int | None:
    for raw in (usage.prompt_tokens_details, usage.input_tokens_details):
        if raw is not _NULL and raw != _NULL:
            try:
                return _decode_details(raw).cached_tokens
            except (msgspec.DecodeError, RecursionError):
                return None
    return usage.cache_read_input_tokens


def _all_input(usage: _Usage) -> int | None:
    if usage.input_tokens is None:
        return None
    cached = (usage.cache_read_input_tokens or 0) + (usage.cache_creation_input_tokens or 0)
    return usage.input_tokens + cached
