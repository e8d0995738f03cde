"""What a look at an llm-d cluster shows: its models, whether it has pods, how much waits. Pure but for reading."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from router.backends.llmd.answers import NO_ENDPOINTS, NO_PODS, dropped_reason
from router.domain import ServedModel, is_model_name
from shared.http.errors import UpstreamFailed
from shared.http.transport import InboundResponse
from shared.kit.exposition import total

_MOST_BYTES = 4 * 1024 * 1024
_MOST_MODELS = 4096
# by age: v0.10 has the first, and the others besides; before, each release had one of them
_READY = ("llm_d_epp_ready_endpoints", "llm_d_epp_ready_pods", "inference_pool_ready_pods")
_WAITING_EACH = ("llm_d_epp_average_queue_size", "inference_pool_average_queue_size")
_HELD = ("llm_d_epp_flow_control_queue_size", "inference_extension_flow_control_queue_size")
_MOST_QUEUED = 1_000_000
_MOST_NUMBER = 2**53


class Load(msgspec.Struct, frozen=True):
    """What an endpoint picker tells: how many requests wait (None: nothing), and that no pod is ready."""

    queued: int | None = None
    is_cold: bool = False


class _Card(msgspec.Struct):
    id: str
    created: float | None = None
    max_model_len: float | None = None
    parent: str | None = None


class _Cards(msgspec.Struct):
    data: list[_Card]


_decode = msgspec.json.Decoder(_Cards).decode


async def read_bounded(response: InboundResponse) -> bytes:
    """Return an answer's body.

    Raises:
        UpstreamFailed: it is longer than any list of models or metrics.
    """
    body = bytearray()
    while chunk := await response.read():
        body += chunk
        if len(body) > _MOST_BYTES:
            raise UpstreamFailed("The answer to a probe has no end.")
    return bytes(body)


def found_models(body: bytes) -> tuple[ServedModel, ...]:
    """Return the models of a list, each once; names that no client could send are left out.

    Raises:
        UpstreamFailed: it is no list of models, so this is no gateway of an llm-d cluster.
    """
    try:
        cards = _decode(body).data
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise UpstreamFailed(
            "The gateway's answer to GET /v1/models is no list of models."
        ) from None
    found: dict[str, ServedModel] = {}
    for card in cards[:_MOST_MODELS]:
        if is_model_name(card.id):
            found.setdefault(card.id, _served(card))
    return tuple(found.values())


def has_no_pods(status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> bool:
    """Tell whether a refusal means that nothing is there which could serve."""
    if status not in {500, 503}:
        return False
    return dropped_reason(headers) == NO_ENDPOINTS or NO_PODS in body


def told_load(metrics: bytes) -> Load:
    """Return the load that an endpoint picker's metrics tell.

    Its own queue is counted, that of the pods is a mean per pod.
    """
    text = metrics.decode("utf-8", "replace")
    ready, each, held = (_first(text, names) for names in (_READY, _WAITING_EACH, _HELD))
    if ready is None and each is None and held is None:
        return Load()
    waiting = (held or 0.0) + (each or 0.0) * (1.0 if ready is None else ready)
    return Load(int(min(max(waiting, 0.0), _MOST_QUEUED)), ready == 0)


def _served(card: _Card) -> ServedModel:
    return ServedModel(
        id=card.id,
        created_at=_sane(card.created) or 0,
        context_tokens=_sane(card.max_model_len),
        base_model=card.parent if is_model_name(card.parent) else None,
    )


def _sane(number: float | None) -> int | None:
    return int(number) if number is not None and 0 < number < _MOST_NUMBER else None


def _first(text: str, names: Sequence[str]) -> float | None:
    for name in names:
        found = total(text, name)
        if found is not None:
            return found
    return None
