"""Compiled loops of profile ``serverlight``: the range coder's reader, a line of pairs or a block of planes at a time.

The definition of what is computed is in ``reference.py``. Eight lanes are written out, so that their states stay in registers;
other numbers of lanes go through a loop over an array of states.

No index leaves its array, whatever the frame says. A stream of words is copied to an array with eight more words than it has,
and no group of eight pairs, each of which takes one word at most, is read from beyond the stream's end. A state chooses one of
4096 slots, and a context is a row of the tables by the way it is computed. Escapes and raw bits are checked one by one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from serverlight.codec.backends.cpu_kernels import inlined, njit
from serverlight.codec.backends.cpu_symbols import token_contexts, token_learn
from serverlight.codec.backends.reference import number_of

U = np.uint64
LEAST = U(1 << 15)
LARGEST_NUMBER = 1 << 28
LARGEST_NARROW = 1 << 24
ESCAPED = np.int32(1 << 15)
BITS, LARGEST, RAW = 0, 1, 2
"""What ``progress`` holds: bits of escapes read, -1 if they are broken; the largest magnitude among them; raw bits read."""


def _facts_of(one_sided: bool) -> np.ndarray[Any, np.dtype[np.int32]]:
    """What a symbol of a plane tells its neighbours, by ``512 single + 256 turned + symbol``.

    The low byte is three times the class of the first number plus the second's, as the row below adds it to its place; the upper
    half is nine times the second's, less the middle of all places where numbers have signs, as the next pair does; bit 15 marks an
    escape.
    """
    facts = np.zeros(1024, np.int32)
    for single in (0, 1):
        for turned in (0, 1):
            for symbol in range(256):
                pair = [number_of(nibble, 1 - 2 * turned, one_sided) for nibble in (symbol >> 4, symbol & 15)]
                up, beside = (min(n, 2) if one_sided else (n > 0) - (n < 0) + 1 for n in pair)
                beside = up if single else beside
                left = 9 * beside - (0 if one_sided else 13)
                facts[512 * single + 256 * turned + symbol] = left << 16 | (symbol == 255) << 15 | 3 * up + beside
    return facts


def _pair_of(one_sided: bool) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The two numbers of a symbol, by ``256 turned + symbol``, as neighbours in memory."""
    numbers = [
        number_of(nibble, flip, one_sided) for flip in (1, -1) for s in range(256) for nibble in (s >> 4, s & 15)
    ]
    return np.array(numbers, np.int32).view(np.int64)


FACTS_OF = (_facts_of(False), _facts_of(True))
PAIR_OF = (_pair_of(False), _pair_of(True))
OUTSIDE = (4 | -4 << 16, 0)
"""What lies outside a plane tells its neighbours: that it is zero."""


# -- escapes -----------------------------------------------------------------------------------------------------


@njit
def get_golomb(buffer, at):
    """Reads an exponential Golomb code; returns it and the position after it, or a position of -1 past the end or over 32 bits."""
    width, size = 1, 8 * buffer.size
    if at < 0:
        return 0, -1
    while at < size and not (buffer[at >> 3] >> (at & 7)) & 1:
        width += 1
        at += 1
    if width > 32 or at + 1 + width > size:
        return 0, -1
    at += 1
    value = 1 << width
    for i in range(width):
        value |= np.int64((buffer[at >> 3] >> (at & 7)) & 1) << i
        at += 1
    return value - 2, at


@njit
def get_number(one_sided, escapes, progress):
    """Reads one escaped number; a broken one, or one that is too large, is zero and ends the reading of all others."""
    code, bits = get_golomb(escapes, progress[BITS])
    number = code if one_sided else ((code + 1) >> 1 if code & 1 else -(code >> 1))
    if abs(number) > LARGEST_NUMBER:
        number, bits = 0, -1
    progress[BITS] = bits
    progress[LARGEST] = max(progress[LARGEST], abs(number))
    return np.int32(number)


@njit
def get_plane_escapes(facts, count, row, pair, is_single, outside, block, above, lefts, escapes, progress):
    """Reads the numbers of those of ``count`` planes' pairs that are escaped, and tells their neighbours."""
    one_sided, numbers = outside == 0, block.view(np.int32)
    for lane in range(count):
        if facts[lane] & ESCAPED:
            first = get_number(one_sided, escapes, progress)
            second = np.int32(0) if is_single else get_number(one_sided, escapes, progress)
            numbers[lane, row + 1, 2 * pair + 2], numbers[lane, row + 1, 2 * pair + 3] = first, second
            up = neighbour_class(first, one_sided)
            beside = up if is_single else neighbour_class(second, one_sided)
            above[8 * pair + lane] = 3 * up + beside
            lefts[lane] = 9 * beside - (0 if one_sided else 13)


@njit
def neighbour_class(number, one_sided):
    """Class of one number as a neighbour."""
    return min(number, 2) if one_sided else (number > 0) - (number < 0) + 1


# -- range coder -------------------------------------------------------------------------------------------------


@inlined
def get(state, slot, entry, word, at):
    """The state after a symbol, which takes ``word`` in if it has become too small."""
    state = (entry & U(0xFFFF)) * (state >> U(12)) + slot - (entry >> U(16))
    short = state < LEAST
    return state << U(16) | word if short else state, at + U(short)


@njit
def get_eights(rows_of, groups, states, words, size, at, symbols, entries, into):
    """Reads ``groups`` groups of eight pairs that lie side by side, one a lane; returns the position in ``words``."""
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    x4, x5, x6, x7 = states[4], states[5], states[6], states[7]
    for group in range(groups):
        if at > size:
            break
        o = U(8 * group)
        table, slot = U(rows_of[o]), x0 & U(4095)
        symbol = U(symbols[table << U(12) | slot])
        x0, at = get(x0, slot, U(entries[table << U(8) | symbol]), U(words[at]), at)
        into[o] = symbol
        table, slot = U(rows_of[o + U(1)]), x1 & U(4095)
        symbol = U(symbols[table << U(12) | slot])
        x1, at = get(x1, slot, U(entries[table << U(8) | symbol]), U(words[at]), at)
        into[o + U(1)] = symbol
        table, slot = U(rows_of[o + U(2)]), x2 & U(4095)
        symbol = U(symbols[table << U(12) | slot])
        x2, at = get(x2, slot, U(entries[table << U(8) | symbol]), U(words[at]), at)
        into[o + U(2)] = symbol
        table, slot = U(rows_of[o + U(3)]), x3 & U(4095)
        symbol = U(symbols[table << U(12) | slot])
        x3, at = get(x3, slot, U(entries[table << U(8) | symbol]), U(words[at]), at)
        into[o + U(3)] = symbol
        table, slot = U(rows_of[o + U(4)]), x4 & U(4095)
        symbol = U(symbols[table << U(12) | slot])
        x4, at = get(x4, slot, U(entries[table << U(8) | symbol]), U(words[at]), at)
        into[o + U(4)] = symbol
        table, slot = U(rows_of[o + U(5)]), x5 & U(4095)
        symbol = U(symbols[table << U(12) | slot])
        x5, at = get(x5, slot, U(entries[table << U(8) | symbol]), U(words[at]), at)
        into[o + U(5)] = symbol
        table, slot = U(rows_of[o + U(6)]), x6 & U(4095)
        symbol = U(symbols[table << U(12) | slot])
        x6, at = get(x6, slot, U(entries[table << U(8) | symbol]), U(words[at]), at)
        into[o + U(6)] = symbol
        table, slot = U(rows_of[o + U(7)]), x7 & U(4095)
        symbol = U(symbols[table << U(12) | slot])
        x7, at = get(x7, slot, U(entries[table << U(8) | symbol]), U(words[at]), at)
        into[o + U(7)] = symbol
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return at


@njit
def get_run(rows_of, count, states, words, size, at, symbols, entries, into):
    """Reads the symbols of a run of pairs, lane after lane, from their rows of the tables; returns the position in ``words``."""
    lanes = states.size
    groups = count // 8 if lanes == 8 else 0
    if groups:
        at = get_eights(rows_of, groups, states, words, size, at, symbols, entries, into)
    lane = 0
    for i in range(8 * groups, count):
        table, slot = U(rows_of[i]), states[lane] & U(4095)
        symbol = U(symbols[table << U(12) | slot])
        word = U(words[min(at, size)])
        states[lane], at = get(states[lane], slot, U(entries[table << U(8) | symbol]), word, at)
        into[i] = symbol
        lane = lane + 1 if lane + 1 < lanes else 0
    return at


@njit
def get_eight_planes(
    rows,
    columns,
    states,
    words,
    size,
    at,
    symbols,
    entries,
    pair_of,
    facts_of,
    outside,
    num_contexts,
    block,
    escapes,
    progress,
):
    """Reads eight planes into ``block``, a padded array of pairs; returns the position in ``words``."""
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    x4, x5, x6, x7 = states[4], states[5], states[6], states[7]
    pairs, s, flat = (columns + 1) // 2, U(block.shape[1] * block.shape[2]), block.reshape(-1)
    above, lefts, facts = np.full(8 * pairs, outside & 255, np.uint8), np.empty(8, np.int64), np.empty(8, np.int32)
    for row in range(rows):
        l0 = l1 = l2 = l3 = outside >> 16
        l4 = l5 = l6 = l7 = outside >> 16
        for pair in range(pairs):
            if at > size:
                return at
            is_single = 2 * pair + 1 >= columns
            tail, single = num_contexts if is_single else 0, U(512 if is_single else 0)
            a, o = U(8 * pair), U((row + 1) * block.shape[2] + 1 + pair)
            place = l0 + np.int64(above[a])
            turned = place >> 63
            table, slot = U((place ^ turned) - turned + tail), x0 & U(4095)
            symbol = U(symbols[table << U(12) | slot])
            x0, at = get(x0, slot, U(entries[table << U(8) | symbol]), U(words[at]), at)
            symbol |= U(turned) & U(256)
            flat[o] = pair_of[symbol]
            f0 = facts_of[symbol | single]
            above[a], l0 = np.uint8(f0 & 255), np.int64(f0 >> 16)
            place = l1 + np.int64(above[a + U(1)])
            turned = place >> 63
            table, slot = U((place ^ turned) - turned + tail), x1 & U(4095)
            symbol = U(symbols[table << U(12) | slot])
            x1, at = get(x1, slot, U(entries[table << U(8) | symbol]), U(words[at]), at)
            symbol |= U(turned) & U(256)
            flat[o + s] = pair_of[symbol]
            f1 = facts_of[symbol | single]
            above[a + U(1)], l1 = np.uint8(f1 & 255), np.int64(f1 >> 16)
            place = l2 + np.int64(above[a + U(2)])
            turned = place >> 63
            table, slot = U((place ^ turned) - turned + tail), x2 & U(4095)
            symbol = U(symbols[table << U(12) | slot])
            x2, at = get(x2, slot, U(entries[table << U(8) | symbol]), U(words[at]), at)
            symbol |= U(turned) & U(256)
            flat[o + U(2) * s] = pair_of[symbol]
            f2 = facts_of[symbol | single]
            above[a + U(2)], l2 = np.uint8(f2 & 255), np.int64(f2 >> 16)
            place = l3 + np.int64(above[a + U(3)])
            turned = place >> 63
            table, slot = U((place ^ turned) - turned + tail), x3 & U(4095)
            symbol = U(symbols[table << U(12) | slot])
            x3, at = get(x3, slot, U(entries[table << U(8) | symbol]), U(words[at]), at)
            symbol |= U(turned) & U(256)
            flat[o + U(3) * s] = pair_of[symbol]
            f3 = facts_of[symbol | single]
            above[a + U(3)], l3 = np.uint8(f3 & 255), np.int64(f3 >> 16)
            place = l4 + np.int64(above[a + U(4)])
            turned = place >> 63
            table, slot = U((place ^ turned) - turned + tail), x4 & U(4095)
            symbol = U(symbols[table << U(12) | slot])
            x4, at = get(x4, slot, U(entries[table << U(8) | symbol]), U(words[at]), at)
            symbol |= U(turned) & U(256)
            flat[o + U(4) * s] = pair_of[symbol]
            f4 = facts_of[symbol | single]
            above[a + U(4)], l4 = np.uint8(f4 & 255), np.int64(f4 >> 16)
            place = l5 + np.int64(above[a + U(5)])
            turned = place >> 63
            table, slot = U((place ^ turned) - turned + tail), x5 & U(4095)
            symbol = U(symbols[table << U(12) | slot])
            x5, at = get(x5, slot, U(entries[table << U(8) | symbol]), U(words[at]), at)
            symbol |= U(turned) & U(256)
            flat[o + U(5) * s] = pair_of[symbol]
            f5 = facts_of[symbol | single]
            above[a + U(5)], l5 = np.uint8(f5 & 255), np.int64(f5 >> 16)
            place = l6 + np.int64(above[a + U(6)])
            turned = place >> 63
            table, slot = U((place ^ turned) - turned + tail), x6 & U(4095)
            symbol = U(symbols[table << U(12) | slot])
            x6, at = get(x6, slot, U(entries[table << U(8) | symbol]), U(words[at]), at)
            symbol |= U(turned) & U(256)
            flat[o + U(6) * s] = pair_of[symbol]
            f6 = facts_of[symbol | single]
            above[a + U(6)], l6 = np.uint8(f6 & 255), np.int64(f6 >> 16)
            place = l7 + np.int64(above[a + U(7)])
            turned = place >> 63
            table, slot = U((place ^ turned) - turned + tail), x7 & U(4095)
            symbol = U(symbols[table << U(12) | slot])
            x7, at = get(x7, slot, U(entries[table << U(8) | symbol]), U(words[at]), at)
            symbol |= U(turned) & U(256)
            flat[o + U(7) * s] = pair_of[symbol]
            f7 = facts_of[symbol | single]
            above[a + U(7)], l7 = np.uint8(f7 & 255), np.int64(f7 >> 16)
            if (f0 | f1 | f2 | f3 | f4 | f5 | f6 | f7) & ESCAPED:
                facts[0], facts[1], facts[2], facts[3] = f0, f1, f2, f3
                facts[4], facts[5], facts[6], facts[7] = f4, f5, f6, f7
                lefts[0], lefts[1], lefts[2], lefts[3] = l0, l1, l2, l3
                lefts[4], lefts[5], lefts[6], lefts[7] = l4, l5, l6, l7
                get_plane_escapes(facts, 8, row, pair, is_single, outside, block, above, lefts, escapes, progress)
                l0, l1, l2, l3 = lefts[0], lefts[1], lefts[2], lefts[3]
                l4, l5, l6, l7 = lefts[4], lefts[5], lefts[6], lefts[7]
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return at


@njit
def get_planes(
    count,
    rows,
    columns,
    states,
    words,
    size,
    at,
    symbols,
    entries,
    pair_of,
    facts_of,
    outside,
    num_contexts,
    block,
    escapes,
    progress,
):
    """The same for fewer planes, one a lane."""
    pairs = (columns + 1) // 2
    above, lefts, facts = np.full(8 * pairs, outside & 255, np.uint8), np.empty(8, np.int64), np.zeros(8, np.int32)
    for row in range(rows):
        lefts[:] = outside >> 16
        for pair in range(pairs):
            is_single = 2 * pair + 1 >= columns
            tail, single, marks = num_contexts if is_single else 0, U(512 if is_single else 0), np.int32(0)
            for lane in range(count):
                place = lefts[lane] + np.int64(above[8 * pair + lane])
                turned = place >> 63
                table, slot = U((place ^ turned) - turned + tail), states[lane] & U(4095)
                symbol = U(symbols[table << U(12) | slot])
                word = U(words[min(at, size)])
                states[lane], at = get(states[lane], slot, U(entries[table << U(8) | symbol]), word, at)
                symbol |= U(turned) & U(256)
                block[lane, row + 1, pair + 1] = pair_of[symbol]
                fact = facts_of[symbol | single]
                facts[lane], above[8 * pair + lane], lefts[lane] = fact, np.uint8(fact & 255), np.int64(fact >> 16)
                marks |= fact
            if marks & ESCAPED:
                get_plane_escapes(facts, count, row, pair, is_single, outside, block, above, lefts, escapes, progress)
    return at


# -- lines of tokens ---------------------------------------------------------------------------------------------


@njit
def numbers_of(line, turned, upper, lower):
    """The numbers of a line's pairs; returns whether one is escaped."""
    one, any_escaped = np.int32(1), np.int32(0)
    for i in range(upper.size):
        symbol = np.int32(line[i])
        any_escaped |= np.int32(symbol == 255)
        a, b = np.int32(symbol >> np.int32(4)), np.int32(symbol & np.int32(15))
        first, second = np.int32((a + one) >> one), np.int32((b + one) >> one)
        flip = np.int32(turned[i])
        upper[i] = first if (a & one) ^ flip else np.int32(-first)
        lower[i] = second if (b & one) ^ flip else np.int32(-second)
    return any_escaped != 0


@njit
def get_line_escapes(line, upper, lower, is_single, escapes, progress):
    """Reads the numbers of a line's escaped pairs."""
    for i in range(upper.size):
        if line[i] == 255:
            upper[i] = get_number(False, escapes, progress)
            if not is_single:
                lower[i] = get_number(False, escapes, progress)


@njit
def get_tokens(
    rows,
    columns,
    first,
    last,
    start,
    borders,
    num_contexts,
    states,
    words,
    size,
    at,
    symbols,
    entries,
    high,
    escapes,
    progress,
):
    """Reads a segment of channels into ``high``; returns the position in ``words``."""
    width = last - first
    busy, lean = np.full(width, start, np.int32), np.zeros(width, np.int32)
    contexts, turned, line = np.empty(width, np.uint8), np.empty(width, np.uint8), np.empty(width, np.uint8)
    nothing = np.empty(width, np.int32)
    for row in range(0, rows, 2):
        is_single = row + 1 >= rows
        token_contexts(busy, lean, borders, contexts, turned)
        if is_single:
            contexts += np.uint8(num_contexts)
        base = row * columns + first
        upper = high[base : base + width]
        lower = nothing if is_single else high[base + columns : base + columns + width]
        at = get_run(contexts, width, states, words, size, at, symbols, entries, line)
        if at > size:
            break
        if numbers_of(line, turned, upper, lower):
            get_line_escapes(line, upper, lower, is_single, escapes, progress)
        if not is_single:
            pair = row // 2
            token_learn(upper, lower, np.int32(1 if pair == 0 else (2 if pair < 3 else 3)), busy, lean)
    return at


@njit
def get_flat(first, last, states, words, size, at, symbols, entries, high, escapes, progress):
    """The same for a flat run of pairs."""
    count = last - first
    rows_of, line = np.zeros(count, np.uint8), np.empty(count, np.uint8)
    is_single = 2 * last > high.size
    rows_of[count - 1] = is_single
    at = get_run(rows_of, count, states, words, size, at, symbols, entries, line)
    upper, lower = np.empty(count, np.int32), np.empty(count, np.int32)
    rows_of[count - 1] = 0
    if at <= size and numbers_of(line, rows_of, upper, lower):
        whole = count - is_single
        get_line_escapes(line[:whole], upper[:whole], lower[:whole], False, escapes, progress)
        get_line_escapes(line[whole:], upper[whole:], lower[whole:], True, escapes, progress)
    part = high[2 * first : 2 * last]
    for i in range(part.size // 2):
        part[2 * i], part[2 * i + 1] = upper[i], lower[i]
    if is_single:
        part[part.size - 1] = upper[count - 1]
    return at
