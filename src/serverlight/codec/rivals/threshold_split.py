"""Threshold splitting and token-wise adaptive bits, after arXiv 2511.04002 (Sung et al. 2025): our reading.

The paper compresses what crosses a cut of a language model in two stages. Threshold splitting takes out the few elements of
large magnitude, on which the answers hang, and sends them as they are in a sparse matrix. Token-wise adaptive quantisation then
gives each token of the rest a range of its own and the least width that keeps a distortion. Its code is not public, and we have
the abstract and what others tell of it. Where that leaves a choice, it is made in the rival's favour: the threshold is in units of
the tensor's root mean square, so that one grid serves every model; outliers are halves, in rows of the best length; distortion is
the mean error as a share of the token's range, as in SLICER; the rows may be channels, which is
better for feature maps; and a second form puts the codes of each width under rANS.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from serverlight.codec.rivals.compiled import quantise_groups
from serverlight.codec.rivals.entropy import code, pack_bits, uncode, unpack_bits
from serverlight.codec.rivals.integers import LARGEST_HALF
from serverlight.codec.rivals.rival import (
    Float32,
    Integers,
    Rival,
    as_tokens,
    from_tokens,
    read_varint,
    token_shape,
    varint,
)
from serverlight.codec.rivals.topk import read_positions, write_positions
from serverlight.errors import ConfigError

__all__ = ["ThresholdSplit"]

WIDTH_BITS = 4
"""Bits that tell a width, which is 10 at most."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ThresholdSplit(Rival):
    """Outliers as a sparse matrix of halves; of the rest each row has its range and the least width that keeps the distortion."""

    name: ClassVar[str] = "ts-tabq"

    threshold: float = 8.0
    """Magnitude from which on an element is an outlier, in units of the tensor's root mean square."""

    distortion: float = 0.02
    """Mean error allowed in a row, as a share of its range."""

    scope: Literal["token", "channel"] = "token"
    """What is a row: tokens in the paper."""

    levels: Literal["middle", "ends"] = "ends"
    """Where in a row's range its values may lie; see :mod:`serverlight.codec.rivals.plain_slicer`."""

    coding: Literal["packed", "rans"] = "packed"
    """Codes at their widths, or under a table for each width."""

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ConfigError("threshold", f"must be positive, got {self.threshold}; 1000 takes no outliers out")
        if not 0 <= self.distortion < 1:
            raise ConfigError("distortion", f"must be from 0 to below 1, got {self.distortion}")

    def _pack(self, x: Float32) -> bytes:
        rows = np.ascontiguousarray(self._turned(as_tokens(x)))
        flat = rows.reshape(-1)
        outliers = self._outliers(flat)
        rest = flat.copy()
        rest[outliers] = 0
        ranges, widths, codes = self._quantise(rest.reshape(rows.shape))
        front = b"".join((
            varint(len(outliers)), write_positions(outliers, len(flat), "csr"), _halves(flat[outliers]).tobytes(),
            pack_bits(widths, WIDTH_BITS), ranges.tobytes(),
        ))  # fmt: skip
        parts = [codes[widths == width].reshape(-1) for width in _present(widths)]
        if self.coding == "rans" and parts:
            return code(front, parts)
        return front + b"".join(map(pack_bits, parts, _present(widths)))

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        num_rows, length = token_shape(shape) if self.scope == "token" else token_shape(shape)[::-1]
        count, at = read_varint(body, 0)
        outliers, size = read_positions(body[at:], num_rows * length, count, "csr")
        values = np.frombuffer(body, "<f2", count, at + size)
        at += size + values.nbytes
        widths = unpack_bits(body[at:], num_rows, WIDTH_BITS)
        at += (num_rows * WIDTH_BITS + 7) // 8
        ranges = np.frombuffer(body, "<f2", 2 * num_rows, at).astype(np.float32).reshape(-1, 2)
        codes = self._read_codes(body, at + 4 * num_rows, widths, length)
        rows = self._places(codes, widths) * (ranges[:, 1:] - ranges[:, :1]) + ranges[:, :1]
        rows.reshape(-1)[outliers] = values
        return from_tokens(self._turned(rows), shape)

    def _turned(self, matrix: Float32) -> Float32:
        """Tokens to rows, and back."""
        return matrix.T if self.scope == "channel" else matrix

    def _outliers(self, flat: Float32) -> npt.NDArray[np.int64]:
        limit = self.threshold * math.sqrt(float(np.square(flat, dtype=np.float64).mean()))
        return np.flatnonzero(np.abs(flat) >= limit) if limit > 0 else np.empty(0, np.int64)

    def _quantise(self, rows: Float32) -> tuple[npt.NDArray[np.float16], Integers, Integers]:
        """Ranges (rows, 2), widths (rows,) and codes in the shape of the rows."""
        ranges = _halves(np.stack([rows.min(1), rows.max(1)], 1))
        low, high = np.ascontiguousarray(ranges.T, np.float32)
        ends = np.arange(1, len(rows) + 1, dtype=np.int64) * rows.shape[1]
        codes = np.zeros(rows.size, np.int32)
        widths = quantise_groups(
            rows.reshape(-1), ends, low, high, float(self.distortion), self.levels == "ends", codes
        )
        return ranges, widths.astype(np.int32), codes.reshape(rows.shape)

    def _read_codes(self, body: bytes, at: int, widths: Integers, length: int) -> Integers:
        counts = [length * int((widths == width).sum()) for width in _present(widths)]
        codes = np.zeros((len(widths), length), np.int32)
        parts = uncode(body, at, counts) if self.coding == "rans" and counts else []
        for i, (width, count) in enumerate(zip(_present(widths), counts, strict=True)):
            part = parts[i] if parts else unpack_bits(body[at:], count, width)
            at += 0 if parts else (count * width + 7) // 8
            codes[widths == width] = part.reshape(-1, length)
        return codes

    def _places(self, codes: Integers, widths: Integers) -> Float32:
        """Where in its row's range each code lies, from 0 to 1."""
        cells, values = (1 << widths).astype(np.float32)[:, None], codes.astype(np.float32)
        if self.levels == "ends":
            return np.asarray(values / np.maximum(cells - 1, 1), np.float32)
        return np.asarray((values + 0.5) / cells, np.float32)


def _present(widths: Integers) -> list[int]:
    """The widths above zero that some row has."""
    return [int(width) for width in np.unique(widths) if width > 0]


def _halves(values: Float32) -> npt.NDArray[np.float16]:
    return np.clip(values, -LARGEST_HALF, LARGEST_HALF).astype("<f2")
