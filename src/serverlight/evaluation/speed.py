"""How fast codecs are, beside each other and beside a plain copy of the same memory.

All codecs take turns, so that what else the machine does meets them alike; each figure is a median over the rounds. In its turn
a codec is called once, which finds caches and branch predictors as the others left them and is noted by itself, and then for its
time: who came before would otherwise decide how a small tensor fares. The copy is of the tensor's own buffer, again and again: for
sizes that fit it is a copy within the cache.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from serverlight.evaluation.contenders import Contender

__all__ = ["SHAPES", "SWEEP_BYTES", "SpeedRow", "sample_feature", "sweep_shape", "time_codecs"]

SHAPES = ((1, 4096), (1, 64, 56, 56), (512, 4096))
"""One token, one feature map, one prompt."""

SWEEP_BYTES = tuple(1 << k for k in range(10, 27, 2))
"""Sizes of float32 tensors, 1 KB to 64 MB."""

LEAST_SAMPLE_S = 1e-2
"""A sample repeats calls until it is long against the clock's own cost, and against what it takes to fill the caches again."""

LONG_CALL_S = 0.1
"""Calls that take so long do not depend on what came before; one is enough."""

MAP_MEAN = 1.0
"""Mean of a map before it is rectified, in its deviations: one element in six is zero, as in the middle of a residual network."""

MIN_ROUNDS, MAX_ROUNDS = 3, 200


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedRow:
    """One codec on one tensor. Rates are in bytes of the tensor, not of the message."""

    codec: str
    shape: tuple[int, ...]
    dtype: str
    tensor_bytes: int
    bits_per_element: float
    encode_gb_s: float
    decode_gb_s: float
    encode_us: float
    decode_us: float
    encode_vs_memcpy: float
    """Time over that of a copy of the tensor, in the median round."""

    decode_vs_memcpy: float
    memcpy_gb_s: float
    rounds: int
    encode_first_us: float | None = None
    """The first call after the other codecs' turns; none in files of earlier versions."""

    decode_first_us: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> SpeedRow:
        """The row that :meth:`to_dict` wrote, also after it was JSON."""
        return cls(**{**fields, "shape": tuple(fields["shape"])})


def time_codecs(
    codecs: Sequence[Contender],
    shape: tuple[int, ...],
    *,
    seconds: float = 0.5,
    max_call_s: float = 3.0,
    dtype: torch.dtype = torch.float32,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[SpeedRow, ...]:
    """Times every codec on one tensor like a feature of that shape.

    Args:
        codecs: what to time.
        shape: shape of the tensor.
        seconds: about how long to spend on each codec; never fewer than three rounds.
        max_call_s: leave out codecs that take longer for one message and back.
        dtype: type of the tensor; codecs that do not take it are left out.
        clock: seconds from anywhere.
    """
    x = sample_feature(shape).to(dtype)
    lanes = [lane for codec in codecs if (lane := _warm_up(codec, x, max_call_s, clock)) is not None]
    copy = _Copy(x, clock)
    samples: dict[int, list[_Sample]] = {i: [] for i in range(len(lanes))}
    deadline = clock() + seconds * len(lanes)
    with _quiet_collector():
        for finished in range(MAX_ROUNDS):
            if finished >= MIN_ROUNDS and clock() > deadline:
                break
            _, copy_s = copy.sample()
            for i, lane in enumerate(lanes):
                samples[i].append(_Sample(*lane.encode_sample(), *lane.decode_sample(), copy_s))
    return tuple(_row(lane, x, samples[i]) for i, lane in enumerate(lanes))


def sample_feature(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """A tensor like a real feature: a rectified smooth map, or heavy-tailed tokens whose channels differ in scale (rank 1, 2)."""
    rng = np.random.default_rng(seed)
    if len(shape) < 3:
        scales = np.exp(0.5 * rng.normal(size=shape[-1:])).astype(np.float32)
        return torch.from_numpy((rng.standard_t(5, size=shape) * scales).astype(np.float32))
    x = rng.normal(size=shape).astype(np.float32)
    smooth = x + sum(np.roll(x, shift, axis) for shift in (-1, 1) for axis in (-2, -1))
    return torch.from_numpy(np.maximum(smooth / np.sqrt(5) + MAP_MEAN, 0).astype(np.float32))


def sweep_shape(num_bytes: int) -> tuple[int, int]:
    """Tokens of 4096 channels, or fewer channels, that take so many bytes as float32.

    >>> sweep_shape(1024), sweep_shape(1 << 20)
    ((1, 256), (64, 4096))
    """
    elements = num_bytes // 4
    return (elements // 4096, 4096) if elements > 4096 else (1, elements)


@dataclass(frozen=True, slots=True)
class _Sample:
    encode_first_s: float
    encode_s: float
    decode_first_s: float
    decode_s: float
    copy_s: float


class _Lane:
    """A codec with its message, and how many calls make a sample."""

    def __init__(self, codec: Contender, x: torch.Tensor, clock: Callable[[], float]) -> None:
        self.codec, self._x, self._clock = codec, x, clock
        started = clock()
        self.message = codec.encode(x)
        encoded = clock()
        codec.decode(self.message)
        self.encode_s, self.decode_s = encoded - started, clock() - encoded

    def encode_sample(self) -> tuple[float, float]:
        return _sample(lambda: self.codec.encode(self._x), self.encode_s, self._clock)

    def decode_sample(self) -> tuple[float, float]:
        return _sample(lambda: self.codec.decode(self.message), self.decode_s, self._clock)


class _Copy:
    """A copy of the tensor's bytes to another place, over and over."""

    def __init__(self, x: torch.Tensor, clock: Callable[[], float]) -> None:
        self._source = x.view(torch.uint8).reshape(-1).numpy()
        self._target = np.empty_like(self._source)
        self._clock = clock
        self._seconds = min(_sample(self._copy, 1e-6, clock)[1] for _ in range(5))

    def sample(self) -> tuple[float, float]:
        return _sample(self._copy, self._seconds, self._clock)

    def _copy(self) -> None:
        np.copyto(self._target, self._source)


def _warm_up(codec: Contender, x: torch.Tensor, max_call_s: float, clock: Callable[[], float]) -> _Lane | None:
    """The codec made ready by two messages and back, the first of which may compile; none where it is too slow."""
    for _ in range(2):
        lane = _Lane(codec, x, clock)
        if lane.encode_s + lane.decode_s > 4 * max_call_s:
            return None
    return lane if lane.encode_s + lane.decode_s <= max_call_s else None


def _sample(call: Callable[[], object], expected_s: float, clock: Callable[[], float]) -> tuple[float, float]:
    """Seconds of a first call, and of one of those after it, as the mean of as many as make a sample."""
    started = clock()
    call()
    first_s = clock() - started
    if first_s >= LONG_CALL_S:
        return first_s, first_s
    repeats = max(1, math.ceil(LEAST_SAMPLE_S / max(expected_s, 1e-7)))
    started = clock()
    for _ in range(repeats):
        call()
    return first_s, (clock() - started) / repeats


@contextmanager
def _quiet_collector() -> Iterator[None]:
    """No garbage collection while the clock runs."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _row(lane: _Lane, x: torch.Tensor, samples: Sequence[_Sample]) -> SpeedRow:
    size = x.numel() * x.element_size()
    encode_s, decode_s, copy_s, encode_first_s, decode_first_s = (
        statistics.median(getattr(sample, field) for sample in samples)
        for field in ("encode_s", "decode_s", "copy_s", "encode_first_s", "decode_first_s")
    )
    return SpeedRow(
        codec=lane.codec.name,
        shape=tuple(x.shape),
        dtype=str(x.dtype).removeprefix("torch."),
        tensor_bytes=size,
        bits_per_element=8 * len(lane.message) / x.numel(),
        encode_gb_s=size / encode_s / 1e9,
        decode_gb_s=size / decode_s / 1e9,
        encode_us=1e6 * encode_s,
        decode_us=1e6 * decode_s,
        encode_vs_memcpy=statistics.median(sample.encode_s / sample.copy_s for sample in samples),
        decode_vs_memcpy=statistics.median(sample.decode_s / sample.copy_s for sample in samples),
        memcpy_gb_s=size / copy_s / 1e9,
        rounds=len(samples),
        encode_first_us=1e6 * encode_first_s,
        decode_first_us=1e6 * decode_first_s,
    )
