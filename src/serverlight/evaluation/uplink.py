"""How much less a codec sends than halves at the same task quality: models and cuts by codecs, and who sends least.

Two codecs are tied where the data cannot tell them apart: the 95 % interval of the ratio of their bits contains 1, each choosing
its cheapest setting anew in each resample of the samples (:mod:`serverlight.evaluation.resampled`); or the ratio is within
:data:`SEARCH_STEP` of 1, which is less than neighbouring settings of a grid are apart. Each rival is looked at alone, without a
correction for how many there are, so now and then one seems to win by chance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from serverlight.evaluation.codec_bench import Comparison, TaskReport
from serverlight.evaluation.rates import FP16_BITS, INPUTS

__all__ = ["SEARCH_STEP", "UplinkCell", "UplinkRow", "uplink_row", "uplink_rows"]

SEARCH_STEP = 0.03
"""Neighbouring settings of the finest grids differ by some six percent in bits; what is within half of that is no difference."""

Interval = tuple[float, float]

USES = {
    "slicer-rans": "it is the same kind of quantiser with other levels",
    "uniform-rans": "it is the same kind of quantiser with other levels",
    "uniform-csr-rans": "it is the same kind of quantiser with other levels, and few elements are left",
    "rotated-rans": "its rotation spreads the few large channels over all",
    "int-token-rans": "its steps follow the tokens, whose ranges differ",
    "int-channel-rans": "its steps follow the channels, whose ranges differ",
    "ts-tabq-rans": "its ranges follow the tokens or channels, and outliers do not widen them",
    "fourier-rans": "its waves reach over whole planes, where neighbours are alike",
    "low-rank-rans": "its factors use that channels go together",
}
"""What a rival has that profile serverlight does not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UplinkCell:
    """One codec on one task, at its cheapest setting within the loss allowed; nothing but its name where every one loses more."""

    codec: str
    config: dict[str, Any] | None = None
    """The setting."""

    reduction: float | None = None
    """16 bits an element over those of the whole messages."""

    reduction_interval: Interval | None = None
    """95 % interval, by a bootstrap over the samples that chooses the setting anew each time."""

    loss_pp: float | None = None
    """What the task's figure falls by, in percentage points; negative where it rises."""

    loss_interval_pp: Interval | None = None
    """95 % interval, by a bootstrap that pairs both outputs of each sample."""

    share: float | None = None
    """Bits of the reference over this codec's: below 1 the reference sends less."""

    share_interval: Interval | None = None
    """95 % interval, as that of the reduction, with the same resamples for both."""

    @property
    def is_tied(self) -> bool:
        """Whether the data cannot tell this codec's bits from those of the reference."""
        if self.share is None:
            return False
        low, high = self.share_interval or (self.share, self.share)
        return low <= 1 <= high or abs(self.share - 1) <= SEARCH_STEP


@dataclass(frozen=True, kw_only=True, slots=True)
class UplinkRow:
    """All codecs on one task, and which needs the fewest bits."""

    task: str
    model: str
    position: str
    """``early``, ``middle`` or ``late``."""

    cut: str
    num_messages: int
    base_metric: float
    """The uncut model's figure, as a percentage."""

    reference: str
    """The codec that is to be best."""

    cells: tuple[UplinkCell, ...]
    best: str | None
    """The codec of features with the fewest bits; none where no codec is within the loss."""

    verdict: Literal["best", "tied", "beaten"]
    """How the reference stands among the codecs of features."""

    tied_with: tuple[str, ...]
    """The codecs of features that the data cannot tell from the reference, the one with the fewest bits first."""

    reason: str
    """In words: the closest rival or the one that wins, and why; and whether sending the input takes less."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return dataclasses.asdict(self)

    def cell(self, codec: str) -> UplinkCell:
        """The cell of a codec; an empty one where it was not measured."""
        return next((cell for cell in self.cells if cell.codec == codec), UplinkCell(codec=codec))


def uplink_rows(reports: Sequence[TaskReport]) -> list[UplinkRow]:
    """A row for each task whose cut stands for a place in its model."""
    return [uplink_row(report) for report in reports if report.position]


def uplink_row(report: TaskReport) -> UplinkRow:
    """The row of one task."""
    ours = report.best_of(report.reference)
    cells = tuple(_cell(comparison, ours.bits_per_element if ours else None) for comparison in report.comparisons)
    coded = [cell for cell in cells if cell.codec not in INPUTS and cell.reduction is not None]
    ranked = sorted(coded, key=lambda cell: -(cell.reduction or 0))
    rivals = [cell for cell in ranked if cell.codec != report.reference]
    winners = [cell for cell in rivals if ours is None or ((cell.share or 0) > 1 and not cell.is_tied)]
    tied = [cell for cell in rivals if cell.is_tied]
    verdict: Literal["best", "tied", "beaten"] = "beaten" if winners or ours is None else "tied" if tied else "best"
    closest = next(iter(winners or tied or rivals), None)
    return UplinkRow(
        task=report.task,
        model=report.model,
        position=report.position,
        cut=report.cut,
        num_messages=report.num_messages,
        base_metric=report.base_metric,
        reference=report.reference,
        cells=cells,
        best=ranked[0].codec if ranked else None,
        verdict=verdict,
        tied_with=tuple(cell.codec for cell in tied),
        reason="; ".join(filter(None, (_against(closest, verdict, report), _against_inputs(cells)))),
    )


def _cell(comparison: Comparison, bits_of_reference: float | None) -> UplinkCell:
    best = comparison.best
    if best is None:
        return UplinkCell(codec=comparison.codec)
    low, high = comparison.bits_interval or (None, None)
    loss_low, loss_high = best.quality_interval_pp
    return UplinkCell(
        codec=comparison.codec,
        config=best.config,
        reduction=best.ratio_vs_fp16,
        reduction_interval=(FP16_BITS / high, FP16_BITS / low) if low and high else None,
        loss_pp=0.0 - best.quality_delta_pp,  # no negative zero
        loss_interval_pp=(0.0 - loss_high, 0.0 - loss_low),
        share=bits_of_reference / best.bits_per_element if bits_of_reference else None,
        share_interval=comparison.share_interval,
    )


def _against(rival: UplinkCell | None, verdict: str, report: TaskReport) -> str:
    """The reference beside its closest rival, or beside the one that wins."""
    if rival is None:
        return ""
    if rival.share is None:
        return f"no setting of {report.reference} is within the loss, one of {rival.codec} is"
    low, high = rival.share_interval or (rival.share, rival.share)
    needs = f"{report.reference} needs {rival.share:.2f} ({low:.2f} to {high:.2f}) of the bits of {rival.codec}"
    if verdict == "best":
        return needs
    ratio = report.ratio_at_equal_kl(rival.codec)
    equal = "" if ratio is None else f", and {ratio:.2f} of them at equal divergence"
    if verdict == "tied":
        return needs + equal
    if ratio is not None and ratio < 1:
        return f"{needs}{equal}: {rival.codec} gets away with a larger divergence on these samples"
    why = USES.get(rival.codec)
    return needs + equal + (f": {why}" if why else "")


def _against_inputs(cells: Sequence[UplinkCell]) -> str:
    """Which inputs take fewer bytes than the reference's features."""
    found = [
        f"{c.codec} sends {c.share:.3g} times less" for c in cells if c.codec in INPUTS and c.share and c.share > 1
    ]
    return f"{' and '.join(found)}, to a server that runs the whole model" if found else ""
