"""The tables of ``serverlight bench codec``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from serverlight.apps.terminal import print_lines, print_table

if TYPE_CHECKING:
    from serverlight.evaluation.codec_bench import Comparison, TaskReport
    from serverlight.evaluation.speed import SpeedRow

__all__ = ["print_rates", "print_speed"]

NONE = "-"


def print_rates(reports: Sequence[TaskReport], max_loss_pp: float, reference: str) -> None:
    """Bits per element of every codec on every task: at the loss allowed, and at the reference's divergence."""
    if not reports:
        return
    tasks = [report.task for report in reports]
    by_codec = list(zip(*(report.comparisons for report in reports), strict=True))
    print_lines(f"Bits per element, all bytes counted, at a loss of at most {max_loss_pp:g} percentage points:")
    print_table(["codec", *tasks], [[row[0].codec, *(_bits(comparison) for comparison in row)] for row in by_codec])
    bases = ", ".join(f"{r.task} {r.base_metric:.1f} ({r.num_messages} messages)" for r in reports)
    print_lines(f"Cheapest setting of each codec; {NONE} where every setting loses more. Uncut: {bases}.")
    if any(report.equal_kl for report in reports):
        print_lines(
            "", f"Bits per element at the divergence of {reference}'s row above (times as many as {reference}):"
        )
        print_table(
            ["codec", *tasks],
            [[row[0].codec, *(_bits_at_kl(*pair) for pair in zip(row, reports, strict=True))] for row in by_codec],
        )


def print_speed(rows: Sequence[SpeedRow]) -> None:
    """Time and rate of every codec for every shape."""
    for shape in dict.fromkeys(row.shape for row in rows):
        timed = [row for row in rows if row.shape == shape]
        size, copy = timed[0].tensor_bytes, timed[0].memcpy_gb_s
        print_lines(
            f"{' x '.join(map(str, shape))} {timed[0].dtype}, {size:,} bytes; memcpy of the same {copy:.1f} GB/s:"
        )
        print_table(
            ["codec", "bits/element", "encode, us", "GB/s", "x memcpy", "decode, us", "GB/s", "x memcpy"],
            [_speed_cells(row) for row in timed],
        )


def _bits(comparison: Comparison) -> str:
    return f"{comparison.best.bits_per_element:.2f}" if comparison.best else NONE


def _bits_at_kl(comparison: Comparison, report: TaskReport) -> str:
    if comparison.bits_at_equal_kl is None:
        return NONE
    ours = next((c.bits_at_equal_kl for c in report.comparisons if c.codec == report.reference), None)
    ratio = f" ({comparison.bits_at_equal_kl / ours:.2f})" if ours else ""
    return f"{comparison.bits_at_equal_kl:.2f}{ratio}"


def _speed_cells(row: SpeedRow) -> list[str]:
    cells = [row.codec, f"{row.bits_per_element:.2f}"]
    for seconds_us, gb_s, ratio in (
        (row.encode_us, row.encode_gb_s, row.encode_vs_memcpy),
        (row.decode_us, row.decode_gb_s, row.decode_vs_memcpy),
    ):
        cells += [f"{seconds_us:,.1f}", f"{gb_s:.3f}", f"{ratio:,.1f}"]
    return cells
