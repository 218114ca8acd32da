"""How long requests wait for a server that runs batches, against a simulation with the runtime's own window."""

from __future__ import annotations

import heapq
import math
import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverlight.runtime.window import Window
from serverlight.search.queueing import MAX_BATCH, MAX_DELAY_MS, BatchTime, closed_loop, open_loop


def simulate(
    devices: int, batch: BatchTime, *, think_ms: float = 0.0, rate_per_s: float | None = None
) -> tuple[float, float]:
    """Mean time at the server in milliseconds, and requests answered per second; devices think for 5 % more or less."""
    rng, window = random.Random(0), Window(max_delay_s=MAX_DELAY_MS / 1e3)
    each_per_s = None if rate_per_s is None else rate_per_s / devices
    gap_s = (
        (lambda: rng.expovariate(each_per_s)) if each_per_s else lambda: max(1e-4, rng.gauss(1, 0.05) * think_ms / 1e3)
    )
    coming = [(gap_s() if each_per_s else rng.random() * think_ms / 1e3, device) for device in range(devices)]
    heapq.heapify(coming)
    now_s, waiting, took_ms = 0.0, list[tuple[float, int]](), list[float]()

    def take_in() -> None:
        while coming and coming[0][0] <= now_s:
            waiting.append(heapq.heappop(coming))
            window.arrived(waiting[-1][1], waiting[-1][0])
            if each_per_s:
                heapq.heappush(coming, (waiting[-1][0] + gap_s(), waiting[-1][1]))

    while len(took_ms) < 6000:
        take_in()
        closes_s = window.closes_s(oldest_s=waiting[0][0], now_s=now_s) if waiting else math.inf
        if closes_s > now_s and len(waiting) < MAX_BATCH:
            now_s = max(min(closes_s, coming[0][0] if coming else math.inf), now_s + 1e-9)
            continue
        running, waiting = waiting[:MAX_BATCH], waiting[MAX_BATCH:]
        run_s = batch.ms(len(running)) / 1e3
        now_s += run_s
        window.took(run_s, now_s=now_s)
        took_ms.extend((now_s - came_s) * 1e3 for came_s, _ in running)
        take_in()
        for _, device in running:
            window.answered(device, now_s)
            if not each_per_s:
                heapq.heappush(coming, (now_s + gap_s(), device))
    return statistics.fmean(took_ms[1500:]), len(took_ms) / now_s


BATCHES = [BatchTime(fixed_ms=1, each_ms=0.2), BatchTime(fixed_ms=5, each_ms=0.5), BatchTime(fixed_ms=2, each_ms=3)]


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("devices", [2, 16, 64])
@pytest.mark.parametrize("think_ms", [2.0, 40.0, 150.0])
def test_closed_loop_is_that_of_a_simulation(devices: int, think_ms: float, batch: BatchTime) -> None:
    """Throughput and the whole time of a request are within a fifth of what the window and a server do together."""
    load = closed_loop(devices, think_ms, batch)
    at_server_ms, throughput = simulate(devices, batch, think_ms=think_ms)
    assert load.throughput_per_s == pytest.approx(throughput, rel=0.2)
    assert think_ms + load.wait_ms + load.run_ms == pytest.approx(think_ms + at_server_ms, rel=0.2)


@pytest.mark.parametrize("batch", BATCHES, ids=str)
@pytest.mark.parametrize("devices", [8, 200])
@pytest.mark.parametrize("rate_per_s", [5, 50, 150])
def test_open_loop_is_that_of_a_simulation(devices: int, rate_per_s: float, batch: BatchTime) -> None:
    """The time at the server is within a fifth as well."""
    load = open_loop(devices, rate_per_s, batch)
    at_server_ms, _ = simulate(devices, batch, rate_per_s=rate_per_s)
    assert load.wait_ms + load.run_ms == pytest.approx(at_server_ms, rel=0.2)


@settings(deadline=None)
@given(
    devices=st.integers(1, 80),
    think_ms=st.floats(0, 300),
    fixed_ms=st.floats(0.01, 10),
    each_ms=st.floats(0.01, 5),
    together_ms=st.floats(0, 5),
)
def test_closed_loop_keeps_the_laws(
    devices: int, think_ms: float, fixed_ms: float, each_ms: float, together_ms: float
) -> None:
    """Little's law holds, the server is not busy for more than all of its time, and nobody waits less than nothing."""
    load = closed_loop(devices, think_ms, BatchTime(fixed_ms=fixed_ms, each_ms=each_ms, together_ms=together_ms))
    in_turn_ms = think_ms + load.wait_ms + load.run_ms
    assert load.throughput_per_s / 1e3 * in_turn_ms == pytest.approx(devices, rel=0.02)
    assert 0 <= load.utilisation <= 1
    assert load.wait_ms >= 0
    assert 1 <= load.batch_size <= min(devices, MAX_BATCH) + 1e-6


def test_too_much_is_never_answered() -> None:
    """More requests than full batches can take wait without end."""
    assert open_loop(4, 1e6, BATCHES[0]).wait_ms == math.inf
    assert open_loop(4, 1.0, BATCHES[0]).wait_ms < math.inf
