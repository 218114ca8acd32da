"""From logits to the next token: pure functions, so that a sequence that is replayed gets the same tokens again."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverlight.errors import ConfigError

__all__ = ["Sampling", "choose_token"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen; greedy by default.

    >>> Sampling(temperature=0.8, top_p=0.95, seed=7).is_greedy
    False
    """

    temperature: float = 0.0
    """Divides the logits; 0 takes the likeliest token."""

    top_k: int = 0
    """Only so many of the likeliest tokens; 0 is all."""

    top_p: float = 1.0
    """Only the fewest likeliest tokens whose probabilities sum to this, in (0, 1]."""

    min_p: float = 0.0
    """Only tokens at least so likely as this share of the likeliest one's probability, in [0, 1]."""

    seed: int = 0
    """Equal seeds give equal tokens; below 2^64."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError("temperature", f"must be zero or more, got {self.temperature}")
        if not 0 <= self.top_k < 2**32:
            raise ConfigError("top_k", f"must be zero (all) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError("top_p", f"must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ConfigError("min_p", f"must be from 0 to 1, got {self.min_p}")
        if not 0 <= self.seed < 2**64:
            raise ConfigError("seed", f"must be from 0 to 2^64 - 1, got {self.seed}")

    @property
    def is_greedy(self) -> bool:
        """Whether chance plays no part."""
        return self.temperature == 0


def choose_token(logits: NDArray[np.float32], sampling: Sampling, position: int) -> int:
    """The token that follows ``position`` tokens.

    Chance depends on seed and position alone, so that a sequence that is rebuilt elsewhere goes on as it would have.

    Args:
        logits: float32 ``[vocabulary]``.
        sampling: how to choose.
        position: how many tokens came before.

    >>> choose_token(np.float32([0, 3, 1]), Sampling(), position=5)
    1
    """
    if sampling.is_greedy:
        return int(logits.argmax())
    order, weights = _candidates(logits.astype(np.float64), sampling)
    cumulative = weights.cumsum()
    generator = np.random.Generator(np.random.Philox(key=[sampling.seed, position]))
    drawn = np.searchsorted(cumulative, generator.random() * cumulative[-1], side="right")
    return int(order[min(int(drawn), len(order) - 1)])


def _candidates(logits: NDArray[np.float64], sampling: Sampling) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """The tokens that may be chosen, likeliest first, and their probabilities, not normalised again."""
    order = np.argsort(-logits, kind="stable")[: sampling.top_k or None]
    weights = np.exp((logits[order] - logits[order[0]]) / sampling.temperature)
    weights /= weights.sum()
    before = weights.cumsum() - weights
    kept = (before < sampling.top_p) & (weights >= sampling.min_p * weights[0])
    return order[kept], weights[kept]
