"""One cut with one codec setting on the samples: figures of each sample, and the row of the table that they make."""

# Shapes: n = samples, T = answers of a sample (tokens of a language model; the shorter texts are padded with NaN).

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from serverlight.codec import Codec, CodecConfig
from serverlight.search.crossings import Crossing, Kept, Message

__all__ = ["Figures", "Judge", "measure"]

Floats = NDArray[np.float64]

GROUP = 50
"""Samples whose received features are held at once."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Figures:
    """What was measured of each sample, (n,) where not said otherwise."""

    num_bytes: Floats
    """Of all its frames."""

    prompt_bytes: Floats
    """The same as a prompt; NaN of single-shot models."""

    num_frames: Floats
    num_elements: Floats
    error: Floats
    """Squared error of the features."""

    signal: Floats
    """Squared features."""

    kl: Floats
    """(n, T): divergence of each answer, nats; NaN where the tail did not run."""

    lost: Floats
    """(n, T): 1 for an answer that was lost, -1 for one that was won, else 0."""

    @property
    def bits_per_element(self) -> float:
        """Over all samples."""
        return float(8 * self.num_bytes.sum() / max(self.num_elements.sum(), 1))

    @property
    def frame_bytes(self) -> float:
        """Mean of one request or decode step."""
        return float(self.num_bytes.sum() / self.num_frames.sum())

    @property
    def prompt_bits_per_element(self) -> float | None:
        """Over all samples."""
        bits = 8 * self.prompt_bytes.sum() / max(self.num_elements.sum(), 1)
        return None if np.isnan(bits) else float(bits)

    @property
    def rel_mse(self) -> float:
        """Over all samples."""
        return float(self.error.sum() / max(self.signal.sum(), 1e-300))

    @property
    def mean_kl(self) -> float:
        """Mean over samples of the means over their answers."""
        return float(max(np.nanmean(self.kl, 1).mean(), 0.0))

    @property
    def loss_pp(self) -> float:
        """Likewise, in percentage points, at least zero."""
        return float(max(100 * np.nanmean(self.lost, 1).mean(), 0.0))

    @property
    def num_answers(self) -> int:
        """Of all samples."""
        return int(np.isfinite(self.lost).sum())

    def take(self, samples: Sequence[int]) -> Figures:
        """Those of some samples."""
        return Figures(**{name: getattr(self, name)[list(samples)] for name in _NAMES})

    def then(self, other: Figures) -> Figures:
        """Those of other samples behind them."""
        return Figures(**{name: _stack([*getattr(self, name), *getattr(other, name)]) for name in _NAMES})


_NAMES = tuple(field.name for field in dataclasses.fields(Figures))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judge:
    """Compares the outputs of a cut model with those of the uncut one."""

    labels: Sequence[Any] | None
    """Right answer of each sample, where they are known."""

    uncut: Kept
    """Log-probabilities of the uncut model."""

    def __call__(self, sample: int, uncut: Tensor, cut: Tensor) -> tuple[Floats, Floats]:
        """Divergence and loss of each answer (T,)."""
        kl = (uncut.exp() * (uncut - cut)).sum(-1).clamp(min=0)  # rounding leaves -1e-17
        before, after = uncut.argmax(-1), cut.argmax(-1)
        if self.labels is None:
            lost = (before != after).double()
        else:
            label = torch.as_tensor(self.labels[sample])
            lost = (before == label).double() - (after == label).double()
        return kl.numpy(), lost.numpy()


@torch.inference_mode()
def measure(
    crossing: Crossing,
    configs: Sequence[CodecConfig],
    samples: Sequence[int],
    judge: Judge | None,
    progress: Callable[[int], None] = lambda done: None,
) -> list[Figures]:
    """Figures of each setting on the samples; without a judge the tail does not run.

    ``progress`` is told after each setting and group of samples how many samples went through.
    """
    columns: list[list[dict[str, Any]]] = [[] for _ in configs]
    for start in range(0, len(samples), GROUP):
        group = samples[start : start + GROUP]
        messages = crossing.features(group)
        uncut = judge.uncut.get(group, lambda some: _uncut(crossing, some)) if judge else []
        for config, column in zip(configs, columns, strict=True):
            codec = Codec(config)
            received, rows = [], []
            for message in messages:
                arrived, num_bytes = crossing.send(message, codec)
                received.append(arrived)
                rows.append(_sizes(crossing, message, arrived, num_bytes, codec))
            if judge:
                for i, (one,), row, cut in zip(group, uncut, rows, crossing.outputs(received), strict=True):
                    row["kl"], row["lost"] = judge(i, one, cut)
            column.extend(rows)
            progress(len(group))
    return [_figures(column) for column in columns]


def _uncut(crossing: Crossing, samples: Sequence[int]) -> Iterator[Message]:
    return ((one,) for one in crossing.outputs(crossing.features(samples)))


def _sizes(crossing: Crossing, message: Any, arrived: Any, num_bytes: int, codec: Codec) -> dict[str, Any]:
    pairs = list(zip(crossing.compressed(message), crossing.compressed(arrived), strict=True))
    prompt = crossing.prompt_bytes(message, codec)
    return {
        "num_bytes": num_bytes,
        "prompt_bytes": np.nan if prompt is None else prompt,
        "num_frames": crossing.num_frames(message),
        "num_elements": sum(x.numel() for x, _ in pairs),
        "error": sum(float(((x.float() - y.float()) ** 2).sum()) for x, y in pairs),
        "signal": sum(float((x.float() ** 2).sum()) for x, _ in pairs),
        "kl": np.array([np.nan]),
        "lost": np.array([np.nan]),
    }


def _figures(rows: Sequence[Mapping[str, Any]]) -> Figures:
    return Figures(**{name: _stack([row[name] for row in rows]) for name in _NAMES})


def _stack(values: Sequence[Any]) -> Floats:
    if not isinstance(values[0], np.ndarray):
        return np.array(values, np.float64)
    stacked = np.full((len(values), max(map(len, values))), np.nan)
    for row, value in zip(stacked, values, strict=True):
        row[: len(value)] = value
    return stacked
