"""Compiled loops of profile ``serverlight``: the probability model, and the coder's tables made of it.

Small functions come straight from :mod:`serverlight.codec.tables` and :mod:`serverlight.codec.parameters`; where whole tables
are filled, loops are written for vectors.
"""

from __future__ import annotations

import types
from typing import Any

import numpy as np

from serverlight.codec import parameters, tables
from serverlight.codec.backends.cpu.compiled import copy_sixteen, inlined, njit, write_sixteen

U = np.uint64
ONE = 65536
MAX_LEVEL = tables.MAX_LEVEL
PROBABILITY = tables.PROBABILITY
DEFAULT_LEVELS = tables.DEFAULT_LEVELS
FIRST, NEXT, FLIP_NEXT = tables.FIRST, tables.NEXT, tables.FLIP_NEXT
COST, COST_OF_FREQUENCY = tables.COST, tables.COST_OF_FREQUENCY


def compiled(*names: str) -> list[Any]:
    """Functions of the two modules as machine code: the same definition, at another speed.

    ``names`` come in an order in which each function calls only earlier ones.
    """
    defined = {**vars(tables), **vars(parameters)}
    namespace = dict(defined)
    for name in names:
        source = defined[name]
        copy = types.FunctionType(source.__code__, namespace, name)
        copy.__qualname__, copy.__module__ = f"compiled.{name}", __name__
        namespace[name] = njit(copy)
    return [namespace[name] for name in names]


(
    class_of_nibble,
    count_nibble,
    price,
    clamp_level,
    correction_bits,
    total_price,
    best_offset,
    best_correction,
    fit_levels,
    nibble_shares,
    nibble_costs,
    mirror_of,
    settle,
    levels_of,
    put_bits,
    put_signed,
    pack_model,
    get_bits,
    get_signed,
    unpack_model,
    payload_bits,
) = compiled(
    "class_of_nibble",
    "count_nibble",
    "price",
    "clamp_level",
    "correction_bits",
    "total_price",
    "best_offset",
    "best_correction",
    "fit_levels",
    "nibble_shares",
    "nibble_costs",
    "mirror_of",
    "settle",
    "levels_of",
    "put_bits",
    "put_signed",
    "pack_model",
    "get_bits",
    "get_signed",
    "unpack_model",
    "payload_bits",
)


# -- from histogram to decisions ---------------------------------------------------------------------------------


@njit
def count_decisions(histogram, firsts, following, flips, one_sided):
    """What :func:`serverlight.codec.tables.count_decisions` returns, by way of counts of single nibbles."""
    num_contexts, (num_rows, num_classes) = firsts[-1] + 1, following.shape
    upright, flipped = np.zeros((num_contexts, 16), np.int64), np.zeros((num_contexts, 16), np.int64)
    seconds = np.empty((num_classes, 16), np.int64)
    for row in range(num_rows):
        seconds[:] = 0
        for first in range(16):
            index, total = class_of_nibble(first, one_sided, num_classes), 0
            for second in range(16):
                times = histogram[row, 16 * first + second]
                total += times
                seconds[index, second] += times
            upright[firsts[row], first] += total + histogram[num_rows + row, 16 * first]
        for index in range(num_classes):
            into = upright if flips[row, index] > 0 else flipped
            for second in range(16):
                into[following[row, index], second] += seconds[index, second]
    counts = np.zeros((num_contexts, 5, 2), np.int64)
    for context in range(num_contexts):
        for nibble in range(16):
            if upright[context, nibble]:
                count_nibble(counts[context], nibble, 1, upright[context, nibble], one_sided)
            if flipped[context, nibble]:
                count_nibble(counts[context], nibble, -1, flipped[context, nibble], one_sided)
    return counts


# -- from levels to frequencies ----------------------------------------------------------------------------------


@njit
def build_tables(levels, firsts, following, flips, one_sided, with_tail, half_escapes):
    """What :func:`serverlight.codec.tables.build_tables` returns, as 32-bit numbers."""
    num_contexts, (num_rows, num_classes) = levels.shape[0], following.shape
    shares = np.zeros((num_contexts, 16), np.int64)
    seconds = np.zeros((2 * num_contexts, 16), np.uint32)  # as they are, and then mirrored
    for context in range(num_contexts):
        nibble_shares(levels[context], one_sided, PROBABILITY, shares[context])
        for nibble in range(16 if half_escapes else 15):
            seconds[context, nibble] = np.uint32(shares[context, nibble])
            seconds[num_contexts + context, nibble] = np.uint32(shares[context, mirror_of(nibble)])
    frequencies = np.zeros((num_rows * (2 if with_tail else 1), 256), np.int32)
    upper, lower = np.empty(256 * num_rows, np.uint32), np.empty(256 * num_rows, np.uint32)
    upper_at, lower_at, seconds_at = U(upper.ctypes.data), U(lower.ctypes.data), U(seconds.ctypes.data)
    for row in range(num_rows):
        for first in range(16):
            index, at = class_of_nibble(first, one_sided, num_classes), U(4 * (256 * row + 16 * first))
            source = U(following[row, index] + (0 if flips[row, index] > 0 else num_contexts))
            write_sixteen(upper_at + at, seconds[firsts[row], first], np.uint32(0))
            copy_sixteen(lower_at + at, seconds_at + U(64) * source)
    of_pairs = frequencies.reshape(-1)
    for i in range(upper.size):  # one long loop, since short ones do not become vectors
        of_pairs[i] = np.int32(frequency_of(np.uint32(upper[i] * lower[i])))  # no nibble has all of a share
    for row in range(num_rows):
        settle(frequencies[row])
        if with_tail:
            for first in range(16):
                share = np.uint32(seconds[firsts[row], first] << np.uint32(16))
                frequencies[num_rows + row, 16 * first] = np.int32(frequency_of(share))
            settle(frequencies[num_rows + row])
    return frequencies


@inlined
def frequency_of(share):
    """What :func:`serverlight.codec.tables.frequency_of` returns, of a share below 2^32, without a branch."""
    one = np.uint32(1)
    frequency = np.uint32((share >> np.uint32(20)) + ((share >> np.uint32(19)) & one))
    return np.uint32(frequency + np.uint32((frequency == np.uint32(0)) & (share >= np.uint32(180_000))))


# -- the same for other backends ----------------------------------------------------------------------------------


@njit
def frequencies_of(levels, kind, with_tail, half_escapes):
    """Frequency tables of a family of contexts, as 64-bit numbers."""
    one_sided = kind == tables.ONE_SIDED_PLANES
    firsts, following, flips = FIRST[kind], NEXT[kind], FLIP_NEXT[kind]
    return build_tables(levels, firsts, following, flips, one_sided, with_tail, half_escapes).astype(np.int64)


@njit
def fit_model(histogram, kind, with_tail, half_escapes, is_short):
    """The model that suits a histogram: its parameters packed, levels, frequencies, and the bits that the symbols will take."""
    one_sided, defaults = kind == tables.ONE_SIDED_PLANES, DEFAULT_LEVELS[kind]
    counts = count_decisions(histogram, FIRST[kind], NEXT[kind], FLIP_NEXT[kind], one_sided)
    offsets, present, corrections = fit_levels(counts, defaults, one_sided, COST)
    levels, packed = levels_of(defaults, offsets, corrections), np.zeros(300, np.uint8)
    size = pack_model(offsets, present, corrections, one_sided, is_short, packed)
    frequencies = frequencies_of(levels, kind, with_tail, half_escapes)
    return packed[:size], levels, frequencies, payload_bits(histogram, frequencies, COST_OF_FREQUENCY)


# -- tables of the coder -----------------------------------------------------------------------------------------


def _reciprocals() -> np.ndarray[Any, np.dtype[np.uint64]]:
    """By frequency: the reciprocal that divides a state below 2^31 by it, and the shift that goes with it, in the top byte.

    Such a quotient is exact (Alverson 1991, as rANS coders use it). That of a frequency of 1 is one too small, which the bias in
    :func:`set_entry` makes up for.
    """
    table = np.zeros(4097, np.uint64)
    table[1] = 0xFFFFFFFF | 32 << 56
    for frequency in range(2, 4097):
        width = (frequency - 1).bit_length()
        reciprocal = ((1 << (width + 31)) + frequency - 1) // frequency
        table[frequency] = reciprocal | (width + 31) << 56
    return table


RECIPROCALS = _reciprocals()


@njit
def encoder_tables(frequencies, histogram, costs, table):
    """Fills the writer's table, four numbers for each entry that occurs: see :func:`set_entry`.

    A pair that must be escaped has its row's entry for escapes, and a mark; half escapes have another mark.
    Returns the bits that the symbols will take, and the number of pairs with a mark.
    """
    total, escaped = 0, 0
    for row in range(frequencies.shape[0]):
        start, e = np.int32(0), np.int32(frequencies[row, 255])
        for symbol in range(256):
            times, frequency = histogram[row, symbol], frequencies[row, symbol]
            if times:
                at = 256 * row + symbol
                if frequency == 0 or symbol == 255:
                    escaped += times
                    total += times * costs[e]
                    set_entry(table, at, e, np.int32(4096) - e, ESCAPED)
                else:
                    is_half = symbol >> 4 == 15 or symbol & 15 == 15
                    escaped += times if is_half else 0
                    total += times * costs[frequency]
                    set_entry(table, at, frequency, start, HALF if is_half else np.uint32(0))
            start += frequency
    return total >> 8, escaped


HALF, ESCAPED = np.uint32(1 << 24), np.uint32(2 << 24)
"""Marks of the writer's entries for pairs that have a symbol but a number too large for a nibble, or the escape symbol."""


@inlined
def set_entry(table, at, frequency, start, mark):
    """The writer's four numbers: from which state on a word is written, the reciprocal, the start, and what a quotient is worth.

    The last one has the shift that goes with the reciprocal in its upper half, and the mark above it.
    """
    reciprocal = RECIPROCALS[frequency]
    i = 4 * at
    table[i] = np.uint32(frequency) << np.uint32(19)
    table[i + 1] = np.uint32(reciprocal & U(0xFFFFFFFF))
    table[i + 2] = np.uint32(start + np.int32(4095) if frequency == 1 else start)
    table[i + 3] = np.uint32(np.int32(4096) - frequency) | np.uint32(reciprocal >> U(56)) << np.uint32(16) | mark


@inlined
def mark_of(table, entry):
    """The mark of an entry, in its place."""
    return table[U(4) * U(entry) + U(3)] & (HALF | ESCAPED)


@njit
def decoder_table(frequencies):
    """By row and slot: the symbol's frequency, the slot's place among those of the symbol, and the symbol, in 12, 12 and 8 bits.

    No symbol has all slots. There are 16 places more than slots: runs are written in sixteens, and the next run overwrites what
    is too much.
    """
    num_rows, at = frequencies.shape[0], U(0)
    table = np.empty(num_rows * 4096 + 16, np.uint32)
    into, place, most = U(table.ctypes.data), np.uint32(1 << 8), np.uint32(16 << 8)
    for row in range(num_rows):
        for symbol in range(256):
            frequency = frequencies[row, symbol]
            entry, end = np.uint32(frequency) << np.uint32(20) | np.uint32(symbol), at + U(frequency)
            while at < end:
                write_sixteen(into + U(4) * at, np.uint32(entry), place)
                at += U(16)
                entry = np.uint32(entry + most)
            at = end
    return table
