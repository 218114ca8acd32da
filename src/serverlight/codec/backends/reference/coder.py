"""Profile ``serverlight`` in plain Python: the entropy coder and its streams (docs/wire-format.md, sections 6.5 and 6.6)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from serverlight.codec import tables
from serverlight.codec.activity import Spreads
from serverlight.codec.backends.reference.symbols import Contexts, Place, Symbols, nibble_of, number_of, places
from serverlight.codec.coded import LARGEST_NUMBER, Coded, Segment, is_one_sided_kind
from serverlight.codec.layout import Grid, Layout
from serverlight.codec.tables import ESCAPE, LARGE, SCALE, SCALE_BITS, Ints
from serverlight.errors import InconsistentFrame

__all__ = ["decode_segment", "encode_segment", "frequencies_for"]

LEAST_STATE = 1 << 15


def frequencies_for(levels: Ints, grid: Grid, kind: int, half_escapes: bool) -> Ints:
    """The frequency tables of a frame; single nibbles have their own where a row has an odd end."""
    along = grid.rows if grid.layout is Layout.TOKENS else grid.columns
    return tables.build_tables(
        levels,
        tables.FIRST[kind],
        tables.NEXT[kind],
        tables.FLIP_NEXT[kind],
        is_one_sided_kind(kind),
        along % 2 == 1,
        half_escapes,
        tables.PROBABILITY,
    )


def encode_segment(
    symbols: Symbols,
    high: Ints,
    frequencies: Ints,
    grid: Grid,
    kind: int,
    half_escapes: bool,
    lanes: int,
    first: int,
    last: int,
) -> Segment:
    """Codes the pairs of a segment, last one first, so that a reader gets them first one first."""
    cumulative = np.cumsum(frequencies, axis=1) - frequencies
    bits, coding = BitWriter(), []
    for place in places(grid, lanes, first, last):
        row, symbol = symbols.rows[place.first], symbols.symbols[place.first]
        symbol = symbol if frequencies[row, symbol] else ESCAPE
        numbers = [int(high[index]) for index in escaped(place, symbol)]
        put_escapes(bits, numbers, symbol, is_one_sided_kind(kind), half_escapes)
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
    segment: Segment, coded: Coded, frequencies: Ints, grid: Grid, spreads: Spreads, high: Ints, first: int, last: int
) -> None:
    """Reads the pairs of a segment into ``high`` and proves that its streams end where they must."""
    one_sided = is_one_sided_kind(coded.kind)
    contexts = Contexts(high, grid, coded.kind, coded.activity, spreads)
    symbol_at = [np.repeat(np.arange(256), row) for row in frequencies]
    cumulative = np.cumsum(frequencies, axis=1) - frequencies
    words, bits = WordReader(segment.words), BitReader(segment.escapes)
    states = [words.next() << 16 | words.next() for _ in range(coded.lanes)]
    for place in places(grid, coded.lanes, first, last):
        row, flip = contexts.at(place)
        row += tables.NUM_ROWS[coded.kind] if place.second < 0 else 0
        slot = states[place.lane] & (SCALE - 1)
        symbol = int(symbol_at[row][slot])
        state = int(frequencies[row, symbol]) * (states[place.lane] >> SCALE_BITS) + slot - int(cumulative[row, symbol])
        states[place.lane] = state if state >= LEAST_STATE else state << 16 | words.next()
        for index, nibble in ((place.first, symbol >> 4), (place.second, symbol & 15)):
            if index >= 0:
                high[index] = number_of(nibble, flip, one_sided)
        whole = symbol == ESCAPE and (not coded.half_escapes or bits.next() == 1)
        for index in escaped(place, symbol):
            high[index] = (number_from_code if whole else number_from_excess)(bits.golomb(), one_sided)
        contexts.learn(place)
    words.finish()
    bits.finish()
    if any(state != LEAST_STATE for state in states):
        raise InconsistentFrame("entropy coder: a lane does not end in its starting state")


def escaped(place: Place, symbol: int) -> list[int]:
    """Indices of the numbers of a pair that come from the escape bits: those whose nibble is 15."""
    pair = ((place.first, symbol >> 4), (place.second, symbol & 15))
    return [index for index, nibble in pair if index >= 0 and nibble == LARGE]


def put_escapes(bits: BitWriter, numbers: list[int], symbol: int, one_sided: bool, half_escapes: bool) -> None:
    """Writes the escaped numbers of a pair: what they exceed a nibble by if its symbol, or a bit, says that all do, else whole."""
    whole = symbol == ESCAPE
    if whole and half_escapes:
        whole = any(nibble_of(number, 1, one_sided) != LARGE for number in numbers)
        bits.put(int(whole))
    for number in numbers:
        bits.golomb((magnitude_code if whole else excess_code)(number, one_sided))


def magnitude_code(number: int, one_sided: bool) -> int:
    """The number that stands for an escaped one: itself, or its zigzag code."""
    return number if one_sided else (2 * number - 1 if number > 0 else -2 * number)


def number_from_code(code: int, one_sided: bool) -> int:
    """The inverse of :func:`magnitude_code`; raises :class:`InconsistentFrame` for a number that no writer has."""
    return possible(code if one_sided else ((code + 1) >> 1 if code & 1 else -(code >> 1)))


def excess_code(number: int, one_sided: bool) -> int:
    """What is left of a number of which the symbol says that it is too large for a nibble."""
    return number - 15 if one_sided else 2 * (abs(number) - 8) + (number < 0)


def number_from_excess(code: int, one_sided: bool) -> int:
    """The inverse of :func:`excess_code`; raises :class:`InconsistentFrame` for a number that no writer has."""
    return possible(code + 15 if one_sided else (8 + (code >> 1)) * (-1 if code & 1 else 1))


def possible(number: int) -> int:
    """The number, if it is not too large."""
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

    def put(self, bit: int) -> None:
        """One bit."""
        self._bits.append(bit)

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

    def next(self) -> int:
        """The next bit; raises :class:`InconsistentFrame` past the end."""
        if self._at == len(self._bits):
            raise InconsistentFrame("escapes: a code runs past the end")
        self._at += 1
        return int(self._bits[self._at - 1])

    def golomb(self, order: int = 1) -> int:
        """Reads an exponential Golomb code; raises :class:`InconsistentFrame` if it is wider than 32 bits."""
        width = order
        while not self.next():
            width += 1
            if width > 32:
                raise InconsistentFrame("escapes: a code is wider than 32 bits")
        return (1 << width) + sum(self.next() << i for i in range(width)) - (1 << order)

    def finish(self) -> None:
        """Proves that less than a byte is left, and that it is zero."""
        rest: Any = self._bits[self._at :]
        if len(rest) > 7 or rest.any():
            raise InconsistentFrame("escapes: bits are left over")
