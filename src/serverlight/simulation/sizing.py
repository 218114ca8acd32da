"""How many servers a fleet needs so that 95 of a hundred requests are answered in time."""

from __future__ import annotations

import dataclasses
import math

from serverlight.simulation.fleet import Fleet, simulate_one
from serverlight.simulation.plans import busy_ms

__all__ = ["p95_alone_ms", "servers_for"]

SIZING_S = 900.0
"""Of a rate that stays, so much of the run tells as much as all of it."""


def servers_for(fleet: Fleet, cap_ms: float) -> int | None:
    """The fewest servers with a 95th percentile of at most so many milliseconds; ``None`` where even one for each device has more.

    Every number is tried with the one server that stands for all, so that a hundred thousand devices take no longer than a
    server's share of them.
    """
    trial = _trial(fleet)

    def is_enough(servers: int) -> bool:
        return simulate_one(dataclasses.replace(trial, servers=servers)).latency.p95 <= cap_ms

    low = least_servers(fleet)
    if is_enough(low):
        return low
    high = low
    while not is_enough(high := min(2 * high, fleet.devices)):
        if high == fleet.devices:
            return None
        low = high
    while high - low > max(1, low // 200):
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def p95_alone_ms(fleet: Fleet) -> float:
    """The 95th percentile where every device, as far as there are whole ones, has a server of its own kind to itself."""
    groups = tuple(dataclasses.replace(group, devices=min(1, group.devices)) for group in fleet.groups)
    worst = 0.0
    for group in groups:
        if group.devices:
            alone = dataclasses.replace(_trial(fleet), groups=(group,), servers=1)
            worst = max(worst, simulate_one(alone).latency.p95)
    return worst


def least_servers(fleet: Fleet) -> int:
    """What the work asks for in full batches, whatever the latency; one of a closed loop."""
    busy_s = 0.0
    for group in fleet.groups:
        steps = group.new_tokens if fleet.server.profile.kind == "language-model" else 1
        busy_s += group.devices * (group.rate_per_s or 0.0) * steps * busy_ms(group, fleet.server) / 1e3
    return max(1, min(fleet.devices, math.floor(0.8 * busy_s)))


def _trial(fleet: Fleet) -> Fleet:
    if fleet.arrivals.process != "poisson" or fleet.duration_s <= SIZING_S:
        return fleet
    return dataclasses.replace(fleet, duration_s=SIZING_S, warmup_s=min(fleet.warmup_s, SIZING_S / 10))
