"""The codec beside its rivals on real features: rates at equal quality, rates at equal divergence, speed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serverlight.codec.rivals import Family
from serverlight.evaluation.bounds import RateDistortion
from serverlight.evaluation.rates import MAX_LOSS_PP, Probe, RateRow, Scale, Walk, bits_at_kl
from serverlight.evaluation.tasks import CodecTask

__all__ = ["Comparison", "Progress", "TaskReport", "bench_task"]

Progress = Callable[[int, str], None]
"""Called with the number of codecs done and with what is being measured."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """One codec on one task, at the points where codecs are compared."""

    codec: str
    """Name of the codec."""

    best: RateRow | None
    """The cheapest setting within the loss allowed; none where every setting loses more."""

    bits_at_equal_kl: float | None
    """Bits at the divergence of the reference codec's best setting, between two of this codec's settings; none where
    the codec has no settings around it."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TaskReport:
    """All codecs on one task."""

    task: str
    model: str
    cut: str
    num_messages: int
    elements_per_message: float
    base_metric: float
    """The uncut model's figure, as a percentage."""

    reference: str
    """The codec whose divergence the others are compared at."""

    equal_kl: float | None
    """That divergence."""

    comparisons: tuple[Comparison, ...]
    rows: tuple[RateRow, ...]
    """Every setting measured in full."""

    probes: tuple[Probe, ...]
    """Each codec's settings on its front, measured on a few messages: for curves, not for quoting."""

    ecsq: RateDistortion
    rate_distortion: RateDistortion

    def to_dict(self) -> dict[str, Any]:
        """All fields but the rows, ready for JSON; curves as lists of (relative error, bits per element)."""
        plain = {
            field.name: getattr(self, field.name) for field in dataclasses.fields(self) if field.name not in _SPECIAL
        }
        return {
            **plain,
            "best": [_as_summary(comparison) for comparison in self.comparisons],
            "probes": [dataclasses.asdict(probe) for probe in self.probes],
            "ecsq": _as_pairs(self.ecsq),
            "rate_distortion": _as_pairs(self.rate_distortion),
        }


_SPECIAL = {"comparisons", "rows", "probes", "ecsq", "rate_distortion"}


def bench_task(
    task: CodecTask,
    families: Sequence[Family],
    *,
    reference: str,
    max_loss_pp: float = MAX_LOSS_PP,
    rounds: int = 2,
    progress: Progress = lambda done, text: None,
) -> TaskReport:
    """Walks the settings of every codec on one task.

    Args:
        task: features and the way to judge them.
        families: the codecs.
        reference: name of the one whose divergence the others are compared at; without it there is no such comparison.
        max_loss_pp: loss at which rates are compared, in percentage points.
        rounds: how often each grid is refined.
        progress: see :data:`Progress`.
    """
    scale = Scale(task)
    walks, best = [], {}
    for done, family in enumerate(families):
        walk = Walk(scale, family, rounds=rounds, note=functools.partial(progress, done))
        walks.append(walk)
        best[family.name] = walk.cheapest(lambda row: row.keeps(max_loss_pp))
    row = best.get(reference)
    kl = row.kl if row is not None and row.kl > 0 else None
    comparisons = tuple(
        Comparison(codec=walk.family.name, best=best[walk.family.name], bits_at_equal_kl=_bits_at(walk, kl))
        for walk in walks
    )
    sizes = [x.size for x in task.features()]
    return TaskReport(
        task=task.name,
        model=task.model,
        cut=task.cut,
        num_messages=len(sizes),
        elements_per_message=float(np.mean(sizes)),
        base_metric=task.base_metric,
        reference=reference,
        equal_kl=kl,
        comparisons=comparisons,
        rows=tuple(row for walk in walks for row in walk.rows),
        probes=tuple(probe for walk in walks for probe in walk.probes),
        ecsq=scale.ecsq,
        rate_distortion=scale.bound,
    )


def _bits_at(walk: Walk, kl: float | None) -> float | None:
    if kl is None:
        return None
    walk.cheapest(lambda row: row.kl <= kl)  # measures the settings on both sides
    return bits_at_kl(walk.rows, kl)


def _as_summary(comparison: Comparison) -> dict[str, Any]:
    best = comparison.best
    return {
        "codec": comparison.codec,
        "bits_per_element": best.bits_per_element if best else None,
        "config": best.config if best else None,
        "bits_at_equal_kl": comparison.bits_at_equal_kl,
    }


def _as_pairs(curve: RateDistortion) -> list[list[float]]:
    return [list(pair) for pair in zip(curve.distortion.tolist(), curve.bits.tolist(), strict=True)]
