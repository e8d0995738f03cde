"""One call on its way: where it may still go, how far it has come, and what its errors say of that."""

from __future__ import annotations

from collections.abc import MutableMapping

import msgspec

from router.dispatch.admission import Place
from router.dispatch.attempt import Attempt
from router.domain import Call, ModelName, Ranked
from shared.http.errors import ApiError


class Trip(msgspec.Struct):
    """One call on its way: where it may still go, and how far it has come.

    `most` is how many attempts it may have. `notes` are what the log will say of it, however it ends.
    """

    call: Call
    model: ModelName
    ranking: list[Ranked]
    notes: MutableMapping[str, object]
    most: int
    last: Ranked | None = None
    attempts: int = 0
    queued_s: float = 0.0


class Begun(msgspec.Struct):
    """A call whose first attempt was begun outside of a task: see `router.api.express`.

    `defect` is what went wrong with us meanwhile.
    """

    trip: Trip
    attempt: Attempt
    defect: Exception | None = None


def call_for(place: Place, trip: Trip) -> Call:
    """Return the call as this attempt sends it.

    An agent shall not keep it waiting, for a load or a slot, while it may go where the model is ready.
    """
    chosen = place.ranked.candidate
    if not chosen.deployment.endpoint.is_agent or trip.attempts >= trip.most:
        return trip.call
    others = (each.candidate for each in trip.ranking if each.candidate is not chosen)
    if any(other.deployment.is_loaded for other in others):
        return msgspec.structs.replace(trip.call, wait_s=0.0)
    return trip.call


def explained(error: ApiError, trip: Trip) -> ApiError:
    """Return the error with the way it took.

    After several attempts of ours the client shall not multiply them by its own.
    """
    error.headers += (("x-iir-model", header_safe(trip.model)),)
    error.headers += (("x-iir-attempts", str(trip.attempts)),)
    if trip.last is not None:
        endpoint = trip.last.candidate.deployment.endpoint
        error.headers += (
            ("x-iir-endpoint", header_safe(endpoint.id)),
            ("x-iir-zone", endpoint.zone.value),
        )
    if trip.attempts > 1 and not any(name == "x-should-retry" for name, _ in error.headers):
        error.headers += (("x-should-retry", "false"),)
    return error


def header_safe(text: str) -> str:
    """Return `text` as a header value: printable ASCII, everything else as `?`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if " " <= char <= "~" else "?" for char in text)
