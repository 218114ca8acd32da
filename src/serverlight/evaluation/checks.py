"""What is claimed of the codec, beside what was measured."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from serverlight.evaluation.codec_bench import TaskReport
from serverlight.evaluation.speed import SpeedRow

__all__ = ["Check", "rate_checks", "speed_checks"]

FORMS = ("", "-basis", "-trellis", "-trellis-basis", "-steps", "-cosine", "-corrected")
"""Endings of the names of a codec's forms."""

MAX_RATIOS = {"slicer-rans": 0.9, "slicer-csr": 0.9, "slicer-bitmap": 0.8}
"""Bits of our codec over those of each form of plain SLICER at the reference's divergence, in each of its forms."""

LARGE_SHAPES = ((512, 4096), (1, 64, 56, 56))
MIN_SPEEDUPS = {"bitsandbytes": 3.0, "torch": 20.0}
"""How many times as fast as rivals of these names the encoder is to be, for the large shapes."""

MAX_OVER_MEMCPY = {"encode": 20.0, "decode": 12.0}
"""How many times the time of a copy within the cache each may take, for the large shapes: of so many bytes at the fastest rate of
any size, since a large tensor's own copy is not within it."""

BOUNDS = {"<=": lambda value, limit: value <= limit, ">=": lambda value, limit: value >= limit}


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """A figure, and what it is wanted to be."""

    name: str
    """What was measured."""

    value: float
    """In :attr:`unit`."""

    unit: str
    """``x`` for a ratio, ``pp``, ``us``, ``s``."""

    bound: Literal["<=", ">="] = "<="
    """Which side is good."""

    limit: float | None = None
    """What is wanted; none where the figure is only told."""

    @property
    def holds(self) -> bool | None:
        """Whether the value is as wanted; none where nothing is."""
        return None if self.limit is None else BOUNDS[self.bound](self.value, self.limit)

    def to_dict(self) -> dict[str, Any]:
        """All fields and the answer, ready for JSON."""
        return {**dataclasses.asdict(self), "wanted": self.wanted, "holds": self.holds}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Check:
        """The check that :meth:`to_dict` wrote."""
        return cls(**{field.name: fields[field.name] for field in dataclasses.fields(cls)})

    @property
    def wanted(self) -> str:
        """The bound in words; nothing where there is none.

        >>> Check(name="ratio", value=0.7, unit="x", limit=0.9).wanted
        '<= 0.9 x'
        """
        return "" if self.limit is None else f"{self.bound} {self.limit:g} {self.unit}"


def rate_checks(reports: Sequence[TaskReport], max_loss_pp: float) -> list[Check]:
    """The loss at the chosen setting, and the bits at equal divergence against each form of plain SLICER: the worst task each.

    The forms of a codec, as with a basis or along a trellis, are compared on the tasks that have them; and the best form of each
    task, which calibration finds, as plain SLICER has the best of its settings.
    """
    found = []
    losses = [(-best.quality_delta_pp, r.task) for r in reports if (best := r.best_of(r.reference))]
    if losses:
        loss, task = max(losses)
        name = f"{reports[0].reference}: loss at its cheapest setting within the limit, worst task ({task})"
        found.append(Check(name=name, value=loss, unit="pp", limit=max_loss_pp))
    for ours in dict.fromkeys(f"{r.reference}{form}" for r in reports for form in FORMS):
        for codec, limit in MAX_RATIOS.items():
            if ratios := [(ratio, r.task) for r in reports if (ratio := r.ratio_at_equal_kl(codec, ours))]:
                ratio, task = max(ratios)
                name = f"{ours}: bits over those of {codec} at equal KL, worst task ({task})"
                found.append(Check(name=name, value=ratio, unit="x", limit=limit))
    for codec, limit in MAX_RATIOS.items():
        if ratios := [(ratio, r.task) for r in reports if (ratio := _best_ratio(r, codec))]:
            ratio, task = max(ratios)
            name = f"{reports[0].reference} in the best of its forms: bits over those of {codec} at equal KL, worst task ({task})"
            found.append(Check(name=name, value=ratio, unit="x", limit=limit))
    return found


def _best_ratio(report: TaskReport, codec: str) -> float | None:
    ratios = (report.ratio_at_equal_kl(codec, f"{report.reference}{form}") for form in FORMS)
    return min((ratio for ratio in ratios if ratio), default=None)


def speed_checks(rows: Sequence[SpeedRow], codec: str) -> list[Check]:
    """For the large shapes: the encoder\'s speed over that of the fastest rival of each name, and how far it is from a copy."""
    return [check for shape in LARGE_SHAPES for check in _speed_checks(rows, codec, shape)]


def _speed_checks(rows: Sequence[SpeedRow], codec: str, shape: tuple[int, ...]) -> Iterator[Check]:
    times = {row.codec: row.encode_us for row in rows if row.shape == shape}
    for name, limit in MIN_SPEEDUPS.items():
        rival = min((time for other, time in times.items() if other.startswith(name)), default=math.nan)
        if codec in times and not math.isnan(rival):
            title = f"{codec}: encode {' x '.join(map(str, shape))}, speed over the fastest of {name}"
            yield Check(name=title, value=rival / times[codec], unit="x", bound=">=", limit=limit)
    if own := next((row for row in rows if row.shape == shape and row.codec == codec), None):
        copy_us = own.tensor_bytes / max(row.memcpy_gb_s for row in rows) / 1e3
        for what, taken_us in (("encode", own.encode_us), ("decode", own.decode_us)):
            title = f"{codec}: {what} {' x '.join(map(str, shape))}, time over that of a copy at the fastest rate seen"
            yield Check(name=title, value=taken_us / copy_us, unit="x", limit=MAX_OVER_MEMCPY[what])
