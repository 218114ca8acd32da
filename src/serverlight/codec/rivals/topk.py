"""The largest elements as float16, and where they are."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from serverlight.codec.rivals.entropy import pack_bits, unpack_bits
from serverlight.codec.rivals.rival import Float32, OneByOne, read_varint, varint

__all__ = ["TopK", "largest"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TopK(OneByOne):
    """The share ``1 - sparsity`` of largest magnitude; all else is zero."""

    name: ClassVar[str] = "topk-fp16"

    sparsity: float = 0.5
    """Share of elements that are dropped."""

    positions: Literal["bitmap", "csr"] = "bitmap"
    """One bit for each element, or column indices and row counts at their least widths, in rows of the best length."""

    def _pack(self, x: Float32) -> bytes:
        flat = np.ascontiguousarray(x).reshape(-1)
        kept = largest(flat, math.ceil(round((1 - self.sparsity) * len(flat), 6)))
        where = _bitmap(kept, len(flat)) if self.positions == "bitmap" else _csr(kept, len(flat))
        return varint(len(kept)) + where + flat[kept].astype("<f2").tobytes()

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        num_elements = math.prod(shape)
        num_kept, at = read_varint(body, 0)
        end = len(body) - 2 * num_kept
        read = _read_bitmap if self.positions == "bitmap" else _read_csr
        flat = np.zeros(num_elements, np.float32)
        flat[read(body[at:end], num_elements, num_kept)] = np.frombuffer(body[end:], "<f2").astype(np.float32)
        return flat.reshape(shape)


Positions = npt.NDArray[np.int64]


def largest(flat: Float32, count: int) -> Positions:
    """Positions of the ``count`` largest magnitudes that are not zero, ascending."""
    if count >= len(flat):
        return np.flatnonzero(flat)
    kept = np.argpartition(np.abs(flat), len(flat) - count)[len(flat) - count :]
    return np.sort(kept[flat[kept] != 0])


def _bitmap(kept: Positions, num_elements: int) -> bytes:
    bits = np.zeros(num_elements, np.uint8)
    bits[kept] = 1
    return np.packbits(bits).tobytes()


def _read_bitmap(data: bytes, num_elements: int, _num_kept: int) -> Positions:
    return np.flatnonzero(np.unpackbits(np.frombuffer(data, np.uint8), count=num_elements))


def _csr(kept: Positions, num_elements: int) -> bytes:
    width = _best_row_width(num_elements, len(kept))
    counts = np.bincount(kept >> width, minlength=_num_rows(num_elements, width))
    columns = kept & ((1 << width) - 1)
    return pack_bits(counts.astype(np.int32), width + 1) + pack_bits(columns.astype(np.int32), width)


def _read_csr(data: bytes, num_elements: int, num_kept: int) -> Positions:
    width = _best_row_width(num_elements, num_kept)
    num_rows = _num_rows(num_elements, width)
    begin = (num_rows * (width + 1) + 7) // 8
    rows = np.repeat(np.arange(num_rows), unpack_bits(data[:begin], num_rows, width + 1))
    return (rows << width) + unpack_bits(data[begin:], num_kept, width)


def _best_row_width(num_elements: int, num_kept: int) -> int:
    """Rows are ``2**width`` long; the width with the fewest bits for all counts and columns."""
    return min(range(1, 15), key=lambda w: _num_rows(num_elements, w) * (w + 1) + num_kept * w)


def _num_rows(num_elements: int, width: int) -> int:
    return -(-num_elements >> width) if num_elements else 0
