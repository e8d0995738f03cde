"""What an error of an llm-d cluster means. Gateway and picker answer in text or with nothing; pure.

| said by | how | means |
|---|---|---|
| picker | 429, header `rejected-saturated`, `rejected-ttl-expired` or none | contended |
| picker | 429, `evicted…` | evicted, maybe after work on it |
| picker | 503, `rejected-no-endpoints`; 500 "no pods available" | cold |
| picker | 503, `rejected-shutting-down` | it restarts |
| gateway | 500 without a body | the picker is gone |
| gateway | 502, 503, 504 "upstream connect error", "no healthy upstream" | the pod is gone |
| gateway | 504, other text | the route's own time limit |
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
)
from shared.http.errors import (
    ApiError,
    BadRequest,
    ModelNotFound,
    UpstreamAnswer,
    UpstreamFailed,
    UpstreamTimeout,
)
from shared.http.exchange import Reply
from shared.http.headers import find_header, retry_after_s
from shared.http.upstream_errors import upstream_error

NO_ENDPOINTS: Final = "rejected-no-endpoints"
NO_PODS: Final = b"no pods available"
_REASON: Final = b"x-llm-d-request-dropped-reason"
_CONTENDED: Final = frozenset({"rejected-saturated", "rejected-ttl-expired"})
_BUSY: Final = frozenset({429, 503})
_POD_GONE: Final = (b"upstream connect error", b"disconnect/reset", b"no healthy upstream")
_PICKERS_TEXT: Final = re.compile(rb"inference error: \w+ - ([ -~]{1,300})\s*")
# what may tell where things are inside the cluster: addresses, ports, URLs, names of services
_PLACE: Final = re.compile(r"\d+\.\d+\.\d+|:\d{2,5}\b|://|\[[0-9a-f:]+\]|\.svc\b|\.local\b")


def meaning_of(reply: Reply, body: bytes, request_id: str) -> ApiError:
    """Return the error for an answer that is no success.

    Args:
        reply: the answer.
        body: all of it.
        request_id: spreads the times at which clients come back.
    """
    reason = dropped_reason(reply.told)
    found = _by_reason(reason, reply.status, body) or _by_answer(reply, body)
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


def _by_answer(reply: Reply, body: bytes) -> ApiError:
    if reply.status >= 500 and any(text in body for text in _POD_GONE):
        return _of_gateway(reply.status, body)  # in JSON too, if its gateway was set so
    if body.lstrip()[:1] == b"{":  # a model server's own
        error = upstream_error(reply.status, body, reply.headers)
        # a sidecar tells what it could not reach
        if reply.status >= 500 and _PLACE.search(str(error)):
            error = upstream_error(reply.status, b"", reply.headers)
        error.is_retryable |= reply.status == 404  # another endpoint may have the model
        return error
    if reply.status < 500:
        return _of_request(reply, body)
    return _of_gateway(reply.status, body)


def _of_gateway(status: int, body: bytes) -> ApiError:
    if status == 500 and not body.strip():
        return PickerGone(
            "The cluster's endpoint picker does not answer, so its gateway can send nothing on. Ask "
            "again later."
        )
    if any(text in body for text in _POD_GONE):
        return PodUnreachable("The pod that the cluster picked could not be reached. Ask again.")
    if status == 504:
        return UpstreamTimeout(
            "The cluster's gateway ended the request at its own time limit. Its operator can lift it: "
            "`timeouts.request: 0s` in the HTTPRoute."
        )
    if status == 503:
        return ClusterRestarting("The cluster can't serve the request now. Ask again later.")
    return UpstreamFailed(f"The cluster's gateway failed with status {status}.")


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
    if reply.status != 400 or not text or _PLACE.search(text):
        return upstream_error(reply.status, b"", reply.headers)
    return UpstreamAnswer(
        f"The cluster does not take the request: {text}",
        status=400,
        type_="invalid_request_error",
        code=BadRequest.code,
        is_retryable=False,
    )
