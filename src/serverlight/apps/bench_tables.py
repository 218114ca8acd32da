"""The tables of ``serverlight bench codec``, for a terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serverlight.apps.terminal import print_lines, print_table

if TYPE_CHECKING:
    from serverlight.evaluation.checks import Check
    from serverlight.evaluation.codec_bench import Comparison, TaskReport
    from serverlight.evaluation.speed import SpeedRow

__all__ = ["Section", "as_markdown", "check_sections", "print_sections", "rate_sections", "speed_sections"]

NONE = "-"
RIVAL_ENCODERS = {"x bitsandbytes": "bitsandbytes", "x torch topk": "torch"}
"""Columns that tell how many times as fast as the fastest rival of that name a codec encodes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A table with what is said before and after it."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""

    is_wide: bool = False
    """Whether it has too many columns for a terminal, and is for Markdown only."""


def print_sections(sections: Sequence[Section]) -> None:
    """Prints the tables one below the other, but for wide ones."""
    for section in sections:
        if section.is_wide:
            continue
        print_lines("", section.title)
        print_table(section.columns, section.rows)
        if section.note:
            print_lines(section.note)


def as_markdown(sections: Sequence[Section], heading: str) -> str:
    """A page of the tables below a heading and what is said there."""
    parts = [f"# {heading}"]
    for section in sections:
        lines = [section.columns, ("---", *("---:" for _ in section.columns[1:])), *section.rows]
        table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
        parts += [section.title, table, *([section.note] if section.note else [])]
    return "\n\n".join(parts) + "\n"


def rate_sections(reports: Sequence[TaskReport], max_loss_pp: float) -> list[Section]:
    """Bits per element of every codec on every task: at the loss allowed, and at the reference's divergence."""
    if not reports:
        return []
    tasks = tuple(report.task for report in reports)
    reference = reports[0].reference
    codecs = tuple(dict.fromkeys(c.codec for report in reports for c in report.comparisons))
    found_by = [{c.codec: c for c in report.comparisons} for report in reports]
    by_codec = [(codec, [found.get(codec) for found in found_by]) for codec in codecs]
    bases = ", ".join(f"{r.task} {r.base_metric:.1f} ({r.num_messages} messages)" for r in reports)
    found = [
        Section(
            title=f"Bits per element, all bytes counted, at a loss of at most {max_loss_pp:g} percentage points:",
            columns=("codec", *tasks),
            rows=tuple((codec, *map(_bits, row)) for codec, row in by_codec),
            note=f"Cheapest setting of each codec; {NONE} where every setting loses more, or the codec is not for the feature. "
            f"Uncut: {bases}.",
        )
    ]
    if any(report.equal_kl for report in reports):
        found.append(
            Section(
                title=f"Bits per element at the divergence of {reference}'s row above; in brackets what share of them "
                f"{reference} needs:",
                columns=("codec", *tasks),
                rows=tuple((codec, *map(_bits_at_kl, row, reports)) for codec, row in by_codec),
                note=f"{NONE} where a codec has no settings on both sides of that divergence.",
            )
        )
    return found


def speed_sections(rows: Sequence[SpeedRow]) -> list[Section]:
    """Time and rate of every codec for every shape."""
    return [
        _speed_section([row for row in rows if row.shape == shape]) for shape in dict.fromkeys(r.shape for r in rows)
    ]


def check_sections(checks: Sequence[Check]) -> list[Section]:
    """What was claimed, and whether it holds."""
    if not checks:
        return []
    answers = {None: "", True: "yes", False: "NO"}
    rows = tuple((c.name, f"{c.value:.3g} {c.unit}", c.wanted, answers[c.holds]) for c in checks)
    return [Section(title="What is claimed:", columns=("what", "measured", "wanted", "holds"), rows=rows)]


def _bits(comparison: Comparison | None) -> str:
    return f"{comparison.best.bits_per_element:.2f}" if comparison and comparison.best else NONE


def _bits_at_kl(comparison: Comparison | None, report: TaskReport) -> str:
    if comparison is None or comparison.bits_at_equal_kl is None:
        return NONE
    ratio = report.ratio_at_equal_kl(comparison.codec)
    return f"{comparison.bits_at_equal_kl:.2f}" + (f" ({ratio:.2f})" if ratio else "")


def _speed_section(rows: Sequence[SpeedRow]) -> Section:
    times = {
        column: [row.encode_us for row in rows if row.codec.startswith(name)] for column, name in RIVAL_ENCODERS.items()
    }
    rivals = {column: min(found) for column, found in times.items() if found}
    side = " x ".join(map(str, rows[0].shape))
    return Section(
        title=f"{side} {rows[0].dtype}, {rows[0].tensor_bytes:,} bytes; memcpy of a buffer of that size "
        f"{rows[0].memcpy_gb_s:.1f} GB/s:",
        columns=(
            "codec", "bits/element", "encode, us", "GB/s", "/ memcpy", *rivals, "decode, us", "GB/s", "/ memcpy",
        ),
        rows=tuple(
            (
                row.codec, f"{row.bits_per_element:.2f}",
                f"{row.encode_us:,.1f}", f"{row.encode_gb_s:.3f}", f"{row.encode_vs_memcpy:,.1f}",
                *(f"{time / row.encode_us:.2f}" for time in rivals.values()),
                f"{row.decode_us:,.1f}", f"{row.decode_gb_s:.3f}", f"{row.decode_vs_memcpy:,.1f}",
            )
            for row in rows
        ),
    )  # fmt: skip
