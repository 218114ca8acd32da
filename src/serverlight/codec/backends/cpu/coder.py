"""Compiled loops of profile ``serverlight``: the range coder's writer.

The definition of what is computed is in ``reference/``. Eight and four lanes are written out, so that their states stay in
registers, or eight are a vector; other numbers of lanes, and what is left over at an end, go through a loop over an array of
states.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from serverlight.codec.backends.cpu.compiled import highest_mark, inlined, njit
from serverlight.codec.backends.cpu.model import HALF, mark_of
from serverlight.codec.backends.cpu.vectors import HAS_VECTORS, put_groups

U = np.uint64
LEAST = U(1 << 15)


@inlined
def put(state, entry, table, words, at):
    """Codes one symbol into one state; a word is written downwards if the state would grow too large. Its mark comes last."""
    i = entry << U(2)
    limit, reciprocal, bias, last = U(table[i]), U(table[i + U(1)]), U(table[i + U(2)]), table[i + U(3)]
    words[at - U(1)] = np.uint16(state)
    full, less = state >= limit, state >> U(16)
    state = less if full else state
    at = at - U(1) if full else at
    quotient = (state * reciprocal) >> U((last >> np.uint32(16)) & np.uint32(63))
    return state + bias + quotient * U(last & np.uint32(0xFFFF)), at, last


# Pairs with escapes are noted as they are met, in the opposite of the order of reading. There is room for as many as were counted.


@njit
def put_loop(index, base, stride, count, lane, table, states, words, at, escaped, found):
    """Codes ``count`` pairs, last one first, the last into state ``lane`` and the others into those before, in turn."""
    lanes, lane, s = U(states.size), U(lane), U(stride)
    place = U(base + count * stride)
    for _ in range(count):
        place -= s
        states[lane], at, last = put(states[lane], U(index[place]), table, words, at)
        lane = (lanes if lane == U(0) else lane) - U(1)
        if last >= HALF:
            escaped[found] = place
            found += 1
    return at, found


@njit
def put_eights_in_turn(
    count, index, base, stride, advance, groups, lines, pitch, table, states, words, at, escaped, found
):
    """Codes ``groups`` groups of ``count`` pairs, eight, in each of ``lines`` lines that lie ``pitch`` apart, all last first."""
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    x4, x5, x6, x7 = states[4], states[5], states[6], states[7]
    s = U(stride)
    for line in range(lines - 1, -1, -1):
        begin = base + line * pitch
        for group in range(groups - 1, -1, -1):
            o = U(begin + group * advance)
            x7, at, m7 = put(x7, U(index[o + U(7) * s]), table, words, at)
            x6, at, m6 = put(x6, U(index[o + U(6) * s]), table, words, at)
            x5, at, m5 = put(x5, U(index[o + U(5) * s]), table, words, at)
            x4, at, m4 = put(x4, U(index[o + U(4) * s]), table, words, at)
            x3, at, m3 = put(x3, U(index[o + U(3) * s]), table, words, at)
            x2, at, m2 = put(x2, U(index[o + U(2) * s]), table, words, at)
            x1, at, m1 = put(x1, U(index[o + s]), table, words, at)
            x0, at, m0 = put(x0, U(index[o]), table, words, at)
            if (m0 | m1 | m2 | m3 | m4 | m5 | m6 | m7) >= HALF:
                for lane in range(7, -1, -1):
                    place = o + U(lane) * s
                    if mark_of(table, index[place]):
                        escaped[found] = place
                        found += 1
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return at, found


def at_once(own_count: int, own_stride: int) -> Any:
    """A function that does the same by vectors, also for groups of fewer pairs, which the first lanes take.

    It is faster where it is made for one number of pairs, or for one stride; 0 is for any.
    """

    @njit
    def put_eights_at_once(
        count, index, base, stride, advance, groups, lines, pitch, table, states, words, at, escaped, found
    ):
        short = states.astype(np.uint32)
        start, table_at, words_at, index_at = (
            U(short.ctypes.data),
            U(table.ctypes.data),
            U(words.ctypes.data),
            U(index.ctypes.data),
        )
        taking, step = U(own_count if own_count else count), U(own_stride if own_stride else stride)
        for line in range(lines - 1, -1, -1):
            first, left = U(base + line * pitch), U(groups)
            while left:
                last = index_at + U(2) * (first + (left - U(1)) * U(advance))
                begin, left, marks = put_groups(
                    start, last, U(2) * step, U(2 * advance), left, table_at, words_at + U(2) * at, taking, U(HALF)
                )
                at = (begin - words_at) >> U(1)
                while marks:
                    lane = highest_mark(marks)
                    marks ^= U(1) << lane
                    escaped[found] = first + left * U(advance) + lane * step
                    found += 1
        states[:count] = short[:count]
        return at, found

    return put_eights_at_once


put_line = at_once(8, 1) if HAS_VECTORS else put_eights_in_turn
put_all_planes = at_once(8, 0) if HAS_VECTORS else put_eights_in_turn
put_some_planes = at_once(0, 0)


@njit
def put_fours(index, base, stride, advance, groups, lines, pitch, table, states, words, at, escaped, found):
    """Codes ``groups`` groups of four pairs in each of ``lines`` lines that lie ``pitch`` apart, all last first."""
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    s = U(stride)
    for line in range(lines - 1, -1, -1):
        begin = base + line * pitch
        for group in range(groups - 1, -1, -1):
            o = U(begin + group * advance)
            x3, at, m3 = put(x3, U(index[o + U(3) * s]), table, words, at)
            x2, at, m2 = put(x2, U(index[o + U(2) * s]), table, words, at)
            x1, at, m1 = put(x1, U(index[o + s]), table, words, at)
            x0, at, m0 = put(x0, U(index[o]), table, words, at)
            if (m0 | m1 | m2 | m3) >= HALF:
                for lane in range(3, -1, -1):
                    place = o + U(lane) * s
                    if mark_of(table, index[place]):
                        escaped[found] = place
                        found += 1
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    return at, found


@njit
def put_run(index, base, count, lines, pitch, table, states, words, at, escaped, found):
    """Codes runs of pairs that lie side by side, lane after lane, all last first; more than one only if lanes divide them."""
    lanes = states.size
    groups = count // lanes if lanes >= 4 else 0
    rest = count - groups * lanes
    if rest:
        begin = base + groups * lanes
        at, found = put_loop(index, begin, 1, rest, (rest - 1) % lanes, table, states, words, at, escaped, found)
    if groups and lanes == 8:
        at, found = put_line(8, index, base, 1, 8, groups, lines, pitch, table, states, words, at, escaped, found)
    elif groups:
        at, found = put_fours(index, base, 1, 4, groups, lines, pitch, table, states, words, at, escaped, found)
    return at, found


@inlined
def put_planes(index, size, first, last, table, states, words, at, escaped):
    """Codes a segment of planes of ``size`` pairs each; returns where in ``words`` it starts, and the number of escaped pairs."""
    lanes, found = states.size, 0
    blocks = (last - first + lanes - 1) // lanes
    for block in range(blocks - 1, -1, -1):
        plane = first + block * lanes
        count = min(lanes, last - plane)
        if count == 8:
            at, found = put_all_planes(
                8, index, plane * size, size, 1, size, 1, 0, table, states, words, at, escaped, found
            )
        elif HAS_VECTORS and lanes == 8:
            at, found = put_some_planes(
                count, index, plane * size, size, 1, size, 1, 0, table, states, words, at, escaped, found
            )
        elif count == 4 and lanes == 4:
            at, found = put_fours(index, plane * size, size, 1, size, 1, 0, table, states, words, at, escaped, found)
        else:
            for place in range(size - 1, -1, -1):
                base = plane * size + place
                at, found = put_loop(index, base, size, count, count - 1, table, states, words, at, escaped, found)
    return put_states(states, words, at), found


@inlined
def put_lines(index, lines, columns, first, last, table, states, words, at, escaped):
    """The same for a segment of channels, or of a flat run, which is one line."""
    found, width, at_once = 0, last - first, 1
    if states.size >= 4 and width % states.size == 0:
        lines, at_once = 1, lines
    for line in range(lines - 1, -1, -1):
        base = line * columns + first
        at, found = put_run(index, base, width, at_once, columns, table, states, words, at, escaped, found)
    return put_states(states, words, at), found


@njit
def put_states(states, words, at):
    """Writes the states, so that a reader finds them first, lane 0 in front, high halves first."""
    for lane in range(states.size - 1, -1, -1):
        at -= U(2)
        words[at] = np.uint16(states[lane] >> U(16))
        words[at + U(1)] = np.uint16(states[lane] & U(0xFFFF))
    return at
