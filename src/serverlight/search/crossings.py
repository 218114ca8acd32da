"""A model with its calibration samples, at one cut after the other: what crosses of each sample, and what follows from it."""

# Shapes: T = answers of one sample (1 of a classifier, tokens of a language model), V = classes or vocabulary, D = hidden size.

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from serverlight.calibration import log_probabilities
from serverlight.codec import Codec, decode, decode_batch
from serverlight.errors import ConfigError
from serverlight.generation import CHUNK_TOKENS, LoadedDecoder, layer_of
from serverlight.models import LoadedModel
from serverlight.partition import Partition, partition
from serverlight.partition.inputs import as_call

__all__ = ["Crossing", "LanguageSubject", "Message", "SingleShotSubject", "Subject"]

Message = tuple[Tensor, ...]
"""What crosses of one sample: features, and side inputs that are never compressed."""

BATCH = 50
"""Samples that go through head and tail at once."""

BATCH_LOGITS = 1 << 23
"""Logits of a language model made at once, 64 MiB in float64."""

KEPT_BYTES = 1 << 30
"""Features, and likewise uncut outputs, beyond so many bytes are computed anew when they are needed again."""


class Crossing(Protocol):
    """One cut, open: its features are computed once and kept while they fit."""

    def features(self, samples: Sequence[int]) -> list[Message]:
        """What the head makes of these samples."""

    def send(self, message: Message, codec: Codec) -> tuple[Message, int]:
        """What arrives of a message, and the bytes of its frames; of a language model a frame for each token."""

    def prompt_bytes(self, message: Message, codec: Codec) -> int | None:
        """Bytes of the message as a prompt; none where there are no prompts."""

    def compressed(self, message: Message) -> Sequence[Tensor]:
        """The features of a message."""

    def num_frames(self, message: Message) -> int:
        """Requests or decode steps that the message makes."""

    def outputs(self, messages: Sequence[Message]) -> Iterator[Tensor]:
        """Log-probabilities (T, V) of each, float64."""


class Subject(Protocol):
    """A model and its samples."""

    name: str
    revision: str
    num_samples: int

    def open(self, cut: str) -> Crossing:
        """One cut; raises :class:`CutNotFound`."""


class Kept:
    """Results by sample, up to a number of bytes."""

    def __init__(self, limit: int = KEPT_BYTES) -> None:
        self._room = limit
        self._kept: dict[int, Message] = {}

    def get(self, samples: Sequence[int], compute: Callable[[Sequence[int]], Iterable[Message]]) -> list[Message]:
        """Those of the samples, computed where they are not there."""
        missing = [i for i in samples if i not in self._kept]
        fresh = dict(zip(missing, compute(missing), strict=True)) if missing else {}
        for i, message in fresh.items():
            size = sum(x.numel() * x.element_size() for x in message)
            if size <= self._room:
                self._kept[i], self._room = message, self._room - size
        return [self._kept[i] if i in self._kept else fresh[i] for i in samples]


class SingleShotSubject:
    """A model that answers in one go; each sample is the inputs of one call with a batch of 1."""

    def __init__(self, model: LoadedModel, samples: Sequence[Any], parts: Partition | None = None) -> None:
        self.name, self.revision, self.num_samples = model.name, model.revision, len(samples)
        self._parts = parts if parts is not None else partition(model.module, model.example_inputs)
        self._samples = samples

    def open(self, cut: str) -> Crossing:
        """One cut; raises :class:`CutNotFound`."""
        return _SingleShotCrossing(self._parts, cut, self._samples)


class _SingleShotCrossing:
    def __init__(self, parts: Partition, cut: str, samples: Sequence[Any]) -> None:
        self._specs = parts.cut(cut).tensors
        self._axes = [spec.shape.index(None) if None in spec.shape else None for spec in self._specs]
        self._head, self._tail = parts.split(cut)
        names = parts.output_names
        self._logits_at = names.index("logits") if "logits" in names else None
        self._samples = samples
        self._kept = Kept()

    def features(self, samples: Sequence[int]) -> list[Message]:
        return self._kept.get(samples, self._run_head)

    @torch.inference_mode()
    def _run_head(self, samples: Sequence[int]) -> Iterator[Message]:
        for group in _alike([self._samples[i] for i in samples]):
            args, kwargs = as_call(pytree.tree_map(_join, *group))
            tensors = self._head(*args, **kwargs)
            parts = [[x] * len(group) if axis is None else x.chunk(len(group), axis)
                     for x, axis in zip(tensors, self._axes, strict=True)]  # fmt: skip
            yield from (tuple(x.clone() for x in message) for message in zip(*parts, strict=True))

    def send(self, message: Message, codec: Codec) -> tuple[Message, int]:
        frames = {i: codec.encode(x) for i, x in enumerate(message) if self._specs[i].is_feature}
        received = tuple(decode(frames[i]) if i in frames else x for i, x in enumerate(message))
        return received, sum(map(len, frames.values()))

    def prompt_bytes(self, message: Message, codec: Codec) -> int | None:
        return None

    def compressed(self, message: Message) -> Sequence[Tensor]:
        return [x for x, spec in zip(message, self._specs, strict=True) if spec.is_feature]

    def num_frames(self, message: Message) -> int:
        return 1

    @torch.inference_mode()
    def outputs(self, messages: Sequence[Message]) -> Iterator[Tensor]:
        for group in _alike(messages):
            tensors = [parts[0] if axis is None else torch.cat(parts, axis)
                       for parts, axis in zip(zip(*group, strict=True), self._axes, strict=True)]  # fmt: skip
            leaves = self._tail.flat(*tensors)
            logits = log_probabilities(leaves if self._logits_at is None else leaves[self._logits_at])
            yield from logits.reshape(len(group), -1, logits.shape[-1])


def _alike(items: Sequence[Any]) -> Iterator[Sequence[Any]]:
    """Neighbours of the same shapes, at most :data:`BATCH` together."""
    group: list[Any] = []
    for item in items:
        if group and (len(group) == BATCH or _shapes(item) != _shapes(group[0])):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


def _shapes(item: Any) -> list[Any]:
    return [tuple(x.shape) if isinstance(x, Tensor) else x for x in pytree.tree_leaves(item)]


def _join(*leaves: Any) -> Any:
    return torch.cat(leaves) if isinstance(leaves[0], Tensor) and leaves[0].ndim else leaves[0]


class LanguageSubject:
    """A language model; each sample is a text, as token ids.

    Args:
        head: with the layers before the deepest cut that is to be opened.
        tail: with those behind the shallowest.
        texts: one or more tokens each.
    """

    def __init__(self, head: LoadedDecoder, tail: LoadedDecoder, texts: Sequence[Sequence[int]]) -> None:
        if head.revision != tail.revision:
            raise ConfigError("model", f"head and tail are of {head.name} and {tail.name}; load both from one model")
        for text in texts:
            if not len(text):
                raise ConfigError("samples", "a text without tokens; leave it out")
        self.name, self.revision, self.num_samples = head.name, head.revision, len(texts)
        self._head, self._tail, self._texts = head.part, tail.part, texts

    def open(self, cut: str) -> Crossing:
        """One cut; raises :class:`CutNotFound`, and :class:`ConfigError` where a part lacks its layers."""
        layer = layer_of(cut)
        self._head.new_cache(last=layer)
        self._tail.new_cache(first=layer)
        return _LanguageCrossing(self._head, self._tail, layer, self._texts)


class _LanguageCrossing:
    def __init__(self, head: Any, tail: Any, layer: int, texts: Sequence[Sequence[int]]) -> None:
        self._head, self._tail, self._layer, self._texts = head, tail, layer, texts
        self._kept = Kept()

    def features(self, samples: Sequence[int]) -> list[Message]:
        return self._kept.get(samples, self._run_head)

    @torch.inference_mode()
    def _run_head(self, samples: Sequence[int]) -> Iterator[Message]:
        for i in samples:
            ids = torch.tensor([list(self._texts[i])])
            yield (self._head(ids, self._head.new_cache(last=self._layer)),)

    def send(self, message: Message, codec: Codec) -> tuple[Message, int]:
        states = message[0]
        frames = [codec.encode(state) for state in torch.split(states, 1, 1)]
        return (decode_batch(frames).reshape(states.shape),), sum(map(len, frames))

    def prompt_bytes(self, message: Message, codec: Codec) -> int | None:
        return sum(len(codec.encode(piece)) for piece in torch.split(message[0], CHUNK_TOKENS, 1))

    def compressed(self, message: Message) -> Sequence[Tensor]:
        return message

    def num_frames(self, message: Message) -> int:
        return message[0].shape[1]

    @torch.inference_mode()
    def outputs(self, messages: Sequence[Message]) -> Iterator[Tensor]:
        for group in _alike(messages):
            rows = max(1, BATCH_LOGITS // (group[0][0].shape[1] * self._tail.vocab_size))
            for states in torch.split(torch.cat([message[0] for message in group]), rows):
                yield from log_probabilities(self._tail(states, self._tail.new_cache(first=self._layer)))
