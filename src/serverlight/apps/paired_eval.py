"""``serverlight eval`` for images, detectors and sentence encoders: each cut with its settings beside the uncut model."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from serverlight.apps.codec_grid import settings_text
from serverlight.apps.terminal import (
    STDOUT,
    check_writable,
    format_bytes,
    print_lines,
    print_table,
    progress_bar,
    write_json,
)
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.evaluation.paired import PairedRow, PairedScore, Progress, Settings
    from serverlight.models import LoadedModel

__all__ = ["PairedRun", "evaluate_paired"]


@dataclass(frozen=True, kw_only=True, slots=True)
class PairedRun:
    """A model, and what it is measured with."""

    model: str
    settings: Settings
    data: str | None = None
    """Labelled images, of an image classifier."""
    coco: str | None = None
    """Annotations, of a detector."""
    images: str | None = None
    """Folder of their images."""
    sts: str | None = None
    """Scored pairs, of a sentence encoder."""
    limit: int | None = None
    within_pp: float = 1.0
    """Loss that the table judges by, in percentage points."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Measured:
    rows: tuple[PairedRow, ...]
    sample: str
    """What crosses by itself: an image, a sentence."""
    head: dict[str, Any]
    """What the JSON says of the run."""


def evaluate_paired(run: PairedRun, *, threads: int, json: str | None) -> None:
    """Measures and prints; raises :class:`ConfigError` for what cannot be, before anything runs where that is known by then."""
    import torch

    from serverlight.environment import describe_environment

    check_writable("json", json)
    if run.within_pp < 0:
        raise ConfigError(
            "within", f"must not be negative, got {run.within_pp:g}; give percentage points that may be lost"
        )
    torch.set_num_threads(threads)
    with progress_bar("measuring", 1) as (bar, task):
        measured = _measure(run, lambda done, total: bar.update(task, completed=done, total=total))
    if json:
        rows = [row.to_dict() for row in measured.rows]
        write_json(json, {**describe_environment(), **measured.head, "rows": rows})
    if json != STDOUT:
        _print_rows(measured, run.within_pp)


def _measure(run: PairedRun, progress: Progress) -> _Measured:
    if run.data is not None and (run.coco or run.sts) is not None:
        raise ConfigError("data", "is for classifiers; leave it away, --coco and --sts say what to measure with")
    if run.coco is not None:
        return _measure_detector(run, progress)
    if run.images is not None:
        raise ConfigError(
            "images", "is the folder of --coco's images; give --coco FILE as well, or --data for a classifier"
        )
    return _measure_images(run, progress) if run.sts is None else _measure_encoder(run, progress)


def _measure_images(run: PairedRun, progress: Progress) -> _Measured:
    from serverlight.apps.vision import load_model_images
    from serverlight.evaluation import evaluate_vision
    from serverlight.models import load_model

    loaded = load_model(run.model)
    images = load_model_images(loaded, run.data, run.limit)
    rows = evaluate_vision(loaded, images, run.settings, progress=progress)
    return _Measured(rows=rows, sample="image", head=_head(loaded, run.data or run.model, images=len(images)))


def _measure_detector(run: PairedRun, progress: Progress) -> _Measured:
    if run.coco is None or run.images is None:
        raise ConfigError("images", "are needed with --coco; give the folder of the images with --images DIR")
    from serverlight.evaluation.coco import load_coco
    from serverlight.evaluation.detection import evaluate_detection
    from serverlight.huggingface import load_image_processor
    from serverlight.models import load_model

    data = load_coco(run.coco, run.images, limit=run.limit)
    loaded, processor = load_model(run.model), load_image_processor(run.model)
    rows = evaluate_detection(loaded, processor, data, run.settings, progress=progress)
    return _Measured(rows=rows, sample="image", head=_head(loaded, run.coco, images=len(data)))


def _measure_encoder(run: PairedRun, progress: Progress) -> _Measured:
    from serverlight.evaluation.similarity import evaluate_similarity
    from serverlight.evaluation.tasks.sentences import load_sts_pairs
    from serverlight.huggingface import TOKENIZER_FILES, find_folder
    from serverlight.models import load_model

    assert run.sts is not None
    pairs = load_sts_pairs(pathlib.Path(run.sts).expanduser(), count=run.limit)
    loaded = load_model(run.model)
    folder = find_folder(run.model, [*TOKENIZER_FILES, "1_Pooling/config.json"])
    rows = evaluate_similarity(loaded, folder, pairs, run.settings, progress=progress)
    return _Measured(rows=rows, sample="sentence", head=_head(loaded, run.sts, pairs=len(pairs.scores)))


def _head(model: LoadedModel, data: str, **count: int) -> dict[str, Any]:
    """Names without the folders that they lie in, which say nothing elsewhere."""
    from serverlight.plan import model_key

    return {"model": model_key(model.name), "revision": model.revision, "data": model_key(data), **count}


# -- the table -------------------------------------------------------------------------------------


def _print_rows(measured: _Measured, within_pp: float) -> None:
    first = measured.rows[0]
    columns = ["cut", "codec", "bits/element", f"bytes/{measured.sample}", "x fp16", "metric", "uncut", "cut",
               "pp", "95 %", f"within {within_pp:g} pp"]  # fmt: skip
    has_answers = first.agreement is not None
    cells = [
        [*(_cost_cells(row) if i == 0 else [""] * 5), *_score_cells(score, within_pp), *_agreement(row, i)]
        for row in measured.rows
        for i, score in enumerate(row.scores)
    ]
    print_table([*columns, "same"] if has_answers else columns, cells, left=2)
    same = " same is the share of answers that are the uncut model's, right or wrong." if has_answers else ""
    print_lines(
        f"{first.num_samples} {measured.sample}s; figures of quality are percentages. Bytes are those of the frames, headers "
        "included; x fp16 says how many times as many plain halves take. pp is the difference from the uncut model on the same "
        f"samples, with its 95 % interval: no more than {within_pp:g} pp is lost where all of it says so (yes), more where none "
        f"of it does (no), and more samples are needed to tell (open).{same}"
    )


def _cost_cells(row: PairedRow) -> list[str]:
    return [
        row.cut,
        f"{row.config.profile} {settings_text(row.config)}".rstrip(),
        f"{row.bits_per_element:.3f}",
        format_bytes(row.bytes_per_sample),
        f"{row.ratio_vs_fp16:.1f}",
    ]


def _score_cells(score: PairedScore, within_pp: float) -> list[str]:
    difference = score.difference
    return [
        score.metric,
        f"{100 * score.uncut:.2f}",
        f"{100 * score.cut:.2f}",
        f"{100 * difference.value:+.2f}",
        f"{100 * difference.low:+.2f} to {100 * difference.high:+.2f}",
        {True: "yes", False: "no", None: "open"}[difference.within(within_pp / 100)],
    ]


def _agreement(row: PairedRow, place: int) -> Sequence[str]:
    """A cell where the model chooses an answer, and there only in the first line of a row."""
    if row.agreement is None:
        return []
    return [f"{100 * row.agreement:.2f}" if place == 0 else ""]
