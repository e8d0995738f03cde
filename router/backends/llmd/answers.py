"""What an error of an llm-d cluster means. Gateway and picker answer in text or with nothing; pure.

| said by | how | means |
|---|---|---|
| picker | 429, header `rejected-saturated`, `rejected-ttl-expired` or none | contended |
| picker | 429, `evicted…` | evicted, maybe after work on it |
| picker | 503, `rejected-no-endpoints`; 500 "no pods available" | cold |
| picker | 503, `rejected-shutting-down` | it restarts |
| gateway | 500 without a body | the picker is gone: the cluster's, or one pool's of several |
| gateway | 5xx "no healthy upstream", "remote connection failure", "connection timeout" | no pod has seen it |
| gateway | 5xx "upstream connect error … reset reason: overflow" | contended |
| gateway | 5xx "upstream connect error …", any other reason | the pod broke off, maybe after work on it |
| gateway | 504, other text | the route's own time limit |
| gateway | 504 without a body | the picker hangs |
| model server | JSON | its own error; 404: the model is not in this pool |
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final
from zlib import crc32

from router.errors import (
    ClusterCold,
    ClusterContended,
    ClusterError,
    ClusterEvicted,
    ClusterRestarting,
    PickerGone,
    PodUnreachable,
    PoolWithoutPicker,
    RouteTimeout,
)
from shared.http.errors import (
    ApiError,
    BadRequest,
    ModelNotFound,
    UpstreamAnswer,
    UpstreamFailed,
    UpstreamInterrupted,
    UpstreamTimeout,
)
from shared.http.exchange import Reply
from shared.http.headers import find_header, retry_after_s
from shared.http.upstream_errors import is_retryable, upstream_error

NO_ENDPOINTS: Final = "rejected-no-endpoints"
NO_PODS: Final = b"no pods available"
_REASON: Final = b"x-llm-d-request-dropped-reason"
_CONTENDED: Final = frozenset({"rejected-saturated", "rejected-ttl-expired"})
_BUSY: Final = frozenset({429, 503})
# Envoy's words where the way to a pod ended before an answer, and the reasons of which we know that no pod
# has seen the request (`ResponseFlagUtils`, `Http::Utility::resetReasonToString`)
_RESET: Final = (b"upstream connect error", b"disconnect/reset", b"no healthy upstream")
_UNSEEN: Final = (b"remote connection failure", b"connection timeout", b"no healthy upstream")
# the gateway asked several pods, and tells of the last one only
_RETRIED: Final = b"retried and the latest"
_OVERFLOW: Final = b"reset reason: overflow"
_OF_ONE: Final = (PoolWithoutPicker, UpstreamInterrupted, ClusterContended, RouteTimeout)
_PICKERS_TEXT: Final = re.compile(rb"inference error: \w+ - ([ -~]{1,300})\s*")
_LOOK: Final = "Its log says why, under this request's id."
_NEXT_STEPS: Final = {
    400: "Look for a field that the model server does not know; the gateway's log has the reason.",
    405: "Its route has to allow POST; the operator can see that in the HTTPRoute.",
    408: "The request came too slowly, or was too long. Ask again.",
    412: "No pod holds what it was to go on with. Send it whole.",
    413: "It is too long for the gateway: shorten it, or have its operator raise the limit for bodies.",
}
# what may tell where things are inside the cluster: addresses, ports, URLs, names of services
_PLACE: Final = re.compile(r"\d+\.\d+\.\d+|:\d{2,5}\b|://|\[[0-9a-f:]+\]|\.svc\b|\.local\b")


def meaning_of(reply: Reply, body: bytes, request_id: str, *, has_pools: bool = False) -> ApiError:
    """Return the error for an answer that is no success.

    Args:
        reply: the answer.
        body: all of it.
        request_id: spreads the times at which clients come back.
        has_pools: the gateway has several pools, each with a picker of its own.
    """
    reason = dropped_reason(reply.told)
    found = _by_reason(reason, reply.status, body) or _by_answer(reply, body, has_pools)
    if found.status not in _BUSY:
        return found
    asked_s = retry_after_s(reply.headers)
    if isinstance(found, ClusterError):
        if asked_s is not None:  # a gateway's own rate limit may
            found.rest_s = found.retry_after_s = asked_s
        else:
            found.retry_after_s = max(found.rest_s, 1.0) + _spread_s(request_id)
    elif asked_s is None:
        found.retry_after_s = 1 + _spread_s(request_id)
    return found


def _spread_s(request_id: str) -> float:
    """Return 0 to 2 s: all at once would be what the cluster had too much of."""
    return crc32(request_id.encode()) % 3


def dropped_reason(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """Return why flow control dropped a request; empty if it did not, or does not say."""
    return (find_header(headers, _REASON) or b"").decode("latin-1")


def _by_reason(reason: str, status: int, body: bytes) -> ClusterError | None:
    if reason.startswith("evicted") or (status == 429 and b"evicted" in body[:200]):
        return ClusterEvicted(
            "The cluster dropped the request for more important ones. Ask again later."
        )
    if reason == NO_ENDPOINTS or (status == 500 and NO_PODS in body):
        return ClusterCold(
            "The cluster has no pod that could serve the model now: it starts, or is scaled to zero. "
            "Ask again later."
        )
    if status == 429 or reason in _CONTENDED:
        return ClusterContended(
            "The cluster has as many requests for this model as it takes. Ask again later."
        )
    if status == 503 and reason:
        return ClusterRestarting("The cluster's endpoint picker is being restarted. Ask again.")
    return None


def _by_answer(reply: Reply, body: bytes, has_pools: bool) -> ApiError:
    is_text = body.lstrip()[:1] != b"{"
    if reply.status >= 500 and (is_text or _is_reset(body)):  # in JSON too, if it was set so
        return of_gateway(reply.status, body, has_pools=has_pools)
    if is_text:
        return _of_request(reply, body)
    error = upstream_error(reply.status, body, reply.headers)  # a model server's own
    # a sidecar tells what it could not reach
    if reply.status >= 500 and _PLACE.search(str(error)):
        error = upstream_error(reply.status, b"", reply.headers)
    error.is_retryable |= reply.status == 404  # another endpoint may have the model
    return error


def of_gateway(status: int, body: bytes, *, has_pools: bool) -> ApiError:
    """Return the error for a 5xx that the gateway itself answered, to a request or to a look."""
    if _is_reset(body):
        return _of_reset(body)
    if status == 500 and not body.strip():
        kind = PoolWithoutPicker if has_pools else PickerGone
        return kind(
            "The cluster's endpoint picker does not answer, so its gateway can send nothing on. Ask "
            "again later."
        )
    if status == 504 and not body.strip():
        return UpstreamTimeout("The cluster's endpoint picker did not answer in time. Ask again.")
    if status == 504:
        return RouteTimeout(
            "The cluster's gateway ended the request at its own time limit. Its operator can lift it: "
            "`timeouts.request: 0s` in the HTTPRoute. Until then ask for fewer tokens.",
            headers=(("x-should-retry", "false"),),
        )
    if status == 503:
        return ClusterRestarting("The cluster can't serve the request now. Ask again later.")
    return UpstreamFailed(
        f"The cluster's gateway failed with status {status}. Ask again; if it goes on, its log says why."
    )


def of_look(status: int, body: bytes, *, has_pools: bool) -> ApiError:
    """Return the error for a look that got a 5xx.

    It is `PodUnreachable` where only the pod failed, or the pool, to which the look happened to go:
    the gateway lives, and others may serve.
    """
    error = of_gateway(status, body, has_pools=has_pools)
    is_pods_own = body.lstrip()[:1] == b"{"
    if is_pods_own or isinstance(error, _OF_ONE):
        return PodUnreachable("A look went to a pod, or a pool, that did not answer it.")
    return error


def _is_reset(body: bytes) -> bool:
    return any(text in body for text in _RESET)


def _of_reset(body: bytes) -> ApiError:
    """Return the error for a way to a pod that ended before an answer came back on it."""
    if any(text in body for text in _UNSEEN) and _RETRIED not in body:
        return PodUnreachable("The pod that the cluster picked could not be reached. Ask again.")
    if _OVERFLOW in body:
        return ClusterContended(
            "The cluster's gateway has as many requests under way as it takes. Ask again later."
        )
    return UpstreamInterrupted(
        "The pod that the cluster picked broke off before its answer, maybe after work on it. Ask again."
    )


def _of_request(reply: Reply, body: bytes) -> ApiError:
    """Return the error for a 4xx in text: something in the request, or in the way it went."""
    if reply.status == 404:
        return UpstreamAnswer(
            "The cluster has no route or pool for the model. Where it has several pools, the operator "
            "sets LLMD_MODEL_HEADER.",
            status=404,
            type_="invalid_request_error",
            code=ModelNotFound.code,
            is_retryable=True,
        )
    said = _PICKERS_TEXT.fullmatch(body)
    text = said[1].decode() if said else ""
    if reply.status == 400 and text and not _PLACE.search(text):
        return UpstreamAnswer(
            f"The cluster does not take the request: {text.rstrip('.')}. Correct it before it is sent again.",
            status=400,
            type_="invalid_request_error",
            code=BadRequest.code,
            is_retryable=False,
        )
    return UpstreamAnswer(
        f"The cluster's gateway refused the request with status {reply.status}. "
        f"{_NEXT_STEPS.get(reply.status, _LOOK)}",
        status=reply.status,
        type_="invalid_request_error",
        code=None,
        is_retryable=is_retryable(reply.status),
        headers=upstream_error(reply.status, b"", reply.headers).headers,
    )
