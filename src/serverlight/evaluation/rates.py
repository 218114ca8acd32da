"""Bits against quality: one codec with one setting on one task, and the cheapest setting that keeps the quality."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serverlight.codec.rivals import Rival
from serverlight.errors import ConfigError
from serverlight.evaluation.bounds import RateDistortion, ecsq, rate_distortion, rel_mse
from serverlight.evaluation.resampled import TINY_PP, Draws, bits_in_resamples
from serverlight.evaluation.tasks import CodecTask, Feature, Quality
from serverlight.evaluation.tasks.task import NUM_RESAMPLES, Ints

__all__ = [
    "COARSE",
    "FINE",
    "INPUTS",
    "JPEG_INPUT",
    "MAX_LOSS_PP",
    "RAW_INPUT",
    "Probe",
    "ProbeSize",
    "RateRow",
    "Scale",
    "Sketch",
    "bits_at_kl",
]

FP16_BITS = 16
MAX_LOSS_PP = 1.0
"""The loss in percentage points at which rates are compared."""


@dataclass(frozen=True, slots=True)
class ProbeSize:
    """What a setting is tried on: the first messages, as many as hold ``elements``, and at least ``messages``."""

    elements: int
    messages: int


FINE, COARSE = ProbeSize(1 << 18, 24), ProbeSize(1 << 17, 8)
"""Large enough to tell which of two settings harms more, and small enough to try hundreds of settings; the second is for a
look only."""

RAW_INPUT, JPEG_INPUT = INPUTS = ("raw input", "jpeg input")
"""What the rows are called that send the input instead of the feature, as it is or as JPEG; the server runs the whole model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RateRow:
    """One codec with one setting on one task, measured on all messages."""

    task: str
    """Label of the task."""

    model: str
    """What was cut."""

    cut: str
    """Where."""

    codec: str
    """Name of the codec."""

    config: dict[str, Any]
    """Its setting."""

    bits_per_element: float
    """Bits of the whole messages, every header included, per element."""

    ratio_vs_fp16: float
    """16 bits over :attr:`bits_per_element`."""

    quality: float
    """The task's own figure, as a percentage."""

    quality_delta_pp: float
    """That figure less that of the uncut model, in percentage points."""

    quality_interval_pp: tuple[float, float]
    """95 % interval of the difference, paired by sample."""

    kl: float
    """Mean divergence of the outputs from those of the uncut model."""

    rel_mse: float
    """Squared error of the features over their squared signal."""

    ecsq_bits_per_element: float | None
    """What ideal entropy-coded scalar quantisation takes for that error; none beyond its finest step."""

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> RateRow:
        """The row that :meth:`to_dict` wrote, also after it was JSON."""
        low, high = fields["quality_interval_pp"]
        return cls(**{**fields, "quality_interval_pp": (low, high)})

    def keeps(self, max_loss_pp: float = MAX_LOSS_PP) -> bool:
        """Whether the figure is at most so far below that of the uncut model."""
        return self.quality_delta_pp >= -max_loss_pp - TINY_PP


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """A setting tried on a few messages only: good for ranking settings, not for quoting."""

    codec: str
    config: dict[str, Any]
    bits_per_element: float
    kl: float
    rel_mse: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Sketch:
    """A setting tried without the model's tail."""

    rival: Rival
    messages: tuple[bytes, ...]
    bits_per_element: float
    rel_mse: float


class Scale:
    """Measures codecs on one task; bounds, features and qualities are kept, so that equal features are judged once."""

    def __init__(self, task: CodecTask, *, probes: ProbeSize = FINE) -> None:
        """Probes with the first messages."""
        self.task = task
        self._judged: dict[bytes, tuple[Quality, float]] = {}
        self._draws: dict[str, Draws] = {}
        self._num_samples = 0
        self._elements = np.array([x.size for x in task.features()], np.int64)
        enough = max(probes.messages, int(np.searchsorted(np.cumsum(self._elements), probes.elements)) + 1)
        self._probe = list(task.features()[:enough])

    def measure(self, rival: Rival, codec: str = "") -> RateRow:
        """All messages through the codec and the tail; ``codec`` is what to call it, if not by its own name."""
        messages = [rival.encode(x) for x in self.task.features()]
        received = [rival.decode(message) for message in messages]
        sizes = np.array([*map(len, messages)], np.int64)
        return self._measured(codec or rival.name, rival.config, sizes, received)

    def measure_jpeg(self, quality: int) -> RateRow | None:
        """All inputs as JPEG of that quality, to a server that runs the whole model; none where they are no images."""
        sent = self.task.as_jpeg(quality)
        if sent is None:
            return None
        return self._measured(JPEG_INPUT, {"quality": quality}, sent.sizes, sent.features)

    def sketch(self, rival: Rival) -> Sketch:
        """The first messages through the codec, but not through the tail."""
        messages = tuple(rival.encode(x) for x in self._probe)
        error = rel_mse(self._probe, [rival.decode(message) for message in messages])
        bits = _bits_per_element(messages, self._probe)
        return Sketch(rival=rival, messages=messages, bits_per_element=bits, rel_mse=error)

    def probe(self, sketch: Sketch, codec: str = "") -> Probe:
        """What is in a sketch through the tail."""
        rival = sketch.rival
        quality, _ = self._judge([rival.decode(message) for message in sketch.messages])
        return Probe(
            codec=codec or rival.name,
            config=rival.config,
            bits_per_element=sketch.bits_per_element,
            kl=quality.kl,
            rel_mse=sketch.rel_mse,
        )

    def raw_input(self) -> RateRow:
        """The inputs sent instead of the features, to a server that runs the whole model: nothing is lost."""
        raw, known = self.task.raw_input, self._num_samples > 0
        quality = Quality(
            metric=self.task.base_metric, delta_pp=0.0, interval_pp=(0.0, 0.0), kl=0.0,
            deltas_pp=np.zeros(NUM_RESAMPLES) if known else None, num_samples=self._num_samples,
        )  # fmt: skip
        return self._row(RAW_INPUT, {"format": raw.format}, raw.sizes, quality, 0.0)

    def draws_of(self, row: RateRow) -> Draws | None:
        """The row in each of the task's resamples; none where the task does not keep them."""
        return self._draws.get(_key(row.codec, row.config))

    def _measured(self, codec: str, config: dict[str, Any], sizes: Ints, received: Sequence[Feature]) -> RateRow:
        quality, error = self._judge(received)
        self._num_samples = quality.num_samples
        return self._row(codec, config, sizes, quality, error)

    def _row(self, codec: str, config: dict[str, Any], sizes: Ints, quality: Quality, error: float) -> RateRow:
        if quality.deltas_pp is not None:
            bits_drawn = bits_in_resamples(sizes, self._elements, quality.num_samples)
            self._draws[_key(codec, config)] = Draws(bits_drawn, quality.deltas_pp)
        bits = 8 * int(sizes.sum()) / int(self._elements.sum())
        ideal = self.ecsq.bits_at(error)
        return RateRow(
            task=self.task.name,
            model=self.task.model,
            cut=self.task.cut,
            codec=codec,
            config=config,
            bits_per_element=bits,
            ratio_vs_fp16=FP16_BITS / bits,
            quality=quality.metric,
            quality_delta_pp=quality.delta_pp,
            quality_interval_pp=quality.interval_pp,
            kl=quality.kl,
            rel_mse=error,
            ecsq_bits_per_element=None if math.isnan(ideal) else ideal,
        )

    @functools.cached_property
    def ecsq(self) -> RateDistortion:
        """Entropy-coded scalar quantisation of the pooled elements."""
        return ecsq(self._pooled)

    @functools.cached_property
    def bound(self) -> RateDistortion:
        """Shannon's bound for the pooled elements."""
        return rate_distortion(self._pooled)

    @property
    def _pooled(self) -> Feature:
        return np.concatenate([x.reshape(-1) for x in self.task.features()])

    def _judge(self, received: Sequence[Feature]) -> tuple[Quality, float]:
        """Quality and relative error of the first ``len(received)`` messages."""
        digest = hashlib.blake2b(digest_size=16)
        for x in received:
            digest.update(np.ascontiguousarray(x).data)
        key = digest.digest()
        if key not in self._judged:
            sent = self.task.features()[: len(received)]
            self._judged[key] = (self.task.evaluate(received), rel_mse(sent, received))
        return self._judged[key]


def _key(codec: str, config: Mapping[str, Any]) -> str:
    return repr((codec, sorted(config.items())))


def _bits_per_element(messages: Sequence[bytes], features: Sequence[Feature]) -> float:
    return 8 * sum(map(len, messages)) / sum(x.size for x in features)


def bits_at_kl(rows: Iterable[RateRow | Probe], kl: float) -> float | None:
    """Bits per element of a codec at a divergence: between its two nearest settings, linear in the divergence's logarithm.

    Only settings that no other of the rows beats in both bits and divergence count; none where ``kl`` is outside of theirs.

    >>> probes = [Probe(codec="x", config={}, bits_per_element=b, kl=k, rel_mse=0) for b, k in ((1, 0.1), (3, 0.001))]
    >>> bits_at_kl(probes, 0.01)
    2.0
    """
    if not kl > 0:
        raise ConfigError("kl", f"must be positive, got {kl}")
    best, least = [], math.inf
    for bits, divergence in sorted((row.bits_per_element, row.kl) for row in rows if row.kl > 0):
        if divergence < least:
            best.append((math.log(divergence), bits))
            least = divergence
    best.reverse()
    if not best or not best[0][0] <= math.log(kl) <= best[-1][0]:
        return None
    divergences, bits_there = zip(*best, strict=True)
    return float(np.interp(math.log(kl), divergences, bits_there))
