"""Language models: one message a window of tokens, judged by the accuracy of the next token."""

# Shapes: T = tokens, D = width, V = vocabulary.

from __future__ import annotations

import functools
import json
import lzma
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from serverlight.evaluation.tasks.llama import Llama
from serverlight.evaluation.tasks.task import (
    Calibration,
    Feature,
    Floats,
    LossyInput,
    Quality,
    RawInput,
    bootstrap,
    percentiles,
)
from serverlight.evaluation.tasks.tokens import raw_tokens, token_ids

__all__ = ["WindowTask", "load_windows", "spread_windows"]

BATCH = 50
Ids = npt.NDArray[np.int64]


def load_windows(path: pathlib.Path, folder: pathlib.Path, *, length: int, count: int | None = None) -> Ids:
    """The first ``length + 1`` tokens of each text that has as many, ``count`` at most: (windows, length + 1).

    Args:
        path: lines of JSON with a field ``text``.
        folder: where the tokenizer is.
        length: tokens that go in; one more is there to be predicted.
        count: windows wanted.
    """
    texts = [json.loads(line)["text"] for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [ids[: length + 1] for ids in token_ids(folder, texts) if len(ids) > length]
    return np.array(rows[:count], np.int64).reshape(-1, length + 1)


def spread_windows(path: pathlib.Path, folder: pathlib.Path, *, length: int, count: int) -> Ids:
    """Windows from all over a long text, ``count`` at most: (windows, length + 1).

    Args:
        path: plain text, compressed by xz.
        folder: where the tokenizer is.
        length: tokens that go in; one more is there to be predicted.
        count: windows wanted.
    """
    (ids,) = token_ids(folder, [lzma.decompress(path.read_bytes()).decode()])
    num_windows = len(ids) // (length + 1)
    windows = np.array(ids[: num_windows * (length + 1)], np.int64).reshape(-1, length + 1)
    return windows[np.linspace(0, num_windows, min(count, num_windows), endpoint=False).astype(np.int64)]


class WindowTask:
    """A Llama cut after some of its layers, on windows of text."""

    def __init__(
        self,
        *,
        name: str,
        title: str,
        model: Llama,
        layers: int,
        windows: Ids,
        others: Callable[[], Ids] | None = None,
        position: str = "",
    ) -> None:
        """Takes ``title`` as the model's name; ``others`` gives windows to calibrate with; cuts after ``layers`` layers."""
        self.name, self.model, self.cut, self.position = name, title, f"model.layers.{layers - 1}", position
        self._llama, self._num_head_layers, self._windows, self._others = model, layers, windows, others

    @property
    def base_metric(self) -> float:
        """Next-token accuracy of the uncut model, as a percentage."""
        return 100 * float(self._base_right.mean())

    @property
    def raw_input(self) -> RawInput:
        """The token ids."""
        return raw_tokens([self._windows.shape[1] - 1] * len(self._windows))

    def as_jpeg(self, quality: int) -> LossyInput | None:
        """None: texts are no images."""
        return None

    def features(self) -> Sequence[Feature]:
        """One message (1, T, D) for each window."""
        return self._features

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """Other windows, and gradients of the log-probability of tokens drawn from the model's own distribution."""
        if self._others is None:
            return None
        features, gradients = self._states(self._others()), []
        generator, layers = torch.Generator().manual_seed(0), range(self._num_head_layers, self._llama.num_layers)
        for start in range(0, len(features), BATCH):
            x = torch.from_numpy(np.concatenate(features[start : start + BATCH])).requires_grad_()
            logs = F.log_softmax(self._llama.logits(self._llama.run(x, layers)), -1)
            drawn = torch.multinomial(logs.detach().exp().flatten(0, 1), 1, generator=generator).view(
                *logs.shape[:2], 1
            )
            (gradient,) = torch.autograd.grad(logs.gather(-1, drawn).sum(), x)
            gradients.append(gradient.numpy())
        return Calibration(features=features, gradients=gradients)

    def evaluate(self, received: Sequence[Feature]) -> Quality:
        """Next-token accuracy and mean KL divergence over all tokens of the first windows; whole windows are resampled."""
        right, divergences = self._judge(received)
        gains = 100 * (right.mean(1) - self._base_right[: len(right)].mean(1))
        deltas = bootstrap(len(gains), lambda chosen: gains[chosen].mean(1))
        return Quality(
            metric=100 * float(right.mean()),
            delta_pp=float(gains.mean()),
            interval_pp=percentiles(deltas),
            deltas_pp=deltas,
            num_samples=len(gains),
            kl=max(float(divergences.mean()), 0.0),  # not below by rounding
        )

    @functools.cached_property
    def _features(self) -> list[Feature]:
        return self._states(self._windows)

    def _states(self, windows: Ids) -> list[Feature]:
        with torch.inference_mode():
            states = self._llama.run(self._llama.embed(torch.from_numpy(windows[:, :-1])), range(self._num_head_layers))
        return list(np.split(states.numpy(), len(states)))

    @functools.cached_property
    def _base(self) -> list[Tensor]:
        """Log-probabilities (windows of a batch, T, V) of the uncut model, batch by batch."""
        return [F.log_softmax(logits, -1) for logits in self._logits(self._features)]

    @functools.cached_property
    def _base_right(self) -> npt.NDArray[np.bool_]:
        """(windows, T)"""
        return np.concatenate([self._is_right(base, at * BATCH) for at, base in enumerate(self._base)])

    def _judge(self, received: Sequence[Feature]) -> tuple[npt.NDArray[np.bool_], Floats]:
        """Whether each next token is right, and the divergence there, (windows, T) each; batch by batch, since logits are many."""
        right, divergences = [], []
        for at, logits in enumerate(self._logits(received)):
            right.append(self._is_right(logits, at * BATCH))
            base, ours = self._base[at][: len(logits)], F.log_softmax(logits, -1)
            divergences.append((base.exp() * (base - ours)).sum(-1, dtype=torch.float64).numpy())
        return np.concatenate(right), np.concatenate(divergences)

    def _logits(self, features: Sequence[Feature]) -> Iterator[Tensor]:
        """Logits (windows of a batch, T, V), batch by batch."""
        layers = range(self._num_head_layers, self._llama.num_layers)
        for start in range(0, len(features), BATCH):
            states = torch.from_numpy(np.concatenate(features[start : start + BATCH]))
            with torch.inference_mode():
                logits = self._llama.logits(self._llama.run(states, layers))
            yield logits

    def _is_right(self, logits: Tensor, first: int) -> npt.NDArray[np.bool_]:
        """Whether the likeliest tokens of the windows from ``first`` on are the next ones, (windows, T)."""
        return np.asarray(logits.argmax(-1).numpy() == self._windows[first : first + len(logits), 1:])
