"""The paper's three stages once more: with each way to write positions, and with a choice where the paper leaves one open.

Profile ``slicer`` puts a value in the middle of its cell. One may also lay a group's levels evenly from its least to its
largest magnitude, ends included, and take the nearest. Which is better depends on the feature, so a rival at its best may
have either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import numpy.typing as npt

from serverlight.codec.rivals.compiled import quantise_groups
from serverlight.codec.rivals.entropy import code, pack_bits, uncode, unpack_bits
from serverlight.codec.rivals.rival import Float32, Integers, Rival, read_varint, varint
from serverlight.codec.rivals.topk import largest, read_positions, write_positions

__all__ = ["PlainSlicer"]

Levels = Literal["middle", "ends"]

RANGE_BYTES = 5
"""Width of the codes, and two halves for the range."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlainSlicer(Rival):
    """Top-K, equal groups by magnitude, and the least width for each that keeps the mean error within the budget."""

    name: ClassVar[str] = "slicer-plain"

    sparsity: float = 0.5
    """Share of elements that are dropped."""

    num_groups: int = 4
    """Groups of equal size."""

    distortion: float = 0.1
    """Mean error allowed in a group, as a share of its range."""

    levels: Levels = "middle"
    """Where in a group's range its values may lie."""

    coding: Literal["bitmap", "csr", "rans"] = "bitmap"
    """A bitmap or a sparse matrix, then labels and codes at fixed widths; or a symbol for each element (dropped, or group and
    code) under rANS. Signs are bits."""

    def _pack(self, x: Float32) -> bytes:
        groups, kept, symbols, negative = self._quantise(np.ascontiguousarray(x).reshape(-1))
        signs = pack_bits(negative.astype(np.int32), 1) if negative.any() else b""
        front = groups.to_bytes() + varint(len(kept)) + bytes((bool(signs),)) + signs
        if self.coding == "rans":
            everywhere = np.zeros(x.size, np.int32)
            everywhere[kept] = symbols
            return code(front, [everywhere])
        return front + write_positions(kept, x.size, self.coding) + groups.fixed_widths(symbols)

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        groups, at = _Groups.from_bytes(body)
        num_elements = math.prod(shape)
        num_kept, at = read_varint(body, at)
        has_signs, at = body[at], at + 1
        end = at + (num_kept + 7) // 8 * has_signs
        negative = unpack_bits(body[at:end], num_kept, 1) if has_signs else np.zeros(num_kept)
        if self.coding == "rans":
            (everywhere,) = uncode(body, end, [num_elements])
            kept = np.flatnonzero(everywhere)
            symbols = everywhere[kept]
        else:
            kept, size = read_positions(body[end:], num_elements, num_kept, self.coding)
            symbols = groups.read_fixed_widths(body[end + size :], num_kept)
        magnitudes = groups.magnitudes(self.levels)[symbols]
        flat = np.zeros(num_elements, np.float32)
        flat[kept] = np.where(negative, -magnitudes, magnitudes)
        return flat.reshape(shape)

    def _quantise(self, flat: Float32) -> tuple[_Groups, npt.NDArray[np.int64], Integers, npt.NDArray[np.bool_]]:
        """The groups; positions, symbols and signs of the survivors."""
        kept = largest(flat, math.ceil(round((1 - self.sparsity) * len(flat), 6)))
        magnitudes = np.abs(flat[kept])
        order = np.argsort(magnitudes)
        ordered = magnitudes[order]
        # As equal as they can be, the first ones larger.
        sizes = np.array([(len(kept) + self.num_groups - 1 - g) // self.num_groups for g in range(self.num_groups)])
        ends = np.cumsum(sizes)
        ranges = np.ones((self.num_groups, 2), "<f2")
        used = sizes > 0
        ranges[used, 0], ranges[used, 1] = ordered[(ends - sizes)[used]], ordered[ends[used] - 1]
        low, high = np.ascontiguousarray(ranges.T, np.float32)
        codes = np.zeros(len(kept), np.int32)
        widths = quantise_groups(ordered, ends, low, high, self.distortion, self.levels == "ends", codes)
        groups = _Groups(tuple(widths.tolist()), ranges)
        symbols = np.empty(len(kept), np.int32)
        symbols[order] = codes + np.repeat(groups.firsts, sizes)
        return groups, kept, symbols, flat[kept] < 0


@dataclass(frozen=True, eq=False, slots=True)
class _Groups:
    """Widths and ranges. A survivor's symbol is one more than its code's place among the levels of all groups."""

    bits: tuple[int, ...]
    ranges: npt.NDArray[np.float16]

    def to_bytes(self) -> bytes:
        return varint(len(self.bits)) + bytes(self.bits) + self.ranges.tobytes()

    @classmethod
    def from_bytes(cls, body: bytes) -> tuple[_Groups, int]:
        """The inverse of :meth:`to_bytes`, and where the next byte is."""
        num_groups, at = read_varint(body, 0)
        ranges = np.frombuffer(body, "<f2", 2 * num_groups, at + num_groups).reshape(-1, 2)
        return cls(tuple(body[at : at + num_groups]), ranges), at + RANGE_BYTES * num_groups

    def fixed_widths(self, symbols: Integers) -> bytes:
        """Labels, then the codes of each group at its width."""
        labels = self._labels[symbols]
        codes = symbols - self.firsts[labels]
        parts = [pack_bits(labels, self._label_width)]
        parts += [pack_bits(codes[labels == group], width) for group, width in enumerate(self.bits) if width]
        return b"".join(parts)

    def read_fixed_widths(self, data: bytes, num_kept: int) -> Integers:
        """The symbols of :meth:`fixed_widths`."""
        labels = unpack_bits(data, num_kept, self._label_width)
        at = (num_kept * self._label_width + 7) // 8
        symbols = self.firsts[labels]
        for group, width in enumerate(self.bits):
            count = int((labels == group).sum())
            if width and count:
                end = at + (count * width + 7) // 8
                symbols[labels == group] += unpack_bits(data[at:end], count, width)
                at = end
        return symbols

    def magnitudes(self, levels: Levels) -> Float32:
        """What each symbol stands for: the places of its group's codes from the range's low to its high end."""
        values = [np.zeros(1, np.float32)]
        for width, (low, high) in zip(self.bits, self.ranges.astype(np.float32), strict=True):
            codes, count = np.arange(1 << width, dtype=np.float32), 1 << width
            places = codes / max(count - 1, 1) if levels == "ends" else (codes + np.float32(0.5)) / count
            values.append(low + (high - low) * places)
        return np.concatenate(values)

    @property
    def firsts(self) -> Integers:
        """The symbol of code 0 of each group."""
        levels = 1 << np.array(self.bits, np.int32)
        return np.asarray(1 + np.cumsum(levels) - levels, np.int32)

    @property
    def _labels(self) -> Integers:
        """The group of each symbol; symbol 0 has none."""
        return np.repeat(np.arange(-1, len(self.bits), dtype=np.int32), [1, *(1 << width for width in self.bits)])

    @property
    def _label_width(self) -> int:
        return (len(self.bits) - 1).bit_length()
