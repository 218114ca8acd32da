"""Section 1 and 3 of the page: bytes, bit fields, codes, and the three float formats."""

from __future__ import annotations

import math
import struct


class Bytes:
    """A frame, read from front to back."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        assert self.at + count <= len(self.data)
        self.at += count
        return self.data[self.at - count : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def signed_byte(self) -> int:
        return int.from_bytes(self.take(1), "little", signed=True)

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    def words(self, count: int) -> list[int]:
        return list(struct.unpack(f"<{count}H", self.take(2 * count)))

    def fields(self, count: int, width: int) -> list[int]:
        """Section 1.3: read the section as one little-endian number and cut it up."""
        number = int.from_bytes(self.take((count * width + 7) // 8), "little")
        assert number >> count * width == 0
        return [number >> width * i & (1 << width) - 1 for i in range(count)]


class Bits:
    """Section 1.3, one bit after the other; the end of the bytes is the end of the bits."""

    def __init__(self, source: Bytes) -> None:
        self.source, self.byte, self.left = source, 0, 0

    def bit(self) -> int:
        if not self.left:
            self.byte, self.left = self.source.byte(), 8
        bit, self.byte, self.left = self.byte & 1, self.byte >> 1, self.left - 1
        return bit

    def number(self, width: int) -> int:
        return sum(self.bit() << i for i in range(width))

    def golomb(self, order: int, widest: int) -> int:
        """Section 1.5: `w - order` zeros, a one, the `w` low bits of `v + 2^order`."""
        width = order
        while not self.bit():
            width += 1
        assert width <= widest
        return (1 << width) + self.number(width) - (1 << order)

    def end(self) -> None:
        """The padding up to the byte border is zero."""
        assert self.byte == 0


def from_zigzag(code: int) -> int:
    """Section 1.6."""
    return (code + 1) // 2 if code & 1 else -(code // 2)


LARGEST = {"float32": (2 - 2.0**-23) * 2.0**127, "float16": 65504.0, "bfloat16": (2 - 2.0**-7) * 2.0**127}


def single(x: float) -> float:
    """Rounds to binary32."""
    return struct.unpack("<f", struct.pack("<f", x))[0]


def single_from_int(v: int) -> float:
    """Rounds an integer to binary32, ties to even, in one step (by way of a double it would be two)."""
    width = max(abs(v).bit_length() - 24, 0)
    top, rest, half = abs(v) >> width, abs(v) & (1 << width) - 1, 1 << width >> 1
    top += rest > half or (rest == half != 0 and top & 1)
    return math.copysign(float(top << width), v)


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
    """An element of the tensor, in the frame's own dtype."""
    if dtype == "float32":
        return struct.unpack("<f", source.take(4))[0]
    if dtype == "float16":
        return struct.unpack("<e", source.take(2))[0]
    return struct.unpack("<f", b"\0\0" + source.take(2))[0]
