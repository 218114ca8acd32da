"""What a task is: features of a real model, and what the outputs are worth after a codec had them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["CodecTask", "Feature", "Floats", "Quality", "RawInput", "bootstrap_interval", "kl_divergence"]

Feature: TypeAlias = npt.NDArray[np.float32]
Floats: TypeAlias = npt.NDArray[np.float64]

NUM_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True, slots=True)
class Quality:
    """What the outputs are worth, beside those of the uncut model on the same samples."""

    metric: float
    """The task's own figure, as a percentage."""

    delta_pp: float
    """That figure less that of the uncut model, in percentage points."""

    interval_pp: tuple[float, float]
    """95 % interval of the difference, by a bootstrap over the samples that pairs both outputs of each."""

    kl: float
    """Mean divergence from the uncut model's outputs: Kullback-Leibler's in nats; of embeddings, 1 - cosine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RawInput:
    """What a device sends that runs no part of the model."""

    format: str
    """How the inputs are written."""

    num_bytes: int
    """Bytes of all inputs together."""


class CodecTask(Protocol):
    """A model cut at one place, with the data to judge it by."""

    @property
    def name(self) -> str:
        """Short label, such as ``R56-mid``."""

    @property
    def model(self) -> str:
        """What was cut."""

    @property
    def cut(self) -> str:
        """Where it was cut."""

    @property
    def base_metric(self) -> float:
        """The uncut model's figure, as a percentage."""

    @property
    def raw_input(self) -> RawInput:
        """The inputs that the features were made of; sent in full, they lose nothing."""

    def features(self) -> Sequence[Feature]:
        """One message for each image, sentence or window of tokens, with its batch side of 1 in front, as a device sends it."""

    def evaluate(self, received: Sequence[Feature]) -> Quality:
        """The quality when the first ``len(received)`` messages arrive as given."""


def bootstrap_interval(num_samples: int, statistic: Callable[[npt.NDArray[np.int64]], Floats]) -> tuple[float, float]:
    """95 % interval of a statistic over resampled samples; always the same resamples.

    Args:
        num_samples: samples to draw from.
        statistic: from sample indices (resamples, num_samples) to a value for each resample.

    >>> values = np.array([0.0, 1.0] * 50)
    >>> bootstrap_interval(100, lambda chosen: values[chosen].mean(1))
    (0.4, 0.6)
    """
    chosen = np.random.default_rng(0).integers(0, num_samples, (NUM_RESAMPLES, num_samples))
    low, high = np.quantile(statistic(chosen), (0.025, 0.975))
    return float(low), float(high)


def kl_divergence(ours: npt.NDArray[np.floating], base: npt.NDArray[np.floating]) -> Floats:
    """KL divergence in nats of the softmax of ``ours`` from that of ``base``, over the last axis.

    >>> kl_divergence(np.array([0.0, 0.0]), np.array([5.0, 5.0]))
    array(0.)
    """
    log_p, log_q = _log_softmax(base), _log_softmax(ours)
    return np.asarray((np.exp(log_p) * (log_p - log_q)).sum(-1))


def _log_softmax(logits: npt.NDArray[np.floating]) -> Floats:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
