"""Language models across a cut: long texts, and the tasks that everybody uses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median
from typing import Any

from serverlight.apps.bench_plots import plot_drift
from serverlight.apps.codec_grid import settings_text
from serverlight.apps.report.blocks import Block, Section, Table, Text
from serverlight.apps.report.found import Found, interval, number
from serverlight.codec import CodecConfig

__all__ = ["drift", "questions"]

READ = (
    "codec",
    "tokens a frame",
    "bits/element",
    "bytes/token",
    "KL",
    "95 %",
    "same first choice",
    "KL at the first",
    "at the end",
)
WRITTEN = (
    "codec",
    "how",
    "bytes/token",
    "texts without a difference",
    "first difference, median",
    "KL on its own text",
)


def drift(found: Found) -> Section:
    """How the damage of a cut grows with a text."""
    blocks: list[Block] = [
        Text(
            text="Does an error at the cut grow over a long text? Both models read the same text, and their predictions are "
            "compared token by token (KL divergence in nats, and whether the first choice is the same); then the cut model writes "
            "on, greedily and by drawing with the same luck, and the uncut one judges its text. Frames of one token are what "
            "writing sends; longer ones are prompts."
        ),
        *found.gaps("drift"),
    ]
    for model, document in found.done("drift").items():
        settings, rows = document["settings"], document["rows"]
        about = f"{model}, cut at {document['model']['cut']}"
        title = f"{about}: divergence over positions and rates, and texts that part"
        blocks.append(
            found.draw(f"drift_{model}.svg", lambda path, rows=rows: plot_drift(rows, path), title)  # type: ignore[misc]
        )
        read = f"{about}, {settings['windows']} texts of {settings['tokens']} tokens read by both"
        blocks.append(Table(title=read, columns=READ, rows=[_read(row) for row in rows], folded=True))
        written = f"{about}, {settings['texts_written']} texts written by the cut model"
        blocks.append(Table(title=written, columns=WRITTEN, rows=list(_written(rows)), words=(0, 1), folded=True))
    return Section(name="drift", title="Long generation", blocks=blocks)


def questions(found: Found) -> Section:
    """Accuracies with paired tests."""
    blocks: list[Block] = [
        Text(
            text="lm-evaluation-harness on the task files at hand: the uncut model by the harness's own type, then cut at a "
            "quarter and in the middle. The difference is paired by question; p by McNemar's exact test for right or wrong. The "
            "models here are far too small for these tasks, so that accuracies are near chance, and what counts is how many "
            "answers stay the same."
        ),
        *found.gaps("questions"),
    ]
    rows = [cells for part, document in found.done("questions").items() for cells in _answers(part, document)]
    if rows:
        columns = (
            "model and task", "metric", "cut", "settings", "bits/element", "bytes/token", "questions", "uncut", "cut model",
            "difference", "95 %", "p", "same answers",
        )  # fmt: skip
        blocks.append(Table(columns=columns, rows=rows, words=(0, 1, 2, 3)))
    return Section(name="tasks", title="Language tasks", blocks=blocks)


def _read(row: Mapping[str, Any]) -> list[str]:
    positions = row.get("positions")
    return [
        row["title"], f"{row['chunk_tokens']}", f"{row['bits_per_element']:.2f}", f"{row['bytes_per_token']:.1f}",
        number(row["kl"], 2), "{:.2g} to {:.2g}".format(*row["kl_interval"]) if positions else "",
        f"{100 * row['top1']:.1f} %", number(positions[0]["kl"], 2) if positions else "0",
        number(positions[-1]["kl"], 2) if positions else "0",
    ]  # fmt: skip


def _written(rows: list[Mapping[str, Any]]) -> Iterator[list[str]]:
    for row in rows:
        for how in ("greedy", "drawn"):
            if free := row.get(how):
                firsts = [float("inf") if place is None else place for place in free["first_difference"]]
                middle = median(firsts)
                yield [
                    row["title"], how, f"{free['bytes_per_token']:.1f}",
                    f"{sum(place == float('inf') for place in firsts)} of {len(firsts)}",
                    "none" if middle == float("inf") else f"{middle:.0f}", number(free["kl"], 2),
                ]  # fmt: skip


def _answers(part: str, document: Mapping[str, Any]) -> Iterator[list[str]]:
    for row in document["rows"]:
        for score in row["scores"]:
            difference, same = score["difference"], score.get("same_answers")
            yield [
                part, score["metric"], row["cut"], settings_text(CodecConfig(**row["config"])),
                f"{row['bits_per_element']:.2f}", f"{row['uplink_bytes_per_token']:.1f}", f"{score['num_samples']}",
                f"{score['uncut']:.3g}", f"{score['cut']:.3g}", f"{difference['value']:+.2g}",
                interval(difference["low"], difference["high"], 2), number(difference["p_value"], 2),
                "-" if same is None else f"{100 * same:.0f} %",
            ]  # fmt: skip
