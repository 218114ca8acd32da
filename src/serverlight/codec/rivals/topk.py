"""The largest elements as float16, and where they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from serverlight.codec.rivals.entropy import pack_bits, unpack_bits
from serverlight.codec.rivals.rival import Float32, Rival, read_varint, varint

__all__ = ["TopK", "largest", "read_positions", "write_positions"]

PositionCode = Literal["bitmap", "csr"]
Positions = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class TopK(Rival):
    """The share ``1 - sparsity`` of largest magnitude; all else is zero."""

    name: ClassVar[str] = "topk-fp16"

    sparsity: float = 0.5
    """Share of elements that are dropped."""

    positions: PositionCode = "bitmap"
    """One bit for each element, or column indices and row counts at their least widths, in rows of the best length."""

    def _pack(self, x: Float32) -> bytes:
        flat = np.ascontiguousarray(x).reshape(-1)
        kept = largest(flat, math.ceil(round((1 - self.sparsity) * len(flat), 6)))
        where = write_positions(kept, len(flat), self.positions)
        return varint(len(kept)) + where + flat[kept].astype("<f2").tobytes()

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        num_elements = math.prod(shape)
        num_kept, at = read_varint(body, 0)
        kept, size = read_positions(body[at:], num_elements, num_kept, self.positions)
        flat = np.zeros(num_elements, np.float32)
        flat[kept] = np.frombuffer(body, "<f2", num_kept, at + size).astype(np.float32)
        return flat.reshape(shape)


def largest(flat: Float32, count: int) -> Positions:
    """Positions of the ``count`` largest magnitudes that are not zero, ascending."""
    if count >= len(flat):
        return np.flatnonzero(flat)
    kept = np.argpartition(np.abs(flat), len(flat) - count)[len(flat) - count :]
    return np.sort(kept[flat[kept] != 0])


def write_positions(kept: Positions, num_elements: int, how: PositionCode) -> bytes:
    """Ascending positions as a bitmap, or as counts and columns of rows of the best length."""
    if how == "bitmap":
        bits = np.zeros(num_elements, np.uint8)
        bits[kept] = 1
        return np.packbits(bits).tobytes()
    width = _best_row_width(num_elements, len(kept))
    counts = np.bincount(kept >> width, minlength=_num_rows(num_elements, width))
    columns = kept & ((1 << width) - 1)
    return pack_bits(counts.astype(np.int32), width + 1) + pack_bits(columns.astype(np.int32), width)


def read_positions(data: bytes, num_elements: int, num_kept: int, how: PositionCode) -> tuple[Positions, int]:
    """The positions, and how many bytes they took."""
    if how == "bitmap":
        bits = np.unpackbits(np.frombuffer(data, np.uint8, (num_elements + 7) // 8), count=num_elements)
        return np.flatnonzero(bits), (num_elements + 7) // 8
    width = _best_row_width(num_elements, num_kept)
    num_rows = _num_rows(num_elements, width)
    begin = (num_rows * (width + 1) + 7) // 8
    rows = np.repeat(np.arange(num_rows), unpack_bits(data[:begin], num_rows, width + 1))
    return (rows << width) + unpack_bits(data[begin:], num_kept, width), begin + (num_kept * width + 7) // 8


def _best_row_width(num_elements: int, num_kept: int) -> int:
    """Rows are ``2**width`` long; the width with the fewest bits for all counts and columns."""
    return min(range(1, 15), key=lambda w: _num_rows(num_elements, w) * (w + 1) + num_kept * w)


def _num_rows(num_elements: int, width: int) -> int:
    return -(-num_elements >> width) if num_elements else 0
