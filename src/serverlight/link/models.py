"""Links whose rate moves, from a few parameters: what a search plans for, and what the proxy and simulations act out.

Pure: chance comes from a seed, and time is part of what comes out.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from serverlight.errors import ConfigError
from serverlight.link.config import LinkConfig
from serverlight.link.trace import LinkPiece, check_outage, typical_link

__all__ = ["FixedLink", "GilbertElliott", "LinkModel", "Rayleigh"]

MEAN_STEPS = 4096
"""Equally likely gains that stand for all of them in the mean of a fading rate: within 0.1 % of the integral."""


class LinkModel(Protocol):
    """A link that changes with time."""

    def sample(self, seed: int = 0) -> Iterator[LinkPiece]:
        """One course that it may take, from 0 s; the same for the same seed. It may never end."""

    def typical(self, outage: float | None = None) -> LinkConfig:
        """One link that stands for it in a search.

        ``outage`` None is the mean rate; else the rate is what there is but for that share of the time.
        """


@dataclass(frozen=True, kw_only=True, slots=True)
class FixedLink:
    """Always the same."""

    link: LinkConfig

    def sample(self, seed: int = 0) -> Iterator[LinkPiece]:
        """One piece."""
        yield LinkPiece(start_s=0.0, link=self.link)

    def typical(self, outage: float | None = None) -> LinkConfig:
        """The link itself."""
        check_outage(outage)
        return self.link


@dataclass(frozen=True, kw_only=True, slots=True)
class Rayleigh:
    """A radio link without line of sight: the gain is drawn anew for each block, and the rate is the channel's capacity.

    >>> link = Rayleigh(bandwidth_hz=5e6, snr_db=15.0)
    >>> round(link.outage_rate_bits_per_s(0.1)), round(link.mean_rate_bits_per_s())
    (10574820, 21650953)
    """

    bandwidth_hz: float
    snr_db: float
    """Mean ratio of signal to noise."""

    block_s: float = 0.1
    """Seconds for which a gain lasts: the coherence time of the channel."""

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    least_bits_per_s: float = 64e3
    """Below that a fade is not told apart, so that one packet never holds a link for many blocks."""

    def __post_init__(self) -> None:
        for name in ("bandwidth_hz", "block_s", "least_bits_per_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(name, f"must be a positive number, got {getattr(self, name)!r}")
        if not -100 <= self.snr_db <= 100:
            raise ConfigError("snr_db", f"must be from -100 to 100, got {self.snr_db!r}")
        self._link(self.least_bits_per_s)

    def outage_rate_bits_per_s(self, outage: float) -> float:
        """The rate that a block misses with probability ``outage``: ``W log2(1 - snr ln(1 - outage))``."""
        check_outage(outage)
        return max(self.least_bits_per_s, self._capacity(-math.log1p(-outage)))

    def mean_rate_bits_per_s(self) -> float:
        """The mean over all blocks."""
        return sum(self.outage_rate_bits_per_s((i + 0.5) / MEAN_STEPS) for i in range(MEAN_STEPS)) / MEAN_STEPS

    def sample(self, seed: int = 0) -> Iterator[LinkPiece]:
        """A block after the other, for ever."""
        chance = random.Random(f"rayleigh/{seed}")
        for index in itertools.count():
            rate = max(self.least_bits_per_s, self._capacity(chance.expovariate(1.0)))
            yield LinkPiece(start_s=index * self.block_s, link=self._link(rate))

    def typical(self, outage: float | None = None) -> LinkConfig:
        """As :class:`LinkModel` says."""
        return self._link(self.mean_rate_bits_per_s() if outage is None else self.outage_rate_bits_per_s(outage))

    def _capacity(self, gain: float) -> float:
        return self.bandwidth_hz * math.log2(1 + 10 ** (self.snr_db / 10) * gain)

    def _link(self, rate: float) -> LinkConfig:
        return LinkConfig(rate_bits_per_s=rate, delay_ms=self.delay_ms, jitter_ms=self.jitter_ms)


@dataclass(frozen=True, kw_only=True, slots=True)
class GilbertElliott:
    """Two states that the link stays in for a random while each, such as in and out of a building's shadow.

    >>> good, bad = LinkConfig.parse("50mbit,5ms"), LinkConfig.parse("500kbit,5ms")
    >>> link = GilbertElliott(good=good, bad=bad, good_for_s=9.0, bad_for_s=1.0)
    >>> str(link.typical()), str(link.typical(0.2)), str(link.typical(0.05))
    ('45.05mbit,5ms', '50mbit,5ms', '0.5mbit,5ms')
    """

    good: LinkConfig
    bad: LinkConfig | None
    """``None`` for a link that is cut meanwhile."""

    good_for_s: float
    """Mean length of a stay, exponentially distributed."""

    bad_for_s: float

    def __post_init__(self) -> None:
        for name in ("good_for_s", "bad_for_s"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(name, f"must be a positive number of seconds, got {getattr(self, name)!r}")

    def sample(self, seed: int = 0) -> Iterator[LinkPiece]:
        """Stay after stay, for ever; the first is in the good state."""
        chance = random.Random(f"gilbert-elliott/{seed}")
        now_s = 0.0
        for link, mean_s in itertools.cycle([(self.good, self.good_for_s), (self.bad, self.bad_for_s)]):
            yield LinkPiece(start_s=now_s, link=link)
            now_s += max(1e-3, chance.expovariate(1 / mean_s))

    def typical(self, outage: float | None = None) -> LinkConfig:
        """As :class:`LinkModel` says."""
        return typical_link([self.good, self.bad], [self.good_for_s, self.bad_for_s], outage)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scaled:
    """Another model with all rates times a factor."""

    model: LinkModel
    factor: float

    def __post_init__(self) -> None:
        if not 0 < self.factor < math.inf:
            raise ConfigError("scale", f"must be a positive number, got {self.factor!r}")

    def sample(self, seed: int = 0) -> Iterator[LinkPiece]:
        """As :class:`LinkModel` says."""
        for piece in self.model.sample(seed):
            yield dataclasses.replace(piece, link=self._scale(piece.link))

    def typical(self, outage: float | None = None) -> LinkConfig:
        """As :class:`LinkModel` says."""
        return self._scale(self.model.typical(outage)) or LinkConfig()

    def _scale(self, link: LinkConfig | None) -> LinkConfig | None:
        if link is None or link.rate_bits_per_s is None:
            return link
        return dataclasses.replace(link, rate_bits_per_s=link.rate_bits_per_s * self.factor)
