"""A second reader of docs/wire-format.md, in plain Python with the standard library only.

It shares no code with the package: it shows that the page is enough to write a reader from. Slow, and trusting where the
package's reader is not. Values come as Python floats that hold binary32 numbers exactly.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Decoded:
    """A tensor as plain data: values in C order."""

    dtype: str
    shape: list[int]
    values: list[float]


class Bytes:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        assert self.at + count <= len(self.data)
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def fields(self, count: int, width: int) -> list[int]:
        """Section 1.3: read the section as one little-endian number and cut it up."""
        number = int.from_bytes(self.take((count * width + 7) // 8), "little")
        assert number >> count * width == 0
        return [number >> width * i & (1 << width) - 1 for i in range(count)]


def single(x: float) -> float:
    """Rounds to binary32."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def to_dtype(x: float, dtype: str) -> float:
    """Rounds a binary32 number to the frame's dtype, ties to even."""
    if dtype == "float16":
        return struct.unpack("<e", struct.pack("<e", x))[0]
    if dtype == "bfloat16":
        bits = struct.unpack("<I", struct.pack("<f", x))[0]
        bits = (bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000
        return struct.unpack("<f", struct.pack("<I", bits))[0]
    return x


def read_float(source: Bytes, dtype: str) -> float:
    if dtype == "float32":
        return struct.unpack("<f", source.take(4))[0]
    if dtype == "float16":
        return struct.unpack("<e", source.take(2))[0]
    return struct.unpack("<f", b"\0\0" + source.take(2))[0]


def read_frame(frame: bytes) -> Decoded:
    """Sections 1 to 5."""
    source = Bytes(frame)
    assert source.take(3) == b"SL\x01"
    profile, flags, rank = source.byte(), source.byte(), source.byte()
    dtype = ("float32", "float16", "bfloat16")[flags & 15]
    shape = [source.varint() for _ in range(rank)]
    if flags & 16:
        assert zlib.crc32(frame[:-4]) == int.from_bytes(frame[-4:], "little")
        source.data = frame[:-4]
    num_elements = math.prod(shape)
    values = PROFILES[profile](source, dtype, shape, num_elements)
    assert source.at == len(source.data)
    return Decoded(dtype, shape, [to_dtype(v, dtype) for v in values])


def read_fp16(source: Bytes, dtype: str, shape: list[int], num_elements: int) -> list[float]:
    return [x + 0.0 for x in struct.unpack(f"<{num_elements}e", source.take(2 * num_elements))]


def read_slicer(source: Bytes, dtype: str, shape: list[int], num_elements: int) -> list[float]:
    values, num_kept = [0.0] * num_elements, source.varint()
    if num_kept == 0:
        return values
    num_groups, modes = source.byte() + 1, source.byte()
    groups = [(source.byte(), read_float(source, dtype), read_float(source, dtype)) for _ in range(num_groups)]
    kept = list(read_positions(source, modes & 3, modes >> 2 & 31, num_kept, shape, num_elements))
    signs = source.fields(num_kept, 1) if modes & 128 else [0] * num_kept
    labels = source.fields(num_kept, (num_groups - 1).bit_length()) if num_groups > 1 else [0] * num_kept
    for group, (width, low, high) in enumerate(groups):
        members = [j for j in range(num_kept) if labels[j] == group]
        for j, code in zip(members, source.fields(len(members), width), strict=True):
            share = (2 * code + 1) / 2 ** (width + 1)
            magnitude = low if low == high else single(low + single(single(high - low) * share))
            values[kept[j]] = -magnitude if signs[j] else magnitude
    return values


def read_positions(
    source: Bytes, coding: int, rice: int, num_kept: int, shape: list[int], num_elements: int
) -> Iterator[int]:
    if coding == 0:
        yield from range(num_elements)
    elif coding == 1:
        yield from (i for i, bit in enumerate(source.fields(num_elements, 1)) if bit)
    elif coding == 2:
        columns = shape[-1] if shape else 1
        counts = source.fields(num_elements // columns, columns.bit_length())
        column = iter(source.fields(num_kept, (columns - 1).bit_length()))
        yield from (row * columns + next(column) for row, count in enumerate(counts) for _ in range(count))
    else:
        dropped = 2 * num_kept > num_elements
        unary = source.fields(source.varint(), 1)
        remainders = source.fields(num_elements - num_kept if dropped else num_kept, rice)
        listed = set(rice_positions(unary, remainders, rice))
        yield from (i for i in range(num_elements) if (i in listed) != dropped)


def rice_positions(unary: list[int], remainders: list[int], rice: int) -> Iterator[int]:
    position, quotient, remaining = -1, 0, iter(remainders)
    for bit in unary:
        if bit:
            position += (quotient << rice) + next(remaining) + 1
            quotient = 0
            yield position
        else:
            quotient += 1


PROFILES = {0: read_fp16, 1: read_slicer}
