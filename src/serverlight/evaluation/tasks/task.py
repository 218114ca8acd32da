"""What a task is: features of a real model, and what the outputs are worth after a codec had them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "Calibration",
    "CodecTask",
    "Feature",
    "Floats",
    "Ints",
    "LossyInput",
    "Quality",
    "RawInput",
    "bootstrap",
    "bootstrap_interval",
    "kl_divergence",
    "percentiles",
    "resamples",
]

Feature: TypeAlias = npt.NDArray[np.float32]
Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]

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

    deltas_pp: Floats | None = field(default=None, compare=False, repr=False)
    """The difference in each of the :func:`resamples`; none where they were not kept."""

    num_samples: int = 0
    """Samples that were drawn from; as many messages, or a multiple, were judged."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RawInput:
    """What a device sends that runs no part of the model."""

    format: str
    """How the inputs are written."""

    sizes: Ints
    """Bytes of the input of each message (messages,)."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all inputs together."""
        return int(self.sizes.sum())


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LossyInput:
    """Inputs that were coded with losses, for a server that runs the whole model."""

    sizes: Ints
    """Bytes of the input of each message (messages,)."""

    features: Sequence[Feature]
    """What the feature at the cut is then, message by message."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Calibration:
    """What a basis is calibrated with: features of other samples than those that the task judges by."""

    features: Sequence[Feature]
    """Features at the cut, channels last."""

    gradients: Sequence[Feature]
    """For each, the gradient of what the tail makes of it."""


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
    def position(self) -> str:
        """``early``, ``middle`` or ``late`` in the model; empty for a cut that stands for none of them."""

    @property
    def base_metric(self) -> float:
        """The uncut model's figure, as a percentage."""

    @property
    def raw_input(self) -> RawInput:
        """The inputs that the features were made of; sent in full, they lose nothing."""

    def as_jpeg(self, quality: int) -> LossyInput | None:
        """The inputs as JPEG files of that quality; none where they are no images."""

    def features(self) -> Sequence[Feature]:
        """One message for each image, sentence or window of tokens, with its batch side of 1 in front, as a device sends it."""

    @property
    def calibration(self) -> Calibration | None:
        """Other samples of the same kind, for a basis; none where there are none, or channels do not come last."""

    def evaluate(self, received: Sequence[Feature]) -> Quality:
        """The quality when the first ``len(received)`` messages arrive as given."""


def bootstrap_interval(num_samples: int, statistic: Callable[[Ints], Floats]) -> tuple[float, float]:
    """95 % interval of a statistic over resampled samples; see :func:`bootstrap`.

    >>> values = np.array([0.0, 1.0] * 50)
    >>> bootstrap_interval(100, lambda chosen: values[chosen].mean(1))
    (0.4, 0.6)
    """
    return percentiles(bootstrap(num_samples, statistic))


def bootstrap(num_samples: int, statistic: Callable[[Ints], Floats]) -> Floats:
    """A statistic in each of the :func:`resamples` (Efron 1979, doi:10.1214/aos/1176344552).

    Args:
        num_samples: samples to draw from.
        statistic: from sample indices (resamples, num_samples) to a value for each resample.
    """
    return statistic(resamples(num_samples))


@functools.lru_cache(maxsize=4)
def resamples(num_samples: int) -> Ints:
    """Sample indices (resamples, num_samples), drawn with replacement; always the same, so that all statistics are paired."""
    chosen = np.random.default_rng(0).integers(0, num_samples, (NUM_RESAMPLES, num_samples))
    chosen.setflags(write=False)
    return chosen


def percentiles(values: Floats) -> tuple[float, float]:
    """What 95 % of the values lie between."""
    low, high = np.quantile(values, (0.025, 0.975))
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
