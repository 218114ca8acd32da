"""What a cut and a codec setting cost an image classifier in bytes and in accuracy."""

# Shapes: N = images.

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serverlight.codec import Codec, CodecConfig, decode
from serverlight.errors import ConfigError
from serverlight.evaluation.datasets import ImageSet
from serverlight.evaluation.statistics import paired_difference
from serverlight.models import LoadedModel
from serverlight.models.loaded import Preprocess
from serverlight.partition import CutPoint, Partition, TensorSpec, partition

__all__ = ["Progress", "VisionRow", "evaluate_vision"]

Progress = Callable[[int, int], None]
"""Called after each batch with the work done and the work in all, both in images times settings."""

FP16_BYTES = 2
"""Bytes of one element of a plain half-precision feature, the base of every ratio."""

BATCH = 50
"""Images that go through head and tail at once; large enough to be quick, small enough for any feature to fit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionRow:
    """One cut with one codec setting, measured."""

    cut: str
    """Name of the cut point, as it was asked for."""

    config: CodecConfig
    """The codec's settings."""

    num_images: int
    """Images measured."""

    bits_per_element: float
    """Bits of the whole message, headers and checksums included, per element that crosses the cut."""

    bytes_per_image: float
    """Mean bytes of one image's message: one frame for each tensor that crosses."""

    ratio_vs_fp16: float
    """Bytes of the same elements as plain halves, without any header, over :attr:`bytes_per_image`."""

    accuracy: float
    """Share of images classified correctly."""

    uncut_accuracy: float
    """The same of the uncut model."""

    accuracy_delta_pp: float
    """Accuracy less that of the uncut model, in percentage points."""

    accuracy_delta_low_pp: float
    """Lower end of the 95 % interval of the difference, paired by image."""

    accuracy_delta_high_pp: float
    """Upper end of that interval."""

    agreement: float
    """Share of images on which the answer is that of the uncut model, right or wrong."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return {**fields, "config": self.config.to_dict()}


def evaluate_vision(
    model: LoadedModel,
    data: ImageSet,
    settings: Sequence[tuple[str, CodecConfig]],
    *,
    parts: Partition | None = None,
    progress: Progress | None = None,
) -> tuple[VisionRow, ...]:
    """One row for each ``(cut name, codec settings)``, in the order given.

    The head runs once per cut and batch; every image is encoded on its own, as one message, as a device would send it.
    Pass ``parts`` to reuse a partition of the same model.

    Raises :class:`ConfigError` for a model without preprocessing, :class:`CutNotFound` for an unknown cut and
    :class:`InputMismatch` for images of another shape than the model's.
    """
    if model.preprocess is None:
        raise ConfigError("model", f"{model.name!r} has no known image preprocessing; use one that comes with it")
    parts = parts if parts is not None else partition(model.module, model.example_inputs)
    run = _Run(
        preprocess=model.preprocess,
        data=data,
        parts=parts,
        progress=progress or _ignore,
        total=len(settings) * len(data),
    )
    uncut, _ = run.predict(parts.cuts[0], [None])
    by_cut: dict[str, list[int]] = {}
    for row, (name, _) in enumerate(settings):
        by_cut.setdefault(name, []).append(row)
    rows: dict[int, VisionRow] = {}
    for name, indices in by_cut.items():
        cut = parts.cut(name)
        predicted, num_bytes = run.predict(cut, [settings[i][1] for i in indices])
        for i, answers, size in zip(indices, predicted, num_bytes, strict=True):
            rows[i] = _row(*settings[i], cut.elements_per_sample, data.labels, answers, uncut[0], size)
    return tuple(rows[i] for i in range(len(settings)))


Answers = NDArray[np.int64]


@dataclass(kw_only=True)
class _Run:
    """Head, codec and tail over all images, with the progress so far."""

    preprocess: Preprocess
    data: ImageSet
    parts: Partition
    progress: Progress
    total: int
    done: int = 0

    @torch.inference_mode()
    def predict(self, cut: CutPoint, configs: Sequence[CodecConfig | None]) -> tuple[list[Answers], list[int]]:
        """Answers (N,) and total bytes for each setting; ``None`` passes the tensors on as they are."""
        head, tail = self.parts.split(cut)
        logits_at = _logits_index(self.parts.output_names)
        answers: list[list[Tensor]] = [[] for _ in configs]
        num_bytes = [0] * len(configs)
        for inputs in self._batches():
            crossing = head(inputs)
            for i, config in enumerate(configs):
                received, size = _cross(crossing, cut.tensors, config, len(inputs))
                answers[i].append(tail.flat(*received)[logits_at].argmax(-1))
                num_bytes[i] += size
                self._count(len(inputs) if config is not None else 0)
        return [torch.cat(chunks).numpy() for chunks in answers], num_bytes

    def _batches(self) -> Iterator[Tensor]:
        for start in range(0, len(self.data), BATCH):
            yield self.preprocess(self.data.images[start : start + BATCH])

    def _count(self, images: int) -> None:
        self.done += images
        self.progress(self.done, self.total)


def _cross(
    tensors: Sequence[Tensor], specs: Sequence[TensorSpec], config: CodecConfig | None, num_images: int
) -> tuple[list[Tensor], int]:
    """The tensors as the server sees them, and the bytes that took: one frame for each feature and image."""
    if config is None:
        return list(tensors), 0
    codec, received, num_bytes = Codec(config), [], 0
    for tensor, spec in zip(tensors, specs, strict=True):
        if not spec.is_feature:
            received.append(tensor)
            num_bytes += tensor.numel() * tensor.element_size()
            continue
        axis = spec.shape.index(None)
        frames = [codec.encode(part) for part in tensor.chunk(num_images, axis)]
        num_bytes += sum(map(len, frames))
        received.append(torch.cat([decode(frame) for frame in frames], axis))
    return received, num_bytes


def _row(
    cut: str, config: CodecConfig, elements: int, labels: Answers, answers: Answers, uncut: Answers, num_bytes: int
) -> VisionRow:
    ours, theirs = answers == labels, uncut == labels
    difference = paired_difference(ours, theirs)
    bytes_per_image = num_bytes / len(labels)
    return VisionRow(
        cut=cut,
        config=config,
        num_images=len(labels),
        bits_per_element=8 * bytes_per_image / elements,
        bytes_per_image=bytes_per_image,
        ratio_vs_fp16=FP16_BYTES * elements / bytes_per_image,
        accuracy=float(ours.mean()),
        uncut_accuracy=float(theirs.mean()),
        accuracy_delta_pp=100 * difference.value,
        accuracy_delta_low_pp=100 * difference.low,
        accuracy_delta_high_pp=100 * difference.high,
        agreement=float((answers == uncut).mean()),
    )


def _logits_index(output_names: Sequence[str]) -> int:
    if "logits" in output_names:
        return list(output_names).index("logits")
    if len(output_names) == 1:
        return 0
    raise ConfigError("model", f"gives {', '.join(output_names)} and no 'logits'; evaluate a classifier")


def _ignore(done: int, total: int) -> None:
    """Progress that nobody watches."""
