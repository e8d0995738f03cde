"""Time is an argument: functions that need it take a `Clock`."""

from __future__ import annotations

import time
from collections.abc import Callable

Clock = Callable[[], float]
"""Returns seconds. Monotonic clocks have an arbitrary origin."""

monotonic: Clock = time.monotonic
wall_time: Clock = time.time
