"""Finds a worker that says it is well and no longer answers: it is asked for one token."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import msgspec

from local_agent.domain import Upstream
from local_agent.ports import HttpProber
from shared.contracts.apis import API_PATHS
from shared.kit.clock import Clock


class OneToken:
    """Asks an engine that was idle for a while. Under load its clients would notice, and it queues."""

    def __init__(self, ask: Callable[[], Awaitable[bool]], clock: Clock, after_s: float) -> None:
        """Begin with a worker that has just become ready.

        Args:
            ask: asks for a token.
            clock: a monotonic clock.
            after_s: for how long nothing was asked of it.
        """
        self._ask = ask
        self._clock = clock
        self._after_s = after_s
        self._used_at = clock()

    async def ok(self, in_flight: int) -> bool:
        """Tell whether it generates, as far as it was due to be asked."""
        if in_flight > 0:
            self._used_at = self._clock()
        if self._clock() < self._used_at + self._after_s:
            return True
        if not await self._ask():
            return False
        self._used_at = self._clock()
        return True


async def generates(
    prober: HttpProber, upstream: Upstream, apis: tuple[str, ...], timeout_s: float
) -> bool:
    """Tell whether the engine still answers; one that generates nothing is not asked.

    Args:
        prober: asks.
        upstream: where it serves.
        apis: which of `shared.contracts.apis.APIS` it speaks.
        timeout_s: how long a token may take.
    """
    values: dict[str, object] = {"model": upstream.model, "max_tokens": 1}
    # a model without a chat template completes all the same
    if "completions" in apis:
        api, values["prompt"] = "completions", "a"
    elif "chat" in apis:
        api, values["messages"] = "chat", [{"role": "user", "content": "a"}]
    else:
        return True
    url = f"{upstream.base_url}{API_PATHS[api][0]}"
    return await prober.answers(url, msgspec.json.encode(values), timeout_s)
