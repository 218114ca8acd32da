"""A static rANS coder: one state for all streams of a message, each of them under a table of its own.

State of 32 bits, words of 16 bits. A message costs two bytes over the entropy of its symbols under their tables (the state
that the encoder starts with says nothing), and the tables.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serverlight.codec.rivals.compiled import decode_rans, encode_rans, normalise, write_frequencies
from serverlight.codec.rivals.rival import Integers, read_varint, varint

__all__ = ["Stream", "Table", "pack_streams", "unpack_streams"]

PRECISIONS = (8, 10, 12)
"""Table precisions in bits to choose from: a coarse table is shorter, a fine one fits better."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Table:
    """Frequencies of the symbols ``first``, ``first + 1``, ...; they sum to ``2**precision``."""

    first: int
    precision: int
    frequencies: Counts

    @classmethod
    def fit(cls, symbols: Integers) -> Table:
        """The table with the fewest bytes in all: its own and those of the symbols under it."""
        first = int(symbols.min()) if len(symbols) else 0
        counts = np.bincount(symbols - first, minlength=1)
        num_present = int((counts > 0).sum())
        usable = [p for p in PRECISIONS if 1 << p >= 4 * num_present] or [
            max(PRECISIONS[-1], num_present.bit_length() + 2)
        ]
        tables = [cls(first, p, normalise(counts, p)) for p in usable]
        return min(tables, key=lambda table: 8 * len(table.to_bytes()) + table.cost_bits(counts))

    def cost_bits(self, counts: Counts) -> float:
        """Ideal bits of symbols that occur so often, under this table."""
        present = counts > 0
        return float((counts[present] * (self.precision - np.log2(self.frequencies[present]))).sum())

    def to_bytes(self) -> bytes:
        """First symbol (zigzag), number of symbols and precision, then every frequency but the last; runs of zeros in short."""
        return self._bytes

    @functools.cached_property
    def _bytes(self) -> bytes:
        zigzag = 2 * self.first if self.first >= 0 else -2 * self.first - 1
        room = np.empty(8 * len(self.frequencies) + 8, np.uint8)
        size = write_frequencies(self.frequencies, room)
        return b"".join(
            (varint(zigzag), varint(len(self.frequencies)), bytes((self.precision,)), room[:size].tobytes())
        )

    @classmethod
    def from_bytes(cls, message: bytes, at: int) -> tuple[Table, int]:
        """The table that starts at byte ``at``, and where the next byte is."""
        zigzag, at = read_varint(message, at)
        size, at = read_varint(message, at)
        precision, at = message[at], at + 1
        frequencies = np.zeros(size, np.int64)
        i = 0
        while i < size - 1:
            frequency, at = read_varint(message, at)
            if frequency:
                frequencies[i] = frequency
                i += 1
            else:
                run, at = read_varint(message, at)
                i += run
        frequencies[-1] = (1 << precision) - frequencies.sum()
        return cls(zigzag >> 1 if zigzag % 2 == 0 else -(zigzag + 1 >> 1), precision, frequencies), at


@dataclass(frozen=True, eq=False, slots=True)
class Stream:
    """Symbols that share a table."""

    symbols: Integers
    table: Table


def pack_streams(streams: Sequence[Stream]) -> bytes:
    """The coded bytes of a message's streams; tables and numbers of symbols are not in them."""
    tables = _Tables([stream.table for stream in streams])
    slots = np.concatenate(
        [stream.symbols - (stream.table.first - at) for stream, at in zip(streams, tables.offsets, strict=True)]
    )
    words = np.empty(len(slots) + 2, np.uint16)
    begin = encode_rans(slots.astype(np.int32), tables.precision, tables.frequency, tables.start, words)
    return words[begin:].astype("<u2").tobytes()


def unpack_streams(data: bytes, streams: Sequence[tuple[int, Table]]) -> list[Integers]:
    """The inverse: for each stream its number of symbols and its table."""
    tables = _Tables([table for _, table in streams])
    counts = np.array([count for count, _ in streams], np.int64)
    slots = np.empty(int(counts.sum()), np.int32)
    slot_at = np.repeat(np.arange(len(tables.frequency), dtype=np.int32), tables.frequency)
    precisions = np.array([table.precision for _, table in streams], np.int64)
    words = np.frombuffer(data, "<u2").astype(np.uint16)
    decode_rans(words, counts, precisions, slot_at, tables.frequency, tables.start, slots)
    parts = np.split(slots, np.cumsum(counts)[:-1])
    return [
        part + np.int32(table.first - at) for part, (_, table), at in zip(parts, streams, tables.offsets, strict=True)
    ]


class _Tables:
    """Tables laid end to end; ``offsets`` says where each starts."""

    def __init__(self, tables: Sequence[Table]) -> None:
        sizes = [len(table.frequencies) for table in tables]
        self.offsets = [sum(sizes[:i]) for i in range(len(sizes))]
        self.frequency = np.concatenate([table.frequencies for table in tables])
        self.start = np.concatenate([np.cumsum(t.frequencies) - t.frequencies for t in tables])
        self.precision = np.repeat(np.array([table.precision for table in tables], np.uint8), sizes)
