"""How sure one may be of a difference in accuracy."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serverlight.errors import ConfigError

__all__ = ["PairedDifference", "PairedTest", "paired_difference", "paired_test"]

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

    def within(self, tolerance: float) -> bool | None:
        """Whether no more than ``tolerance`` is lost: the whole interval says so, or denies it, or else ``None``.

        >>> small = PairedDifference(value=-0.005, low=-0.008, high=-0.002)
        >>> small.within(0.01), small.within(0.001), small.within(0.005)
        (True, False, None)
        """
        if self.low >= -tolerance:
            return True
        return None if self.high >= -tolerance else False


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


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedTest:
    """Difference of two means over the same samples, and whether it may be chance."""

    value: float
    """Mean of the first less that of the second."""

    stderr: float
    """Its standard error; not a number for a single sample."""

    low: float
    """Lower end of the 95 % interval."""

    high: float
    """Upper end of the interval."""

    p_value: float
    """Chance of so large a difference, on either side, where there is none; 1 where no sample differs."""


def paired_test(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> PairedTest:
    """Compares two rows of values sample by sample.

    Answers that are right or wrong, 1 or 0, get McNemar's exact test and the interval of :func:`paired_difference`; all else the
    normal approximation.

    Raises :class:`ConfigError` where the rows are not equally long, or empty.

    >>> found = paired_test(np.array([1.0, 1, 1, 0, 1, 1, 1, 1]), np.zeros(8))
    >>> round(found.value, 3), found.p_value
    (0.875, 0.015625)
    """
    if ours.shape != theirs.shape or ours.ndim != 1 or not len(ours):
        raise ConfigError("samples", f"need two equally long rows of values, got {ours.shape} and {theirs.shape}")
    differences = ours - theirs
    value = float(differences.mean())
    stderr = float(differences.std(ddof=1)) / math.sqrt(len(ours)) if len(ours) > 1 else math.nan
    if np.isin([ours, theirs], (0.0, 1.0)).all():
        interval = paired_difference(ours == 1, theirs == 1)
        p_value = _sign_test(int((differences > 0).sum()), int((differences < 0).sum()))
        return PairedTest(value=value, stderr=stderr, low=interval.low, high=interval.high, p_value=p_value)
    if not differences.any():
        return PairedTest(value=0.0, stderr=stderr, low=0.0, high=0.0, p_value=1.0)
    p_value = math.erfc(abs(value) / stderr / math.sqrt(2)) if stderr > 0 else math.nan
    margin = Z_95 * stderr
    return PairedTest(value=value, stderr=stderr, low=value - margin, high=value + margin, p_value=p_value)


def _sign_test(wins: int, losses: int) -> float:
    """Chance that a fair coin lies so far on either side.

    >>> _sign_test(0, 0), _sign_test(0, 3)
    (1.0, 0.25)
    """
    num, least = wins + losses, min(wins, losses)
    return min(1.0, sum(math.comb(num, k) for k in range(least + 1)) / (1 << num) * 2)
