"""When requests are asked for: a curve over the run that all devices share; each draws its own times from it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from serverlight.errors import ConfigError

__all__ = ["Arrivals", "Process"]

Process = Literal["poisson", "diurnal", "bursts"]

PROCESSES = ("poisson", "diurnal", "bursts")

DAY_S = 86_400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Arrivals:
    """How the rate of all devices moves; over the whole run its mean is that of the devices, whatever the process.

    ``poisson`` stays; ``diurnal`` is a sine over a day, at its lowest at midnight, when the run begins; ``bursts`` are at
    random, on top of a rate that stays.
    """

    process: Process = "poisson"

    depth: float = 0.8
    """Of ``diurnal``: how far the rate goes up and down, as a share of its mean over a day."""

    start_hour: float = 0.0
    """Of ``diurnal``: the hour at which the run begins."""

    burst_factor: float = 5.0
    """How many times the usual rate a burst has."""

    burst_s: float = 10.0
    """How long it lasts."""

    burst_every_s: float = 300.0
    """From burst to burst, in the mean."""

    def __post_init__(self) -> None:
        if self.process not in PROCESSES:
            raise ConfigError("process", f"must be one of {', '.join(PROCESSES)}, got {self.process!r}")
        if not 0 <= self.depth <= 1:
            raise ConfigError("depth", f"must be from 0 to 1, got {self.depth!r}")
        for name, least in (("burst_factor", 1.0), ("burst_s", 0.0), ("burst_every_s", 0.0)):
            if not least < getattr(self, name) < math.inf and not (name == "burst_factor" and self.burst_factor == 1):
                raise ConfigError(name, f"must be above {least:g}, got {getattr(self, name)!r}")
        if not 0 <= self.start_hour < math.inf:
            raise ConfigError("start_hour", f"must be zero or more, got {self.start_hour!r}")

    def curve(self, duration_s: float, seed: int) -> tuple[float, NDArray[np.float64]]:
        """Seconds of a slot, and the integral of the rate over its mean at the end of each slot, float64.

        >>> slot_s, curve = Arrivals().curve(60.0, seed=0)
        >>> slot_s, curve.tolist()
        (60.0, [60.0])
        """
        if self.process == "poisson":
            return duration_s, np.array([duration_s])
        slots = max(1, min(100_000, math.ceil(duration_s / (1.0 if self.process == "bursts" else 60.0))))
        slot_s = duration_s / slots
        middles = (np.arange(slots) + 0.5) * slot_s
        rate = self._diurnal(middles) if self.process == "diurnal" else self._bursts(middles, duration_s, seed)
        return slot_s, np.cumsum(rate / rate.mean()) * slot_s

    def _diurnal(self, at_s: NDArray[np.floating]) -> NDArray[np.float64]:
        hour = at_s / DAY_S + self.start_hour / 24
        rate: NDArray[np.float64] = np.maximum(1e-9, 1 - self.depth * np.cos(2 * np.pi * hour))
        return rate

    def _bursts(self, at_s: NDArray[np.floating], duration_s: float, seed: int) -> NDArray[np.float64]:
        source = np.random.default_rng([seed, 1])
        rate, begin_s = np.ones(len(at_s)), source.exponential(self.burst_every_s)
        while begin_s < duration_s:
            rate[(at_s >= begin_s) & (at_s < begin_s + self.burst_s)] = self.burst_factor
            begin_s += self.burst_s + source.exponential(self.burst_every_s)
        return rate
