"""What one attempt did: when its first chunk came, how it ended, how many tokens it says it used."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Annotated

import msgspec

from router.domain import EndpointId, Outcome
from shared.http.errors import ApiError
from shared.http.exchange import Reply
from shared.kit.clock import Clock

# An upstream may report anything; counters can't go down, and the registry's integers have an end.
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Usage(msgspec.Struct):
    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None


_decode_usage = msgspec.json.Decoder(_Usage).decode


class Meter:
    """Watches one reply go by. Nothing is parsed until the attempt is over."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started = clock()
        self._ttft_s: float | None = None
        self._usage: Callable[[], bytes | None] = lambda: None
        self.status = 0
        self.error: str | None = None
        self.failure: ApiError | None = None

    def take(self, reply: Reply) -> None:
        """Watch this reply from now on."""
        self.status = reply.status
        self._usage = reply.usage
        reply.chunks = self._watch(reply.chunks)

    async def _watch(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        try:
            async for chunk in chunks:
                if self._ttft_s is None:
                    self._ttft_s = self._clock() - self._started
                yield chunk
        except ApiError as exc:
            self.fail(exc)
            raise

    def fail(self, error: ApiError) -> None:
        """Note what ended the attempt."""
        self.failure = error
        self.error = error.code[:64]  # an upstream's own codes have no bound
        self.status = self.status or error.status

    def outcome(self, endpoint: EndpointId, attempt: int) -> Outcome:
        """Return what became of the attempt."""
        usage = self._reported()
        return Outcome(
            endpoint=endpoint,
            attempt=attempt,
            status=self.status,
            ttft_s=self._ttft_s,
            total_s=self._clock() - self._started,
            input_tokens=usage.prompt_tokens if usage else None,
            output_tokens=usage.completion_tokens if usage else None,
            error=self.error,
        )

    def _reported(self) -> _Usage | None:
        usage = self._usage()
        if usage is None:
            return None
        try:
            return _decode_usage(usage)
        except (msgspec.DecodeError, RecursionError):
            return None
