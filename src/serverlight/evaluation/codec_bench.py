"""The codec beside its rivals on real features: rates at equal quality, rates at equal divergence, speed."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serverlight.codec import calibrate_basis
from serverlight.codec.layout import natural_layout
from serverlight.codec.rivals import Family
from serverlight.evaluation.bounds import RateDistortion
from serverlight.evaluation.rates import (
    COARSE,
    FINE,
    JPEG_INPUT,
    MAX_LOSS_PP,
    RAW_INPUT,
    Probe,
    RateRow,
    Scale,
    bits_at_kl,
)
from serverlight.evaluation.resampled import cheapest_bits
from serverlight.evaluation.search import Walk, jpeg_rows
from serverlight.evaluation.tasks import CodecTask
from serverlight.evaluation.tasks.task import Floats, percentiles

__all__ = ["Comparison", "Progress", "TaskReport", "bench_task"]

Progress = Callable[[int, str], None]
"""Called with the number of codecs done and with what is being measured."""

Keeps = Callable[[RateRow], bool]
"""Whether a setting is within the loss allowed."""


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

    bits_interval: tuple[float, float] | None = None
    """95 % interval of the cheapest setting's bits, the setting chosen anew in each resample; see
    :mod:`serverlight.evaluation.resampled`."""

    share_interval: tuple[float, float] | None = None
    """The same of the reference's bits over this codec's, paired."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TaskReport:
    """All codecs on one task."""

    task: str
    model: str
    cut: str
    position: str
    """``early``, ``middle``, ``late`` or empty."""

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

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> TaskReport:
        """The report that :meth:`to_dict` wrote, and its rows."""
        own = tuple(RateRow.from_dict(row) for row in rows if row["task"] == fields["task"])
        names = {field.name for field in dataclasses.fields(cls)} - _SPECIAL
        plain = {"position": "", **{name: fields[name] for name in names if name in fields}}
        return cls(
            **plain,
            comparisons=tuple(_from_summary(summary, own) for summary in fields["best"]),
            rows=own,
            probes=tuple(Probe(**probe) for probe in fields["probes"]),
            ecsq=_from_pairs(fields["ecsq"]),
            rate_distortion=_from_pairs(fields["rate_distortion"]),
        )

    def best_of(self, codec: str) -> RateRow | None:
        """The cheapest row of a codec within the loss allowed, if there is one."""
        return next((c.best for c in self.comparisons if c.codec == codec), None)

    def ratio_at_equal_kl(self, codec: str, ours: str | None = None) -> float | None:
        """Bits of the reference, or of the codec ``ours``, over those of a codec at the reference's divergence; none where
        either is not known.
        """
        bits = {c.codec: c.bits_at_equal_kl for c in self.comparisons}
        own, theirs = bits.get(ours or self.reference), bits.get(codec)
        return own / theirs if own and theirs else None


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
        families: the codecs; those with a basis are left out where the task has no samples to calibrate one with, and those for
            tokens where features are none.
        reference: name of the one whose divergence the others are compared at; without it there is no such comparison.
        max_loss_pp: loss at which rates are compared, in percentage points.
        rounds: how often each grid is refined; with none, settings are tried on fewer messages, too.
        progress: see :data:`Progress`.
    """

    def keeps(row: RateRow) -> bool:
        return row.keeps(max_loss_pp)

    scale, families = Scale(task, probes=FINE if rounds else COARSE), _for_task(families, task)
    walks = _walk_all(scale, families, keeps, max_loss_pp, rounds, progress)
    kl = next((_settled_kl(walk, keeps) for walk in walks if walk.family.name == reference), None)
    comparisons = [_compare(walk, keeps, kl) for walk in walks]
    inputs = [*jpeg_rows(scale, keeps, functools.partial(progress, len(families))), scale.raw_input()]
    comparisons += [_compare_input(codec, inputs, keeps, kl) for codec in (JPEG_INPUT, RAW_INPUT)]
    rows = [*(row for walk in walks for row in walk.rows), *inputs]
    sizes = [x.size for x in task.features()]
    return TaskReport(
        task=task.name,
        model=task.model,
        cut=task.cut,
        position=task.position,
        num_messages=len(sizes),
        elements_per_message=float(np.mean(sizes)),
        base_metric=task.base_metric,
        reference=reference,
        equal_kl=kl,
        comparisons=_with_intervals(comparisons, scale, rows, reference, max_loss_pp),
        rows=tuple(rows),
        probes=tuple(probe for walk in walks for probe in walk.probes),
        ecsq=scale.ecsq,
        rate_distortion=scale.bound,
    )


def _for_task(families: Sequence[Family], task: CodecTask) -> list[Family]:
    """The codecs that suit the task, those with a basis with one for it."""
    layout = natural_layout(task.features()[0].shape)
    families = [family for family in families if family.only_for in (None, layout)]
    if not any(family.takes_basis for family in families):
        return families
    if (samples := task.calibration) is None:
        return [family for family in families if not family.takes_basis]
    basis = calibrate_basis(samples.features, gradients=samples.gradients)
    return [family.with_basis(basis) if family.takes_basis else family for family in families]


def _walk_all(
    scale: Scale, families: Sequence[Family], keeps: Keeps, max_loss_pp: float, rounds: int, progress: Progress
) -> list[Walk]:
    """A walk for each codec, with the settings around the border of the loss measured."""
    walks: list[Walk] = []
    rows: list[RateRow] = []
    for done, family in enumerate(families):
        note, near = functools.partial(progress, done), _border_kl(rows, max_loss_pp)
        walk = Walk(scale, family, rounds=rounds, near_kl=near, note=note)
        walk.cheapest(keeps, near)
        walks.append(walk)
        rows += walk.rows
    # Quality falls unevenly, so what one codec gets away with all get a chance at.
    largest_kl = max((row.kl for row in rows if keeps(row)), default=0.0)
    for walk in walks:
        walk.cheapest_near(keeps, largest_kl)
    return walks


def _settled_kl(walk: Walk, keeps: Keeps) -> float | None:
    """The divergence of the cheapest setting, after a look around it, which may find a cheaper one; none where there is none."""
    row = walk.best(keeps)
    while row is not None and row.kl > 0:
        _measure_around(walk, row.kl)
        if (again := walk.best(keeps)) is row:
            return row.kl
        row = again
    return None


def _measure_around(walk: Walk, kl: float) -> None:
    """Measures the settings on both sides of a divergence."""
    walk.cheapest(lambda row: row.kl <= kl, kl)


def _border_kl(rows: Sequence[RateRow], max_loss_pp: float) -> float | None:
    """About the divergence at which the loss passes the limit, by what was measured so far."""
    logs = {
        keeps: [math.log(row.kl) for row in rows if row.kl > 0 and row.keeps(max_loss_pp) is keeps]
        for keeps in (True, False)
    }
    ends = [max(logs[True], default=None), min(logs[False], default=None)]
    known = [end for end in ends if end is not None]
    return math.exp(sum(known) / len(known)) if known else None


def _compare(walk: Walk, keeps: Keeps, kl: float | None) -> Comparison:
    if kl is not None:
        _measure_around(walk, kl)
    bits = None if kl is None else bits_at_kl(walk.rows, kl)
    return Comparison(codec=walk.family.name, best=walk.best(keeps), bits_at_equal_kl=bits)


def _compare_input(codec: str, inputs: Sequence[RateRow], keeps: Keeps, kl: float | None) -> Comparison:
    """What sends the input; a raw one diverges nowhere, so its bits are the same at any divergence."""
    rows = [row for row in inputs if row.codec == codec]
    best = min(filter(keeps, rows), key=lambda row: row.bits_per_element, default=None)
    bits = None
    if kl is not None and best is not None:
        bits = bits_at_kl(rows, kl) if best.kl > 0 else best.bits_per_element
    return Comparison(codec=codec, best=best, bits_at_equal_kl=bits)


def _with_intervals(
    comparisons: Sequence[Comparison], scale: Scale, rows: Sequence[RateRow], reference: str, max_loss_pp: float
) -> tuple[Comparison, ...]:
    """Adds the intervals, for the codecs that have a setting within the loss."""
    drawn: dict[str, Floats] = {}
    for comparison in comparisons:
        own = [scale.draws_of(row) for row in rows if row.codec == comparison.codec]
        if comparison.best and (known := [draws for draws in own if draws is not None]):
            drawn[comparison.codec] = cheapest_bits(known, max_loss_pp)
    ours = drawn.get(reference)
    return tuple(
        dataclasses.replace(
            comparison,
            bits_interval=percentiles(bits),
            share_interval=None if ours is None else percentiles(ours / bits),
        )
        if (bits := drawn.get(comparison.codec)) is not None
        else comparison
        for comparison in comparisons
    )


def _as_summary(comparison: Comparison) -> dict[str, Any]:
    best = comparison.best
    return {
        "codec": comparison.codec,
        "bits_per_element": best.bits_per_element if best else None,
        "config": best.config if best else None,
        "bits_at_equal_kl": comparison.bits_at_equal_kl,
        "bits_interval": comparison.bits_interval,
        "share_interval": comparison.share_interval,
    }


def _from_summary(summary: Mapping[str, Any], rows: Sequence[RateRow]) -> Comparison:
    chosen = (summary["codec"], summary["config"])
    best = next((row for row in rows if (row.codec, row.config) == chosen), None)
    bits, share = (summary.get(name) for name in ("bits_interval", "share_interval"))
    return Comparison(
        codec=summary["codec"],
        best=best,
        bits_at_equal_kl=summary["bits_at_equal_kl"],
        bits_interval=bits and tuple(bits),
        share_interval=share and tuple(share),
    )


def _as_pairs(curve: RateDistortion) -> list[list[float]]:
    return [list(pair) for pair in zip(curve.distortion.tolist(), curve.bits.tolist(), strict=True)]


def _from_pairs(pairs: Sequence[Sequence[float]]) -> RateDistortion:
    distortion, bits = np.array(pairs, np.float64).reshape(-1, 2).T
    return RateDistortion(distortion, bits)
