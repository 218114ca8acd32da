"""Sections 2 and 4 of the page: the header, the checksum, and the profiles by number."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass

from independent_reader.parts import Bytes, to_dtype
from independent_reader.serverlight import Basis, Corrected, Waves, read_corrections, read_serverlight
from independent_reader.slicer import read_slicer


@dataclass
class Decoded:
    """A tensor as plain data: values in C order."""

    dtype: str
    shape: list[int]
    values: list[float]


def read_frame(frame: bytes, basis: Basis | None = None) -> Decoded:
    """The tensor of one frame; section 6.8 for one that names the basis, 6.10 for planes of waves."""
    source = Bytes(frame)
    short = frame[0] >> 4 == 10
    if short:
        rank, flags = source.byte() & 15, source.byte()
        profile, flags = flags >> 2 & 3, flags & ~12
    else:
        assert source.take(3) == b"SL\x01"
        profile, flags, rank = source.byte(), source.byte(), source.byte()
    dtype = ("float32", "float16", "bfloat16")[flags & 15]
    shape = [source.varint() for _ in range(rank)]
    if flags & 16:
        assert zlib.crc32(frame[:-4]) == int.from_bytes(frame[-4:], "little")
        source.data = frame[:-4]
    if flags & 96 == 96:
        assert profile == 2
        size = math.prod(shape[-2:])
        assert len(shape) > 1
        assert size >= 16
        form = Corrected(read_corrections(source, math.prod(shape[:-2])), size)
        values = read_serverlight(source, dtype, shape, math.prod(shape), form)
    elif flags & 64:
        assert profile == 2
        height, width = shape[-2:]
        assert 1 <= height <= 256
        assert 1 <= width <= 256
        seen = [math.prod(shape[:-2]), height * width]
        values = read_serverlight(source, dtype, seen, math.prod(shape), Waves(height, width))
    elif flags & 32:
        assert profile == 2
        assert basis is not None
        assert source.take(4 if short else 8) == basis.digest[: 4 if short else 8]
        values = read_serverlight(source, dtype, shape, math.prod(shape), basis)
    else:
        values = PROFILES[profile](source, dtype, shape, math.prod(shape))
    assert source.at == len(source.data)
    return Decoded(dtype, shape, [to_dtype(v, dtype) + 0.0 for v in values])  # section 3.2


def read_fp16(source: Bytes, dtype: str, shape: list[int], num_elements: int) -> list[float]:
    """Section 4."""
    return list(struct.unpack(f"<{num_elements}e", source.take(2 * num_elements)))


PROFILES = {0: read_fp16, 1: read_slicer, 2: read_serverlight}
