"""What one attempt did: when its first chunk came, how it ended, how many tokens it says it used."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated

import msgspec

from router.domain import EndpointId, Outcome
from shared.http.errors import ApiError
from shared.kit.clock import Clock

# An upstream may report anything; counters can't go down, and the registry's integers have an end.
_Tokens = Annotated[int, msgspec.Meta(ge=0, le=2**53)]


class _Usage(msgspec.Struct):
    prompt_tokens: _Tokens | None = None
    completion_tokens: _Tokens | None = None


class _WithUsage(msgspec.Struct):
    usage: _Usage | None = None


_decode_usage = msgspec.json.Decoder(_WithUsage).decode
_KEPT_BYTES = 64 * 1024


class Meter:
    """Watches one reply go by. Nothing is parsed until the attempt is over."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._started = clock()
        self._ttft_s: float | None = None
        self._last = b""
        self.status = 0
        self.error: str | None = None

    async def watch(self, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass the chunks on."""
        try:
            async for chunk in chunks:
                if self._ttft_s is None:
                    self._ttft_s = self._clock() - self._started
                if b'"usage"' in chunk:
                    self._last = chunk
                yield chunk
        except ApiError as exc:
            self.error = exc.code
            raise

    def outcome(self, endpoint: EndpointId, attempt: int) -> Outcome:
        """Return what became of the attempt."""
        usage = self._usage()
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

    def _usage(self) -> _Usage | None:
        if not self._last or len(self._last) > _KEPT_BYTES:
            return None
        events = reversed(self._last.split(b"\n\n"))
        last = next(event for event in events if b'"usage"' in event)
        try:
            return _decode_usage(last.removeprefix(b"data: ")).usage
        except (msgspec.DecodeError, RecursionError):
            return None
