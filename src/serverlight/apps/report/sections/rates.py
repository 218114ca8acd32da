"""The codec beside its rivals: rate against quality, and bytes at equal quality."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serverlight.apps.bench_plots import plot_codecs
from serverlight.apps.report import figures
from serverlight.apps.report.blocks import Block, Section, Table, Text
from serverlight.apps.report.found import Found, interval, number
from serverlight.apps.report.uplink import OURS, Best, Verdict, Where, in_order, verdict
from serverlight.evaluation.codec_bench import TaskReport
from serverlight.evaluation.rates import FP16_BITS, MAX_LOSS_PP

__all__ = ["best_reduction", "quality_by_cut", "reductions", "worst_loss"]

PAPERS = "slicer"
"""The paper's codec, drawn beside ours."""

MATRIX = "How many times fewer bytes than fp16, every codec"
DETAILS = "Loss of each codec at that setting, percentage points with 95 % interval"


def quality_by_cut(found: Found) -> Section:
    """The curves."""
    documents = found.done("rates")
    blocks: list[Block] = [
        Text(
            text="What is lost of the task's own figure, against the bits that an element of the feature takes, every byte of the "
            f"message counted. Full lines: profile `{OURS}`; dashed: profile `{PAPERS}`, the paper's three stages as they are "
            "written. Dots are settings measured on all samples; a loss of one sample is what a step of a line is."
        ),
        *found.gaps("rates"),
    ]
    if documents:
        places = in_order([Where.read(document) for document in documents.values()])
        panels = _panels(places, documents)
        blocks.append(
            found.draw(
                "quality.svg",
                lambda path: figures.plot_quality(panels, MAX_LOSS_PP, path),
                "Rate against quality, a panel for each model and a colour for each cut; dotted: one percentage point lost",
            )
        )
        reports = [TaskReport.from_dict(documents[w.task]["tasks"][0], documents[w.task]["rows"]) for w in places]
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
    places = in_order([Where.read(document) for document in found.done("rates").values()])
    blocks: list[Block] = [
        Text(
            text=f"Each codec at its cheapest setting whose loss on the samples is at most {MAX_LOSS_PP:g} percentage point, as "
            "the number of times by which its messages are shorter than plain halves (fp16, 16 bits an element). Intervals are "
            "paired bootstraps over the samples at 95 %: an interval that reaches below the limit says that more samples might "
            "show a loss above it."
        ),
        *found.gaps("rates"),
    ]
    if places:
        verdicts = [verdict(where) for where in places]
        drawn = [
            (w.label, v.ours.reduction, v.rival.reduction, v.rival.codec)
            for w, v in zip(places, verdicts, strict=True)
            if v.ours and v.rival
        ]
        if drawn:
            blocks.append(
                found.draw(
                    "uplink.svg",
                    lambda path: figures.plot_uplink(drawn, path),
                    f"Uplink reduction against fp16 at no more than {MAX_LOSS_PP:g} pp loss, beside the best rival of each row",
                )
            )
        blocks += [_main(places, verdicts), *_matrix(places, verdicts), *_details(places)]
    return Section(name="uplink", title="Uplink reduction at equal quality", blocks=blocks)


def _panels(places: Sequence[Where], documents: Mapping[str, Any]) -> dict[str, dict[str, dict[str, figures.Line]]]:
    panels = dict[str, dict[str, dict[str, figures.Line]]]()
    for where in places:
        rows = documents[where.task]["rows"]
        panels.setdefault(where.model, {})[where.place] = {
            codec: sorted((r["bits_per_element"], r["quality_delta_pp"]) for r in rows if r["codec"] == codec)
            for codec in (OURS, PAPERS)
        }
    return panels


def _main(places: Sequence[Where], verdicts: Sequence[Verdict]) -> Table:
    rows, marked = [], set[tuple[int, int]]()
    for i, (where, found) in enumerate(zip(places, verdicts, strict=True)):
        rows.append([where.model, where.place, *_facts(where), *_ours_and_rival(found), found.words])
        marked.add((i, 5 if OURS in found.winners else 7))
    columns = (
        "model", "cut", "uncut", "samples", "raw input", "serverlight", "against uncut, pp", "best rival", "who wins",
    )  # fmt: skip
    return Table(
        title="Early, middle and late cuts", columns=columns, rows=rows, words=(0, 1, 7, 8), marked=frozenset(marked)
    )


def _facts(where: Where) -> list[str]:
    raw = None if where.raw_bits is None else FP16_BITS / where.raw_bits
    return [f"{where.base:.1f} %", f"{where.messages:,}", "-" if raw is None else f"{raw:.3g}x"]


def _ours_and_rival(found: Verdict) -> list[str]:
    ours = ["-", "-"] if found.ours is None else [f"{found.ours.reduction:.1f}x", _loss(found.ours)]
    return [*ours, "-" if found.rival is None else f"{found.rival.reduction:.1f}x, {found.rival.codec}"]


def _matrix(places: Sequence[Where], verdicts: Sequence[Verdict]) -> Iterator[Block]:
    codecs = dict.fromkeys(codec for where in places for codec in where.codecs)
    rows, marked = [], set[tuple[int, int]]()
    for i, codec in enumerate(codecs):
        found = [where.best.get(codec) for where in places]
        rows.append([codec, *("-" if best is None else f"{best.reduction:.1f}" for best in found)])
        marked |= {(i, j + 1) for j, v in enumerate(verdicts) if codec in v.winners}
    yield Table(title=MATRIX, columns=("codec", *(w.task for w in places)), rows=rows, marked=frozenset(marked))
    yield Text(text="A dash: every setting of the codec loses more. Marked: the best of a column, and all within a percent of it.",
               is_note=True)  # fmt: skip


def _details(places: Sequence[Where]) -> Iterator[Block]:
    codecs = dict.fromkeys(codec for where in places for codec in where.codecs)
    rows = [[codec, *(_loss(where.best.get(codec)) for where in places)] for codec in codecs]
    yield Table(title=DETAILS, columns=("codec", *(w.task for w in places)), rows=rows, folded=True)


def _loss(best: Best | None) -> str:
    return "-" if best is None else f"{best.delta_pp:+.1f} ({interval(*best.interval_pp)})"


def best_reduction(found: Found) -> str:
    """The range of our reductions, in words; nothing where there are none."""
    values = sorted(best.reduction for best in _ours(found))
    if not values:
        return ""
    return f"{number(values[0])}x to {number(values[-1])}x fewer bytes than fp16 over {len(values)} cuts"


def worst_loss(found: Found) -> str:
    """The largest loss at those settings, in words; nothing where there are none."""
    losses = [-best.delta_pp for best in _ours(found)]
    return f"at most {max(losses):.1f} points at the settings above, on the samples" if losses else ""


def _ours(found: Found) -> list[Best]:
    verdicts = [verdict(Where.read(document)) for document in found.done("rates").values()]
    return [v.ours for v in verdicts if v.ours]
