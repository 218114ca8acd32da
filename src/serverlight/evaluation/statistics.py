"""How sure one may be of a difference in accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serverlight.errors import ConfigError

__all__ = ["PairedDifference", "paired_difference"]

Z_95 = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedDifference:
    """Difference of two accuracies on the same samples, with its 95 % interval; all three as shares."""

    value: float
    """Accuracy of the first less that of the second."""

    low: float
    """Lower end of the interval."""

    high: float
    """Upper end of the interval."""


def paired_difference(ours: NDArray[np.bool_], theirs: NDArray[np.bool_]) -> PairedDifference:
    """Difference of accuracy between two classifiers that answered the same samples.

    Only samples on which exactly one is right tell them apart. The interval is Wald's after half a sample was added to
    each cell of the two-by-two table (Agresti and Min 2005, doi:10.1002/sim.1781); unlike a bootstrap it needs no random
    numbers and does not collapse to a point when the two never differ.

    >>> paired_difference(np.array([True] * 98 + [False] * 2), np.array([True] * 100)).value
    -0.02
    """
    if ours.shape != theirs.shape or ours.ndim != 1 or not len(ours):
        raise ConfigError("samples", f"need two equally long rows of answers, got {ours.shape} and {theirs.shape}")
    wins, losses = int((ours & ~theirs).sum()), int((~ours & theirs).sum())
    num = len(ours) + 2
    centre = (wins - losses) / num
    margin = Z_95 * math.sqrt((wins + losses + 1) / num - centre**2) / math.sqrt(num)
    return PairedDifference(
        value=(wins - losses) / len(ours), low=max(-1.0, centre - margin), high=min(1.0, centre + margin)
    )
