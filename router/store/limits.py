"""What limits and API names in the registry may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Final

from router.domain import TimeLimits
from router.store.errors import InvalidValue
from shared.contracts.apis import APIS

_MOST_S: Final = 86_400
_MOST_IN_FLIGHT: Final = 1_000_000
_MOST_WEIGHT: Final = 1_000


def time_limits(limits: TimeLimits) -> dict[str, float | None]:
    """Return a deployment's time limits by column, or raise `InvalidValue`."""
    columns: dict[str, float | None] = asdict(limits)
    for name, seconds in columns.items():
        # written so that NaN, which compares false, fails as well
        if seconds is not None and not 0 < seconds <= _MOST_S:
            raise InvalidValue(f"the limit {name} must be more than 0 and at most {_MOST_S} s")
    return columns


def share(weight: float) -> float:
    """Return a deployment's weight among its siblings, or raise `InvalidValue`."""
    if not 0 < weight <= _MOST_WEIGHT:  # NaN fails as well
        raise InvalidValue(f"the weight must be more than 0 and at most {_MOST_WEIGHT}")
    return weight


def in_flight_limit(most: int | None) -> int | None:
    """Return how many requests an endpoint takes at once, or raise `InvalidValue`."""
    if most is not None and not 1 <= most <= _MOST_IN_FLIGHT:
        raise InvalidValue(
            f"the most requests in flight must be 1 to {_MOST_IN_FLIGHT}, or not set for no limit"
        )
    return most


def api_names(names: Sequence[str] | None) -> list[str] | None:
    """Return the APIs that an endpoint speaks, in the order of `APIS`; None means the default.

    Raises:
        InvalidValue: a name is not known or comes twice, or there is none at all.
    """
    if names is None:
        return None
    unknown = [name for name in names if name not in APIS]
    if unknown or not names:
        raise InvalidValue(f"an endpoint speaks one or more of the APIs {', '.join(APIS)}")
    if len(set(names)) != len(names):
        raise InvalidValue("an API is named twice; each may be named once")
    return [name for name in APIS if name in names]
