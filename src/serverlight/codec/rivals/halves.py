"""Plain half floats, and half floats under zstd."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from serverlight.codec.rivals import zstd
from serverlight.codec.rivals.rival import Float32, Rival, read_varint, varint

__all__ = ["Halves", "ShuffledHalves"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Halves(Rival):
    """Every element as float16.

    >>> Halves().decode(Halves().encode(np.float32([1.5, -0.25])))
    array([ 1.5 , -0.25], dtype=float32)
    """

    name: ClassVar[str] = "fp16"

    def _pack(self, x: Float32) -> bytes:
        return x.astype("<f2").tobytes()

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        return np.frombuffer(body, "<f2").astype(np.float32).reshape(shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class ShuffledHalves(Rival):
    """Every element as float16; the high bytes of all, then the low bytes of all, each under zstd where that helps."""

    name: ClassVar[str] = "fp16-zstd"

    level: int = 1
    """Effort of zstd, 1 to 22."""

    def _pack(self, x: Float32) -> bytes:
        halves = x.astype("<f2").reshape(-1).view(np.uint8)
        high, low = self._squeeze(halves[1::2].tobytes()), self._squeeze(halves[::2].tobytes())
        return varint(len(high)) + high + low

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        size = math.prod(shape)
        num_high, at = read_varint(body, 0)
        planes = [_unsqueeze(body[at : at + num_high], size), _unsqueeze(body[at + num_high :], size)]
        halves = np.empty((size, 2), np.uint8)
        halves[:, 1], halves[:, 0] = (np.frombuffer(plane, np.uint8) for plane in planes)
        return halves.view("<f2").astype(np.float32).reshape(shape)

    def _squeeze(self, plane: bytes) -> bytes:
        """The plane under zstd if that is shorter; its length tells which."""
        return min(plane, zstd.compress(plane, self.level), key=len)


def _unsqueeze(data: bytes, size: int) -> bytes:
    return data if len(data) == size else zstd.decompress(data, size)
