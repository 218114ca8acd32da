"""Codes to bytes: fixed widths, or a table and rANS."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from serverlight.codec.rivals.rans import Stream, Table, pack_streams, unpack_streams
from serverlight.codec.rivals.rival import Integers

__all__ = ["CodedMessage", "code_many", "pack_bits", "uncode_many", "unpack_bits"]

CodedMessage = tuple[bytes, int, Sequence[int]]
"""A message, where its tables start, and how many symbols each stream has."""


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
    bits = np.unpackbits(np.frombuffer(data, np.uint8), count=count * width, bitorder="little")
    weights = np.int32(1) << np.arange(width, dtype=np.int32)
    codes: Integers = bits.reshape(count, width).astype(np.int32) @ weights
    return codes


def code_many(fronts: Sequence[bytes], symbols: Sequence[Sequence[npt.NDArray[np.int32]]]) -> list[bytes]:
    """For each message: its front, a table for each of its streams, and their symbols under these tables."""
    streams = [[Stream(s, Table.fit(s)) for s in parts] for parts in symbols]
    tables = [b"".join(stream.table.to_bytes() for stream in parts) for parts in streams]
    return [b"".join(parts) for parts in zip(fronts, tables, pack_streams(streams), strict=True)]


def uncode_many(messages: Sequence[CodedMessage]) -> list[list[Integers]]:
    """The inverse of :func:`code_many`: the symbols of each stream of each message."""
    coded = []
    for message, at, counts in messages:
        tables = []
        for _ in counts:
            table, at = Table.from_bytes(message, at)
            tables.append(table)
        coded.append((message[at:], list(zip(counts, tables, strict=True))))
    return unpack_streams(coded)
