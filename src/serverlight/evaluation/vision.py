"""What a cut and a codec setting cost an image classifier in bytes and in accuracy."""

# Shapes: N = images, C = classes, K = best classes kept.

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from serverlight.codec import CodecConfig
from serverlight.errors import ConfigError
from serverlight.evaluation.crossing import Crossed, cross_cuts
from serverlight.evaluation.datasets import ImageSet
from serverlight.evaluation.paired import PairedRow, PairedScore, Progress, Settings, ignore_progress
from serverlight.evaluation.statistics import paired_difference
from serverlight.models import LoadedModel
from serverlight.partition import Partition, partition

__all__ = ["evaluate_vision"]

BATCH = 50
"""Images that go through head and tail at once; large enough to be quick, small enough for any feature to fit."""

TOP = 5
"""Among how many of the best classes the right one is also looked for, where a model has more."""

Ranked = NDArray[np.int64]
"""Best classes (N, K), the best first."""


def evaluate_vision(
    model: LoadedModel,
    data: ImageSet,
    settings: Settings,
    *,
    parts: Partition | None = None,
    progress: Progress | None = None,
) -> tuple[PairedRow, ...]:
    """One row for each ``(cut name, codec settings)``, in the order given: top-1, and top-5 of more than five classes.

    The head runs once per cut and batch; every image is encoded on its own, as one message, as a device would send it.
    Pass ``parts`` to reuse a partition of the same model.

    Raises :class:`ConfigError` for a model without preprocessing or with other classes than the images, :class:`CutNotFound`
    for an unknown cut and :class:`InputMismatch` for images of another shape than the model's.
    """
    preprocess = model.preprocess
    if preprocess is None:
        raise ConfigError("model", f"{model.name!r} has no known image preprocessing; use one that comes with it")
    parts = parts if parts is not None else partition(model.module, model.example_inputs)
    logits_at = _logits_index(parts.output_names)

    def batches() -> Iterator[Tensor]:
        for start in range(0, len(data), BATCH):
            yield preprocess(data.images[start : start + BATCH])

    def keep(outputs: Sequence[Tensor], first: int) -> Ranked:
        return _best(outputs[logits_at], data, first)

    uncut, rows = cross_cuts(
        parts, batches, keep, settings, num_samples=len(data), progress=progress or ignore_progress
    )
    base = np.concatenate(uncut.answers)
    return tuple(_row(*setting, data.labels, base, row) for setting, row in zip(settings, rows, strict=True))


def _best(logits: Tensor, data: ImageSet, first: int) -> Ranked:
    num_classes = logits.shape[-1]
    if first == 0:  # the same for all batches
        _check_classes(num_classes, data)
    ranked: Ranked = logits.topk(TOP if num_classes > TOP else 1, -1).indices.numpy()
    ranked[:, 0] = logits.argmax(-1).numpy()  # of equal logits the first, as everywhere else
    return ranked


def _check_classes(num_classes: int, data: ImageSet) -> None:
    if data.num_classes not in (None, num_classes):
        raise ConfigError(
            "data",
            f"has {data.num_classes} folders of images, the model {num_classes} classes, so that their order tells nothing; "
            "add a labels.json, an object from folder to class index",
        )
    if int(data.labels.max()) >= num_classes or int(data.labels.min()) < 0:
        wrong = data.labels[(data.labels >= num_classes) | (data.labels < 0)][0]
        raise ConfigError(
            "labels", f"have the class {wrong}, but the model knows {num_classes} from 0 on; correct them"
        )


def _row(
    cut: str, config: CodecConfig, labels: NDArray[np.int64], uncut: Ranked, crossed: Crossed[Ranked]
) -> PairedRow:
    ours = np.concatenate(crossed.answers)
    scores = [_score("top-1", ours[:, :1], uncut[:, :1], labels)]
    if ours.shape[1] == TOP:
        scores.append(_score(f"top-{TOP}", ours, uncut, labels))
    return PairedRow.of(
        cut,
        config,
        tuple(scores),
        num_samples=len(labels),
        num_elements=crossed.num_elements,
        num_bytes=crossed.num_bytes,
        agreement=float((ours[:, 0] == uncut[:, 0]).mean()),
    )


def _score(metric: str, ours: Ranked, theirs: Ranked, labels: NDArray[np.int64]) -> PairedScore:
    right, right_uncut = ((best == labels[:, None]).any(1) for best in (ours, theirs))
    return PairedScore(
        metric=metric,
        uncut=float(right_uncut.mean()),
        cut=float(right.mean()),
        difference=paired_difference(right, right_uncut),
    )


def _logits_index(output_names: Sequence[str]) -> int:
    if "logits" in output_names:
        return list(output_names).index("logits")
    if len(output_names) == 1:
        return 0
    raise ConfigError("model", f"gives {', '.join(output_names)} and no 'logits'; evaluate a classifier")
