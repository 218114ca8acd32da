"""The low frequencies of a feature, after FourierCompress (arXiv 2510.16418, Ma et al. 2025): our reading.

The paper takes the two-dimensional Fourier transform of the matrix of tokens and channels that crosses an early cut of a language
model and sends the coefficients of low frequency only; the server fills in their mirror images, since the spectrum of real values
is conjugate-symmetric. Frequencies up to k along a side, mirror images included, are what the first 2 k + 1 real waves along it
span: a constant, then a cosine and a sine of each frequency. So what is sent here are the coordinates in these orthonormal waves:
the same block, no number twice.

We have the abstract and public summaries. Where they leave a choice, it is made in the rival's favour: the block's share of each
side is searched; of a feature map every channel is a matrix of its own, since neighbours in space are alike and neighbouring
channels are not; coefficients are halves. A second form, which the paper does not have, quantises them uniformly and puts them
under rANS.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from serverlight.codec.rivals.entropy import code, uncode
from serverlight.codec.rivals.integers import LARGEST_HALF
from serverlight.codec.rivals.rival import Float32, Integers, Rival, is_map, token_shape
from serverlight.errors import ConfigError

__all__ = ["EntropyCodedSpectrum", "Spectrum", "dequantise", "quantise", "waves"]

STEP_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Spectrum(Rival):
    """A block of low frequencies as halves."""

    name: ClassVar[str] = "fourier"

    rows: float = 1.0
    """Share of the waves along the first side that is kept: tokens, or the height of a map."""

    columns: float = 0.5
    """The same along the second: channels, or the width of a map."""

    def __post_init__(self) -> None:
        for field, share in (("rows", self.rows), ("columns", self.columns)):
            if not 0 < share <= 1:
                raise ConfigError(field, f"must be above 0 and at most 1, got {share}")

    def _pack(self, x: Float32) -> bytes:
        return np.clip(self._transformed(x), -LARGEST_HALF, LARGEST_HALF).astype("<f2").tobytes()

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        return self._restored(np.frombuffer(body, "<f2").astype(np.float32), shape)

    def _transformed(self, x: Float32) -> Float32:
        """The block's coefficients (planes, rows, columns) of a feature."""
        planes = x.reshape(_planes(x.shape))
        along_rows, along_columns = self._waves(planes.shape)
        return _product(along_rows, planes, along_columns.T)

    def _restored(self, block: Float32, shape: tuple[int, ...]) -> Float32:
        """The feature that has these coefficients and no others."""
        along_rows, along_columns = self._waves(_planes(shape))
        return _product(along_rows.T, block.reshape(self._block_shape(shape)), along_columns).reshape(shape)

    def _waves(self, planes: tuple[int, int, int]) -> tuple[Float32, Float32]:
        return waves(planes[1])[: _count(self.rows, planes[1])], waves(planes[2])[: _count(self.columns, planes[2])]

    def _block_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        planes, height, width = _planes(shape)
        return planes, _count(self.rows, height), _count(self.columns, width)


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyCodedSpectrum(Spectrum):
    """The same block under a uniform quantiser and one rANS table."""

    name: ClassVar[str] = "fourier-rans"

    step: float = 0.5
    """Step of the quantiser, in units of the feature's root mean square."""

    def __post_init__(self) -> None:
        Spectrum.__post_init__(self)
        if not self.step > 0:
            raise ConfigError("step", f"must be positive, got {self.step}")

    def _pack(self, x: Float32) -> bytes:
        step = np.float32(self.step * math.sqrt(float(np.square(x, dtype=np.float64).mean())))
        return code(step.astype("<f4").tobytes(), [quantise(self._transformed(x), step)])

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        (codes,) = uncode(body, STEP_BYTES, [math.prod(self._block_shape(shape))])
        return self._restored(dequantise(codes, np.frombuffer(body, "<f4", 1)[0]), shape)


def _product(a: Float32, b: Float32, c: Float32) -> Float32:
    """Three matrices multiplied. A BLAS may compute on what lies beside small ones, too, and raise flags for what is there."""
    with np.errstate(all="ignore"):
        return np.asarray(a @ b @ c, np.float32)


def quantise(values: Float32, step: np.float32) -> Integers:
    """Multiples of the step that are nearest, in one row; zeros for a step of zero."""
    inverse = np.float32(1 / step if step > 0 else 0)
    return np.asarray(np.rint(values.reshape(-1) * inverse), np.int32)


def dequantise(codes: Integers, step: np.float32) -> Float32:
    """The inverse of :func:`quantise`."""
    values: Float32 = codes.astype(np.float32) * step
    return values


@functools.lru_cache(maxsize=64)
def waves(count: int) -> Float32:
    """Orthonormal real waves over so many places, one a row, by ascending frequency: cosine, then sine.

    >>> np.abs(waves(5) @ waves(5).T - np.eye(5)).max() < 1e-6
    np.True_
    """
    turns = np.arange(count) / count
    rows = [np.full(count, count**-0.5)]
    for frequency in range(1, (count + 1) // 2):
        angles = 2 * np.pi * frequency * turns
        rows += [math.sqrt(2 / count) * np.cos(angles), math.sqrt(2 / count) * np.sin(angles)]
    if count % 2 == 0:
        rows.append(np.where(np.arange(count) % 2, -1, 1) * count**-0.5)
    found = np.array(rows, np.float32)
    found.setflags(write=False)
    return found


def _planes(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """A map (C, H, W) as C matrices; all else as one of tokens and channels.

    >>> _planes((1, 16, 8, 4)), _planes((1, 12, 384))
    ((16, 8, 4), (1, 12, 384))
    """
    num_tokens, channels = token_shape(shape)
    if not is_map(shape):
        return 1, num_tokens, channels
    return channels, num_tokens // max(shape[-1], 1), shape[-1]


def _count(share: float, side: int) -> int:
    """Waves that are kept along a side, at least one."""
    return max(1, math.ceil(round(share * side, 6)))
