"""Compiled loops of profile ``serverlight``: the range coder's reader for planes, where what was read chooses what is read next.

The definition of what is computed is in ``reference.py``; why no index leaves its array, in ``cpu_lanes.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from serverlight.codec.backends.cpu_kernels import njit
from serverlight.codec.backends.cpu_lanes import are_whole, get, get_number
from serverlight.codec.backends.reference_symbols import number_of

U = np.uint64
ESCAPED, BOTH, FIRST, SECOND = np.int32(1 << 15), np.int32(1 << 14), np.int32(1 << 13), np.int32(1 << 12)


def _facts_of(one_sided: bool) -> np.ndarray[Any, np.dtype[np.int32]]:
    """What a symbol of a plane tells its neighbours, by ``512 single + 256 turned + symbol``.

    The low byte is three times the class of the first number plus the second's, as the row below adds it to its place; the upper
    half is nine times the second's, less the middle of all places where numbers have signs, as the next pair does. Bit 15 marks
    escapes, bit 14 the escape symbol, bits 13 and 12 which ones are sent.
    """
    facts = np.zeros(1024, np.int32)
    for single in (0, 1):
        for turned in (0, 1):
            for symbol in range(256):
                pair = [number_of(nibble, 1 - 2 * turned, one_sided) for nibble in (symbol >> 4, symbol & 15)]
                up, beside = (min(n, 2) if one_sided else (n > 0) - (n < 0) + 1 for n in pair)
                beside = up if single else beside
                left = 9 * beside - (0 if one_sided else 13)
                marks = [*(nibble == 15 for nibble in (symbol >> 4, symbol & 15)), symbol == 255]
                escapes = any(marks) << 15 | marks[2] << 14 | marks[0] << 13 | (marks[1] and not single) << 12
                facts[512 * single + 256 * turned + symbol] = left << 16 | escapes | 3 * up + beside
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
def get_plane_escapes(facts, count, row, pair, is_single, outside, block, above, lefts, escapes, progress):
    """Reads the escaped numbers of ``count`` planes' pairs, and tells their neighbours."""
    one_sided, numbers = outside == 0, block.view(np.int32)
    for lane in range(count):
        if facts[lane] & ESCAPED:
            whole = facts[lane] & BOTH != 0 and are_whole(escapes, progress)
            line, place = numbers[lane, row + 1], 2 * pair + 2
            if facts[lane] & FIRST:
                line[place] = get_number(whole, one_sided, escapes, progress)
            if facts[lane] & SECOND:
                line[place + 1] = get_number(whole, one_sided, escapes, progress)
            first, second = line[place], np.int32(0) if is_single else line[place + 1]
            line[place + 1] = second
            up = neighbour_class(first, one_sided)
            beside = up if is_single else neighbour_class(second, one_sided)
            above[8 * pair + lane] = 3 * up + beside
            lefts[lane] = 9 * beside - (0 if one_sided else 13)


@njit
def neighbour_class(number, one_sided):
    """Class of one number as a neighbour."""
    return min(number, 2) if one_sided else (number > 0) - (number < 0) + 1


# -- range coder -------------------------------------------------------------------------------------------------


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
def get_four_planes(
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
    """Reads four planes into ``block``, a padded array of pairs; returns the position in ``words``."""
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    pairs, s, flat = (columns + 1) // 2, U(block.shape[1] * block.shape[2]), block.reshape(-1)
    above, lefts, facts = np.full(8 * pairs, outside & 255, np.uint8), np.empty(8, np.int64), np.empty(8, np.int32)
    for row in range(rows):
        l0 = l1 = l2 = l3 = outside >> 16
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
            if (f0 | f1 | f2 | f3) & ESCAPED:
                facts[0], facts[1], facts[2], facts[3] = f0, f1, f2, f3
                lefts[0], lefts[1], lefts[2], lefts[3] = l0, l1, l2, l3
                get_plane_escapes(facts, 4, row, pair, is_single, outside, block, above, lefts, escapes, progress)
                l0, l1, l2, l3 = lefts[0], lefts[1], lefts[2], lefts[3]
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
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
                entry, word = U(entries[table << U(8) | symbol]), U(words[min(at, size)])
                states[lane], at = get(states[lane], slot, entry, word, at)
                symbol |= U(turned) & U(256)
                block[lane, row + 1, pair + 1] = pair_of[symbol]
                fact = facts_of[symbol | single]
                facts[lane], above[8 * pair + lane], lefts[lane] = fact, np.uint8(fact & 255), np.int64(fact >> 16)
                marks |= fact
            if marks & ESCAPED:
                get_plane_escapes(facts, count, row, pair, is_single, outside, block, above, lefts, escapes, progress)
    return at
