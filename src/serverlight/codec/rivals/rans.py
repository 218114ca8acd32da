"""A static rANS coder in NumPy: one lane is a plain scalar coder, and the lanes of many messages run side by side.

State of 32 bits, words of 16 bits. A lane costs two bytes over the entropy of its symbols under the table (the state that
the encoder starts with says nothing), so short streams get one lane and only long ones several: see ``LANE_SYMBOLS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serverlight.codec.rivals.rival import Integers, read_varint, varint

__all__ = ["Stream", "Table", "pack_streams", "unpack_streams"]

LANE_SYMBOLS = 32_768
"""A lane's overhead, five bytes with its length, is below 0.1 % of a lane this long at two bits a symbol."""

LOWER_BOUND = 1 << 16
PRECISIONS = (8, 10, 12)
"""Table precisions in bits to choose from: a coarse table is shorter, a fine one fits better."""

ROWS_AT_ONCE = 256
"""Lanes that run side by side; more would only take more memory."""

Counts = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, slots=True)
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
        tables = [cls(first, p, _normalise(counts, p)) for p in usable]
        return min(tables, key=lambda table: 8 * len(table.to_bytes()) + table.cost_bits(counts))

    def cost_bits(self, counts: Counts) -> float:
        """Ideal bits of symbols that occur so often, under this table."""
        present = counts > 0
        return float((counts[present] * (self.precision - np.log2(self.frequencies[present]))).sum())

    def to_bytes(self) -> bytes:
        """First symbol (zigzag), number of symbols and precision, then every frequency but the last; runs of zeros in short."""
        zigzag = 2 * self.first if self.first >= 0 else -2 * self.first - 1
        out = [varint(zigzag), varint(len(self.frequencies)), bytes((self.precision,))]
        zeros = 0
        for frequency in map(int, self.frequencies[:-1]):
            if frequency == 0:
                zeros += 1
                continue
            out += [*_zero_run(zeros), varint(frequency)]
            zeros = 0
        return b"".join([*out, *_zero_run(zeros)])

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


def _zero_run(length: int) -> list[bytes]:
    return [varint(0), varint(length)] if length else []


def _normalise(counts: Counts, precision: int) -> Counts:
    """Counts scaled to sum to ``2**precision``, at least 1 for whatever occurs; the largest take up the rounding."""
    total = 1 << precision
    if not counts.any():
        return np.array([total])
    scaled = np.maximum(np.rint(counts * (total / counts.sum())).astype(np.int64), counts > 0)
    while (excess := int(scaled.sum()) - total) != 0:
        largest = int(scaled.argmax())
        scaled[largest] -= min(excess, int(scaled[largest]) // 2) if excess > 0 else excess
    return np.asarray(scaled, np.int64)


@dataclass(frozen=True, eq=False, slots=True)
class Stream:
    """Symbols that share a table."""

    symbols: Integers
    table: Table


# -- streams to bytes --------------------------------------------------------------------------------


def pack_streams(messages: Sequence[Sequence[Stream]]) -> list[bytes]:
    """For each message the coded bytes of its streams; tables and numbers of symbols are not in them."""
    lanes, owners = [], []
    for owner, streams in enumerate(messages):
        for stream in streams:
            for part in np.split(stream.symbols, np.cumsum(_lane_lengths(len(stream.symbols)))[:-1]):
                lanes.append(Stream(part, stream.table))
                owners.append(owner)
    coded: list[list[bytes]] = [[] for _ in messages]
    for start in range(0, len(lanes), ROWS_AT_ONCE):
        words = _encode_lanes(lanes[start : start + ROWS_AT_ONCE])
        for owner, row in zip(owners[start:], words, strict=False):
            coded[owner].append(row.astype("<u2").tobytes())
    # The last lane ends where the message ends.
    return [b"".join([*(varint(len(lane) // 2) for lane in parts[:-1]), *parts]) for parts in coded]


def unpack_streams(messages: Sequence[tuple[bytes, Sequence[tuple[int, Table]]]]) -> list[list[Integers]]:
    """The inverse: for each message its bytes and, for each stream, the number of symbols and the table."""
    lanes: list[_CodedLane] = []
    counts_per_stream: list[list[int]] = []
    for data, streams in messages:
        sizes = [(length, table) for count, table in streams for length in _lane_lengths(count)]
        counts_per_stream.append([count for count, _ in streams])
        lengths, at = [], 0
        for _ in sizes[:-1]:
            length, at = read_varint(data, at)
            lengths.append(2 * length)
        ends = np.cumsum([at, *lengths]).tolist()
        for (count, table), begin, end in zip(sizes, ends, [*ends[1:], len(data)], strict=True):
            lanes.append(_CodedLane(np.frombuffer(data[begin:end], "<u2"), count, table))
    decoded: list[Integers] = []
    for start in range(0, len(lanes), ROWS_AT_ONCE):
        decoded += _decode_lanes(lanes[start : start + ROWS_AT_ONCE])
    parts = iter(decoded)
    return [
        [np.concatenate([next(parts) for _ in _lane_lengths(count)]) for count in counts]
        for counts in counts_per_stream
    ]


def _lane_lengths(num_symbols: int) -> list[int]:
    """Symbols of each lane of a stream; they differ by one at most."""
    num_lanes = max(1, -(-num_symbols // LANE_SYMBOLS))
    return [(num_symbols + lane) // num_lanes for lane in range(num_lanes)]


# -- lanes -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class _CodedLane:
    words: npt.NDArray[np.uint16]
    num_symbols: int
    table: Table


class _Tables:
    """The tables of all rows, laid end to end; ``offsets[row]`` is where a row's table starts."""

    def __init__(self, tables: Sequence[Table]) -> None:
        sizes = [len(table.frequencies) for table in tables]
        self.offsets = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        self.frequency = np.concatenate([table.frequencies for table in tables]).astype(np.uint64)
        self.start = np.concatenate([np.cumsum(t.frequencies) - t.frequencies for t in tables]).astype(np.uint64)
        self.precision = np.array([table.precision for table in tables], np.uint64)


def _encode_lanes(lanes: Sequence[Stream]) -> list[npt.NDArray[np.uint16]]:
    """Final state (high word first), then the words in the order in which the decoder wants them."""
    order = sorted(range(len(lanes)), key=lambda i: -len(lanes[i].symbols))
    rows = [lanes[i] for i in order]
    tables, lengths = _Tables([row.table for row in rows]), np.array([len(row.symbols) for row in rows])
    steps = int(lengths[0])
    slots = np.zeros((steps, len(rows)), np.int64)
    for r, row in enumerate(rows):
        slots[: lengths[r], r] = row.symbols - row.table.first + tables.offsets[r]
    limit = tables.frequency << np.repeat(32 - tables.precision, [len(row.table.frequencies) for row in rows])
    states = np.full(len(rows), LOWER_BOUND, np.uint64)
    words, written = np.empty(slots.shape, np.uint16), np.zeros(slots.shape, np.bool_)
    active = np.searchsorted(-lengths, -np.arange(steps), side="left")  # rows longer than step t come first
    for t in range(steps - 1, -1, -1):
        a = active[t]
        slot, x = slots[t, :a], states[:a]
        spill = x >= limit[slot]
        words[t, :a], written[t, :a] = x, spill
        x >>= spill.astype(np.uint64) << np.uint64(4)
        frequency = tables.frequency[slot]
        quotient = x // frequency
        states[:a] = (quotient << tables.precision[:a]) + (x - quotient * frequency) + tables.start[slot]
    coded: list[npt.NDArray[np.uint16]] = [np.empty(0, np.uint16)] * len(lanes)
    for r, i in enumerate(order):
        state = int(states[r])
        body = words[: lengths[r], r][written[: lengths[r], r]]
        coded[i] = np.concatenate([np.array([state >> 16, state & 0xFFFF], np.uint16), body])
    return coded


def _decode_lanes(lanes: Sequence[_CodedLane]) -> list[Integers]:
    order = sorted(range(len(lanes)), key=lambda i: -lanes[i].num_symbols)
    rows = [lanes[i] for i in order]
    tables, lengths = _Tables([row.table for row in rows]), np.array([row.num_symbols for row in rows])
    symbol_at = np.concatenate([_slots_to_symbols(row.table, o) for row, o in zip(rows, tables.offsets, strict=True)])
    slot_base = np.concatenate([[0], np.cumsum(1 << tables.precision.astype(np.int64))[:-1]])
    words = np.concatenate([*(row.words for row in rows), np.zeros(1, np.uint16)]).astype(np.uint64)
    at = np.concatenate([[0], np.cumsum([len(row.words) for row in rows])[:-1]]) + 2
    states = (words[at - 2] << np.uint64(16)) | words[at - 1]
    steps = int(lengths[0])
    decoded = np.zeros((steps, len(rows)), np.int64)
    active = np.searchsorted(-lengths, -np.arange(steps), side="left")
    masks = (np.uint64(1) << tables.precision) - np.uint64(1)
    for t in range(steps):
        a = active[t]
        x = states[:a]
        low = x & masks[:a]
        slot = symbol_at[slot_base[:a] + low.astype(np.int64)]
        decoded[t, :a] = slot
        x = tables.frequency[slot] * (x >> tables.precision[:a]) + low - tables.start[slot]
        hungry = x < LOWER_BOUND
        states[:a] = np.where(hungry, (x << np.uint64(16)) | words[at[:a]], x)
        at[:a] += hungry
    symbols: list[Integers] = [np.empty(0, np.int32)] * len(lanes)
    for r, i in enumerate(order):
        symbols[i] = (decoded[: lengths[r], r] - tables.offsets[r] + rows[r].table.first).astype(np.int32)
    return symbols


def _slots_to_symbols(table: Table, offset: int) -> Counts:
    """For each value of the state's low bits, where the symbol stands in the tables laid end to end."""
    return np.repeat(np.arange(len(table.frequencies)), table.frequencies) + offset
