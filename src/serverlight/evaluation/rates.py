"""Bits against quality: one codec with one setting on one task, and the cheapest setting that keeps the quality."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serverlight.codec.rivals import Family, Rival
from serverlight.errors import ConfigError
from serverlight.evaluation.bounds import RateDistortion, ecsq, rate_distortion, rel_mse
from serverlight.evaluation.tasks import CodecTask, Feature, Quality

__all__ = ["MAX_LOSS_PP", "Probe", "RateRow", "Scale", "Walk", "bits_at_kl"]

FP16_BITS = 16
MAX_LOSS_PP = 1.0
"""The loss in percentage points at which rates are compared."""
PROBE_ELEMENTS = 1 << 19
MIN_PROBES = 16
"""A probe is large enough to tell which of two settings harms more, and small enough to try hundreds of settings."""

NOISY = 3
"""Settings below the border that are measured as well, since the figure does not fall evenly there."""

TINY_PP = 1e-9
"""A loss of exactly the limit may come out a rounding error above it."""

Point = Mapping[str, int]
"""A setting: an index into each axis of a family."""


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


class Scale:
    """Measures codecs on one task; bounds, features and qualities are kept, so that equal features are judged once."""

    def __init__(self, task: CodecTask, *, probe_messages: int | None = None) -> None:
        """Probes with the first ``probe_messages``, by default as many as hold ``PROBE_ELEMENTS``."""
        self.task = task
        self._qualities: dict[bytes, Quality] = {}
        sizes = np.cumsum([x.size for x in task.features()])
        enough = max(MIN_PROBES, int(np.searchsorted(sizes, PROBE_ELEMENTS)) + 1)
        self._probe = list(task.features()[: probe_messages or enough])

    def measure(self, rival: Rival, codec: str = "") -> RateRow:
        """All messages through the codec and the tail; ``codec`` is what to call it, if not by its own name."""
        features = self.task.features()
        bits, received = _send(rival, features)
        error, quality = rel_mse(features, received), self._judge(received)
        ideal = self.ecsq.bits_at(error)
        return RateRow(
            task=self.task.name,
            model=self.task.model,
            cut=self.task.cut,
            codec=codec or rival.name,
            config=rival.config,
            bits_per_element=bits,
            ratio_vs_fp16=FP16_BITS / bits,
            quality=quality.metric,
            quality_delta_pp=quality.delta_pp,
            quality_interval_pp=quality.interval_pp,
            kl=quality.kl,
            rel_mse=error,
            ecsq_bits_per_element=None if math.isnan(ideal) else ideal,
        )

    def probe(self, rival: Rival, codec: str = "") -> Probe:
        """The first messages only."""
        bits, received = _send(rival, self._probe)
        return Probe(
            codec=codec or rival.name,
            config=rival.config,
            bits_per_element=bits,
            kl=self._judge(received).kl,
            rel_mse=rel_mse(self._probe, received),
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

    def _judge(self, received: Sequence[Feature]) -> Quality:
        digest = hashlib.blake2b(digest_size=16)
        for x in received:
            digest.update(np.ascontiguousarray(x).data)
        key = digest.digest()
        if key not in self._qualities:
            self._qualities[key] = self.task.evaluate(received)
        return self._qualities[key]


def _send(rival: Rival, features: Sequence[Feature]) -> tuple[float, list[Feature]]:
    """Bits per element of the messages, and what arrives."""
    messages = rival.encode_many(features)
    return 8 * sum(map(len, messages)) / sum(x.size for x in features), rival.decode_many(messages)


# -- the search --------------------------------------------------------------------------------------


class Walk:
    """The settings of one codec on one task, tried coarse to fine.

    First every second value of each axis is probed on a few messages. Around the settings that no other beats in both bits and
    divergence the missing neighbours follow, ``rounds`` times. The front that is left is what :meth:`cheapest` looks through.
    """

    def __init__(
        self, scale: Scale, family: Family, *, rounds: int = 2, note: Callable[[str], None] = lambda text: None
    ) -> None:
        """Probes the grid; ``note`` is told what is being measured, here and later."""
        self.family = family
        self._scale, self._note = scale, note
        self._measured: dict[str, RateRow] = {}
        front = _front(self._probe_grid(rounds))
        self._points = [point for point, _ in front]
        self.probes = tuple(probe for _, probe in front)
        for setting in family.pinned:
            self._measure(family.make(**setting))

    @property
    def rows(self) -> tuple[RateRow, ...]:
        """Every setting that was measured in full, by ascending bits."""
        return tuple(sorted(self._measured.values(), key=lambda row: row.bits_per_element))

    def cheapest(self, is_good: Callable[[RateRow], bool]) -> RateRow | None:
        """The setting with the fewest bits that is good, measured in full; none where no setting is.

        The front is bisected. Some settings below the border are measured as well, since quality does not fall evenly there.
        """
        _bisect(len(self._points), lambda i: is_good(self._measure(self.family.at(self._points[i]))))
        return min(filter(is_good, self.rows), key=lambda row: row.bits_per_element, default=None)

    def _measure(self, rival: Rival) -> RateRow:
        key = repr(sorted(rival.config.items()))
        if key not in self._measured:
            self._note(f"{self.family.name}: {_describe(rival.config, self.family)}")
            self._measured[key] = self._scale.measure(rival, self.family.name)
        return self._measured[key]

    def _probe_grid(self, rounds: int) -> list[tuple[Point, Probe]]:
        done: dict[tuple[int, ...], tuple[Point, Probe]] = {}

        def visit(points: Iterable[Point]) -> None:
            for point in points:
                key = tuple(point.values())
                if key not in done:
                    rival = self.family.at(point)
                    self._note(f"{self.family.name}: {_describe(rival.config, self.family)} (a few messages)")
                    done[key] = (point, self._scale.probe(rival, self.family.name))

        visit(_coarse(self.family))
        for _ in range(rounds):
            visit([near for point, _ in _front(list(done.values())) for near in _neighbours(self.family, point)])
        return list(done.values())


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


def _coarse(family: Family) -> Iterator[Point]:
    """Every second value of each axis, the ends included; all values of axes with four or fewer."""
    choices = []
    for values in family.axes.values():
        last = len(values) - 1
        choices.append(range(len(values)) if last < 4 else sorted({*range(0, last, 2), last}))
    for indices in itertools.product(*choices):
        yield dict(zip(family.axes, indices, strict=True))


def _neighbours(family: Family, point: Point) -> Iterator[Point]:
    for axis, values in family.axes.items():
        for index in (point[axis] - 1, point[axis] + 1):
            if 0 <= index < len(values):
                yield {**point, axis: index}


def _front(probes: Sequence[tuple[Point, Probe]]) -> list[tuple[Point, Probe]]:
    """The settings that no other beats in both bits and divergence, by ascending bits."""
    best, least = [], math.inf
    for point, probe in sorted(probes, key=lambda pair: (pair[1].bits_per_element, pair[1].kl)):
        if probe.kl < least:
            best.append((point, probe))
            least = probe.kl
    return best


def _bisect(count: int, passes: Callable[[int], bool]) -> None:
    """Asks until there is an index that passes and none of the ``NOISY`` before it does; there may be none that passes."""
    low, high = 0, count - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) else (middle + 1, high)
    while not passes(low) and low < count - 1:
        low += 1
    while lower := [i for i in range(max(0, low - NOISY), low) if passes(i)]:
        low = lower[0]


def _describe(config: Mapping[str, Any], family: Family) -> str:
    return ", ".join(f"{axis} {config[axis]}" for axis in family.axes) or "its one setting"
