"""Compiled loops of profile ``serverlight``: the words of all segments, four of which are coded in turn.

A state waits for its last symbol to be coded, and while one segment's wait, the others' are on their way. What is written is what
one segment after the other gives.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from serverlight.codec.backends.cpu.coder import LEAST, put_lines, put_planes, put_states
from serverlight.codec.backends.cpu.compiled import highest_mark, inlined, njit
from serverlight.codec.backends.cpu.model import HALF
from serverlight.codec.backends.cpu.symbols import first_unit
from serverlight.codec.backends.cpu.vectors import HAS_VECTORS, put_group

U = np.uint64
PLANES = 2
WAYS = 4


@inlined
def put_segments(index, layout, units, columns, pairs_of_unit, lanes, table, escaped, lengths):
    """Codes all segments; returns their words, where each one's end, and how many pairs have escapes.

    Args:
        index: row of the table and symbol of each pair.
        layout, units, columns: how the tensor is seen, and what segments are cut along.
        pairs_of_unit: how many pairs a plane, a channel or a pair is.
        lanes: how many each segment has.
        table: the writer's table.
        escaped: receives the pairs with escapes, those of the last segment first, and of a segment its last one first.
        lengths: receives numbers of words and of pairs with escapes; shape (segments, 2).
    """
    count, total, found = lengths.shape[0], 0, 0
    starts, ends = np.zeros(count + 1, np.int64), np.empty(count, np.int64)
    for segment in range(count):
        starts[segment + 1] = first_unit(layout, units, segment + 1, count)
        total += (starts[segment + 1] - starts[segment]) * pairs_of_unit + 2 * lanes
        ends[segment] = total
    words, segment = np.empty(total, np.uint16), count
    while segment > 0:
        if HAS_VECTORS and lanes == 8 and are_alike(starts, segment):
            segment -= WAYS
            some = (
                starts[segment : segment + WAYS + 1],
                ends[segment : segment + WAYS],
                lengths[segment : segment + WAYS],
            )
            found += put_four_segments(index, layout, columns, pairs_of_unit, table, *some, words, escaped[found:])
        else:
            segment -= 1
            run = starts[segment], starts[segment + 1], ends[segment]
            begin, more = put_one_segment(
                index, layout, columns, pairs_of_unit, lanes, table, run, words, escaped[found:]
            )
            lengths[segment, 0], lengths[segment, 1] = ends[segment] - np.int64(begin), more
            found += more
    return words, ends


@inlined
def are_alike(starts, last):
    """Whether the four segments before ``last`` are of as many units, and these fill their lanes."""
    if last < WAYS:
        return False
    width = starts[last] - starts[last - 1]
    for segment in range(last - WAYS, last - 1):
        if starts[segment + 1] - starts[segment] != width:
            return False
    return width % 8 == 0


@njit
def put_one_segment(index, layout, columns, pairs_of_unit, lanes, table, run, words, escaped):
    """Codes a segment, from one unit to another, into the room before an end; returns where its words begin, and what it found."""
    (first, last, end), states = run, np.full(lanes, LEAST, np.uint64)
    if layout == PLANES:
        return put_planes(index, pairs_of_unit, first, last, table, states, words, U(end), escaped)
    return put_lines(index, pairs_of_unit, columns, first, last, table, states, words, U(end), escaped)


@njit
def put_four_segments(index, layout, columns, pairs_of_unit, table, starts, ends, lengths, words, escaped):
    """Codes four segments of as many units each; returns how many pairs have escapes."""
    states, at, found, size = np.full((WAYS, 8), LEAST, np.uint32), ends.astype(np.uint64), np.int64(0), pairs_of_unit
    zero, one, eight = np.int64(0), np.int64(1), np.int64(8)  # for literals functions would be compiled once more
    known, groups = (table, states, words, at, escaped), (starts[1] - starts[0]) // 8
    if layout == PLANES:
        for block in range(groups - 1, -1, -1):
            bases = (starts[:WAYS] + 8 * block) * size
            found = put_four_planes(index, bases, size, one, size, one, zero, *known, found)
    else:
        found = put_four_lines(index, starts[:WAYS].copy(), one, eight, groups, size, columns, *known, found)
    for way in range(WAYS):
        begin = put_states(states[way].astype(np.uint64), words, at[way])
        lengths[way, 0] = ends[way] - np.int64(begin)
    lengths[:, 1] = sort_by_way(escaped[:found])
    return found


@njit
def sort_by_way(escaped):
    """Puts pairs of four segments that were noted as they were met in order, the last segment first; returns how many each has."""
    mixed, counts, at = escaped.copy(), np.zeros(WAYS, np.int64), 0
    for way in range(WAYS - 1, -1, -1):
        before = at
        for noted in mixed:
            if noted & (WAYS - 1) == way:
                escaped[at] = noted // WAYS
                at += 1
        counts[way] = at - before
    return counts


def four_at_once(own_stride: int) -> Any:
    """A function that codes groups of eight pairs in each of four segments in turn, all last first; 0 is for any stride.

    Pairs with escapes are noted with their segment in the lowest bits. Arguments are those of ``at_once`` of ``coder.py``.
    """

    @njit
    def put_four(index, bases, stride, advance, groups, lines, pitch, table, states, words, at, escaped, found):  # type: ignore[no-untyped-def]
        from_index, from_table, from_word = U(index.ctypes.data), U(table.ctypes.data), U(words.ctypes.data)
        step, x, mark = U(own_stride if own_stride else stride), U(states.ctypes.data), U(HALF)
        i0, i1 = from_index + U(2 * bases[0]), from_index + U(2 * bases[1])
        i2, i3 = from_index + U(2 * bases[2]), from_index + U(2 * bases[3])
        w0, w1, w2, w3 = (
            from_word + U(2) * at[0],
            from_word + U(2) * at[1],
            from_word + U(2) * at[2],
            from_word + U(2) * at[3],
        )
        for line in range(lines - 1, -1, -1):
            for group in range(groups - 1, -1, -1):
                place = line * pitch + group * advance
                o = U(2 * place)
                w0, m0 = put_group(x, i0 + o, U(2) * step, from_table, w0, mark)
                w1, m1 = put_group(x + U(32), i1 + o, U(2) * step, from_table, w1, mark)
                w2, m2 = put_group(x + U(64), i2 + o, U(2) * step, from_table, w2, mark)
                w3, m3 = put_group(x + U(96), i3 + o, U(2) * step, from_table, w3, mark)
                if m0 | m1 | m2 | m3:
                    for way, marks in enumerate((m0, m1, m2, m3)):
                        found = note(marks, place + bases[way], step, way, escaped, found)
        for way, word in enumerate((w0, w1, w2, w3)):
            at[way] = (word - from_word) >> U(1)
        return found

    return put_four


@njit
def note(marks, place, stride, way, escaped, found):
    """Notes the pairs of a group that have escapes, the last one first; returns how many have been found."""
    while marks:
        lane = highest_mark(marks)
        marks ^= U(1) << lane
        escaped[found] = WAYS * (place + np.int64(lane * stride)) + way
        found += 1
    return found


put_four_lines, put_four_planes = four_at_once(1), four_at_once(0)
