"""Codes to bytes: fixed widths, or a table and rANS."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serverlight.codec.rivals.rans import Stream, Table, pack_streams, unpack_streams
from serverlight.codec.rivals.rival import Integers

__all__ = ["code", "pack_bits", "uncode", "unpack_bits"]


def pack_bits(codes: Integers, width: int) -> bytes:
    """Unsigned codes below ``2**width``, low bits first.

    >>> unpack_bits(pack_bits(np.array([5, 0, 7, 1]), 3), 4, 3)
    array([5, 0, 7, 1], dtype=int32)
    """
    if width == 8:
        return codes.astype(np.uint8).tobytes()
    shifts = np.arange(width, dtype=np.uint16)
    bits = (codes.astype(np.uint16)[:, None] >> shifts).astype(np.uint8) & np.uint8(1)
    return np.packbits(bits, bitorder="little").tobytes()


def unpack_bits(data: bytes, count: int, width: int) -> Integers:
    """The inverse of :func:`pack_bits`."""
    if width == 8:
        return np.frombuffer(data, np.uint8, count).astype(np.int32)
    bits = np.unpackbits(
        np.frombuffer(data, np.uint8, (count * width + 7) // 8), count=count * width, bitorder="little"
    )
    weights = np.int32(1) << np.arange(width, dtype=np.int32)
    codes: Integers = bits.reshape(count, width).astype(np.int32) @ weights
    return codes


def code(front: bytes, symbols: Sequence[npt.NDArray[np.int32]]) -> bytes:
    """A message: its front, a table for each of its streams, and their symbols under these tables."""
    streams = [Stream(part, Table.fit(part)) for part in symbols]
    return b"".join((front, *(stream.table.to_bytes() for stream in streams), pack_streams(streams)))


def uncode(message: bytes, at: int, counts: Sequence[int]) -> list[Integers]:
    """The inverse of :func:`code`: ``at`` is where the tables start, ``counts`` how many symbols each stream has."""
    tables = []
    for _ in counts:
        table, at = Table.from_bytes(message, at)
        tables.append(table)
    return unpack_streams(message[at:], list(zip(counts, tables, strict=True)))
