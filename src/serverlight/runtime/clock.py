"""Where the server's time for one request goes."""

from __future__ import annotations

import time
from typing import Literal

from serverlight.runtime.messages import Timing

__all__ = ["Clock"]


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
        self._lap_s, self._lap_cpu_s = time.perf_counter(), time.thread_time()

    def lap(self, part: Literal["queue", "decode", "tail", "sample"], *, shared_by: int = 1) -> None:
        """Counts the time since the last lap; CPU time of a batch is divided among its rows, and not counted while waiting."""
        now_s, now_cpu_s = time.perf_counter(), time.thread_time()
        self._ms[part] += (now_s - self._lap_s) * 1e3
        if part != "queue":
            self._cpu_ms += (now_cpu_s - self._lap_cpu_s) * 1e3 / shared_by
        self._batch_size = max(self._batch_size, shared_by)
        self._lap_s, self._lap_cpu_s = now_s, now_cpu_s

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
