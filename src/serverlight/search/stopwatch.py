"""Timing that other processes on the machine disturb as little as can be."""

from __future__ import annotations

import contextlib
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

__all__ = ["Clock", "lower_quartile", "quiet_collector", "repeats_for", "timed", "work_clock"]

Clock = Callable[[], float]
"""Milliseconds from anywhere."""

LEAST_REPEATS, MOST_REPEATS = 3, 25


def work_clock() -> Clock:
    """The time that work takes.

    With one thread it is that thread's time on the processor, which waiting for a core does not lengthen; with several it is
    the time on the wall.
    """
    if torch.get_num_threads() == 1:
        return lambda: time.thread_time_ns() / 1e6
    return lambda: time.perf_counter_ns() / 1e6


def timed(clock: Clock, work: Callable[..., object], *args: Any, **kwargs: Any) -> float:
    """Milliseconds of one call."""
    before = clock()
    work(*args, **kwargs)
    return clock() - before


def lower_quartile(values: Sequence[float]) -> float:
    """The value below which a quarter lies: disturbances only ever lengthen.

    >>> lower_quartile([5.0, 1.0, 1.1, 90.0, 1.2])
    1.1
    """
    return sorted(values)[(len(values) - 1) // 4]


def repeats_for(round_ms: float, budget_s: float) -> int:
    """How many rounds of that length fit the budget; never too few for a quartile.

    >>> repeats_for(100.0, 1.0), repeats_for(1e5, 1.0)
    (10, 3)
    """
    return max(LEAST_REPEATS, min(MOST_REPEATS, math.floor(budget_s * 1e3 / max(round_ms, 1e-3))))


@contextlib.contextmanager
def quiet_collector() -> Iterator[None]:
    """No garbage collection while the clock runs."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
