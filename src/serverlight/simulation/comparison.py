"""Full server, halves at a cut and SLICER side by side: the same devices, each system with its own plans and servers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serverlight.errors import ConfigError
from serverlight.simulation.figures import Figures
from serverlight.simulation.fleet import Fleet, simulate
from serverlight.simulation.parts import Crossing, Group
from serverlight.simulation.plans import best_crossing
from serverlight.simulation.sizing import p95_alone_ms, servers_for

__all__ = ["FP16", "FULL", "SLICER", "SystemRow", "compare"]

FULL, FP16, SLICER = "full-server", "fp16-cut", "slicer"

UNREACHED = 2.0
"""Where no number of servers keeps the cap, they are counted for so many times the latency that each device has alone."""

Candidates = Callable[[Group], Sequence[Crossing]]


@dataclass(frozen=True, kw_only=True, slots=True)
class SystemRow:
    """One system with the servers that it needs."""

    system: str
    cuts: dict[str, str]
    """By kind of device; ``all-device`` where it does it all."""

    servers: int
    p95_cap_ms: float | None
    """What the servers were counted for; ``None`` where their number was given."""

    keeps_cap: bool
    """Whether that is the cap that was asked for; else none can be kept, and it is twice what a device has alone."""

    figures: Figures
    cost_per_million: float
    """Of requests, of a language model of sequences, in the currency of the price; ``inf`` of none."""

    seconds: float
    """Simulated."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        cost = self.cost_per_million
        return {
            **{field.name: getattr(self, field.name) for field in dataclasses.fields(self)},
            "figures": self.figures.to_dict(),
            "cost_per_million": cost if math.isfinite(cost) else None,
        }


def compare(
    fleet: Fleet,
    systems: Mapping[str, Candidates],
    *,
    p95_ms: float | None = None,
    servers: int | None = None,
    price_per_hour: float = 1.0,
    memory_bytes: Mapping[str, float] | None = None,
    on_server: Callable[[str, int, int], None] = lambda system, done, total: None,
) -> tuple[SystemRow, ...]:
    """A row for each system.

    Args:
        fleet: Devices, servers, arrivals; the groups' own crossings and the number of servers are of no meaning.
        systems: What each kind of device may send under a system; it takes the one that loads the server least, as far as
            the cap on latency and its memory allow.
        p95_ms: The cap that the servers are counted for.
        servers: So many instead.
        price_per_hour: Of a server.
        memory_bytes: Of kinds of devices, by name, for their heads.
        on_server: Hears of the system, the servers that are done, and all of them.

    Raises:
        ConfigError: neither a cap nor a number of servers, or a kind of device that no plan fits.
    """
    if (p95_ms is None) == (servers is None):
        raise ConfigError("p95_ms", "give either a cap on the 95th percentile or a number of servers")
    rows = []
    for system, candidates in systems.items():
        own = _with_plans(fleet, candidates, p95_ms, memory_bytes or {})
        cap_ms, keeps_cap, count = p95_ms, True, servers
        if cap_ms is not None:
            count = servers_for(own, cap_ms)
            if count is None:
                keeps_cap, cap_ms = False, UNREACHED * p95_alone_ms(own)
                count = servers_for(own, cap_ms) or own.devices
        assert count is not None
        rows.append(_row(system, dataclasses.replace(own, servers=count), cap_ms, keeps_cap, price_per_hour, on_server))
    return tuple(rows)


def _with_plans(fleet: Fleet, candidates: Candidates, cap_ms: float | None, memory: Mapping[str, float]) -> Fleet:
    groups = tuple(
        best_crossing(group, candidates(group), fleet.server, cap_ms=cap_ms, memory_bytes=memory.get(group.name))
        for group in fleet.groups
    )
    return dataclasses.replace(fleet, groups=groups)


def _row(
    system: str,
    fleet: Fleet,
    cap_ms: float | None,
    keeps_cap: bool,
    price_per_hour: float,
    on_server: Callable[[str, int, int], None],
) -> SystemRow:
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        on_server(system, done, fleet.servers)

    figures = simulate(fleet, on_server=count)
    spent = fleet.servers * price_per_hour / 3600
    per_s = figures.requests_per_s
    return SystemRow(
        system=system,
        cuts={group.name: _cut_of(group) for group in fleet.groups},
        servers=fleet.servers,
        p95_cap_ms=cap_ms,
        keeps_cap=keeps_cap,
        figures=figures,
        cost_per_million=spent / per_s * 1e6 if per_s else math.inf,
        seconds=fleet.duration_s - fleet.warmup_s,
    )


def _cut_of(group: Group) -> str:
    return group.crossing.way if group.crossing.way == "all-device" else group.crossing.cut
