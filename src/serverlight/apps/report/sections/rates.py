"""The codec beside its rivals: rate against quality, and bytes at equal quality."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from serverlight.apps.bench_plots import plot_codecs
from serverlight.apps.report import figures
from serverlight.apps.report.blocks import Block, Section, Table, Text
from serverlight.apps.report.found import Found, number
from serverlight.apps.uplink_tables import loss_text, reduction_text, verdict_text
from serverlight.evaluation.codec_bench import TaskReport
from serverlight.evaluation.rates import INPUTS, MAX_LOSS_PP, RAW_INPUT
from serverlight.evaluation.uplink import UplinkCell, UplinkRow, uplink_row

__all__ = ["best_reduction", "quality_by_cut", "reductions", "worst_loss"]

OURS, PAPERS = "serverlight", "slicer"
"""Our codec, and the paper's, drawn beside it."""

MATRIX = "How many times fewer bytes than fp16, every codec"
DETAILS = "Loss of each codec at that setting, percentage points with 95 % interval"


def quality_by_cut(found: Found) -> Section:
    """The curves."""
    reports = _reports(found)
    blocks: list[Block] = [
        Text(
            text="What is lost of the task's own figure, against the bits that an element of the feature takes, every byte of the "
            f"message counted. Full lines: profile `{OURS}`; dashed: profile `{PAPERS}`, the paper's three stages as they are "
            "written. Dots are settings measured on all samples; a loss of one sample is what a step of a line is."
        ),
        *found.gaps("rates"),
    ]
    if reports:
        blocks.append(
            found.draw(
                "quality.svg",
                lambda path: figures.plot_quality(_panels(reports), MAX_LOSS_PP, path),
                "Rate against quality, a panel for each model and a colour for each cut; dotted: one percentage point lost",
            )
        )
        blocks.append(
            found.draw(
                "rate_distortion.png",
                lambda path: plot_codecs(reports, [], path),
                "Error of the feature against rate, with the bounds for any scalar codec: ideal entropy-coded quantisation "
                "(ECSQ) and Shannon's R(D), both for independent elements",
            )
        )
    return Section(name="quality", title="Rate against quality, by cut", blocks=blocks)


def reductions(found: Found) -> Section:
    """The table of bytes at equal quality."""
    rows = _rows(found)
    blocks: list[Block] = [
        Text(
            text=f"Each codec at its cheapest setting whose loss on the samples is at most {MAX_LOSS_PP:g} percentage point, as "
            "the number of times by which its messages are shorter than plain halves (fp16, 16 bits an element). Intervals are "
            "bootstraps over the samples at 95 %, paired where two things are compared; those of reductions choose the setting "
            "anew in each resample. Tied: the interval of the ratio of bits contains 1, or the ratio is within 3 % of it."
        ),
        *found.gaps("rates"),
    ]
    if rows:
        drawn = [
            (_label(row), ours.reduction, rival.reduction, rival.codec)
            for row in rows
            if (ours := row.cell(OURS)).reduction and (rival := _rival(row)) and rival.reduction
        ]
        if drawn:
            blocks.append(
                found.draw(
                    "uplink.svg",
                    lambda path: figures.plot_uplink(drawn, path),
                    f"Uplink reduction against fp16 at no more than {MAX_LOSS_PP:g} pp loss, beside the best rival of each row",
                )
            )
        blocks += [_main(rows), *_matrix(rows), *_details(rows)]
    return Section(name="uplink", title="Uplink reduction at equal quality", blocks=blocks)


def _reports(found: Found) -> list[TaskReport]:
    """Models as they come, each from its first cut to its last."""
    documents = found.done("rates").values()
    reports = [TaskReport.from_dict(document["tasks"][0], document["rows"]) for document in documents]
    models = list(dict.fromkeys(report.model for report in reports))
    return sorted(reports, key=lambda report: (models.index(report.model), _natural(report.cut)))


def _rows(found: Found) -> list[UplinkRow]:
    return [*map(uplink_row, _reports(found))]


def _natural(cut: str) -> list[tuple[int, str]]:
    """Numbers in names by their size.

    >>> sorted(["blocks.12", "blocks.4", "layer1"], key=_natural)
    ['blocks.4', 'blocks.12', 'layer1']
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", cut)]


def _panels(reports: Sequence[TaskReport]) -> dict[str, dict[str, dict[str, figures.Line]]]:
    panels = dict[str, dict[str, dict[str, figures.Line]]]()
    for report in reports:
        panels.setdefault(report.model, {})[_place(report)] = {
            codec: sorted((r.bits_per_element, r.quality_delta_pp) for r in report.rows if r.codec == codec)
            for codec in (OURS, PAPERS)
        }
    return panels


def _place(at: TaskReport | UplinkRow) -> str:
    """Cut and position."""
    return f"{at.cut} ({at.position})" if at.position else at.cut


def _label(row: UplinkRow) -> str:
    return f"{row.model}, {_place(row)}"


def _rival(row: UplinkRow) -> UplinkCell | None:
    """The one with the fewest bytes; inputs sent instead of features are no codecs."""
    rivals = [cell for cell in row.cells if cell.reduction and cell.codec not in (*INPUTS, row.reference)]
    return max(rivals, key=lambda cell: cell.reduction or 0.0, default=None)


def _winners(row: UplinkRow) -> set[str | None]:
    """Those to be marked: the best, and ours where nothing tells it from the best."""
    return {row.best, *((row.reference,) if row.verdict == "tied" else ())}


def _main(rows: Sequence[UplinkRow]) -> Table:
    cells, marked = [], set[tuple[int, int]]()
    for i, row in enumerate(rows):
        ours, rival, raw = row.cell(OURS), _rival(row), row.cell(RAW_INPUT).reduction
        cells.append([
            row.model, _place(row), f"{row.base_metric:.1f} %", f"{row.num_messages:,}", "-" if raw is None else f"{raw:.3g}x",
            reduction_text(ours), loss_text(ours), f"{reduction_text(rival)} {rival.codec}" if rival else "-",
            verdict_text(row), row.reason,
        ])  # fmt: skip
        marked.add((i, 5 if OURS in _winners(row) else 7))
    columns = (
        "model", "cut", "uncut", "samples", "raw input", "serverlight", "loss, pp", "best rival", "serverlight is", "why",
    )  # fmt: skip
    return Table(
        title="Early, middle and late cuts",
        columns=columns,
        rows=cells,
        words=(0, 1, 7, 8, 9),
        marked=frozenset(marked),
    )


def _matrix(rows: Sequence[UplinkRow]) -> Iterator[Block]:
    codecs = _codecs(rows)
    cells = [[codec, *(_number(row.cell(codec)) for row in rows)] for codec in codecs]
    marked = {(i, j + 1) for i, codec in enumerate(codecs) for j, row in enumerate(rows) if codec in _winners(row)}
    yield Table(title=MATRIX, columns=("codec", *(row.task for row in rows)), rows=cells, marked=frozenset(marked))
    yield Text(text="A dash: every setting of the codec loses more. Marked: the best of a column, and ours where it is tied.",
               is_note=True)  # fmt: skip


def _number(cell: UplinkCell) -> str:
    return "-" if cell.reduction is None else f"{cell.reduction:.1f}"


def _details(rows: Sequence[UplinkRow]) -> Iterator[Block]:
    cells = [[codec, *(loss_text(row.cell(codec)) for row in rows)] for codec in _codecs(rows)]
    yield Table(title=DETAILS, columns=("codec", *(row.task for row in rows)), rows=cells, folded=True)


def _codecs(rows: Sequence[UplinkRow]) -> list[str]:
    return list(dict.fromkeys(cell.codec for row in rows for cell in row.cells if cell.codec not in INPUTS))


def best_reduction(found: Found) -> str:
    """The range of our reductions, in words; nothing where there are none."""
    values = sorted(cell.reduction for row in _rows(found) if (cell := row.cell(OURS)).reduction)
    if not values:
        return ""
    return f"{number(values[0])}x to {number(values[-1])}x fewer bytes than fp16 over {len(values)} cuts"


def worst_loss(found: Found) -> str:
    """The largest loss at those settings, in words; nothing where there are none."""
    losses = [cell.loss_pp for row in _rows(found) if (cell := row.cell(OURS)).loss_pp is not None]
    return f"at most {max(losses):.1f} points at the settings above, on the samples" if losses else ""
