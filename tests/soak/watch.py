"""What is looked at all the time: memory and files of the router, and whether it answers."""

from __future__ import annotations

import http.client
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import psutil

_LOOK_S = 0.25


@dataclass(slots=True)
class Watch:
    """Looks at the router four times a second, from a thread: a busy event loop can't hold it up."""

    pid: int
    port: int
    rss_mb: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)
    answer_s: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        process = psutil.Process(self.pid)
        while not self._stop.wait(_LOOK_S):
            try:
                self.rss_mb.append(process.memory_info().rss / 2**20)
                self.files.append(process.num_fds())
            except psutil.Error as error:
                self.failures.append(f"the router's process is gone: {error!r}")
                return
            self._probe()

    def _probe(self) -> None:
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/readyz")
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(f"/readyz: {error!r}")
            return
        finally:
            connection.close()
        if status != 200:
            self.failures.append(f"/readyz answered {status}")
        self.answer_s.append(time.monotonic() - began)


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value below which this share lies; 0 without values."""
    ordered = sorted(values)
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)] if ordered else 0.0


def growth(values: Sequence[float]) -> float:
    """Return by how much they grew from a quarter of the time, when all is warm, to the end.

    Compares medians of a tenth of the time each, since single values jump with the load.
    """
    tenth = max(len(values) // 10, 1)
    quarter = len(values) // 4
    warm, last = values[quarter : quarter + tenth], values[-tenth:]
    return statistics.median(last) - statistics.median(warm) if warm and last else 0.0
