"""Runs a fleet: devices spread over servers, each server with its devices by itself, and what all of them come to."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serverlight.errors import ConfigError
from serverlight.simulation.arrivals import Arrivals
from serverlight.simulation.figures import Figures, figures_of
from serverlight.simulation.kernels import run_server
from serverlight.simulation.parts import Group, ServerModel
from serverlight.simulation.records import Limits, Outcome, new_outcome, new_state
from serverlight.simulation.tables import chunk_tokens, tables_of, wake_ms

__all__ = ["Fleet", "simulate"]

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Fleet:
    """Groups of devices on a number of like servers, for a while."""

    groups: tuple[Group, ...]
    server: ServerModel
    servers: int = 1
    duration_s: float = 3600.0
    """Requests are asked for so long; what was asked is answered."""

    warmup_s: float = 0.0
    """So much of the beginning does not count."""

    arrivals: Arrivals = field(default_factory=Arrivals)
    seed: int = 0

    one_process: bool = False
    """Whether what devices in a closed loop do for messages goes one after another, as in ``serverlight bench runtime``."""

    def __post_init__(self) -> None:
        if not self.groups or not sum(group.devices for group in self.groups):
            raise ConfigError("devices", "there are none; give at least one")
        if self.servers < 1:
            raise ConfigError("servers", f"must be at least 1, got {self.servers!r}")
        if not 0 < self.duration_s < math.inf:
            raise ConfigError("duration_s", f"must be positive, got {self.duration_s!r}")
        if not 0 <= self.warmup_s < self.duration_s:
            raise ConfigError(
                "warmup_s", f"must be less than the {self.duration_s:g} s of the run, got {self.warmup_s!r}"
            )

    @property
    def devices(self) -> int:
        """All of them."""
        return sum(group.devices for group in self.groups)

    def shares(self, server: int) -> Ints:
        """How many devices of each group a server has: all devices are dealt out one by one."""
        ends = np.cumsum([group.devices for group in self.groups])
        starts = ends - [group.devices for group in self.groups]
        counts: Ints = (ends - 1 - server) // self.servers - (starts - 1 - server) // self.servers
        return counts


def simulate(fleet: Fleet, *, trace: int = 0, on_server: Callable[[], None] = lambda: None) -> Figures:
    """Simulates every server of a fleet, one after the other; the same for the same seed.

    Args:
        fleet: What there is.
        trace: Items of each server to be told one by one in ``Figures.trace``.
        on_server: Is called after each server.

    Raises:
        ConfigError: device and server have profiles of other models.
    """
    run = _Run(fleet, trace)
    outcomes = []
    for server in range(fleet.servers):
        outcomes.append(run.server(server))
        on_server()
    return figures_of(fleet.groups, outcomes, seconds=fleet.duration_s - fleet.warmup_s)


def simulate_one(fleet: Fleet) -> Figures:
    """Only the first server of a fleet, as one that stands for all."""
    return figures_of(fleet.groups, [_Run(fleet, 0).server(0)], seconds=fleet.duration_s - fleet.warmup_s)


class _Run:
    """What all servers have in common."""

    def __init__(self, fleet: Fleet, trace: int) -> None:
        self._fleet, self._trace, server = fleet, trace, fleet.server
        slot_s, curve = fleet.arrivals.curve(fleet.duration_s, fleet.seed)
        self._tables = tables_of(fleet.groups, server, curve)
        self._limits = Limits(
            is_language=server.profile.kind == "language-model",
            max_batch=server.max_batch,
            max_waiting=server.max_waiting,
            max_sessions=server.max_sessions,
            max_delay_s=server.max_delay_ms / 1e3,
            prefill_tokens=server.prefill_tokens,
            chunk_tokens=chunk_tokens(server),
            warm_s=float(fleet.warmup_s),
            end_s=float(fleet.duration_s),
            wake_s=float(wake_ms(server) / 1e3),
            spread=float(server.spread),
            slot_s=float(slot_s),
            one_process=fleet.one_process,
        )

    def server(self, number: int) -> Outcome:
        """Runs one of the servers."""
        counts = self._fleet.shares(number)
        groups = self._fleet.groups
        prompts = [
            np.resize(np.roll(group.prompt_tokens, -number), count) for group, count in zip(groups, counts, strict=True)
        ]
        state = new_state(
            np.repeat(np.arange(len(groups)), counts), np.concatenate(prompts).astype(np.int64), self._limits
        )
        outcome = new_outcome(len(groups), self._trace)
        rng = np.random.default_rng([self._fleet.seed, number])
        run_server(state, self._tables, self._limits, outcome, rng)
        return outcome
