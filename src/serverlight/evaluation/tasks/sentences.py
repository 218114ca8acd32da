"""Sentence encoders: one message a sentence, judged by the rank correlation of similarities with people's scores."""

# Shapes: T = tokens, D = width, S = sentences in a batch, P = pairs.

from __future__ import annotations

import csv
import functools
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from serverlight.errors import ConfigError
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
from serverlight.models import LoadedModel

__all__ = ["ScoredPairs", "SentenceTask", "load_sts_pairs", "spearman"]

BATCH = 50
SCORE, FIRST, SECOND = 4, 5, 6
"""Columns of an STS benchmark file."""

MIN_PAIRS = 2


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ScoredPairs:
    """Pairs of sentences, and how alike people find them."""

    sentences: tuple[str, ...]
    """First and second sentence of each pair in turn, 2 P in all."""

    scores: Floats
    """Scores (P,)."""


def load_sts_pairs(path: pathlib.Path, *, every: int = 1, count: int | None = None) -> ScoredPairs:
    """Pairs of a tab-separated file of the STS benchmark: each ``every``-th line, ``count`` at most.

    Raises :class:`ConfigError` where the file cannot be read, or is another's.
    """
    try:
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[::every][:count]
        scores = np.array([float(row[SCORE]) for row in rows])
        sentences = tuple(text for row in rows for text in (row[FIRST], row[SECOND]))
    except OSError as exc:
        raise ConfigError("sts", f"cannot read {str(path)!r}: {exc.strerror}; check the path") from None
    except (IndexError, ValueError, csv.Error):
        raise ConfigError(
            "sts",
            f"{path.name} is no file of the STS benchmark: {SECOND + 1} columns with tabs between them, "
            "a score in the fifth and sentences in the last two; give such a file",
        ) from None
    if len(rows) < MIN_PAIRS:
        raise ConfigError("sts", f"{path.name} has {len(rows)} pairs, too few for a correlation; give more")
    return ScoredPairs(sentences=sentences, scores=scores)


class SentenceTask:
    """A BERT-like encoder cut after some of its layers, its token states averaged into an embedding."""

    def __init__(
        self,
        *,
        name: str,
        title: str,
        model: LoadedModel,
        folder: pathlib.Path,
        layers: int,
        pairs: ScoredPairs,
        others: Callable[[], Sequence[str]] | None = None,
        position: str = "",
    ) -> None:
        """Takes ``title`` as the model's name in tables, and the tokenizer from ``folder``; ``others`` gives sentences to
        calibrate with; cuts after ``layers`` layers.
        """
        self.name, self.model, self.cut, self.position = name, title, f"encoder.layer.{layers - 1}", position
        self._encoder: Any = model.module
        self._folder, self._num_head_layers, self._pairs, self._others = folder, layers, pairs, others

    @property
    def base_metric(self) -> float:
        """Spearman's correlation of the uncut model times 100."""
        return 100 * spearman(_similarities(self._base), self._pairs.scores)

    @property
    def raw_input(self) -> RawInput:
        """The token ids."""
        return raw_tokens([x.shape[1] for x in self._features])

    def as_jpeg(self, quality: int) -> LossyInput | None:
        """None: sentences are no images."""
        return None

    def features(self) -> Sequence[Feature]:
        """One message (1, T, D) for each sentence, pair by pair."""
        return self._features

    @functools.cached_property
    def calibration(self) -> Calibration | None:
        """Other sentences, and gradients of their embeddings in random directions."""
        if self._others is None:
            return None
        features, gradients = self._states(self._others()), []
        generator = torch.Generator().manual_seed(0)
        for feature in features:
            x = torch.from_numpy(feature).requires_grad_()
            state = x
            for layer in self._encoder.encoder.layer[self._num_head_layers :]:
                state = layer(state)
            embedding = F.normalize(state.mean(1), dim=-1)
            direction = torch.randn(embedding.shape, generator=generator)
            (gradient,) = torch.autograd.grad((embedding * direction).sum(), x)
            gradients.append(gradient.numpy())
        return Calibration(features=features, gradients=gradients)

    def evaluate(self, received: Sequence[Feature]) -> Quality:
        """Correlation over the pairs whose sentences are all among the first ``len(received)``; mean 1 - cosine."""
        num_pairs = len(received) // 2
        ours, base = self._embed(received[: 2 * num_pairs]), self._base[: 2 * num_pairs]
        scores = self._pairs.scores[:num_pairs]
        similar, base_similar = _similarities(ours), _similarities(base)
        metric = 100 * spearman(similar, scores)

        def gains(chosen: npt.NDArray[np.int64]) -> Floats:
            truth = scores[chosen]
            return 100 * (_spearman_rows(similar[chosen], truth) - _spearman_rows(base_similar[chosen], truth))

        deltas = bootstrap(num_pairs, gains)
        return Quality(
            metric=metric,
            delta_pp=metric - 100 * spearman(base_similar, scores),
            interval_pp=percentiles(deltas),
            deltas_pp=deltas,
            num_samples=num_pairs,
            kl=float((1 - (ours * base).sum(1)).mean()),
        )

    def check(self) -> None:
        """Tries the first sentence; raises :class:`ConfigError` where the layers, one after the other, are not the encoder."""
        [ids] = token_ids(self._folder, self._pairs.sentences[:1])
        with torch.inference_mode():
            whole = self._encoder(input_ids=torch.tensor([ids])).last_hidden_state
            state = self._encoder.embeddings(input_ids=torch.tensor([ids]))
            for layer in self._encoder.encoder.layer:
                state = layer(state) if isinstance(state, Tensor) else None
        if not isinstance(state, Tensor) or not torch.allclose(state, whole, atol=1e-4):
            kind = type(self._encoder).__name__
            raise ConfigError("model", f"{kind} does more than run its layers one after the other; give one like BERT")

    @functools.cached_property
    def _features(self) -> list[Feature]:
        return self._states(self._pairs.sentences)

    def _states(self, sentences: Sequence[str]) -> list[Feature]:
        ids = token_ids(self._folder, sentences)
        with torch.inference_mode():
            embedded = [self._encoder.embeddings(input_ids=torch.tensor([row])).numpy() for row in ids]
        return self._run(embedded, slice(0, self._num_head_layers))

    @functools.cached_property
    def _base(self) -> Floats:
        return self._embed(self._features)

    def _embed(self, features: Sequence[Feature]) -> Floats:
        """Embeddings (S, D) of length 1."""
        states = self._run(features, slice(self._num_head_layers, None))
        means = np.stack([state[0].mean(0, dtype=np.float64) for state in states])
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))

    def _run(self, states: Sequence[Feature], layers: slice) -> list[Feature]:
        """States (1, T, D) through some layers; sentences of like length share a batch."""
        results: list[Feature] = [states[0]] * len(states)
        order = sorted(range(len(states)), key=lambda i: states[i].shape[1])
        with torch.inference_mode():
            for start in range(0, len(order), BATCH):
                chosen = order[start : start + BATCH]
                x, mask = _padded([states[i] for i in chosen])
                for layer in self._encoder.encoder.layer[layers]:
                    x = layer(x, mask)
                for row, i in enumerate(chosen):
                    results[i] = x[row : row + 1, : states[i].shape[1]].numpy()
        return results


def spearman(a: Floats, b: Floats) -> float:
    """Spearman's rank correlation; equal values share their mean rank, and constant ones correlate with nothing.

    >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([10.0, 30.0, 20.0]))
    0.5
    """
    return float(_spearman_rows(a[None], b[None])[0])


def _spearman_rows(a: Floats, b: Floats) -> Floats:
    """Row by row, (rows, P) each."""
    x, y = _ranks(a), _ranks(b)
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    norms = np.sqrt(np.square(x).sum(1) * np.square(y).sum(1))
    return np.asarray(np.divide((x * y).sum(1), norms, out=np.zeros_like(norms), where=norms > 0))


def _ranks(values: Floats) -> Floats:
    """Mean ranks of each row's values."""
    order = np.argsort(values, axis=1)
    ordered = np.take_along_axis(values, order, 1)
    starts = np.ones(values.shape, np.bool_)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    # Number the runs of equal values through all rows; the mean rank of a run is the middle of where it lies.
    runs = np.cumsum(starts.ravel()) - 1
    places = np.tile(np.arange(values.shape[1], dtype=np.float64), len(values))
    means = np.bincount(runs, weights=places) / np.bincount(runs)
    ranks = np.empty(values.shape)
    np.put_along_axis(ranks, order, means[runs].reshape(values.shape), 1)
    return ranks


def _similarities(embeddings: Floats) -> Floats:
    """Cosine (P,) of each pair."""
    return np.asarray((embeddings[::2] * embeddings[1::2]).sum(1))


def _padded(states: Sequence[Feature]) -> tuple[Tensor, Tensor]:
    """States (S, T, D), zeros behind each sentence, and the attention mask (S, 1, 1, T) to add to the scores."""
    longest = max(state.shape[1] for state in states)
    rows = [F.pad(torch.from_numpy(state), (0, 0, 0, longest - state.shape[1])) for state in states]
    lengths = torch.tensor([state.shape[1] for state in states])
    hidden = torch.arange(longest)[None, :] >= lengths[:, None]
    mask = torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
    return torch.cat(rows), mask[:, None, None, :]
