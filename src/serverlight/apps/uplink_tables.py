"""The table of uplink reductions, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from serverlight.apps.bench_tables import NONE, Section

if TYPE_CHECKING:
    from serverlight.evaluation.uplink import UplinkCell, UplinkRow

__all__ = ["loss_text", "reduction_text", "uplink_sections", "verdict_text"]

PLACES = ("model", "cut")


def uplink_sections(rows: Sequence[UplinkRow], max_loss_pp: float, missing: Sequence[str] = ()) -> list[Section]:
    """Who needs least on each model and cut, then every codec's reduction, then every codec's loss.

    Args:
        rows: of the tasks that were measured.
        max_loss_pp: the loss allowed.
        missing: tasks of the table that were not.
    """
    if not rows:
        return []
    left_out = f" Not measured: {', '.join(missing)}." if missing else ""
    return [_verdicts(rows, max_loss_pp, left_out), _reductions(rows, max_loss_pp), _losses(rows)]


def _verdicts(rows: Sequence[UplinkRow], max_loss_pp: float, left_out: str) -> Section:
    reference = rows[0].reference
    return Section(
        title=f"Uplink against fp16 at no more than {max_loss_pp:g} pp loss: is {reference} best?",
        columns=(*PLACES, reference, "loss, pp", "best codec", "its reduction", "verdict", "why"),
        rows=tuple(
            (
                *_place(row), reduction_text(row.cell(reference)), loss_text(row.cell(reference)), row.best or NONE,
                reduction_text(row.cell(row.best or "")), verdict_text(row), row.reason,
            )
            for row in rows
        ),
        note="How many times less is sent, and the loss, with 95 % intervals by a bootstrap over the samples; each resample "
        "chooses its own cheapest setting. Tied: the interval of the ratio of bits contains 1, or the ratio is within 3 % "
        "of it. Inputs, which leave the server all of the work, are no codecs of features and do not count as best."
        + left_out,
    )  # fmt: skip


def _reductions(rows: Sequence[UplinkRow], max_loss_pp: float) -> Section:
    return _wide(
        rows,
        title=f"How many times less than fp16 each codec sends at no more than {max_loss_pp:g} pp loss:",
        show=reduction_text,
        note=f"Cheapest setting of each codec, all bytes counted, with 95 % intervals; {NONE} where every setting loses more.",
    )


def _losses(rows: Sequence[UplinkRow]) -> Section:
    return _wide(
        rows,
        title="What each codec loses there, in percentage points:",
        show=loss_text,
        note="With 95 % intervals by a bootstrap that pairs both outputs of each sample; negative is a gain.",
    )


def _wide(rows: Sequence[UplinkRow], *, title: str, show: Callable[[UplinkCell], str], note: str) -> Section:
    """A column for each codec, and the best at the end."""
    codecs = tuple(dict.fromkeys(cell.codec for row in rows for cell in row.cells))
    return Section(
        title=title,
        columns=(*PLACES, *codecs, "best"),
        rows=tuple((*_place(row), *(show(row.cell(codec)) for codec in codecs), _best(row)) for row in rows),
        note=note,
        is_wide=True,
    )


def _place(row: UplinkRow) -> tuple[str, str]:
    return row.model, f"{row.position}: {row.cut}"


def verdict_text(row: UplinkRow) -> str:
    """In words, with all that are tied."""
    return f"tied with {', '.join(row.tied_with)}" if row.verdict == "tied" else row.verdict


def _best(row: UplinkRow) -> str:
    return f"{row.reference}, tied" if row.verdict == "tied" else row.best or NONE


def reduction_text(cell: UplinkCell) -> str:
    """How many times less it sends than halves, with its interval."""
    return _with_interval(cell.reduction, cell.reduction_interval, 1)


def loss_text(cell: UplinkCell) -> str:
    """Percentage points that it loses, with their interval."""
    return _with_interval(cell.loss_pp, cell.loss_interval_pp, 2)


def _with_interval(value: float | None, interval: tuple[float, float] | None, digits: int) -> str:
    """A figure, and in brackets what it lies between.

    >>> _with_interval(12.34, (11.0, 13.96), 1), _with_interval(None, None, 1)
    ('12.3 (11.0 to 14.0)', '-')
    """
    if value is None:
        return NONE
    ends = "" if interval is None else f" ({interval[0]:.{digits}f} to {interval[1]:.{digits}f})"
    return f"{value:.{digits}f}{ends}"
