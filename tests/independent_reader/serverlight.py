"""Section 6 of the page: profile 2."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

from independent_reader.model import (
    ESCAPE,
    FLAT,
    ONE_SIDED_PLANES,
    SIGNED_PLANES,
    TOKENS,
    TRELLIS,
    class_of,
    number_of,
    pair_tables,
    read_levels,
    single_tables,
    state_after,
)
from independent_reader.parts import LARGEST, Bits, Bytes, from_zigzag, single, single_from_int

ALL_ZERO = 7
BORDERS = (64, 96, 140, 200, 280, 420, 680)
DEFAULT_SHIFTS = {
    FLAT: {0: 12, 5: 3, 8: 1, 9: 1},
    TOKENS: {0: 12, 5: 3, 8: 1, 9: 1},
    ONE_SIDED_PLANES: dict(enumerate((11, 23, 28, 30, 30, 0, 6, 14, -4, -5))),
    SIGNED_PLANES: dict(enumerate((0, 7, 12, 15, 17, -7, -4, 8, -5, -5))),
    TRELLIS: {5: 10, 8: 5, 9: 5},
}


@dataclass
class Stage:
    """Sections 6.1 and 6.2: the stage header, and the rows and columns that the layout sees."""

    kind: int
    one_sided: bool
    num_lanes: int
    step: float
    activity: int
    raw_bits: int
    half: bool
    short: bool
    has_shifts: bool
    rows: int
    columns: int
    num_elements: int


@dataclass
class Basis:
    """Section 6.8: D rows of D integers, the mean, and perhaps D spreads."""

    vectors: list[list[int]]
    exponent: int
    mean: list[float]
    spreads: list[int] = field(default_factory=list)

    @property
    def digest(self) -> bytes:
        width = len(self.mean)
        parts = [b"serverlight basis", struct.pack("<IB", width, self.exponent)]
        parts += [struct.pack(f"<{width}h", *row) for row in self.vectors]
        parts.append(struct.pack(f"<{width}f", *self.mean))
        parts.append(bytes(self.spreads))
        return hashlib.blake2b(b"".join(parts), digest_size=8).digest()

    def values(self, counts: list[float], step: float, limit: float) -> list[float]:
        width, values = len(self.mean), []
        for row in range(0, len(counts), width):
            units = [int(count) for count in counts[row : row + width]]
            for channel in range(width):
                total = sum(u * vector[channel] for u, vector in zip(units, self.vectors, strict=True) if u)
                value = float(total) * (step * 2.0 ** (-6 - self.exponent)) + self.mean[channel]
                values.append(single(max(-limit, min(limit, value))))
        return values


@dataclass
class Waves:
    """Section 6.10: planes of H by W."""

    height: int
    width: int
    spreads: list[int] = field(default_factory=list)

    def values(self, counts: list[float], step: float, limit: float) -> list[float]:
        down, along, values = waves(self.height), waves(self.width), []
        for start in range(0, len(counts), self.height * self.width):
            plane = [[int(counts[start + j * self.width + i]) for i in range(self.width)] for j in range(self.height)]
            rows = [[(total + 2048) >> 12 for total in sums(row, along)] for row in plane]
            columns = [sums([row[x] for row in rows], down) for x in range(self.width)]
            for y in range(self.height):
                for x in range(self.width):
                    value = float(columns[x][y]) * (step * 2.0**-26)
                    values.append(single(max(-limit, min(limit, value))))
        return values


@dataclass
class Corrected:
    """Section 6.11: what is added to each plane of ``size`` elements, in 16ths of the step."""

    corrections: list[int]
    size: int
    one_sided: bool = False
    spreads: list[int] = field(default_factory=list)

    def values(self, counts: list[float], step: float, limit: float) -> list[float]:
        values = []
        for index, count in enumerate(counts):
            value = float(int(count) + 4 * self.corrections[index // self.size]) * (step * 2.0**-6)
            values.append(single(max(0.0 if self.one_sided else -limit, min(limit, value))))
        return values


def read_corrections(source: Bytes, num_planes: int) -> list[int]:
    """Section 6.11: in the form of section 5.3."""
    r, unary_bits = source.byte(), source.varint()
    assert r <= 15
    assert unary_bits <= 8 * num_planes
    unary, codes, zeros = source.fields(unary_bits, 1), [], 0
    for bit in unary:
        if bit:
            codes.append(zeros << r)
        zeros = 0 if bit else zeros + 1
    assert zeros == 0
    assert len(codes) == num_planes
    numbers = [from_zigzag(code + rest) for code, rest in zip(codes, source.fields(num_planes, r), strict=True)]
    assert all(abs(number) <= 1 << 20 for number in numbers)
    return numbers


def waves(side: int) -> list[list[int]]:
    """What frequency ``i`` adds to place ``x``, at ``[i][x]``."""
    angle = math.pi / (2 * side)
    return [
        [round(65536 * math.sqrt((2 if i else 1) / side) * math.cos(angle * (2 * x + 1) * i)) for x in range(side)]
        for i in range(side)
    ]


def sums(counts: list[int], table: list[list[int]]) -> list[int]:
    """At each place."""
    return [sum(u * row[x] for u, row in zip(counts, table, strict=True) if u) for x in range(len(counts))]


def read_serverlight(
    source: Bytes, dtype: str, shape: list[int], num_elements: int, basis: Basis | Waves | Corrected | None = None
) -> list[float]:
    """Values in binary32, in C order."""
    mode, limit = source.byte(), LARGEST[dtype]
    if mode == ALL_ZERO:
        return basis.values([0.0] * num_elements, 0.0, limit) if basis else [0.0] * num_elements
    stage = read_stage(source, mode, shape, num_elements)
    if isinstance(basis, Corrected):
        assert stage.kind in (ONE_SIDED_PLANES, SIGNED_PLANES)
        basis.one_sided = stage.one_sided
    else:
        assert basis is None or stage.kind in (FLAT, TOKENS, TRELLIS)
    levels = read_levels(Bits(source), stage.kind, stage.short)
    shifts = read_shifts(source, stage)
    tables = [make(levels, stage.kind, stage.half) for make in (pair_tables, single_tables)]
    high = read_streams(source, stage, basis.spreads if basis else [], *tables)
    if stage.kind == TRELLIS:
        high = steps_along(stage, high)
    raw = iter(source.fields(sum(h != 0 for h in high), stage.raw_bits))
    unit, counts = single(stage.step * 2.0**-6), []
    for index, h in enumerate(high):
        q = ((abs(h) - 1) << stage.raw_bits) + next(raw) + 1 if h else 0
        shift_class, direction = place(stage, high, index)
        counts.append(single_from_int(64 * (q if h > 0 else -q) + shifts.get(shift_class, 0) * direction))
    if basis:
        return basis.values(counts, stage.step, limit)
    return [single(max(-limit, min(limit, count * unit))) for count in counts]


def read_stage(source: Bytes, mode: int, shape: list[int], num_elements: int) -> Stage:
    kind, one_sided, short, flag = mode & 7, bool(mode & 8), mode & 7 >= 4, bool(mode & 64)
    if mode & 15 == 15:
        kind, one_sided = TRELLIS, False
    elif short:
        assert kind < 7
        kind = kind - 4 + (kind == 6 and not one_sided)
    assert num_elements > 0
    step = struct.unpack("<f", b"\0\0" + source.take(2))[0]
    assert 2.0**-126 <= step < math.inf
    tokens = kind in (TOKENS, TRELLIS)
    activity = source.byte() if tokens else 0
    raw_bits = source.byte() if flag and not short else 0
    assert raw_bits <= 26
    columns = shape[-1] if shape and kind != FLAT else 1
    rows = num_elements // columns if tokens else shape[-2] if len(shape) > 1 and kind != FLAT else 1
    start = activity_of(activity)
    lanes, half = 1 << (mode >> 4 & 3), mode >> 7 == 1
    shifts = flag or not short
    return Stage(kind, one_sided, lanes, step, start, raw_bits, half, short, shifts, rows, columns, num_elements)


def activity_of(v: int) -> int:
    """Section 6.4: what a byte of activity stands for."""
    return ((8 + (v & 7)) << (v >> 3)) >> 3


def read_shifts(source: Bytes, stage: Stage) -> dict[int, int]:
    """Section 6.7: one signed byte for each class that may have a shift, or what stands for them."""
    if stage.kind == ONE_SIDED_PLANES:
        classes = list(range(10))
    elif stage.kind == SIGNED_PLANES:
        classes = list(range(1, 10))
    else:
        classes = [0, 5, 8, 9] if stage.one_sided else [5, 8, 9]
    return {c: source.signed_byte() if stage.has_shifts else DEFAULT_SHIFTS[stage.kind][c] for c in classes}


# -- section 6.3: segments, lanes, order ----------------------------------------------------------------


def segments(stage: Stage) -> list[tuple[int, int]]:
    """From which unit to which, for each segment."""
    units = stage.num_elements // (stage.rows * stage.columns)
    if stage.kind == FLAT:
        units = (stage.num_elements + 1) // 2
    elif stage.kind in (TOKENS, TRELLIS):
        units = stage.columns
    if stage.kind in (ONE_SIDED_PLANES, SIGNED_PLANES):
        blocks = [(first, min(first + 8, units)) for first in range(0, units, 8)]
        count = min((stage.num_elements + 65535) // 65536, len(blocks))
        runs = [blocks[len(blocks) * i // count : len(blocks) * (i + 1) // count] for i in range(count)]
        return [(run[0][0], run[-1][1]) for run in runs]
    count = max(1, min(stage.num_elements // 65536, units // 8))
    return [(units * i // count, units * (i + 1) // count) for i in range(count)]


def visits(stage: Stage, start: int, stop: int) -> Iterator[tuple[int, int, int | None]]:
    """Lane, first element and second element (if there is one) of a segment's pairs, in order."""
    lanes, rows, columns = stage.num_lanes, stage.rows, stage.columns
    if stage.kind == FLAT:
        for pair in range(start, stop):
            yield (pair - start) % lanes, 2 * pair, 2 * pair + 1 if 2 * pair + 1 < stage.num_elements else None
    elif stage.kind in (TOKENS, TRELLIS):
        for row in range(0, rows, 2):
            for channel in range(start, stop):
                first = row * columns + channel
                yield (channel - start) % lanes, first, first + columns if row + 1 < rows else None
    else:
        for block in range(start, stop, lanes):
            for row in range(rows):
                for column in range(0, columns, 2):
                    for plane in range(block, min(block + lanes, stop)):
                        first = (plane * rows + row) * columns + column
                        yield plane - block, first, first + 1 if column + 1 < columns else None


# -- section 6.4: contexts ------------------------------------------------------------------------------


class Flat:
    """One context for all."""

    def look(self, first: int, second: int | None) -> tuple[int, int]:
        return 0, 1

    def seen(self, first: int, a: int, b: int) -> None:
        """Nothing is remembered."""


class Tokens:
    """A channel's recent past."""

    def __init__(self, stage: Stage, spreads: list[int]) -> None:
        self.columns, self.has_spreads = stage.columns, bool(spreads)
        self.activity = [stage.activity] * stage.columns
        if spreads:
            self.activity = [max(1, min(32640, stage.activity * activity_of(v) >> 8)) for v in spreads]
        self.leaning = [0] * stage.columns
        self.num_seen = [0] * stage.columns
        self.borders = [max(1, stage.activity * t >> 8) for t in BORDERS]
        self.states = [0] * stage.columns if stage.kind == TRELLIS else None

    def look(self, first: int, second: int | None) -> tuple[int, int]:
        activity, leaning = self.activity[first % self.columns], self.leaning[first % self.columns]
        c = sum(border <= activity for border in self.borders)
        row = 2 * c + (8 * abs(leaning) >= 3 * activity + 24)
        row += 16 * self.states[first % self.columns] if self.states else 0
        return row, -1 if leaning < 0 else 1

    def seen(self, first: int, a: int, b: int) -> None:
        channel = first % self.columns
        if self.states:
            self.states[channel] = state_after(state_after(self.states[channel], a), b)
        a, b = max(-255, min(255, a)), max(-255, min(255, b))
        rate = 3 if self.has_spreads else (1, 2, 2, 3)[min(self.num_seen[channel], 3)]
        self.num_seen[channel] += 1
        self.activity[channel] += (64 * (abs(a) + abs(b)) - self.activity[channel]) >> rate
        self.leaning[channel] += (64 * (a + b) - self.leaning[channel]) >> rate


class Planes:
    """The neighbours to the left and above."""

    def __init__(self, stage: Stage, high: list[int]) -> None:
        self.stage, self.high = stage, high

    def look(self, first: int, second: int | None) -> tuple[int, int]:
        columns, kind = self.stage.columns, self.stage.kind
        left = class_of(self.high[first - 1], kind) if first % columns else 0
        has_above = first // columns % self.stage.rows > 0
        above = class_of(self.high[first - columns], kind) if has_above else 0
        right = above if second is None else class_of(self.high[second - columns], kind) if has_above else 0
        k = 9 * left + 3 * above + right
        return abs(k), -1 if k < 0 else 1

    def seen(self, first: int, a: int, b: int) -> None:
        """The numbers themselves are the memory."""


# -- section 6.6: streams -------------------------------------------------------------------------------


def read_streams(
    source: Bytes,
    stage: Stage,
    spreads: list[int],
    pair_frequencies: list[list[int]],
    single_frequencies: list[list[int]],
) -> list[int]:
    high = [0] * stage.num_elements
    parts = segments(stage)
    assert not stage.short or len(parts) == 1 or stage.kind == TRELLIS
    if stage.short and len(parts) == 1:
        num_escapes = source.varint()
        num_words, odd = divmod(len(source.data) - source.at - num_escapes, 2)
        assert not odd
        lengths = [(num_words, num_escapes)]
    else:
        lengths = [(source.varint(), source.varint()) for _ in parts]
    words = [source.words(count) for count, _ in lengths]
    escapes = [Bytes(source.take(count)) for _, count in lengths]
    tokens = stage.kind in (TOKENS, TRELLIS)
    contexts = Tokens(stage, spreads) if tokens else Flat() if stage.kind == FLAT else Planes(stage, high)
    for (start, stop), own_words, own_escapes in zip(parts, words, escapes, strict=True):
        coder, bits = Lanes(own_words, stage.num_lanes), Bits(own_escapes)
        for lane, first, second in visits(stage, start, stop):
            context, flip = contexts.look(first, second)
            symbol = coder.symbol(lane, (single_frequencies if second is None else pair_frequencies)[context])
            escaped = whole if symbol == ESCAPE and (not stage.half or bits.bit()) else excess
            a, b = flip * number_of(symbol >> 4, stage.kind), flip * number_of(symbol & 15, stage.kind)
            if symbol >> 4 == 15:
                a = escaped(bits, stage.kind)
            if symbol & 15 == 15:
                b = escaped(bits, stage.kind) if second is not None else 0
            high[first] = a
            if second is not None:
                high[second] = b
            contexts.seen(first, a, b)
        coder.end()
        bits.end()
        assert own_escapes.at == len(own_escapes.data)
    return high


def whole(bits: Bits, kind: int) -> int:
    """The number itself."""
    code = bits.golomb(1, 32)
    number = code if kind == ONE_SIDED_PLANES else from_zigzag(code)
    assert abs(number) <= 1 << 28
    return number


def excess(bits: Bits, kind: int) -> int:
    """The number less the least that a nibble of 15 stands for, and its sign."""
    code = bits.golomb(1, 32)
    number = 15 + code if kind == ONE_SIDED_PLANES else (8 + code // 2) * (-1 if code & 1 else 1)
    assert abs(number) <= 1 << 28
    return number


class Lanes:
    """Interleaved range coders over one run of words."""

    def __init__(self, words: list[int], num_lanes: int) -> None:
        self.words = iter(words)
        self.states = [next(self.words) << 16 | next(self.words) for _ in range(num_lanes)]

    def symbol(self, lane: int, table: list[int]) -> int:
        state, symbol, below = self.states[lane], 0, 0
        slot = state % 4096
        while below + table[symbol] <= slot:
            below += table[symbol]
            symbol += 1
        state = table[symbol] * (state >> 12) + slot - below
        if state < 1 << 15:
            state = state << 16 | next(self.words)
        self.states[lane] = state
        return symbol

    def end(self) -> None:
        assert all(state == 1 << 15 for state in self.states)
        assert next(self.words, None) is None


# -- section 6.9: trellis -------------------------------------------------------------------------------


def steps_along(stage: Stage, numbers: list[int]) -> list[int]:
    """What numbers stand for in half the steps of a channel's two quantisers."""
    steps = []
    states = [0] * stage.columns
    for index, h in enumerate(numbers):
        state = states[index % stage.columns]
        steps.append(2 * h - ((h > 0) - (h < 0)) * (state >> 1))
        states[index % stage.columns] = state_after(state, h)
    return steps


# -- section 6.7: shifts --------------------------------------------------------------------------------


def place(stage: Stage, high: list[int], index: int) -> tuple[int, int]:
    """Class and direction of an element."""
    h = high[index]
    m, sign = abs(h), 1 if stage.one_sided else (h > 0) - (h < 0)
    if m >= 2:
        return (8 if m == 2 else 9), sign
    if stage.kind in (FLAT, TOKENS, TRELLIS):
        return 5 * m, sign
    around = neighbour_sum(stage, high, index)
    if m == 0:
        return min(abs(around), 4), 1 if stage.kind == ONE_SIDED_PLANES else (around > 0) - (around < 0)
    if stage.kind == ONE_SIDED_PLANES:
        return 5 + min(around >> 1, 2), 1
    return 5 + max(0, min(2, (around * sign + 4) >> 2)), sign


def neighbour_sum(stage: Stage, high: list[int], index: int) -> int:
    row, column = index // stage.columns % stage.rows, index % stage.columns
    total = high[index - 1] if column else 0
    total += high[index + 1] if column + 1 < stage.columns else 0
    total += high[index - stage.columns] if row else 0
    return total + (high[index + stage.columns] if row + 1 < stage.rows else 0)
