"""Profile ``serverlight`` in NumPy and plain Python: the definition that other backends are judged by, byte for byte.

Section numbers refer to docs/wire-format.md. Slow where the entropy coder goes pair by pair; clear everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from serverlight.codec import activity, contextual, tables
from serverlight.codec.backends import Float32
from serverlight.codec.backends.slicer import SlicerKernels, kept_positions, scores_of
from serverlight.codec.coded import (
    LARGEST_NUMBER,
    NUM_SHIFTS,
    ROUNDING,
    SHIFT_UNIT,
    Coded,
    Segment,
    floor_rank,
    is_one_sided_kind,
    kind_of,
    lanes_for,
    sample_run,
    sample_stride,
    segments_of,
    settled_shifts,
    step_of,
)
from serverlight.codec.config import CodecConfig
from serverlight.codec.layout import Grid, Layout, natural_layout
from serverlight.codec.tables import ESCAPE, SCALE, SCALE_BITS, Ints
from serverlight.codec.tensors import check_finite, saturate
from serverlight.codec.wire import Header, Reader, Writer
from serverlight.errors import InconsistentFrame

__all__ = ["ReferenceKernels"]

LEAST_STATE = 1 << 15
LARGEST_QUOTIENT = np.float32(LARGEST_NUMBER)
LARGEST_SEEN = 255


class ReferenceKernels(SlicerKernels):
    """The stages of both profiles, as written on the page."""

    name = "reference"
    unpack_model = staticmethod(tables.unpack_model)

    def encode_contextual(self, values: Float32, shape: tuple[int, ...], config: CodecConfig) -> bytes:
        """All stages."""
        check_finite(values)
        writer = Writer()
        contextual.write(writer, self._coded(values, shape, config))
        return writer.finish(checksum=False)

    def decode_contextual(self, section: memoryview, header: Header, out: Float32) -> None:
        """Section 6 backwards; raises :class:`InconsistentFrame` on streams that do not fit."""
        reader = Reader(section)
        coded = contextual.read(reader, header)
        reader.finish()
        out[:] = 0.0 if coded is None else saturate(self._decoded(coded, header.shape), header.dtype, coded.step)

    def _coded(self, values: Float32, shape: tuple[int, ...], config: CodecConfig) -> Coded | None:
        kept = kept_positions(values, config)
        if len(kept) == 0:
            return None
        one_sided = bool((values >= 0).all())
        kind = kind_of(natural_layout(shape), one_sided)
        grid, bounds = segments_of(shape, kind)
        step = step_of(step_threshold(values, kept, config), config, kind)
        quantised = quantise(values, kept, step)
        raw_bits = choose_raw_bits(quantised, 14 if is_one_sided_kind(kind) else 7)
        high, raw = split_raw(quantised, raw_bits)
        shifts = measure_shifts(values, quantised, high, step, kind, one_sided, grid)
        start = activity.nearest_activity(int(np.abs(high).sum()), len(high)) if kind == tables.TOKENS else 0
        symbols = Symbols.of(high, grid, kind, start)
        fitted = tables.fit_levels(
            tables.count_decisions(
                symbols.histogram(), tables.NEXT[kind], tables.FLIP_NEXT[kind], is_one_sided_kind(kind)
            ),
            tables.DEFAULT_LEVELS[kind],
            is_one_sided_kind(kind),
            tables.COST,
        )
        levels = tables.levels_of(tables.DEFAULT_LEVELS[kind], fitted[0], fitted[2])
        frequencies = frequencies_for(levels, grid, kind)
        model = np.zeros(300, np.uint8)
        model_bytes = tables.pack_model(*fitted, is_one_sided_kind(kind), model)
        lanes = lanes_for(
            tables.payload_bits(symbols.histogram(), frequencies, tables.COST_OF_FREQUENCY), len(bounds) - 1
        )
        return Coded(
            kind=kind,
            one_sided=one_sided,
            lanes=lanes,
            step=float(step),
            activity=start,
            raw_bits=raw_bits,
            model=model[:model_bytes].tobytes(),
            levels=levels,
            shifts=shifts,
            segments=tuple(
                encode_segment(symbols, high, frequencies, grid, kind, lanes, first, last)
                for first, last in itertools.pairwise(bounds)
            ),
            raw=raw,
        )

    def _decoded(self, coded: Coded, shape: tuple[int, ...]) -> Float32:
        grid, bounds = segments_of(shape, coded.kind)
        high = np.zeros(grid.num_elements, np.int64)
        frequencies = frequencies_for(coded.levels, grid, coded.kind)
        for segment, (first, last) in zip(coded.segments, itertools.pairwise(bounds), strict=True):
            decode_segment(segment, coded, frequencies, grid, high, first, last)
        return reconstruct(join_raw(high, coded.raw, coded.raw_bits), high, coded, grid)


# -- quantiser (sections 6.2, 6.7 and 7) ------------------------------------------------------------------


def step_threshold(values: Float32, kept: npt.NDArray[np.int64], config: CodecConfig) -> np.float32:
    """The magnitude that the step follows from: the least kept, or that reaches the least score kept, but not too small a one."""
    magnitudes = np.abs(values)
    if config.asymmetry_mode == "budget":
        least = magnitudes[kept].min()
    else:
        scores = scores_of(values, config.asymmetry)
        least = magnitudes[scores >= scores[kept].min()].min()
    nonzero = np.sort(magnitudes[magnitudes > 0])
    threshold: np.float32 = max(least, nonzero[-floor_rank(len(nonzero))])
    return threshold


def quantise(values: Float32, kept: npt.NDArray[np.int64], step: np.float32) -> Ints:
    """Signed numbers of steps, shape (n,): zero for what is dropped, at least one in magnitude for what is kept."""
    with np.errstate(over="ignore"):  # beyond the largest quotient infinity is as good as any
        scaled = np.abs(values[kept]) * (np.float32(1) / step)
    quotients = np.floor(np.minimum(scaled, LARGEST_QUOTIENT) + ROUNDING)
    quantised = np.zeros(len(values), np.int64)
    quantised[kept] = np.maximum(quotients.astype(np.int64), 1) * np.where(values[kept] < 0, -1, 1)
    return quantised


def choose_raw_bits(quantised: Ints, largest: int) -> int:
    """The fewest low bits to send raw so that at most one element in 64 is too large for a nibble."""
    magnitudes, bits = np.abs(quantised), 0
    while 64 * int((magnitudes > largest << bits).sum()) > len(quantised):
        bits += 1
    return bits


def split_raw(quantised: Ints, raw_bits: int) -> tuple[Ints, npt.NDArray[np.uint8]]:
    """High parts, signed and zero where the number is zero; and the low bits of the others, packed (section 6.6)."""
    if raw_bits == 0:
        return quantised, np.zeros(0, np.uint8)
    magnitudes = np.abs(quantised)
    high = (magnitudes + (1 << raw_bits) - 1) >> raw_bits
    low = (magnitudes[magnitudes > 0] - 1) & ((1 << raw_bits) - 1)
    bits = (low[:, None] >> np.arange(raw_bits)) & 1
    return np.where(quantised < 0, -high, high), np.packbits(bits.astype(np.uint8), bitorder="little")


def join_raw(high: Ints, raw: npt.NDArray[np.uint8], raw_bits: int) -> Ints:
    """The inverse of :func:`split_raw`; raises :class:`InconsistentFrame` unless the raw section has just the bits needed."""
    nonzero = np.flatnonzero(high)
    num_bits = raw_bits * len(nonzero)
    bits = np.unpackbits(raw, bitorder="little")
    if len(raw) != (num_bits + 7) // 8 or bits[num_bits:].any():
        raise InconsistentFrame(
            f"raw bits: {len(raw)} bytes for {len(nonzero)} numbers of {raw_bits} bits, or dirty padding"
        )
    if raw_bits == 0:
        return high
    low = (bits[:num_bits].reshape(-1, raw_bits).astype(np.int64) << np.arange(raw_bits)).sum(axis=1)
    quantised = np.zeros_like(high)
    magnitudes = ((np.abs(high[nonzero]) - 1) << raw_bits) + low + 1
    quantised[nonzero] = np.where(high[nonzero] < 0, -magnitudes, magnitudes)
    return quantised


def reconstruction_classes(high: Ints, kind: int, one_sided: bool, grid: Grid) -> tuple[Ints, Ints]:
    """Class, and the sign with which the class's shift is added, of each element (section 6.7)."""
    magnitude, sign = np.abs(high), np.sign(high)
    larger = np.where(magnitude == 2, 8, 9)
    if grid.layout is not Layout.PLANES:
        return np.where(magnitude == 0, 0, np.where(magnitude == 1, 5, larger)), np.ones_like(
            high
        ) if one_sided else sign
    around = neighbour_sum(high, grid)
    if one_sided:
        ones, direction = np.minimum(around >> 1, 2), np.ones_like(high)
    else:
        ones = np.clip((around * sign + 4) >> 2, 0, 2)
        direction = np.where(magnitude == 0, np.sign(around), sign)
    zeros = np.minimum(np.abs(around), 4)
    return np.where(magnitude == 0, zeros, np.where(magnitude == 1, 5 + ones, larger)), direction


def neighbour_sum(high: Ints, grid: Grid) -> Ints:
    """Sum of the four neighbours in the plane; beyond the border there are zeros."""
    padded = np.pad(high.reshape(grid.planes, grid.rows, grid.columns), ((0, 0), (1, 1), (1, 1)))
    around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    return around.reshape(-1)


def measure_shifts(
    values: Float32, quantised: Ints, high: Ints, step: np.float32, kind: int, one_sided: bool, grid: Grid
) -> Ints:
    """The mean distance of each class from its cell's nominal value, in 64ths of the step, shape (10,) (section 7)."""
    with np.errstate(over="ignore"):
        quotients = np.clip(values * (np.float32(1) / step), -LARGEST_QUOTIENT, LARGEST_QUOTIENT)
    scaled = np.rint(quotients * np.float32(SHIFT_UNIT))
    classes, direction = reconstruction_classes(high, kind, one_sided, grid)
    looked_at = np.arange(len(values)) // sample_run(grid) % sample_stride(len(values)) == 0
    distance = ((scaled.astype(np.int64) - SHIFT_UNIT * quantised) * direction)[looked_at]
    sums, counts = np.zeros(NUM_SHIFTS, np.int64), np.bincount(classes[looked_at], minlength=NUM_SHIFTS)
    np.add.at(sums, classes[looked_at], distance)
    return settled_shifts(sums, counts, one_sided)


def reconstruct(quantised: Ints, high: Ints, coded: Coded, grid: Grid) -> Float32:
    """Values in float32 (section 6.7): an exact integer, one conversion, one product."""
    classes, direction = reconstruction_classes(high, coded.kind, coded.one_sided, grid)
    units = SHIFT_UNIT * quantised + coded.shifts[classes] * direction
    with np.errstate(over="ignore"):
        return units.astype(np.float32) * (np.float32(coded.step) * np.float32(1 / SHIFT_UNIT))


# -- symbols (sections 6.3 and 6.4) ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pair lies, and which lane codes it."""

    first: int
    second: int
    """Flat indices; the second is -1 in an odd last column, row or element."""

    lane: int
    group: int
    """Position of the pair in its channel's or row's sequence: the pair's column number or token pair number."""


def places(grid: Grid, lanes: int, first_unit: int, last_unit: int) -> Iterator[Place]:
    """Pairs of a segment in coding order (section 6.3)."""
    if grid.layout is Layout.FLAT:
        for pair in range(first_unit, last_unit):
            second = 2 * pair + 1 if 2 * pair + 1 < grid.columns else -1
            yield Place(2 * pair, second, (pair - first_unit) % lanes, pair)
    elif grid.layout is Layout.TOKENS:
        for row in range(0, grid.rows, 2):
            for channel in range(first_unit, last_unit):
                index = row * grid.columns + channel
                second = index + grid.columns if row + 1 < grid.rows else -1
                yield Place(index, second, (channel - first_unit) % lanes, row // 2)
    else:
        for block in range(first_unit, last_unit, lanes):
            for row in range(grid.rows):
                for column in range(0, grid.columns, 2):
                    for plane in range(block, min(block + lanes, last_unit)):
                        index = (plane * grid.rows + row) * grid.columns + column
                        yield Place(index, index + 1 if column + 1 < grid.columns else -1, plane - block, column // 2)


class Contexts:
    """Context and flip of each pair, from what was coded before it."""

    def __init__(self, high: Ints, grid: Grid, kind: int, start: int) -> None:
        self._high, self._grid, self._kind = high, grid, kind
        self._start = int(activity.ACTIVITY[start])
        self._borders = activity.thresholds_for(self._start)
        self._busy: dict[int, int] = {}
        self._lean: dict[int, int] = {}

    def at(self, place: Place) -> tuple[int, int]:
        """Context and flip of the pair; what lies before it must be in ``high`` already."""
        if self._grid.layout is Layout.FLAT:
            return 0, 1
        if self._grid.layout is Layout.TOKENS:
            channel = place.first % self._grid.columns
            busy, lean = self._busy.get(channel, self._start), self._lean.get(channel, 0)
            leaning = 8 * abs(lean) >= 3 * busy + 24
            return 2 * int((busy >= self._borders).sum()) + leaning, 1 if lean >= 0 else -1
        return tables.neighbour_context(self._kind, *self._neighbour_classes(place))

    def learn(self, place: Place) -> None:
        """Takes note of a pair that is known now."""
        if self._grid.layout is not Layout.TOKENS or place.second < 0:
            return
        channel, shift = place.first % self._grid.columns, activity.forgetting(place.group)
        first, second = (max(-LARGEST_SEEN, min(LARGEST_SEEN, int(self._high[i]))) for i in (place.first, place.second))
        busy, lean = self._busy.get(channel, self._start), self._lean.get(channel, 0)
        self._busy[channel] = busy + (((abs(first) + abs(second)) * 64 - busy) >> shift)
        self._lean[channel] = lean + (((first + second) * 64 - lean) >> shift)

    def _neighbour_classes(self, place: Place) -> tuple[int, int, int]:
        columns = self._grid.columns
        row, column = divmod(place.first % (self._grid.rows * columns), columns)
        left = self._class(place.first - 1) if column else 0
        up = self._class(place.first - columns) if row else 0
        up_right = (self._class(place.first - columns + 1) if place.second >= 0 else up) if row else 0
        return left, up, up_right

    def _class(self, index: int) -> int:
        number = int(self._high[index])
        return min(number, 2) if is_one_sided_kind(self._kind) else (number > 0) - (number < 0)


def nibble_of(number: int, flip: int, one_sided: bool) -> int:
    """The nibble of a number; 15 if it is too large for one."""
    if one_sided:
        return min(number, 15)
    magnitude = abs(number)
    return 15 if magnitude > 7 else (2 * magnitude - 1 if number * flip > 0 else 2 * magnitude)


def number_of(nibble: int, flip: int, one_sided: bool) -> int:
    """The inverse of :func:`nibble_of` for nibbles below 15."""
    if one_sided:
        return nibble
    return flip * ((nibble + 1) >> 1 if nibble & 1 else -(nibble >> 1))


@dataclass(frozen=True, slots=True)
class Symbols:
    """Context row and symbol of every pair, by the flat index of its first element."""

    rows: dict[int, int]
    symbols: dict[int, int]
    num_contexts: int

    @classmethod
    def of(cls, high: Ints, grid: Grid, kind: int, start: int) -> Symbols:
        """Goes through the whole tensor; the order of lanes does not change a pair's context."""
        contexts, one_sided = Contexts(high, grid, kind, start), is_one_sided_kind(kind)
        result = cls({}, {}, tables.NUM_CONTEXTS[kind])
        for place in places(grid, 1, 0, grid.units):
            context, flip = contexts.at(place)
            first = nibble_of(int(high[place.first]), flip, one_sided)
            second = nibble_of(int(high[place.second]), flip, one_sided) if place.second >= 0 else 0
            result.rows[place.first] = context + (result.num_contexts if place.second < 0 else 0)
            result.symbols[place.first] = 16 * first + second
            contexts.learn(place)
        return result

    def histogram(self) -> Ints:
        """How often each symbol was seen in each row: shape (2 C, 256)."""
        counts = np.zeros((2 * self.num_contexts, 256), np.int64)
        np.add.at(counts, (list(self.rows.values()), list(self.symbols.values())), 1)
        return counts


# -- entropy coder (sections 6.5 and 6.6) ---------------------------------------------------------------


def frequencies_for(levels: Ints, grid: Grid, kind: int) -> Ints:
    """The frequency tables of a frame; single nibbles have their own where a row has an odd end."""
    along = grid.rows if grid.layout is Layout.TOKENS else grid.columns
    return tables.build_tables(
        levels, tables.NEXT[kind], tables.FLIP_NEXT[kind], is_one_sided_kind(kind), along % 2 == 1, tables.PROBABILITY
    )


def must_escape(symbol: int, frequency: int) -> bool:
    """Whether a pair has no symbol of its own: a nibble of 15, or a frequency of zero."""
    return symbol >> 4 == 15 or symbol & 15 == 15 or frequency == 0


def encode_segment(
    symbols: Symbols, high: Ints, frequencies: Ints, grid: Grid, kind: int, lanes: int, first: int, last: int
) -> Segment:
    """Codes the pairs of a segment, last one first, so that a reader gets them first one first."""
    cumulative = np.cumsum(frequencies, axis=1) - frequencies
    bits, coding = BitWriter(), []
    for place in places(grid, lanes, first, last):
        row, symbol = symbols.rows[place.first], symbols.symbols[place.first]
        if must_escape(symbol, int(frequencies[row, symbol])):
            symbol = ESCAPE
            for index in (place.first, place.second):
                if index >= 0:
                    bits.golomb(magnitude_code(int(high[index]), is_one_sided_kind(kind)))
        coding.append((place.lane, int(frequencies[row, symbol]), int(cumulative[row, symbol])))
    states, words = [LEAST_STATE] * lanes, []
    for lane, frequency, start in reversed(coding):
        if states[lane] >> (31 - SCALE_BITS) >= frequency:
            words.append(states[lane] & 0xFFFF)
            states[lane] >>= 16
        quotient, rest = divmod(states[lane], frequency)
        states[lane] = (quotient << SCALE_BITS) + rest + start
    for state in reversed(states):
        words += (state & 0xFFFF, state >> 16)
    return Segment(words=np.array(words[::-1], np.uint16), escapes=bits.bytes())


def decode_segment(
    segment: Segment, coded: Coded, frequencies: Ints, grid: Grid, high: Ints, first: int, last: int
) -> None:
    """Reads the pairs of a segment into ``high`` and proves that its streams end where they must."""
    one_sided = is_one_sided_kind(coded.kind)
    contexts = Contexts(high, grid, coded.kind, coded.activity)
    symbol_at = [np.repeat(np.arange(256), row) for row in frequencies]
    cumulative = np.cumsum(frequencies, axis=1) - frequencies
    words, bits = WordReader(segment.words), BitReader(segment.escapes)
    states = [words.next() << 16 | words.next() for _ in range(coded.lanes)]
    for place in places(grid, coded.lanes, first, last):
        context, flip = contexts.at(place)
        row = context + (tables.NUM_CONTEXTS[coded.kind] if place.second < 0 else 0)
        slot = states[place.lane] & (SCALE - 1)
        symbol = int(symbol_at[row][slot])
        state = int(frequencies[row, symbol]) * (states[place.lane] >> SCALE_BITS) + slot - int(cumulative[row, symbol])
        states[place.lane] = state if state >= LEAST_STATE else state << 16 | words.next()
        for index, nibble in ((place.first, symbol >> 4), (place.second, symbol & 15)):
            if index >= 0:
                escaped = symbol == ESCAPE
                high[index] = (
                    number_from_code(bits.golomb(), one_sided) if escaped else number_of(nibble, flip, one_sided)
                )
        contexts.learn(place)
    words.finish()
    bits.finish()
    if any(state != LEAST_STATE for state in states):
        raise InconsistentFrame("entropy coder: a lane does not end in its starting state")


def magnitude_code(number: int, one_sided: bool) -> int:
    """The number that stands for an escaped one: itself, or its zigzag code."""
    return number if one_sided else (2 * number - 1 if number > 0 else -2 * number)


def number_from_code(code: int, one_sided: bool) -> int:
    """The inverse of :func:`magnitude_code`; raises :class:`InconsistentFrame` for a number that no writer has."""
    number = code if one_sided else ((code + 1) >> 1 if code & 1 else -(code >> 1))
    if abs(number) > LARGEST_NUMBER:
        raise InconsistentFrame(f"escapes: {number} is larger than any number of steps")
    return number


class WordReader:
    """Words of a segment, one after the other."""

    def __init__(self, words: npt.NDArray[np.uint16]) -> None:
        self._words, self._at = words, 0

    def next(self) -> int:
        """The next word; raises :class:`InconsistentFrame` past the end."""
        if self._at == len(self._words):
            raise InconsistentFrame("entropy coder: a segment needs more words than it has")
        self._at += 1
        return int(self._words[self._at - 1])

    def finish(self) -> None:
        """Proves that all words were used."""
        if self._at != len(self._words):
            raise InconsistentFrame("entropy coder: a segment has more words than it needs")


class BitWriter:
    """Bits, least significant first."""

    def __init__(self) -> None:
        self._bits: list[int] = []

    def golomb(self, value: int, order: int = 1) -> None:
        """An exponential Golomb code (section 1.5)."""
        value += 1 << order
        width = value.bit_length() - 1
        self._bits += [0] * (width - order) + [1] + [value >> i & 1 for i in range(width)]

    def bytes(self) -> npt.NDArray[np.uint8]:
        """All bits, padded with zeros to full bytes."""
        return np.packbits(np.array(self._bits, np.uint8), bitorder="little")


class BitReader:
    """The inverse of :class:`BitWriter`."""

    def __init__(self, data: npt.NDArray[np.uint8]) -> None:
        self._bits, self._at = np.unpackbits(data, bitorder="little"), 0

    def _next(self) -> int:
        if self._at == len(self._bits):
            raise InconsistentFrame("escapes: a code runs past the end")
        self._at += 1
        return int(self._bits[self._at - 1])

    def golomb(self, order: int = 1) -> int:
        """Reads an exponential Golomb code; raises :class:`InconsistentFrame` if it is wider than 32 bits."""
        width = order
        while not self._next():
            width += 1
            if width > 32:
                raise InconsistentFrame("escapes: a code is wider than 32 bits")
        return (1 << width) + sum(self._next() << i for i in range(width)) - (1 << order)

    def finish(self) -> None:
        """Proves that less than a byte is left, and that it is zero."""
        rest: Any = self._bits[self._at :]
        if len(rest) > 7 or rest.any():
            raise InconsistentFrame("escapes: bits are left over")
