"""How long requests wait at a server that runs what waits as one batch: pure functions of a few means."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serverlight.runtime.server_config import ServerConfig

__all__ = ["BatchTime", "Load", "closed_loop", "open_loop"]

MAX_BATCH = ServerConfig().max_batch_requests
MAX_DELAY_MS = ServerConfig().max_batch_delay_ms
"""How long a batch may wait for devices that are about to come again (``runtime/window.py``)."""

_NOT_AWAITED = 1 - math.exp(-1) + math.exp(-2)
"""How likely a device that comes at random is not awaited: one is from its usual gap until twice that."""

_MAX_ROUNDS = 10_000
_CLOSE = 1e-12


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchTime:
    """What a batch keeps the compute thread for: so long, so long more for each request, and more again for two or more."""

    fixed_ms: float
    each_ms: float
    together_ms: float = 0.0

    def ms(self, requests: float) -> float:
        """Of a batch of so many.

        >>> BatchTime(fixed_ms=2.0, each_ms=0.5, together_ms=1.0).ms(4)
        5.0
        """
        return self.fixed_ms + self.each_ms * requests + self.together_ms * min(1.0, requests - 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """What a server gives under a load."""

    wait_ms: float
    """Mean time from a request's arrival to its batch's start; ``inf`` where more comes than can be done."""

    run_ms: float
    """Mean time of the batch that a request is in."""

    batch_size: float
    """Mean requests in a batch."""

    busy_ms: float
    """Compute time for each request: its share of its batch."""

    throughput_per_s: float
    """Requests that are answered, of all devices together."""

    utilisation: float
    """Share of the time in which the server computes."""


def closed_loop(devices: int, think_ms: float, batch: BatchTime) -> Load:
    """Devices that each ask again ``think_ms`` after an answer.

    Devices that come again sooner than a batch waits for them fall into step: all run in one batch. Where they take longer, the
    batch that starts next holds those that came during the last one, a Markov chain over its size, which is exact for times to
    think that are spread like an exponential's.

    >>> closed_loop(1, 8.0, BatchTime(fixed_ms=1.0, each_ms=1.0)).throughput_per_s
    100.0
    """
    if devices == 1 or (devices <= MAX_BATCH and think_ms <= min(MAX_DELAY_MS, batch.ms(devices))):
        run_ms = batch.ms(devices)
        return _load(devices / (think_ms + run_ms), 0.0, run_ms, devices, run_ms / devices)
    sizes = np.arange(1, min(devices, MAX_BATCH) + 1)
    times_ms = np.array([batch.ms(float(size)) for size in sizes])
    arrivals = _arrivals(devices, sizes, -np.expm1(-times_ms / max(think_ms, 1e-9)))
    shares = _stationary(arrivals)
    idle_ms = float(shares @ arrivals[:, 0]) * think_ms / devices
    size, time_ms = float(shares @ sizes), float(shares @ times_ms)
    per_ms = size / (time_ms + idle_ms)
    run_ms = float(shares @ (sizes * times_ms)) / size
    wait_ms = max(0.0, devices / per_ms - think_ms - run_ms)
    return _load(per_ms, wait_ms, run_ms, size, time_ms / size)


def open_loop(devices: int, rate_per_s: float, batch: BatchTime) -> Load:
    """Requests of all devices together that come at random, whatever the server does.

    A batch starts when the one before has ended and its oldest request has waited for others, and holds what came since; where
    hardly any come, half a batch's time is waited for whenever one is running.

    >>> open_loop(9, 1e4, BatchTime(fixed_ms=1.0, each_ms=1.0)).wait_ms  # each takes 1 ms, and ten come in that time
    inf
    """
    per_ms, longest_ms = rate_per_s / 1e3, batch.ms(MAX_BATCH)
    if per_ms * longest_ms >= MAX_BATCH:
        return _load(MAX_BATCH / longest_ms, math.inf, longest_ms, MAX_BATCH, longest_ms / MAX_BATCH)
    somebody = 1.0 - _NOT_AWAITED ** (devices - 1)
    size = 1.0
    for _ in range(_MAX_ROUNDS):
        run_ms = batch.ms(size)
        open_ms = max(run_ms - 1 / per_ms, somebody * min(MAX_DELAY_MS, run_ms))  # from the oldest one's arrival
        before, size = size, min(MAX_BATCH, 1 + per_ms * open_ms)
        if abs(size - before) < _CLOSE * size:
            break
    run_ms = batch.ms(size)
    in_turn_ms = min(1.0, per_ms * run_ms / size) * run_ms / 2
    return _load(per_ms, max(in_turn_ms, open_ms * (size + 1) / (2 * size)), run_ms, size, run_ms / size)


def _arrivals(devices: int, sizes: NDArray[np.int64], chance: NDArray[np.float64]) -> NDArray[np.float64]:
    """``[size, number]``: how likely so many come during a batch of that size; what is over the largest waits, and is left out."""
    numbers = np.arange(len(sizes) + 1)
    thinking = devices - sizes[:, None]
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, devices + 1)))))
    valid = numbers <= thinking
    some = np.minimum(numbers, thinking)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = log_factorial[thinking] - log_factorial[some] - log_factorial[thinking - some]
        logs = logs + some * np.log(chance)[:, None] + (thinking - some) * np.log1p(-chance)[:, None]
    likely = np.where(valid, np.exp(np.nan_to_num(logs, nan=0.0)), 0.0)
    likely[:, -1] += np.maximum(0.0, 1.0 - likely.sum(axis=1))
    return likely


def _stationary(arrivals: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of the batches of each size; one that finds nobody starts with the next that comes."""
    steps = arrivals[:, 1:].copy()
    steps[:, 0] += arrivals[:, 0]
    shares = np.full(len(steps), 1 / len(steps))
    for _ in range(_MAX_ROUNDS):
        before, shares = shares, shares @ steps
        if np.abs(shares - before).max() < _CLOSE:
            break
    total: NDArray[np.float64] = shares / shares.sum()
    return total


def _load(per_ms: float, wait_ms: float, run_ms: float, size: float, busy_ms: float) -> Load:
    return Load(
        wait_ms=wait_ms,
        run_ms=run_ms,
        batch_size=size,
        busy_ms=busy_ms,
        throughput_per_s=per_ms * 1e3,
        utilisation=min(1.0, per_ms * busy_ms),
    )
