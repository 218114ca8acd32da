"""Codec settings for a quality target: the fewest bits that keep the outputs close enough, measured on samples.

Quality is judged by what the compressed feature does to the *outputs*, never by the error of the feature itself: a small error
in the wrong place harms more than a large one elsewhere.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from serverlight.codec import Codec, CodecConfig, decode
from serverlight.codec.config import CORRECTED_STEPS, LONG_STEPS
from serverlight.codec.layout import Layout, natural_layout
from serverlight.errors import ConfigError

__all__ = ["PRESETS", "Calibration", "Trial", "calibrate", "log_probabilities"]

Metric = Literal["kl", "disagreement"]

PRESETS = {"fidelity": 0.002, "balanced": 0.01, "small": 0.05}
"""Targets by name: the mean KL divergence of the outputs, in nats, that the compressed feature may cause.

KL is in units of the outputs' own uncertainty, so a name means the same for every model. As a rule of thumb (Pinsker's inequality)
a mean KL of ``k`` moves no output probability by more than ``sqrt(k / 2)``: 3, 7 and 16 percentage points in the worst case,
and far less in the mean.
"""

_BOOTSTRAPS = 1000
_SPARSITY_RESOLUTION = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One setting, measured."""

    config: CodecConfig
    bits_per_element: float
    """Bits of the whole frames, every header included, per element."""

    loss: float
    """Mean over the samples, in the unit of the metric."""

    loss_interval: tuple[float, float]
    """95 % interval of the mean, by bootstrap over the samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """The setting that was chosen, and all that were tried."""

    config: CodecConfig
    chosen: Trial
    trials: tuple[Trial, ...]


def calibrate(
    head: Callable[[Any], Sequence[torch.Tensor]],
    tail: Callable[..., Any],
    samples: Iterable[Any],
    *,
    max_loss: float | str = "balanced",
    metric: Metric = "kl",
    base: CodecConfig | Sequence[CodecConfig] | None = None,
) -> Calibration:
    """The setting with the fewest bits whose mean loss on the samples stays within ``max_loss``.

    The sparsity is searched by bisection, since more of it never means better quality; all other fields are those of ``base``.
    Each sample is its own frame, as it would be on the way from a device.

    Args:
        head: from a sample to the tensors that cross the cut; see :meth:`serverlight.Partition.split`.
        tail: from those tensors to the outputs; the first floating-point tensor among them is read as logits, classes last.
        samples: inputs of the head, one message each; a few dozen will do, and a few hundred make the interval narrow.
        max_loss: the most that may be lost: a name of :data:`PRESETS`, or a number in the unit of the metric.
        metric: ``kl``: mean KL divergence from the uncut outputs, in nats; ``disagreement``: share of top-1 answers that change.
        base: the settings that are kept; of several, each is searched, and the best of all is chosen. Without it the defaults are
            tried, longer steps for feature maps, and a bias correction, a cosine transform and a trellis where these make other
            frames; give ``CodecConfig()`` for the defaults alone, if a device has no time for more.

    Raises:
        ConfigError: a bad target, no samples, or no base.
    """
    target = _target(max_loss, metric)
    given = [base] if isinstance(base, CodecConfig) else base
    if given is not None and not given:
        raise ConfigError("base", "is empty; give at least one CodecConfig, or leave it out")
    with torch.inference_mode():
        features = [tuple(head(sample)) for sample in samples]
        if not features:
            raise ConfigError("samples", "need at least one sample")
        bases = _bases_for(features) if given is None else given
        measured = _Measured(features=features, tail=tail, metric=metric)
        trials = [trial for kept in bases for trial in _bisect(measured, kept, target)]
    within = [trial for trial in trials if trial.loss <= target]
    chosen = min(within, key=lambda t: t.bits_per_element) if within else min(trials, key=lambda t: t.loss)
    return Calibration(config=chosen.config, chosen=chosen, trials=tuple(trials))


def _target(max_loss: float | str, metric: Metric) -> float:
    if metric not in ("kl", "disagreement"):
        raise ConfigError("metric", f"must be 'kl' or 'disagreement', got {metric!r}")
    if isinstance(max_loss, str):
        if max_loss not in PRESETS:
            raise ConfigError(
                "max_loss", f"unknown preset {max_loss!r}; choose from {', '.join(PRESETS)} or give a number"
            )
        if metric != "kl":
            raise ConfigError("max_loss", "presets are KL targets; give a number for 'disagreement'")
        return PRESETS[max_loss]
    if not max_loss > 0:
        raise ConfigError("max_loss", f"must be positive, got {max_loss!r}")
    return float(max_loss)


def _bases_for(features: Iterable[tuple[torch.Tensor, ...]]) -> list[CodecConfig]:
    """The defaults; longer steps for feature maps; and what else makes another frame of any tensor."""
    tensors = [x for sample in features for x in sample if x.is_floating_point()]
    has_maps = any(natural_layout(tuple(x.shape)) is Layout.PLANES for x in tensors)
    candidates = [CodecConfig()]
    if has_maps:
        candidates += [CodecConfig(distortion=step) for step in LONG_STEPS]
        candidates += [CodecConfig(distortion=step, bias_correction=True) for step in CORRECTED_STEPS]
    forms = itertools.product(("none", "cosine"), (False, True))
    candidates += [CodecConfig(transform=transform, trellis=trellis) for transform, trellis in forms]
    by_frames: dict[bytes, CodecConfig] = {}
    for config in candidates:
        by_frames.setdefault(_digest_of_frames(config, tensors), config)
    return list(by_frames.values())


def _digest_of_frames(config: CodecConfig, tensors: Iterable[torch.Tensor]) -> bytes:
    """Of all of them, which together may be too many to keep."""
    codec, digest = Codec(config), hashlib.blake2b(digest_size=16)
    for x in tensors:
        digest.update(codec.encode(x))
    return digest.digest()


def _bisect(measured: _Measured, base: CodecConfig, target: float) -> Iterable[Trial]:
    def trial_at(sparsity: float) -> Trial:
        return measured.trial(dataclasses.replace(base, sparsity=sparsity))

    low, high = 0.0, 0.99
    yield (finest := trial_at(low))
    if finest.loss > target:
        return
    while high - low > _SPARSITY_RESOLUTION:
        middle = round((low + high) / 2, 4)
        trial = trial_at(middle)
        yield trial
        low, high = (middle, high) if trial.loss <= target else (low, middle)


class _Measured:
    """The head's tensors and the uncut outputs, computed once."""

    def __init__(self, *, features: list[tuple[torch.Tensor, ...]], tail: Callable[..., Any], metric: Metric) -> None:
        self._features, self._tail, self._metric = features, tail, metric
        self._uncut = [log_probabilities(tail(*tensors)) for tensors in features]

    def trial(self, config: CodecConfig) -> Trial:
        codec = Codec(config)
        losses, num_bytes, num_elements = [], 0, 0
        for tensors, uncut in zip(self._features, self._uncut, strict=True):
            frames = {i: codec.encode(x) for i, x in enumerate(tensors) if x.is_floating_point()}
            received = [decode(frames[i]) if i in frames else x for i, x in enumerate(tensors)]
            losses.append(self._loss(uncut, log_probabilities(self._tail(*received))))
            num_bytes += sum(map(len, frames.values()))
            num_elements += sum(tensors[i].numel() for i in frames)
        return Trial(
            config=config,
            bits_per_element=8 * num_bytes / max(num_elements, 1),
            loss=float(np.mean(losses)),
            loss_interval=_bootstrap_interval(np.array(losses)),
        )

    def _loss(self, uncut: torch.Tensor, cut: torch.Tensor) -> float:
        if self._metric == "disagreement":
            return float((uncut.argmax(-1) != cut.argmax(-1)).double().mean())
        return float((uncut.exp() * (uncut - cut)).sum(-1).mean())


def log_probabilities(outputs: Any) -> torch.Tensor:
    """Of the first floating-point tensor among a model's outputs, classes last, in float64; raises :class:`ConfigError`."""
    leaves = [x for x in torch.utils._pytree.tree_leaves(outputs) if isinstance(x, torch.Tensor)]
    logits = next((x for x in leaves if x.is_floating_point()), None)
    if logits is None:
        raise ConfigError("tail", "its outputs hold no floating-point tensor to compare")
    return torch.log_softmax(logits.double(), dim=-1)


def _bootstrap_interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    means = rng.choice(values, (_BOOTSTRAPS, len(values))).mean(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
