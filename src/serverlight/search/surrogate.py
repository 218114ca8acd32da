"""From a look at a few samples to what all of them would say: divergence, loss and bits of settings that were not run in full.

Two steps, both monotone. Within a cut the divergence on all samples follows that on the few and the features' squared error, as
powers, whose exponents are drawn to what they usually are. Over all cuts the loss follows the divergence: what an output is worth
does not depend on where it was spoilt.
"""

# Shapes: m = settings that were measured in full.

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

__all__ = ["Look", "LossCurve", "Surrogate", "conformal", "tame_mean"]

Floats = NDArray[np.float64]

LEAST_KL = 1e-7
"""Nats below which divergences are not told apart."""

LEAST_ERROR = 1e-9
MOST_LOG = 5.0
"""Natural logarithm of more nats than matter."""

USUAL = np.array([0.0, -0.25, 0.3])
PULL = np.array([0.05, 1.0, 1.0])
"""What the weights of :class:`_Powers` are without data, as the demo models and a CIFAR ResNet have them, and how strongly a ridge
draws them there; a run in full counts as one."""

TAME = 0.25
"""Power of the mean over a few answers: their plain mean hangs on one or two that are easily swayed."""

EXPONENTS = np.linspace(0.3, 2.0, 35)
SCALES = np.exp(np.linspace(-7, 5, 60))

COVERAGE = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """What a few samples say of a cut with a setting."""

    cut: str
    kl: float
    """Power mean of the divergences, see :func:`tame_mean`; nats."""

    rel_mse: float
    bits_per_element: float


def tame_mean(kl: Floats) -> float:
    """The mean with power 1/4 of divergences of any shape, NaN left out.

    >>> tame_mean(np.array([1.0, 0.0]))
    0.0625
    """
    return float(np.nanmean(np.maximum(kl, 0) ** TAME) ** (1 / TAME))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LossCurve:
    """Loss in percentage points as a function of divergence, never falling.

    A saturating power law is fitted, ``most * (1 - exp(-(kl / scale) ** exponent))``; what the points say beyond it is put in by
    isotonic regression along its values.
    """

    most: float
    scale: float
    exponent: float
    knots: Floats
    """Values of the power law, rising from 0."""

    values: Floats
    """Loss at each of them."""

    @classmethod
    def fit(cls, kl: Floats, loss_pp: Floats, num_answers: Floats, num_knots: int) -> Self:
        """From divergences and losses (m,), the latter each over so many answers; the first of them are to be knots."""
        share = np.clip(loss_pp / 100, 0, 1)
        weight = 1 / (100**2 * share * (1 - share) / num_answers + 0.05**2 + (0.03 * loss_pp) ** 2)
        exponent, scale = (x.ravel() for x in np.meshgrid(EXPONENTS, SCALES, indexing="ij"))
        law = -np.expm1(-((kl / scale[:, None]) ** exponent[:, None]))
        most = np.clip((weight * law * loss_pp).sum(1) / np.maximum((weight * law**2).sum(1), 1e-12), 0, 100)
        best = int((weight * (loss_pp - most[:, None] * law) ** 2).sum(1).argmin())
        at = most[best] * law[best]
        order = np.argsort(kl[:num_knots], kind="stable")
        return cls(
            most=float(most[best]),
            scale=float(scale[best]),
            exponent=float(exponent[best]),
            knots=np.concatenate([[0.0], at[order]]),
            values=np.concatenate([[0.0], isotonic(loss_pp[order], weight[order])]),
        )

    def __call__(self, kl: Floats) -> Floats:
        """Percentage points at each divergence; beyond the last point measured, along the law."""
        law = self.most * -np.expm1(-((kl / self.scale) ** self.exponent))
        inside = np.interp(law, self.knots, self.values)
        loss: Floats = np.clip(inside + np.maximum(law - self.knots[-1], 0), 0, 100)
        return loss


def isotonic(values: Floats, weights: Floats) -> Floats:
    """The never falling sequence nearest to the values, by pooling neighbours.

    >>> isotonic(np.array([1.0, 3.0, 2.0]), np.ones(3))
    array([1. , 2.5, 2.5])
    """
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        blocks.append((float(value), float(weight), 1))
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (high, w, i), (low, v, j) = blocks[-2:]
            blocks[-2:] = [((high * w + low * v) / (w + v), w + v, i + j)]
    return np.repeat([value for value, _, _ in blocks], [count for _, _, count in blocks])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Surrogate:
    """Fitted to the settings that were measured in full."""

    kl_powers: Mapping[str, _Powers]

    bits_ratio: Mapping[str, float]
    """By cut: bits on all samples over those on the few."""

    loss: LossCurve

    @classmethod
    def fit(cls, looks: Sequence[Look], *, kl: Floats, bits: Floats, curve: LossCurve) -> Self:
        """From looks, and what all samples said of the same settings (m,)."""
        cuts = {look.cut for look in looks}
        places = {cut: [i for i, look in enumerate(looks) if look.cut == cut] for cut in cuts}
        few_bits = np.array([look.bits_per_element for look in looks])
        return cls(
            kl_powers={cut: _Powers.fit([looks[i] for i in at], kl[at]) for cut, at in places.items()},
            bits_ratio={cut: float(np.median(bits[at] / few_bits[at])) for cut, at in places.items()},
            loss=curve,
        )

    def kl(self, look: Look) -> float:
        """Divergence on all samples, nats."""
        powers = self.kl_powers.get(look.cut)
        return look.kl if powers is None else powers(look)

    def loss_pp(self, look: Look) -> float:
        """Loss on all samples, percentage points."""
        return float(self.loss(np.array([self.kl(look)]))[0])

    def bits_per_element(self, look: Look) -> float:
        """Bits on all samples."""
        return look.bits_per_element * self.bits_ratio.get(look.cut, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Powers:
    """Divergence on all samples of one cut: a factor, and powers of the divergence and of the error on the few."""

    weights: Floats
    """Log of the factor, what the first power is above 1, and the second power."""

    centre: Floats
    """Means of the logs, so that the pull on the powers does not move the factor."""

    @classmethod
    def fit(cls, looks: Sequence[Look], kl: Floats) -> Self:
        rows = np.array([_logs(look) for look in looks])
        ratio = np.log(np.maximum(kl, LEAST_KL)) - rows[:, 1]
        centre = rows.mean(0) * [0, 1, 1]
        weights = _ridge(rows - centre, ratio, np.array([True, True, True]))
        if weights[2] < 0:  # more error never means less divergence
            weights = _ridge(rows - centre, ratio, np.array([True, True, False]))
        return cls(weights=np.maximum(weights, [-math.inf, -1, 0]), centre=centre)

    def __call__(self, look: Look) -> float:
        logs = _logs(look)
        return float(math.exp(min(logs[1] + (logs - self.centre) @ self.weights, MOST_LOG)))


def _ridge(rows: Floats, values: Floats, active: NDArray[np.bool_]) -> Floats:
    some, weights = rows[:, active], np.zeros(3)
    weights[active] = np.linalg.solve(
        some.T @ some + np.diag(PULL[active]), some.T @ values + PULL[active] * USUAL[active]
    )
    return weights


def _logs(look: Look) -> Floats:
    return np.array([1.0, math.log(max(look.kl, LEAST_KL)), math.log(max(look.rel_mse, LEAST_ERROR))])


def conformal(scores: Floats) -> float:
    """What 95 % of further scores stay below, if they are of the same kind.

    Fewer than 19 scores have no such quantile; there it is at least what Student's t says of that many errors.

    >>> conformal(np.arange(100.0)), conformal(np.array([1.0, 1.0])) > 4
    (95.0, True)
    """
    count = len(scores)
    rank = math.ceil((count + 1) * COVERAGE)
    if rank <= count:
        return float(np.sort(scores)[rank - 1])
    quantile = 1.96 + 2.37 / count + 2.82 / count**2  # of Student's t, to a few per cent from two errors on
    return float(max(scores.max(), quantile * math.sqrt((scores**2).mean() * (1 + 1 / count))))
