"""A writer of profile 2 that makes other choices than the package's: any kind, lanes, parameters and escapes that the page allows.

It is the counterpart of the reader in this package: what it writes is legal, unless a test spoils a section on purpose.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from independent_reader.model import (
    ESCAPE,
    FLAT,
    ONE_SIDED_PLANES,
    TOKENS,
    TRELLIS,
    pair_tables,
    read_levels,
    single_tables,
)
from independent_reader.parts import Bits, Bytes
from independent_reader.serverlight import Flat, Planes, Stage, Tokens, read_stage, segments, visits

LEAST = 1 << 15


@dataclass
class Sections:
    """The sections of a frame in their order; a test may replace any of them."""

    header: bytes
    mode: bytes
    step: bytes
    activity: bytes
    raw_bits: bytes
    model: bytes
    shifts: bytes
    lengths: list[tuple[int, int]] = field(default_factory=list)
    words: list[list[int]] = field(default_factory=list)
    escapes: list[bytes] = field(default_factory=list)
    raw: bytes = b""
    short: bool = False
    """Whether the only segment's number of words is left out."""
    padding: list[int] = field(default_factory=list)
    """Padding bits at the end of each segment's escapes."""

    @property
    def stage_header(self) -> bytes:
        return self.mode + self.step + self.activity + self.raw_bits

    def frame(self) -> bytes:
        lengths = b"".join(varint(value) for pair in self.lengths for value in pair[self.short :])
        words = b"".join(word.to_bytes(2, "little") for segment in self.words for word in segment)
        parts = (self.header, self.stage_header, self.model, self.shifts, lengths, words, *self.escapes, self.raw)
        return b"".join(parts)


class BitsOut:
    """Section 1.3: bit fields, least significant bit first."""

    def __init__(self) -> None:
        self.number, self.length = 0, 0

    def put(self, value: int, width: int) -> None:
        self.number |= value << self.length
        self.length += width

    def golomb(self, value: int, order: int) -> None:
        value += 1 << order
        width = value.bit_length() - 1
        self.put(1 << width - order, width - order + 1)
        self.put(value - (1 << width), width)

    def data(self) -> bytes:
        return self.number.to_bytes((self.length + 7) // 8, "little")


def varint(value: int) -> bytes:
    """Section 1.2."""
    groups = [value >> shift & 127 for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([group | 128 for group in groups[:-1]] + groups[-1:])


def to_zigzag(number: int) -> int:
    """Section 1.6."""
    return 2 * number - 1 if number > 0 else -2 * number


def write_model(parameters: Iterable[tuple[int, list[int] | None]], kind: int | None = None) -> bytes:
    """For each decision its offset, and the corrections of all contexts if there are any; in short with a ``kind``."""
    bits = BitsOut()
    for offset, corrections in parameters:
        if kind is None:
            bits.put(offset + 32, 6)
        else:
            bits.golomb(to_zigzag(offset), 2)
        if kind != FLAT:
            bits.put(corrections is not None, 1)
        for correction in corrections or ():
            bits.golomb(to_zigzag(correction), 0)
    return bits.data()


def write_sections(
    shape: list[int],
    kind: int,
    high: list[int],
    *,
    lanes_log2: int = 0,
    one_sided: bool = False,
    dtype: int = 0,
    step: bytes = b"\x80\x3f",
    activity: int = 0,
    raw_bits: int = 0,
    half: bool = False,
    low: Collection[int] = (),
    model: bytes | None = None,
    shifts: bytes | None = None,
    escaped: Collection[int] = (),
    short: bool = False,
) -> Sections:
    """The sections of a frame with these high parts; ``low`` are the raw bits of those that are not zero.

    ``escaped`` are flat indices: a pair that starts at one is escaped even if it has a symbol. ``step`` is one by default.
    A ``short`` section has no raw bits, and no shifts unless they are given; that along a trellis always is one.
    """
    short = short or kind == TRELLIS
    one_sided = one_sided or kind == ONE_SIDED_PLANES
    num_decisions = 4 if kind == ONE_SIDED_PLANES else 5
    num_shifts = {2: 10, 3: 9}.get(kind, 4 if one_sided else 3)
    flags = one_sided << 3 | lanes_log2 << 4 | half << 7
    flags |= (shifts is not None if short else raw_bits > 0) << 6
    sections = Sections(
        header=bytes((83, 76, 1, 2, dtype, len(shape))) + b"".join(map(varint, shape)),
        mode=bytes(((15 if kind == TRELLIS else 4 + min(kind, 2) if short else kind) | flags,)),
        step=step,
        activity=bytes((activity,)) if kind in (TOKENS, TRELLIS) else b"",
        raw_bits=bytes((raw_bits,)) if raw_bits else b"",
        model=write_model([(0, None)] * num_decisions, kind if short else None) if model is None else model,
        shifts=bytes(0 if short else num_shifts) if shifts is None else shifts,
        short=short,
    )
    fields = Bytes(sections.stage_header)
    stage = read_stage(fields, fields.byte(), shape, math.prod(shape))
    write_streams(sections, stage, high, escaped)
    raw = BitsOut()
    for value in low:
        raw.put(value, raw_bits)
    sections.raw = raw.data()
    return sections


def write_streams(sections: Sections, stage: Stage, high: list[int], escaped: Collection[int]) -> None:
    """Codes the pairs of each segment, the last one first."""
    levels = read_levels(Bits(Bytes(sections.model)), stage.kind, stage.short)
    tables = [make(levels, stage.kind, stage.half) for make in (pair_tables, single_tables)]
    tokens = stage.kind in (TOKENS, TRELLIS)
    contexts = Flat() if stage.kind == FLAT else Tokens(stage, []) if tokens else Planes(stage, high)
    sections.short = stage.short and len(segments(stage)) == 1
    for start, stop in segments(stage):
        bits, symbols = BitsOut(), []
        for lane, first, second in visits(stage, start, stop):
            context, flip = contexts.look(first, second)
            table = tables[second is None][context]
            pair = [high[first]] if second is None else [high[first], high[second]]
            symbol = symbol_of(pair, flip, stage.kind)
            if first in escaped or table[symbol] == 0:
                symbol = ESCAPE
            code = whole if symbol == ESCAPE else excess
            if symbol == ESCAPE and stage.half:
                code = excess if all(is_large(number, stage.kind) for number in pair) else whole
                bits.put(code is whole, 1)
            for number, nibble in zip(pair, (symbol >> 4, symbol & 15), strict=False):
                if nibble == 15:
                    bits.golomb(code(number, stage.kind), 1)
            contexts.seen(first, pair[0], pair[-1])
            symbols.append((lane, table[symbol], sum(table[:symbol])))
        sections.words.append(words_of(symbols, stage.num_lanes))
        sections.escapes.append(bits.data())
        sections.lengths.append((len(sections.words[-1]), len(sections.escapes[-1])))
        sections.padding.append(-bits.length % 8)


def is_large(number: int, kind: int) -> bool:
    return number > 14 if kind == ONE_SIDED_PLANES else abs(number) > 7


def whole(number: int, kind: int) -> int:
    return number if kind == ONE_SIDED_PLANES else to_zigzag(number)


def excess(number: int, kind: int) -> int:
    return number - 15 if kind == ONE_SIDED_PLANES else 2 * (abs(number) - 8) + (number < 0)


def symbol_of(pair: list[int], flip: int, kind: int) -> int:
    """The symbol of one or two numbers."""
    nibbles = [min(number if kind == ONE_SIDED_PLANES else to_zigzag(flip * number), 15) for number in pair]
    return 16 * nibbles[0] + (nibbles[1] if len(nibbles) > 1 else 0)


def words_of(symbols: list[tuple[int, int, int]], num_lanes: int) -> list[int]:
    """Lane states and words, in the order of reading, from lanes, frequencies and starts."""
    states, words = [LEAST] * num_lanes, []
    for lane, frequency, below in reversed(symbols):
        state = states[lane]
        if state >= frequency << 19:
            words.append(state & 0xFFFF)
            state >>= 16
        states[lane] = (state // frequency << 12) + state % frequency + below
    for state in reversed(states):
        words += [state & 0xFFFF, state >> 16]
    return words[::-1]
