"""What an attempt's end says about the endpoint and the model it was sent to."""

from __future__ import annotations

from router.errors import (
    AgentLost,
    AgentUnavailable,
    ClusterCold,
    ClusterContended,
    ClusterError,
    ClusterRestarting,
    PickerGone,
    RouteTimeout,
)
from router.fleet.breaker import Fault
from shared.http.errors import (
    ApiError,
    StaleConnection,
    UpstreamAnswer,
    UpstreamCredentialRefused,
    UpstreamUnreachable,
)
from shared.http.headers import retry_after_s

_BUSY_S = 1.0
_REFUSED_S = 10.0
_TELLS_NOTHING = (
    UpstreamCredentialRefused,
    StaleConnection,
    AgentLost,
    ClusterContended,
    ClusterCold,
    ClusterRestarting,
    RouteTimeout,
)


def fault_of(error: ApiError | None) -> Fault | None:
    """Return whom a failed attempt speaks against; None if it tells nothing either way.

    A client's own mistake proves that the endpoint works. Busy (429, 503) is no defect: the answer
    says when to come back. Nor is an agent without memory for the model now (507). A refused credential
    is the operator's to mend, and waiting won't. A kept connection may be closed at any time. Of an agent
    that is lost its lease tells, and the next start of it is another one. A cluster that is full, cold or
    restarted works, and so does one whose route ends long requests; without its picker it serves no model at all.
    """
    if error is None:
        return Fault.NONE
    if isinstance(error, _TELLS_NOTHING):
        return None
    if isinstance(error, UpstreamUnreachable | AgentUnavailable | PickerGone):
        return Fault.ENDPOINT
    if isinstance(error, UpstreamAnswer):
        if error.status in {408, 409, 425, 429, 503, 507, 529}:
            return None
        return Fault.MODEL if error.status >= 500 else Fault.NONE
    return Fault.MODEL


def rest_of(error: ApiError) -> tuple[float, bool] | None:
    """Return for how many seconds an endpoint is better left alone, and whether it said so itself.

    Without that, requests would go on asking an endpoint that is busy, or that does not take the
    router's credential, before each is tried elsewhere.
    """
    if isinstance(error, UpstreamCredentialRefused):
        return _REFUSED_S, False
    if isinstance(error, ClusterError):
        # never binding: the next request may be of more importance, or of another tenant
        return (error.rest_s, False) if error.rest_s else None
    if not isinstance(error, UpstreamAnswer) or error.status not in {429, 503, 507, 529}:
        return None
    asked_s = retry_after_s([(name.encode(), value.encode()) for name, value in error.headers])
    if asked_s is None:
        return _BUSY_S, False
    return asked_s, error.status == 429
