"""What a calibration knows, and the table that it makes of it: measured rows, predicted rows, and how far both can be trusted."""

# Shapes: n = samples, r = resamples.

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from serverlight.codec import CodecConfig
from serverlight.errors import ConfigError
from serverlight.search.figures import Figures
from serverlight.search.quality import QualityRow, QualityTable
from serverlight.search.surrogate import Look, LossCurve, Surrogate, conformal

__all__ = ["Key", "Run", "State", "make_table"]

Floats = NDArray[np.float64]

Key = tuple[str, int]
"""A cut, and the place of a setting in the grid."""

LEAST_FULL = 2
"""Full runs of each cut, however small the budget."""

RESAMPLES = 1000

LOOK_WORTH = 0.3
"""Of an answer in a look beside one of a full run: all looks have the same few samples, and so err together."""

FIRST_BUCKET = 16
"""Tokens of the first bucket of positions; each of the others is as long as all before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What is to be calibrated."""

    model: str
    revision: str
    metric: str
    num_samples: int
    cuts: tuple[str, ...]
    configs: tuple[CodecConfig, ...]
    budget: float | None
    """Share of the tail runs of the whole grid."""

    seed: int

    def __post_init__(self) -> None:
        for name in ("cuts", "configs"):
            if not getattr(self, name):
                raise ConfigError(name, "need at least one")
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ConfigError(name, "one is named twice; name each once")
        if self.budget is not None and not 0 < self.budget <= 1:
            raise ConfigError("budget", f"must be a share in (0, 1], got {self.budget!r}")

    @property
    def num_few(self) -> int:
        """Samples of a look: half of the budget goes there."""
        share = 1.0 if self.budget is None else self.budget / 2
        return max(1, round(share * self.num_samples))

    def num_full(self, num_settings: int) -> int:
        """Full runs of a cut: the other half."""
        if self.budget is None or self.num_few == self.num_samples:
            return num_settings
        runs = num_settings * (self.budget * self.num_samples - self.num_few) / (self.num_samples - self.num_few)
        return min(num_settings, max(LEAST_FULL, math.floor(runs)))


@dataclass(kw_only=True)
class State:
    """What is known so far."""

    run: Run
    looks: dict[Key, Look] = field(default_factory=dict)
    few: dict[Key, Figures] = field(default_factory=dict)
    full: dict[Key, Figures] = field(default_factory=dict)
    held_out: set[Key] = field(default_factory=set)

    def surrogate(self, without: frozenset[Key] = frozenset()) -> Surrogate:
        """Fitted to what was measured in full, but for some of it."""
        keys = [key for key in self.full if key not in without]
        full = [self.full[key] for key in keys]
        # What the looks say of losses is as good as a few answers are, and reaches where nothing was measured in full.
        judged = [*full, *self.few.values()]
        worth = np.array([1.0] * len(full) + [LOOK_WORTH] * len(self.few))
        return Surrogate.fit(
            [self.looks[key] for key in keys],
            kl=np.array([one.mean_kl for one in full]),
            bits=np.array([one.bits_per_element for one in full]),
            curve=LossCurve.fit(
                np.array([one.mean_kl for one in judged]),
                np.array([one.loss_pp for one in judged]),
                worth * np.array([one.num_answers for one in judged]),
                num_knots=len(full),
            ),
        )


def make_table(state: State, tail_share: float) -> QualityTable:
    """All rows, in the order of cuts and settings."""
    run, surrogate = state.run, state.surrogate()
    predicted = [key for key in state.looks if key not in state.full]
    spread = _Spread.of(state) if predicted else _Spread()
    edges = _position_edges(state)
    resamples = np.random.default_rng(run.seed).integers(run.num_samples, size=(RESAMPLES, run.num_samples))
    rows = [
        _measured_row(run, key, state.full[key], resamples, edges)
        if key in state.full
        else _predicted_row(state, key, surrogate, spread, edges)
        for key in state.looks
    ]
    return QualityTable(
        model=run.model,
        revision=run.revision,
        metric=run.metric,
        num_samples=run.num_samples,
        rows=tuple(rows),
        held_out_error_pp=spread.error_pp,
        held_out_error_bits=spread.error_bits,
        tail_share=tail_share,
        position_edges=edges,
    )


def _measured_row(
    run: Run, key: Key, figures: Figures, resamples: NDArray[np.int64], edges: tuple[int, ...]
) -> QualityRow:
    return QualityRow(
        cut=key[0],
        codec=run.configs[key[1]],
        bits_per_element=figures.bits_per_element,
        frame_bytes=figures.frame_bytes,
        prompt_bits_per_element=figures.prompt_bits_per_element,
        rel_mse=figures.rel_mse,
        kl=figures.mean_kl,
        loss_pp=figures.loss_pp,
        loss_interval_pp=interval_pp(np.nanmean(figures.lost, 1), resamples),
        is_measured=True,
        loss_by_position_pp=_by_position(figures, edges),
    )


def interval_pp(lost: Floats, resamples: NDArray[np.int64]) -> tuple[float, float]:
    """95 % interval of the mean loss (n,), percentage points, by bootstrap over the samples, each paired with its uncut self.

    Where no sample differs there is nothing to draw from, and the upper end is that of the rule of three.
    """
    if not lost.any():
        return 0.0, 100 * min(1.0, 3 / len(lost))
    low, high = np.quantile(100 * lost[resamples].mean(1), (0.025, 0.975))
    return float(max(low, 0.0)), float(max(high, 0.0))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Spread:
    """How far predictions were from what was measured."""

    error_pp: float | None = None
    error_bits: float | None = None
    reach: float = 0.0
    """Half of an interval, in units of :func:`_unit`."""

    num_answers: int = 1

    @classmethod
    def of(cls, state: State) -> _Spread:
        held_out = sorted(state.held_out)
        fitted = state.surrogate(frozenset(held_out))
        errors = [abs(fitted.loss_pp(state.looks[key]) - state.full[key].loss_pp) for key in held_out]
        bits = [
            abs(fitted.bits_per_element(state.looks[key]) / state.full[key].bits_per_element - 1) for key in held_out
        ]
        some = next(iter(state.full.values())).num_answers
        scores = []
        for key in state.full:  # those that were chosen show more of them, each left out in turn
            predicted = (fitted if key in state.held_out else state.surrogate(frozenset({key}))).loss_pp(
                state.looks[key]
            )
            scores.append(abs(predicted - state.full[key].loss_pp) / _unit(predicted, some))
        return cls(
            error_pp=float(np.median(errors)),
            error_bits=float(np.median(bits)),
            reach=conformal(np.array(scores)),
            num_answers=some,
        )

    def interval_pp(self, loss_pp: float) -> tuple[float, float]:
        """95 % interval of a predicted loss."""
        half = self.reach * _unit(loss_pp, self.num_answers)
        return max(loss_pp - half, 0.0), min(loss_pp + half, 100.0)


def _unit(loss_pp: float, num_answers: int) -> float:
    """How errors of predictions grow with the loss: as those of a share, and with the loss itself."""
    share = min(max(loss_pp / 100, 0.0), 1.0)
    return 100 * math.sqrt((share * (1 - share) + 1 / num_answers) / num_answers) + 0.05 * loss_pp


def _predicted_row(state: State, key: Key, surrogate: Surrogate, spread: _Spread, edges: tuple[int, ...]) -> QualityRow:
    few, look = state.few[key], state.looks[key]
    bits = surrogate.bits_per_element(look)
    ratio, loss = bits / look.bits_per_element, surrogate.loss_pp(look)
    prompt = few.prompt_bits_per_element
    return QualityRow(
        cut=key[0],
        codec=state.run.configs[key[1]],
        bits_per_element=bits,
        frame_bytes=few.frame_bytes * ratio,
        prompt_bits_per_element=None if prompt is None else prompt * ratio,
        rel_mse=few.rel_mse,
        kl=surrogate.kl(look),
        loss_pp=loss,
        loss_interval_pp=spread.interval_pp(loss),
        is_measured=False,
        loss_by_position_pp=tuple(loss * share for share in _shape(state, key[0], edges)),
    )


def _position_edges(state: State) -> tuple[int, ...]:
    """Buckets that double; none for models that give one answer."""
    length = max(figures.lost.shape[1] for figures in state.few.values())
    if length == 1:
        return ()
    edges = [0, min(FIRST_BUCKET, length)]
    while edges[-1] < length:
        edges.append(min(2 * edges[-1], length))
    return tuple(edges)


def _by_position(figures: Figures, edges: Sequence[int]) -> tuple[float, ...]:
    pieces = [figures.lost[:, start:end] for start, end in itertools.pairwise(edges)]
    return tuple(max(100 * float(np.nanmean(piece)), 0.0) for piece in pieces)


def _shape(state: State, cut: str, edges: Sequence[int]) -> list[float]:
    """The loss of each bucket over that of the whole, from all that was measured of a cut."""
    measured = [(_by_position(one, edges), one.loss_pp) for key, one in state.full.items() if key[0] == cut]
    whole = sum(loss for _, loss in measured)
    return [sum(bucket) / whole if whole else 1.0 for bucket in zip(*(buckets for buckets, _ in measured), strict=True)]
