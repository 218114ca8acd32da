"""A single-shot model over all samples: head, codec and tail for many settings of a cut, the head once a batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

from serverlight.codec import Codec, CodecConfig, decode
from serverlight.evaluation.paired import Progress, Settings
from serverlight.partition import CutPoint, Partition, TensorSpec

__all__ = ["Crossed", "cross_cuts"]

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossed(Generic[Answer]):
    """What came of all samples at one setting."""

    answers: list[Answer]
    """What was kept of each batch."""

    num_bytes: int
    """Bytes that crossed; 0 of the uncut model."""

    num_elements: int
    """Elements that crossed."""


def cross_cuts(
    parts: Partition,
    batches: Callable[[], Iterable[Tensor]],
    keep: Callable[[Sequence[Tensor], int], Answer],
    settings: Settings,
    *,
    num_samples: int,
    progress: Progress,
) -> tuple[Crossed[Answer], list[Crossed[Answer]]]:
    """The uncut model's answers, then those of each setting in the order given.

    Every sample is encoded on its own, as one message, as a device would send it.

    Args:
        parts: The model's partition.
        batches: Begins anew with the inputs, each a tensor with the batch in front.
        keep: From the tail's output tensors of a batch, and the place of its first sample, to what is kept of them.
        settings: Cuts and codec settings.
        num_samples: Samples in all batches.
        progress: Called after each batch and setting.

    Raises:
        CutNotFound: an unknown cut, before anything runs.
    """
    by_cut: dict[str, list[int]] = {}
    for row, (name, _) in enumerate(settings):
        by_cut.setdefault(name, []).append(row)
    cuts = {name: parts.cut(name) for name in by_cut}
    run = _Run(parts=parts, batches=batches, keep=keep, progress=progress, total=num_samples * len(settings))
    [uncut] = run.cross(parts.cuts[0], [None])
    rows: dict[int, Crossed[Answer]] = {}
    for name, indices in by_cut.items():
        rows.update(zip(indices, run.cross(cuts[name], [settings[i][1] for i in indices]), strict=True))
    return uncut, [rows[i] for i in range(len(settings))]


@dataclass(kw_only=True)
class _Run(Generic[Answer]):
    """The model and its inputs, with the progress so far."""

    parts: Partition
    batches: Callable[[], Iterable[Tensor]]
    keep: Callable[[Sequence[Tensor], int], Answer]
    progress: Progress
    total: int
    done: int = 0

    @torch.inference_mode()
    def cross(self, cut: CutPoint, configs: Sequence[CodecConfig | None]) -> list[Crossed[Answer]]:
        """All samples through one cut, for each setting; ``None`` passes the tensors on as they are."""
        head, tail = self.parts.split(cut)
        answers: list[list[Answer]] = [[] for _ in configs]
        num_bytes, first = [0] * len(configs), 0
        for inputs in self.batches():
            crossing = head(inputs)
            for i, config in enumerate(configs):
                received, size = _cross(crossing, cut.tensors, config, len(inputs))
                answers[i].append(self.keep(tail.flat(*received), first))
                num_bytes[i] += size
                self._count(len(inputs) if config is not None else 0)
            first += len(inputs)
        num_elements = first * cut.elements_per_sample
        return [
            Crossed(answers=kept, num_bytes=size, num_elements=num_elements)
            for kept, size in zip(answers, num_bytes, strict=True)
        ]

    def _count(self, samples: int) -> None:
        self.done += samples
        self.progress(self.done, self.total)


def _cross(
    tensors: Sequence[Tensor], specs: Sequence[TensorSpec], config: CodecConfig | None, num_samples: int
) -> tuple[list[Tensor], int]:
    """The tensors as the server sees them, and the bytes that took: one frame for each feature and sample."""
    if config is None:
        return list(tensors), 0
    codec, received, num_bytes = Codec(config), [], 0
    for tensor, spec in zip(tensors, specs, strict=True):
        if not spec.is_feature:
            received.append(tensor)
            num_bytes += tensor.numel() * tensor.element_size()
            continue
        axis = spec.shape.index(None)
        frames = [codec.encode(part) for part in tensor.chunk(num_samples, axis)]
        num_bytes += sum(map(len, frames))
        received.append(torch.cat([decode(frame) for frame in frames], axis))
    return received, num_bytes
