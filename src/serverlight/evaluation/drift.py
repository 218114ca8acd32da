"""How far a language model strays when its hidden states cross a cut as frames: token by token, over long texts.

Teacher-forced, both models read the same text. Running freely, the cut model writes a text of its own, and the uncut one
is asked at each token what it would have said there.
"""

# Shapes: N = texts, T = tokens of each, D = hidden size, V = vocabulary.

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from serverlight.codec import Codec, CodecConfig, decode
from serverlight.errors import ConfigError
from serverlight.evaluation.tasks.task import bootstrap_interval
from serverlight.generation import LoadedDecoder, layer_of
from serverlight.partition.decoder import DecoderHead, DecoderTail

__all__ = ["Bucket", "Crossing", "CutModel", "Drift", "FreeRun", "by_position", "free_running", "teacher_forced"]

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """How hidden states get across the cut."""

    config: CodecConfig | None
    """The codec's settings; ``None`` passes the states on as they are."""

    chunk_tokens: int = 1
    """Tokens of one frame; the last frame of a text may have fewer."""

    def send(self, states: Tensor) -> tuple[Tensor, int]:
        """What arrives of the states ``[1, T, D]``, and how many bytes that took."""
        if self.config is None:
            return states, 0
        codec = Codec(self.config)
        frames = [codec.encode(piece) for piece in torch.split(states, self.chunk_tokens, 1)]
        return torch.cat([decode(frame) for frame in frames], 1), sum(map(len, frames))


@dataclass(frozen=True, kw_only=True, slots=True)
class CutModel:
    """Both parts of a language model, in this process."""

    name: str
    revision: str
    cut: str
    head: DecoderHead
    tail: DecoderTail

    @classmethod
    def load(cls, spec: str, cut: str) -> Self:
        """Both parts in float32, so that nothing but the codec moves an output; errors are those of :class:`LoadedDecoder`."""
        head, tail = (load(spec, cut, dtype=torch.float32) for load in (LoadedDecoder.head, LoadedDecoder.tail))
        assert isinstance(head.part, DecoderHead)
        assert isinstance(tail.part, DecoderTail)
        return cls(name=spec, revision=head.revision, cut=cut, head=head.part, tail=tail.part)

    @torch.inference_mode()
    def states(self, ids: Tensor) -> Tensor:
        """Token ids (N, T) to the states at the cut (N, T, D)."""
        states: Tensor = self.head(ids, self.head.new_cache(last=layer_of(self.cut)))
        return states

    @torch.inference_mode()
    def logits(self, states: Tensor) -> Tensor:
        """States (N, T, D) to logits (N, T, V)."""
        logits: Tensor = self.tail(states, self.tail.new_cache(first=layer_of(self.cut)))
        return logits


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """What a crossing did to the predictions, and what it cost."""

    kl: Floats
    """(N, T): divergence from the uncut model's prediction after so many tokens, in nats."""

    agrees: Flags
    """(N, T): whether both models hold the same token for the likeliest."""

    bits_per_element: float
    """Bits of all frames, headers included, for each element that crossed."""

    bytes_per_token: float
    """Bytes of all frames for each token that crossed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FreeRun:
    """Texts that a cut model wrote."""

    tokens: NDArray[np.int64]
    """(N, T): what followed each prompt."""

    drift: Drift
    """Against the uncut model on these very texts; the bytes are those of prompt and text."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Bucket:
    """Positions ``first`` to ``last``, counted from 1, together; intervals are at 95 %, by a bootstrap over the texts."""

    first: int
    last: int
    kl: float
    kl_interval: tuple[float, float]
    agreement: float
    """Share of equal first choices."""

    agreement_interval: tuple[float, float]


def teacher_forced(
    model: CutModel, windows: Tensor, crossings: Sequence[Crossing], progress: Callable[[], None] = lambda: None
) -> list[Drift]:
    """Drift of each crossing on texts that are given, token ids (N, T); ``progress`` is called after every text."""
    _check_ids("windows", windows)
    shape = (len(crossings), *windows.shape)
    kl, agrees = np.empty(shape), np.empty(shape, np.bool_)
    sizes = [0] * len(crossings)
    for i, window in enumerate(windows):
        states = model.states(window[None])
        base = _log_softmax(model.logits(states)[0])
        for j, crossing in enumerate(crossings):
            received, size = crossing.send(states)
            kl[j, i], agrees[j, i] = _compare(model.logits(received)[0], base)
            sizes[j] += size
        progress()
    return [_drift(*parts, windows.numel(), model) for parts in zip(kl, agrees, sizes, strict=True)]


@torch.inference_mode()
def free_running(
    model: CutModel, prompts: Tensor, crossing: Crossing, *, num_tokens: int, temperature: float = 0.0, seed: int = 0
) -> FreeRun:
    """Lets the cut model go on from prompts (N, P), all texts side by side, and past any end token.

    Each token that is written crosses as a frame of its own, since the next one needs it. With a temperature the same seed
    draws with the same luck at every place, so that two crossings differ only where their predictions do.

    Raises :class:`ConfigError` for no prompts, and :class:`ContextExceeded` for more tokens than the model holds.
    """
    _check_ids("prompts", prompts)
    layer = layer_of(model.cut)
    front, back, uncut = (
        model.head.new_cache(last=layer),
        model.tail.new_cache(first=layer),
        model.tail.new_cache(first=layer),
    )
    luck = torch.Generator().manual_seed(seed)
    shape = (len(prompts), num_tokens)
    kl, agrees, tokens = np.empty(shape), np.empty(shape, np.bool_), np.empty(shape, np.int64)
    size, ids = 0, prompts
    for i in range(num_tokens):
        states = model.head(ids, front)
        received, sizes = zip(*map(crossing.send, states.split(1)), strict=True)
        logits = model.tail(torch.cat(received), back, num_logits=1)[:, -1]
        kl[:, i], agrees[:, i] = _compare(logits, _log_softmax(model.tail(states, uncut, num_logits=1)[:, -1]))
        chosen = _choose(logits, temperature, luck)
        tokens[:, i], size, ids = chosen.numpy(), size + sum(sizes), chosen[:, None]
    num_sent = len(prompts) * (prompts.shape[1] + num_tokens - 1)
    return FreeRun(tokens=tokens, drift=_drift(kl, agrees, size, num_sent, model))


def by_position(drift: Drift, edges: Sequence[int]) -> list[Bucket]:
    """Means over the positions from each edge up to the next, the last edge being one past the end.

    >>> ramp = Drift(kl=np.array([[1.0, 2, 3]]), agrees=np.ones((1, 3), bool), bits_per_element=2, bytes_per_token=64)
    >>> [(bucket.first, bucket.last, bucket.kl) for bucket in by_position(ramp, [1, 2, 4])]
    [(1, 1, 1.0), (2, 3, 2.5)]
    """
    return [_bucket(drift, first, after - 1) for first, after in itertools.pairwise(edges)]


def _bucket(drift: Drift, first: int, last: int) -> Bucket:
    kl, agrees = (values[:, first - 1 : last].mean(1) for values in (drift.kl, drift.agrees))
    return Bucket(
        first=first,
        last=last,
        kl=float(kl.mean()),
        kl_interval=bootstrap_interval(len(kl), lambda chosen: kl[chosen].mean(1)),
        agreement=float(agrees.mean()),
        agreement_interval=bootstrap_interval(len(kl), lambda chosen: agrees[chosen].mean(1)),
    )


def _log_softmax(logits: Tensor) -> Tensor:
    return logits.double().log_softmax(-1)


def _compare(logits: Tensor, log_p: Tensor) -> tuple[Floats, Flags]:
    """KL divergence from the base's log-probabilities, and whether the first choices are the same, over the last axis."""
    kl = F.kl_div(_log_softmax(logits), log_p, reduction="none", log_target=True).sum(-1).clamp(min=0)
    return kl.numpy(), (logits.argmax(-1) == log_p.argmax(-1)).numpy()  # rounding may leave a KL of -1e-17


def _choose(logits: Tensor, temperature: float, luck: torch.Generator) -> Tensor:
    """The likeliest token, or one drawn by the Gumbel trick: the same luck picks the same token from nearly the same logits."""
    if temperature == 0:
        return logits.argmax(-1)
    gumbel = -torch.empty_like(logits).exponential_(generator=luck).log()
    return (logits / temperature + gumbel).argmax(-1)


def _drift(kl: Floats, agrees: Flags, num_bytes: int, num_tokens: int, model: CutModel) -> Drift:
    per_token = num_bytes / num_tokens
    return Drift(
        kl=kl, agrees=agrees, bits_per_element=8 * per_token / model.head.hidden_size, bytes_per_token=per_token
    )


def _check_ids(name: str, ids: Tensor) -> None:
    if ids.ndim != 2 or not ids.numel():
        raise ConfigError(name, f"need token ids [texts, tokens], got shape {list(ids.shape)}")
