"""What an earlier agent has left: which of its workers are worth to be taken over."""

from __future__ import annotations

from collections.abc import Mapping

import anyio
import msgspec

from local_agent.catalog import Entry
from local_agent.domain import Deployment, ModelId
from local_agent.ports import Engine, HttpProber, Left

_ASK_EVERY_S = 0.1
_MOST_BYTES = 1024 * 1024


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


async def usable(
    left: Mapping[str, Left],
    entries: Mapping[ModelId, Entry],
    prober: HttpProber,
    limit_s: float,
) -> list[ModelId]:
    """Return who of the left workers can go on, in the order of the known models.

    Args:
        left: by model: what still runs as it is wanted.
        entries: the known models.
        prober: asks them, all at once.
        limit_s: for how long one that must serve may not do so.
    """
    found: set[ModelId] = set()

    async def look(entry: Entry, engine: Engine, one: Left) -> None:
        model = entry.deployment.model
        if not one.must_serve or await _serves(prober, engine, entry.deployment, one.port, limit_s):
            found.add(model)

    async with anyio.create_task_group() as group:
        for model, entry in entries.items():
            if model in left and entry.engine is not None:
                group.start_soon(look, entry, entry.engine, left[model])
    return [model for model in entries if model in found]


async def _serves(
    prober: HttpProber, engine: Engine, deployment: Deployment, port: int, limit_s: float
) -> bool:
    """Tell whether it gets well in time, and has the model that it should have."""
    root, probe = f"http://127.0.0.1:{port}", engine.readiness()
    with anyio.move_on_after(limit_s):
        # nothing but asking tells
        while not await prober.ok(f"{root}{probe.path}", probe.timeout_s):  # noqa: ASYNC110
            await anyio.sleep(_ASK_EVERY_S)
        listed = await prober.text(f"{root}/v1/models", probe.timeout_s, _MOST_BYTES)
        return engine.upstream_name(deployment) in _names(listed)
    return False


def _names(listed: str | None) -> list[str]:
    """Return the ids of an OpenAI-compatible list of models; none if it is no such list."""
    try:
        return [model.id for model in msgspec.json.decode(listed or "", type=_Models).data]
    except msgspec.MsgspecError:
        return []
