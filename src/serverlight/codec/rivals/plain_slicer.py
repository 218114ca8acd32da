"""The paper's three stages once more: with an entropy coder, and with a choice where the paper leaves one open.

Profile ``slicer`` puts a value in the middle of its cell. One may also lay a group's levels evenly from its least to its
largest magnitude, ends included, and take the nearest. Which is better depends on the feature, so a rival at its best may
have either.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from serverlight.codec.rivals.entropy import code_many, pack_bits, uncode_many, unpack_bits
from serverlight.codec.rivals.rival import Body, Float32, Integers, Rival, read_varint, varint
from serverlight.codec.rivals.topk import largest

__all__ = ["PlainSlicer"]

Levels = Literal["middle", "ends"]

MAX_BITS = 10
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

    coding: Literal["bitmap", "rans"] = "bitmap"
    """Bitmap, labels and codes at fixed widths; or a symbol for each element (dropped, or group and code) under rANS.
    Signs are bits."""

    def _pack_many(self, tensors: Sequence[Float32]) -> list[bytes]:
        parts = [self._quantise(x) for x in tensors]
        fronts = [part.front() for part in parts]
        if self.coding == "rans":
            return code_many(fronts, [[part.symbols] for part in parts])
        return [front + part.fixed_widths() for front, part in zip(fronts, parts, strict=True)]

    def _unpack_many(self, bodies: Sequence[Body]) -> list[Float32]:
        read = [_Quantised.read_front(body, math.prod(shape), self.levels) for body, shape in bodies]
        if self.coding == "rans":
            coded = [(body, at, [part.num_elements]) for (body, _), (part, at) in zip(bodies, read, strict=True)]
            symbols = [streams[0] for streams in uncode_many(coded)]
        else:
            symbols = [part.read_fixed_widths(body[at:]) for (body, _), (part, at) in zip(bodies, read, strict=True)]
        return [
            part.values(found).reshape(shape)
            for (_, shape), (part, _), found in zip(bodies, read, symbols, strict=True)
        ]

    def _quantise(self, x: Float32) -> _Quantised:
        flat = np.ascontiguousarray(x).reshape(-1)
        kept = largest(flat, math.ceil(round((1 - self.sparsity) * len(flat), 6)))
        magnitudes = np.abs(flat[kept])
        order = np.argsort(magnitudes, kind="stable")
        bits, ranges, symbols = [], [], np.zeros(len(flat), np.int32)
        first = 1
        for members in np.array_split(order, self.num_groups):
            group = magnitudes[members] if len(members) else np.ones(1, np.float32)
            low, high = np.float16(group.min()), np.float16(group.max())
            span = np.float32(high) - np.float32(low)
            share = np.clip((group - np.float32(low)) / span, 0, 1) if span > 0 else np.zeros_like(group)
            width = self._width(share) if span > 0 else 0
            codes = _codes(share, width, self.levels)
            symbols[kept[members]] = first + codes[: len(members)]
            first += 1 << width
            bits.append(width)
            ranges.append((low, high))
        return _Quantised(tuple(bits), np.array(ranges, "<f2"), symbols, flat[kept] < 0, len(flat), self.levels)

    def _width(self, share: Float32) -> int:
        """The least width whose mean error is within the budget."""
        for width in range(MAX_BITS):
            error = np.abs(share - _places(_codes(share, width, self.levels), width, self.levels))
            if float(error.mean()) <= self.distortion:
                return width
        return MAX_BITS


def _codes(share: Float32, width: int, levels: Levels) -> Integers:
    """Codes of values given as shares of a group's range, which may have a width each."""
    if levels == "ends":
        return np.rint(share * ((1 << width) - 1)).astype(np.int32)
    return np.minimum(share * (1 << width), (1 << width) - 1).astype(np.int32)


def _places(codes: Integers, width: int | Integers, levels: Levels) -> Float32:
    """Where codes lie in the range, as shares of it; at width 0 the lower end, or the middle."""
    count = np.left_shift(1, width)
    places = codes / np.maximum(count - 1, 1) if levels == "ends" else (codes + 0.5) / count
    return np.asarray(places, np.float32)


@dataclass(frozen=True, eq=False, slots=True)
class _Quantised:
    """A symbol for each element: 0 if dropped, else one more than its place among the levels of all groups."""

    bits: tuple[int, ...]
    ranges: np.ndarray[tuple[int, ...], np.dtype[np.float16]]
    symbols: Integers
    negative: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    num_elements: int
    levels: Levels

    def front(self) -> bytes:
        """The groups, whether there are signs, and the signs."""
        groups = bytes(self.bits) + self.ranges.tobytes()
        signs = pack_bits(self.negative.astype(np.int32), 1) if self.negative.any() else b""
        return varint(len(self.bits)) + groups + varint(len(self.negative)) + bytes((bool(signs),)) + signs

    @classmethod
    def read_front(cls, body: bytes, num_elements: int, levels: Levels) -> tuple[_Quantised, int]:
        """The inverse of :meth:`front` without symbols, and where the next byte is."""
        num_groups, at = read_varint(body, 0)
        bits = tuple(body[at : at + num_groups])
        ranges = np.frombuffer(body, "<f2", 2 * num_groups, at + num_groups).reshape(-1, 2)
        num_kept, at = read_varint(body, at + RANGE_BYTES * num_groups)
        has_signs, at = body[at], at + 1
        end = at + (num_kept + 7) // 8 * has_signs
        negative = unpack_bits(body[at:end], num_kept, 1) if has_signs else np.zeros(num_kept)
        return cls(bits, ranges, np.empty(0, np.int32), negative.astype(bool), num_elements, levels), end

    def fixed_widths(self) -> bytes:
        """Bitmap, labels, then the codes of each group at its width."""
        kept = self.symbols > 0
        labels, codes = self._split(self.symbols[kept])
        parts = [np.packbits(kept).tobytes(), pack_bits(labels, self._label_width)]
        parts += [pack_bits(codes[labels == group], width) for group, width in enumerate(self.bits) if width]
        return b"".join(parts)

    def read_fixed_widths(self, data: bytes) -> Integers:
        """The symbols of :meth:`fixed_widths`."""
        at = (self.num_elements + 7) // 8
        kept = np.unpackbits(np.frombuffer(data[:at], np.uint8), count=self.num_elements).astype(bool)
        labels = unpack_bits(data[at:], len(self.negative), self._label_width)
        at += (len(labels) * self._label_width + 7) // 8
        found = self._firsts[labels]
        for group, width in enumerate(self.bits):
            count = int((labels == group).sum())
            if width and count:
                end = at + (count * width + 7) // 8
                found[labels == group] += unpack_bits(data[at:end], count, width)
                at = end
        symbols = np.zeros(self.num_elements, np.int32)
        symbols[kept] = found
        return symbols

    def values(self, symbols: Integers) -> Float32:
        """The elements that the symbols stand for."""
        kept = symbols > 0
        labels, codes = self._split(symbols[kept])
        low, high = self.ranges.astype(np.float32)[labels].T
        magnitudes = low + (high - low) * _places(codes, np.array(self.bits, np.int32)[labels], self.levels)
        values = np.zeros(self.num_elements, np.float32)
        values[kept] = np.where(self.negative, -magnitudes, magnitudes)
        return values

    def _split(self, found: Integers) -> tuple[Integers, Integers]:
        """Group and code of symbols other than 0."""
        labels = np.searchsorted(self._firsts, found, side="right") - 1
        return labels.astype(np.int32), found - self._firsts[labels]

    @property
    def _firsts(self) -> Integers:
        """The symbol of code 0 of each group."""
        levels = 1 << np.array(self.bits, np.int32)
        return np.asarray(1 + np.cumsum(levels) - levels, np.int32)

    @property
    def _label_width(self) -> int:
        return (len(self.bits) - 1).bit_length()
