"""How fast a link is, as far as its messages show: a filter over all rates and round trips that it may have.

Nothing is sent to find out. A message shows how many bytes it had and how long it was under way, which is the round trip,
the bytes at the rate, and some noise: a little of it always, and now and then a burst. Small messages tell nothing of a high
rate, so what they leave open stays open. Pure: times come as arguments.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

__all__ = ["LinkBelief"]

_RATES = np.logspace(4, 10, 73)
"""Bits per second, steps of a fifth."""

_TRIPS_MS = np.logspace(math.log10(2), math.log10(2000), 50)
"""Milliseconds, steps of 15 %; less is lost in what software takes."""

_JUMPS_PER_S, _MIN_JUMP = 0.1, 0.002
"""How often a rate is suddenly any other, and the least chance of that between two messages."""

_TRIP_JUMPS_PER_S = 0.002

_WALK, _TRIP_WALK = 0.2, 0.15
"""Relative change in a second of a rate and of a round trip that do not jump; grows with the root of the time. Nearly alike:
messages of one size cannot tell the two apart, and would in time speak for the one that is thought to be much steadier."""

_NOISE, _NOISE_MS = 0.08, 0.5
"""Usual deviation: of the time under way, and of anything."""

_BURST, _BURST_MS = 0.1, 20.0
"""Share of messages that something holds up, and for how long, or as long as they should take if that is more."""

_NEVER = 1e-12
"""Density of what should not be, so that no message leaves nothing."""

Weights = NDArray[np.float64]


def _uniform() -> Weights:
    return np.full((_RATES.size, _TRIPS_MS.size), 1 / (_RATES.size * _TRIPS_MS.size))


@dataclass(frozen=True, slots=True)
class LinkBelief:
    """What is known of a link: how likely each rate is together with each round trip. Frozen: each message makes a new one.

    >>> belief = LinkBelief()
    >>> for num_bytes in (1000, 20_000, 1000, 20_000):  # 1 Mbit/s and a round trip of 40 ms
    ...     belief = belief.later(0.1).seen(num_bytes, 40 + num_bytes * 8e-3)
    >>> round(belief.rate_bits_per_s() / 1e6, 1), round(belief.trip_ms())
    (1.0, 40)
    >>> belief.chance(1000, 100.0) > 0.9, belief.chance(20_000, 100.0) < 0.1
    (True, True)
    """

    _weights: Weights = field(default_factory=_uniform)

    @classmethod
    def certain(cls, rate_bits_per_s: float, trip_ms: float) -> LinkBelief:
        """Of a link that is known, as closely as the filter tells links apart."""
        weights = np.zeros((_RATES.size, _TRIPS_MS.size))
        rate, trip = (
            np.abs(np.log(grid / value)).argmin() for grid, value in ((_RATES, rate_bits_per_s), (_TRIPS_MS, trip_ms))
        )
        weights[rate, trip] = 1
        return cls(weights)

    def later(self, elapsed_s: float) -> LinkBelief:
        """The same some time on: what was known fades."""
        jump = max(_MIN_JUMP, -math.expm1(-_JUMPS_PER_S * elapsed_s))
        trip_jump = -math.expm1(-_TRIP_JUMPS_PER_S * elapsed_s)
        weights = _spread(self._weights, _WALK**2 * elapsed_s / math.log(_RATES[1] / _RATES[0]) ** 2)
        weights = _spread(weights.T, _TRIP_WALK**2 * elapsed_s / math.log(_TRIPS_MS[1] / _TRIPS_MS[0]) ** 2).T
        weights = (1 - jump) * weights + jump * weights.mean(axis=0, keepdims=True)
        weights = (1 - trip_jump) * weights + trip_jump * weights.mean(axis=1, keepdims=True)
        return LinkBelief(weights)

    def seen(self, num_bytes: int, way_ms: float) -> LinkBelief:
        """After a message of so many bytes was so long under way, its answer included and the server's own time not."""
        expected_ms = _expected_ms(num_bytes)
        noise_ms = _noise_ms(expected_ms)
        late_ms = way_ms - expected_ms
        usual = np.exp(-0.5 * (late_ms / noise_ms) ** 2) / (noise_ms * math.sqrt(2 * math.pi))
        held_ms = _held_ms(expected_ms)
        burst = np.exp(-np.maximum(0.0, late_ms) / held_ms) / held_ms * (late_ms > 0)
        weights = self._weights * ((1 - _BURST) * usual + _BURST * burst + _NEVER)
        return LinkBelief(weights / weights.sum())

    def chance(self, num_bytes: int, budget_ms: float, late_ms: Sequence[float] = (0.0,)) -> float:
        """How likely a message of so many bytes is under way for ``budget_ms`` at most, bursts included.

        ``late_ms`` is what else may take of the budget, each one as likely as the others.
        """
        expected_ms, weights = _gathered(_expected_ms(num_bytes), self._weights)
        left_ms = budget_ms - np.asarray(late_ms)[:, None] - expected_ms
        # A logistic curve is close to the normal one, and cheap.
        usual = 1 / (1 + np.exp(np.clip(-1.7 * left_ms / _noise_ms(expected_ms), -50, 50)))
        burst = 1 - np.exp(-np.maximum(0.0, left_ms) / _held_ms(expected_ms))
        return float((((1 - _BURST) * usual + _BURST * burst) @ weights).mean())

    def rate_bits_per_s(self, quantile: float = 0.5) -> float:
        """The rate that is not reached with this probability."""
        return _quantile(_RATES, self._weights.sum(axis=1), quantile)

    def trip_ms(self, quantile: float = 0.5) -> float:
        """The round trip of a message of no size, likewise."""
        return _quantile(_TRIPS_MS, self._weights.sum(axis=0), quantile)


def _expected_ms(num_bytes: int) -> Weights:
    return (num_bytes * 8e3 / _RATES)[:, None] + _TRIPS_MS[None, :]


def _noise_ms(expected_ms: Weights) -> Weights:
    return _NOISE_MS + _NOISE * expected_ms


def _held_ms(expected_ms: Weights) -> Weights:
    return np.maximum(_BURST_MS, expected_ms)


def _gathered(expected_ms: Weights, weights: Weights) -> tuple[Weights, Weights]:
    """Times that differ by less than half of the usual noise as one, with the weight of all of them."""
    bins = (np.log(expected_ms) / (_NOISE / 2)).astype(np.int64).ravel()
    sums = np.asarray(np.bincount(bins, weights.ravel()), np.float64)
    means = np.asarray(np.bincount(bins, (weights * expected_ms).ravel()), np.float64)
    some = sums > 0
    return means[some] / sums[some], sums[some]


def _spread(weights: Weights, variance: float) -> Weights:
    """A random walk along the first axis, of a variance in squared steps; nothing leaves the ends."""
    passes = min(30, math.ceil(variance / 0.5))
    for _ in range(passes):
        share = min(0.25, variance / passes / 2)
        padded = np.pad(weights, ((1, 1), (0, 0)), mode="edge")
        weights = (1 - 2 * share) * weights + share * (padded[:-2] + padded[2:])
    return weights


def _quantile(grid: Weights, weights: Weights, quantile: float) -> float:
    """Between two points of the grid where the sum passes the quantile."""
    below = np.cumsum(weights) - weights / 2
    return float(np.exp(np.interp(quantile, below / weights.sum(), np.log(grid))))
