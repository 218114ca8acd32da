"""What a cut and a codec setting cost an object detector in bytes and in mean average precision."""

# Shapes: N = images, Q = queries of a detector, C = classes, D = detections of one image.

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serverlight.errors import ConfigError, ModelError
from serverlight.evaluation.average_precision import METRICS, Floats, resampled_precision
from serverlight.evaluation.coco import CocoSet, Detections, Matches, match
from serverlight.evaluation.crossing import cross_cuts
from serverlight.evaluation.paired import PairedRow, PairedScore, Progress, Settings, ignore_progress
from serverlight.evaluation.statistics import PairedDifference
from serverlight.models import LoadedModel
from serverlight.models.images import open_image
from serverlight.partition import Partition, partition

__all__ = ["category_of_class", "evaluate_detection"]

BATCH = 4
"""Images that go through head and tail at once: features of detectors are large."""

LOGITS, BOXES = "logits", "pred_boxes"
"""Outputs of every detector of transformers that is called with nothing but images."""


def evaluate_detection(
    model: LoadedModel,
    processor: Any,
    data: CocoSet,
    settings: Settings,
    *,
    parts: Partition | None = None,
    progress: Progress | None = None,
) -> tuple[PairedRow, ...]:
    """One row for each ``(cut name, codec settings)``, in the order given, with mAP, AP50 and AP75.

    Intervals are those of a bootstrap over images that draws the same images for both models.

    Args:
        model: A detector of transformers (DETR, YOLOS, RT-DETR and their kin).
        processor: Its image processor, see :func:`serverlight.huggingface.load_image_processor`. Every image is resized to the
            size that the model was traced with, whatever its shape.
        data: Images with objects.
        settings: Cuts and codec settings.
        parts: To reuse a partition of the same model.
        progress: Called after each batch and setting.

    Raises:
        ConfigError: the model is no detector, or its classes are not the data's categories.
        CutNotFound: an unknown cut.
    """
    parts = parts if parts is not None else partition(model.module, model.example_inputs)
    reader = _Reader(model=model, processor=processor, data=data, parts=parts)
    uncut, rows = cross_cuts(
        parts,
        reader.batches,
        reader.detections,
        settings,
        num_samples=len(data),
        progress=progress or ignore_progress,
    )
    base = match(data, _flat(uncut.answers))
    resampled = resampled_precision(base.categories, len(data))
    found = []
    for (cut, config), crossed in zip(settings, rows, strict=True):
        scores = _scores(match(data, _flat(crossed.answers)), base, resampled, len(data))
        row = PairedRow.of(
            cut,
            config,
            scores,
            num_samples=len(data),
            num_elements=crossed.num_elements,
            num_bytes=crossed.num_bytes,
        )
        found.append(row)
    return tuple(found)


def category_of_class(names: Mapping[int, str], categories: Mapping[int, str]) -> dict[int, int]:
    """Which category each class of a model stands for; classes that stand for none are left out.

    Names tell where every category has its class; else places, where there are as many classes as categories; else a class is
    its category's id, as in the detectors of COCO that have 91 classes. Raises :class:`ConfigError` where none of it can be.

    >>> category_of_class({0: "N/A", 1: "cat", 2: "N/A"}, {17: "cat"})
    {1: 17}
    >>> category_of_class({0: "sofa", 1: "tvmonitor"}, {63: "couch", 72: "tv"})
    {0: 63, 1: 72}
    """
    by_name = {name: index for index, name in names.items()}
    if all(name in by_name for name in categories.values()):
        return {by_name[name]: number for number, name in categories.items()}
    if len(names) == len(categories):
        return dict(zip(sorted(names), categories, strict=True))
    if all(number in names for number in categories):
        return {number: number for number in categories}
    strange = next(name for name in categories.values() if name not in by_name)
    raise ConfigError(
        "coco", f"has the category {strange!r}, which is none of the model's {len(names)} classes; rename it"
    )


class _Reader:
    """Images to inputs, outputs to detections; keeps the sizes of the images in between."""

    def __init__(self, *, model: LoadedModel, processor: Any, data: CocoSet, parts: Partition) -> None:
        names = list(parts.output_names)
        if LOGITS not in names or BOXES not in names:
            raise ConfigError(
                "model",
                f"gives {', '.join(names)}, not {LOGITS} and {BOXES}; give a detector such as DETR, YOLOS or RT-DETR",
            )
        if not hasattr(processor, "post_process_object_detection"):
            kind = type(processor).__name__
            raise ModelError(
                f"the {kind} of {model.name!r} cannot read boxes; save the detector's own beside the model"
            )
        self._places = names.index(LOGITS), names.index(BOXES)
        self._size = parts.inputs[0].shape[-2:]
        config: Any = model.module.config
        self._categories = category_of_class(dict(config.id2label), data.categories)
        self._processor, self._data = processor, data
        self._sizes: dict[int, tuple[int, int]] = {}

    def batches(self) -> Iterator[Tensor]:
        """Pixels as the model takes them, (n, 3, H, W)."""
        height, width = self._size
        for start in range(0, len(self._data), BATCH):
            files = self._data.files[start : start + BATCH]
            images = [open_image(file.read_bytes(), 3) for file in files]
            self._sizes.update({start + i: image.shape[:2] for i, image in enumerate(images)})
            made = self._processor(
                images=images,
                size={"height": height, "width": width},
                do_pad=False,
                input_data_format="channels_last",
                return_tensors="pt",
            )
            yield made["pixel_values"]

    def detections(self, outputs: Sequence[Tensor], first: int) -> list[Detections]:
        """What is found in each image of a batch, in its own pixels."""
        logits, boxes = (outputs[place] for place in self._places)
        sizes = [self._sizes[first + i] for i in range(len(logits))]
        found = self._processor.post_process_object_detection(
            SimpleNamespace(logits=logits, pred_boxes=boxes), threshold=0.0, target_sizes=sizes
        )
        return [self._read(one) for one in found]

    def _read(self, found: Mapping[str, Tensor]) -> Detections:
        numbers = np.array([self._categories.get(label, -1) for label in found["labels"].tolist()], np.int64)
        known = numbers >= 0
        left, top, right, bottom = found["boxes"].to(torch.float64).numpy()[known].reshape(-1, 4).T
        return Detections(
            category_ids=numbers[known],
            scores=found["scores"].to(torch.float64).numpy()[known],
            boxes=np.stack([left, top, right - left, bottom - top], 1),
        )


def _flat(batches: Sequence[list[Detections]]) -> list[Detections]:
    return [found for batch in batches for found in batch]


def _scores(cut: Matches, uncut: Matches, resampled_uncut: Floats, num_images: int) -> tuple[PairedScore, ...]:
    differences = resampled_precision(cut.categories, num_images) - resampled_uncut
    lows, highs = np.quantile(differences, (0.025, 0.975), axis=0)
    return tuple(
        PairedScore(
            metric=metric,
            uncut=float(uncut.figures[i]),
            cut=float(cut.figures[i]),
            difference=PairedDifference(
                value=float(cut.figures[i] - uncut.figures[i]), low=float(lows[i]), high=float(highs[i])
            ),
        )
        for i, metric in enumerate(METRICS)
    )
