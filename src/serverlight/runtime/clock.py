"""Where the server's time for one request goes."""

from __future__ import annotations

import time
from typing import Literal, NamedTuple

from serverlight.runtime.messages import Timing

__all__ = ["Clock", "Now", "read_clocks"]

Part = Literal["queue", "decode", "tail", "sample"]


class Now(NamedTuple):
    """What the clocks say: the wall, and the processor time of this thread. Reading them costs system calls."""

    wall_s: float
    cpu_s: float


def read_clocks() -> Now:
    """One reading, which all rows of a batch may share."""
    return Now(time.perf_counter(), time.thread_time())


class Clock:
    """Counts in laps, on the thread that computes; it starts when work on a request does.

    >>> clock = Clock(arrived_s=time.monotonic())
    >>> clock.lap("decode")
    >>> clock.lap("tail", shared_by=16)
    >>> clock.timing().batch_size
    16
    """

    def __init__(self, arrived_s: float) -> None:
        self._ms = {"queue": (time.monotonic() - arrived_s) * 1e3, "decode": 0.0, "tail": 0.0, "sample": 0.0}
        self._cpu_ms = 0.0
        self._batch_size = 1
        self._last = read_clocks()

    def lap(self, part: Part, *, shared_by: int = 1, now: Now | None = None) -> None:
        """Counts the time since the last lap; CPU time of a batch is divided among its rows, and not counted while waiting."""
        now = now or read_clocks()
        self._ms[part] += (now.wall_s - self._last.wall_s) * 1e3
        if part != "queue":
            self._cpu_ms += (now.cpu_s - self._last.cpu_s) * 1e3 / shared_by
        self._batch_size = max(self._batch_size, shared_by)
        self._last = now

    def timing(self) -> Timing:
        """All until now; what came after the last lap was spent on the answer."""
        self.lap("sample")
        return Timing(
            queue_ms=self._ms["queue"],
            decode_ms=self._ms["decode"],
            tail_ms=self._ms["tail"],
            sample_ms=self._ms["sample"],
            cpu_ms=self._cpu_ms,
            process_cpu_ms=time.process_time() * 1e3,
            batch_size=self._batch_size,
        )
