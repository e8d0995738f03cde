"""What an attempt's end says about the endpoint and the model it was sent to."""

from __future__ import annotations

from router.errors import AgentUnavailable
from router.fleet.breaker import Fault
from shared.http.errors import (
    ApiError,
    UpstreamAnswer,
    UpstreamCredentialRefused,
    UpstreamUnreachable,
)


def fault_of(error: ApiError | None) -> Fault | None:
    """Return whom a failed attempt speaks against; None if it tells nothing either way.

    A client's own mistake proves that the endpoint works. Busy (429, 503) is no defect: the answer
    says when to come back. A refused credential is the operator's to mend, and waiting won't.
    """
    if error is None:
        return Fault.NONE
    if isinstance(error, UpstreamUnreachable | AgentUnavailable):
        return Fault.ENDPOINT
    if isinstance(error, UpstreamCredentialRefused):
        return None
    if isinstance(error, UpstreamAnswer):
        if error.status in {408, 409, 425, 429, 503, 529}:
            return None
        return Fault.MODEL if error.status >= 500 else Fault.NONE
    return Fault.MODEL
