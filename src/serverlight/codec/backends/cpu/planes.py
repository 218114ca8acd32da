"""Compiled loops of profile ``serverlight``: the reader for planes, where what was read chooses what is read next.

The definition of what is computed is in ``reference/``; why no index leaves its array, in ``lanes.py``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from serverlight.codec import tables
from serverlight.codec.backends.cpu.compiled import inlined, njit
from serverlight.codec.backends.cpu.lanes import RAW, are_whole, get, get_number, join_raw
from serverlight.codec.backends.cpu.plane_vectors import (
    RUN,
    place_one_sided_group,
    place_signed_group,
    place_small_one_sided_group,
    place_small_signed_group,
    reader_of_rows,
)
from serverlight.codec.backends.cpu.reconstruct import (
    one_sided_lifts,
    place_large_values,
    place_values,
    signed_lifts,
    wide_lifts,
)
from serverlight.codec.backends.cpu.vectors import HAS_VECTORS
from serverlight.codec.backends.reference.symbols import nibble_of, number_of

U = np.uint64
ESCAPED = 1 << 16
ONE_SIDED_PLANES, SIGNED_PLANES, NUM_CONTEXTS = tables.ONE_SIDED_PLANES, tables.SIGNED_PLANES, tables.NUM_CONTEXTS
NARROW = 4095
"""The largest magnitude with which a sum of four neighbours surely fits 16 bits."""


def _facts_of(one_sided: bool) -> np.ndarray[Any, np.dtype[np.int64]]:
    """What a symbol of a plane tells its neighbours, by ``512 single + 256 turned + symbol``.

    The low byte is three times the class of the first number plus the second's, as the row below adds it to its place; the upper
    half is nine times the second's, less the middle of all places where numbers have signs, as the next pair does. The second
    byte is the symbol of the pair as it is, not turned around; above it is a mark for escapes.
    """
    facts = np.zeros(1024, np.int64)
    for single in (0, 1):
        for turned in (0, 1):
            for symbol in range(256):
                nibbles = symbol >> 4, symbol & 15
                pair = [number_of(nibble, 1 - 2 * turned, one_sided) for nibble in nibbles]
                up, beside = (min(n, 2) if one_sided else (n > 0) - (n < 0) + 1 for n in pair)
                beside = up if single else beside
                marks = [nibble == 15 for nibble in nibbles]
                fact = (9 * beside - (0 if one_sided else 13)) << 32 | 3 * up + beside
                upright = [15 if mark else nibble_of(n, 1, one_sided) for mark, n in zip(marks, pair, strict=True)]
                fact |= (16 * upright[0] + upright[1]) << 8 | (ESCAPED if any(marks) else 0)
                facts[512 * single + 256 * turned + symbol] = fact
    return facts


FACTS_OF = (_facts_of(False), _facts_of(True))
OUTSIDE = (4 | -4 << 32, 0)
"""What lies outside a plane tells its neighbours: that it is zero."""


# -- symbols -----------------------------------------------------------------------------------------------------


def reader_of(one_sided: bool) -> Any:
    """The compiled function that reads planes of one kind: what differs is left out of its loop."""
    facts_of, outside = FACTS_OF[one_sided], np.int64(OUTSIDE[one_sided])

    @njit
    def get_planes(rows, columns, count, streams, table, block, places, numbers):  # type: ignore[no-untyped-def]
        _, states, positions, limits, progress, words, escapes = streams
        states, at, size = states[0], positions[0], limits[0]
        pairs, found, o, flat, plane = (columns + 1) // 2, 0, U(0), block.reshape(-1), U(block.shape[1])
        above, lefts = np.full(8 * pairs, outside & 255, np.uint8), np.empty(8, np.int64)
        for row in range(rows):
            lefts[:] = outside >> 32
            for pair in range(pairs):
                if at > size:
                    positions[0] = at
                    return found
                is_single = 2 * pair + 1 >= columns
                if is_single:
                    at, marks = get_ends(count, pair, states, words, at, table, one_sided, above, lefts, flat, o, plane)
                else:
                    marks, a, into = np.int64(0), U(8 * pair), o
                    for lane in range(U(count)):
                        state, context = U(states[lane]), lefts[lane] + np.int64(above[a + lane])
                        if one_sided:
                            entry = table[U(context) << U(12) | (state & U(4095))]
                            fact = facts_of[U(np.uint8(entry))]
                            flat[into] = np.uint8(entry)
                        else:
                            turned = context >> 63
                            entry = table[U((context ^ turned) - turned) << U(12) | (state & U(4095))]
                            fact = facts_of[U(np.uint8(entry)) | (U(turned) & U(256))]
                            flat[into] = np.uint8(fact >> 8)
                        states[lane], at = get(state, entry, words, at)
                        above[a + lane], lefts[lane] = np.uint8(fact), fact >> 32
                        into += plane
                        marks |= fact
                if marks & ESCAPED:
                    first, size_of_plane = row * columns + 2 * pair, rows * columns
                    for lane in range(count):
                        symbol = block[lane, o]
                        if symbol >= 0xF0 or symbol & 0x0F == 0x0F:
                            begin = found
                            found = get_escapes(
                                symbol, one_sided, is_single, escapes, progress, 0, first, places, numbers, found
                            )
                            sent = numbers[begin:found]
                            above[8 * pair + lane], lefts[lane] = told_by(symbol, one_sided, is_single, sent)
                            for i in range(begin, found):
                                places[i] += lane * size_of_plane
                o += U(1)
        positions[0] = at
        return found

    return get_planes


@njit
def get_ends(count, pair, states, words, at, table, one_sided, above, lefts, flat, o, plane):
    """Reads the single elements at the ends of odd lines, one a lane; returns the position in ``words``, and marks."""
    facts_of = FACTS_OF[1 if one_sided else 0]
    tail, marks = NUM_CONTEXTS[ONE_SIDED_PLANES if one_sided else SIGNED_PLANES], np.int64(0)
    for lane in range(count):
        context = lefts[lane] + np.int64(above[8 * pair + lane])
        entry = table[U(abs(context) + tail) << U(12) | (U(states[lane]) & U(4095))]
        states[lane], at = get(U(states[lane]), entry, words, at)
        fact = facts_of[U(np.uint8(entry)) | U(768 if context < 0 else 512)]
        flat[o + U(lane) * plane] = np.uint8(fact >> 8)
        above[8 * pair + lane], lefts[lane] = np.uint8(fact), fact >> 32
        marks |= fact
    return at, marks


@njit
def get_escapes(symbol, one_sided, is_single, escapes, progress, segment, first, places, numbers, found):
    """Reads the escaped numbers of a pair; returns how many have been found."""
    whole = symbol == 255 and are_whole(escapes, progress, segment)
    if symbol >= 0xF0 and found < places.size:
        places[found], numbers[found] = first, get_number(whole, one_sided, escapes, progress, segment)
        found += 1
    if symbol & 0x0F == 0x0F and not is_single and found < places.size:
        places[found], numbers[found] = first + 1, get_number(whole, one_sided, escapes, progress, segment)
        found += 1
    return found


@njit
def told_by(symbol, one_sided, is_single, sent):
    """What a pair with escaped numbers tells the row below and the next pair."""
    first, second, taken = small_number(symbol >> 4, one_sided), small_number(symbol & 15, one_sided), 0
    if symbol >= 0xF0 and sent.size:
        first, taken = np.int64(sent[0]), 1
    if symbol & 0x0F == 0x0F and sent.size > taken:
        second = np.int64(sent[taken])
    up = neighbour_class(first, one_sided)
    beside = up if is_single else neighbour_class(second, one_sided)
    return np.uint8(3 * up + beside), 9 * beside - (0 if one_sided else 13)


@inlined
def neighbour_class(number, one_sided):
    """Class of one number as a neighbour."""
    return min(number, 2) if one_sided else (number > 0) - (number < 0) + 1


@inlined
def small_number(nibble, one_sided):
    """The number of a nibble."""
    nibble = np.int64(nibble)
    magnitude = (nibble + 1) >> 1
    return nibble if one_sided else (magnitude if nibble & 1 else -magnitude)


GET_SIGNED, GET_ONE_SIDED = reader_of(False), reader_of(True)
"""Read the next ``count`` planes of the only segment, one a lane; return the number of escaped numbers.

Args:
    streams: see :func:`serverlight.codec.backends.cpu.streams.streams_of`.
    block: receives the symbols, not turned around; uint8, shape (count, rows * pairs) and more.
    places, numbers: receive the escaped numbers and where they belong: ``rows * columns * lane`` and place in the plane.
"""


def wide_reader_of(one_sided: bool) -> Any:
    """The compiled function that reads planes of one kind by eights, of some segments in turn."""
    outside, outside_left = np.int64(OUTSIDE[one_sided]) & 255, 0 if one_sided else 9
    tail_row = NUM_CONTEXTS[ONE_SIDED_PLANES if one_sided else SIGNED_PLANES]
    get_one, get_two, get_three, get_four = (reader_of_rows(one_sided, ways) for ways in (1, 2, 3, 4))

    @njit
    def get_planes_by_eights(rows, columns, counts, streams, table, mixed, places, numbers, found):  # type: ignore[no-untyped-def]
        _, states, at, limits, _, words, _ = streams
        pairs, ways = (columns + 1) // 2, counts.size
        above, left = np.full((ways, 8 * pairs), outside, np.uint8), np.empty((ways, 8), np.uint8)
        taking, before = (U(1) << counts.astype(np.uint64)) - U(1), states.copy()
        each = U(states.ctypes.data), U(left.ctypes.data), U(above.ctypes.data), U(above.shape[1]), U(mixed.ctypes.data)
        shared = U(mixed.shape[1]), U(words.ctypes.data), U(at.ctypes.data), U(taking.ctypes.data), U(table.ctypes.data)
        for row in range(rows):
            left[:], done = outside_left, 0
            while done < pairs:
                is_single = done == columns // 2
                many, tail = U(1 if is_single else columns // 2 - done), U(tail_row if is_single else 0)
                x, beside, up, line, into = each
                up, into = up + U(8 * done), into + U(8 * (row * pairs + done))
                block, word, position, lanes, table_at = shared
                if ways == 4:
                    rest, marks = get_four(
                        x, beside, up, line, into, block, word, position, lanes, many, table_at, tail
                    )
                elif ways == 3:
                    rest, marks = get_three(
                        x, beside, up, line, into, block, word, position, lanes, many, table_at, tail
                    )
                elif ways == 2:
                    rest, marks = get_two(x, beside, up, line, into, block, word, position, lanes, many, table_at, tail)
                else:
                    rest, marks = get_one(x, beside, up, line, into, block, word, position, lanes, many, table_at, tail)
                done += np.int64(many - rest)
                if marks:
                    first, pair = row * columns + 2 * (done - 1), 8 * (done - 1)
                    for way in range(ways):
                        symbols, told = mixed[way, 8 * row * pairs + pair :][: counts[way]], above[way, pair:]
                        found[way] = get_block_escapes(
                            symbols, one_sided, is_single, streams, way, first, rows * columns, places[way], numbers[way],
                            found[way], told, left[way],
                        )  # fmt: skip
            if np.any(at > limits):
                return
        for way in range(ways):
            if taking[way] != U(255):  # which is asked at the end, since an array may be gone after its last use
                states[way, counts[way] :] = before[way, counts[way] :]

    return get_planes_by_eights


@njit
def get_block_escapes(symbols, one_sided, is_single, streams, way, first, size, places, numbers, found, above, left):
    """Reads the escaped numbers of a pair in each of a segment's planes, of ``size`` elements; returns how many there are now.

    ``above`` and ``left`` are told, as by groups.
    """
    progress, escapes, lead = streams[4], streams[6], 0 if one_sided else 13
    for lane in range(symbols.size):
        symbol, begin, place = symbols[lane], found, lane * size + first
        if symbol >= 0xF0 or symbol & 0x0F == 0x0F:
            found = get_escapes(symbol, one_sided, is_single, escapes, progress, way, place, places, numbers, begin)
            above[lane], beside = told_by(symbol, one_sided, is_single, numbers[begin:found])
            left[lane] = beside + lead
    return found


GET_SIGNED_BY_EIGHTS, GET_ONE_SIDED_BY_EIGHTS = wide_reader_of(False), wide_reader_of(True)
"""Read a block of at most eight planes of each of some segments, and stop where a segment's words are not enough.

Args:
    counts: each segment's number of planes.
    streams: see :func:`serverlight.codec.backends.cpu.streams.streams_of`.
    mixed: receives the symbols, with their own signs, those of one place side by side; uint8, shape (segments, 8 rows pairs).
    places, numbers, found: receive each segment's escaped numbers, where they belong, and how many they are.
"""


# -- values ------------------------------------------------------------------------------------------------------


@njit
def place_planes(block, stage, rows, columns, sent, shifts, unit, raw, progress, plane, lifts, out):
    """Values of the planes of a block.

    Args:
        block: the symbols.
        stage: see :func:`serverlight.codec.backends.cpu.streams.read_streams`.
        sent: how many escaped numbers there are, where they belong, and themselves.
        plane: int16, shape ((rows + 2) * columns + 2,), with zeros in the first and the last ``columns + 1`` places.
        lifts: int16, shape (2, rows * columns).
        out: float32, shape (planes, rows * columns).
    """
    _, one_sided, _, _, raw_bits, _ = stage
    (found, places, numbers), size, begin = sent, rows * columns, columns + 1
    here = plane[begin : begin + size]
    sums = lifts[1]
    run = here, sums, plane[begin - columns : begin - columns + size], plane[begin + columns :]
    by_class, wide = lifts_by_class(shifts, one_sided), np.empty(size if raw_bits else 0, np.int64)
    for lane in range(out.shape[0]):
        expand(block[lane], one_sided, rows, columns, here)
        is_wide = False
        for i in range(found):
            place = places[i] - lane * size
            if 0 <= place < size:
                here[place] = np.int16(min(max(numbers[i], -NARROW), NARROW))
                is_wide |= abs(numbers[i]) > NARROW
        if is_wide:
            place_wide_plane(
                here, one_sided, rows, columns, lane * size, found, places, numbers, shifts, unit, raw, raw_bits, progress,
                out[lane],
            )  # fmt: skip
            continue
        beside(plane, begin, rows, columns, sums)
        if raw_bits:
            if one_sided:
                one_sided_lifts(run, shifts, lifts[0])
            else:
                signed_lifts(run, shifts, lifts[0])
            progress[RAW] = join_raw(here, raw, raw_bits, progress[RAW], wide)
            place_large_values(wide, lifts[0], unit, out[lane])
            continue
        done = place_runs(run, one_sided, found == 0, by_class, unit, out, lane) if HAS_VECTORS else 0
        if done < size:
            rest, lift = (run[0][done:], run[1][done:], run[2][done:], run[3][done:]), lifts[0][done:]
            if one_sided:
                one_sided_lifts(rest, shifts, lift)
            else:
                signed_lifts(rest, shifts, lift)
            place_values(rest[0], lift, unit, out[lane][done:])


@njit
def lifts_by_class(shifts, one_sided):
    """What a vector of elements looks its lifts up in; int16, shape (32,)."""
    lifts = np.zeros(32, np.int16)
    for around in range(5):
        lifts[1 + around] = shifts[around] if around or one_sided else 0
    for around in range(-1, 5):
        high, middle = around >= 4, around >= (2 if one_sided else 0)
        lifts[7 + around] = shifts[7 if high else (6 if middle else 5)]
    lifts[12:18], lifts[18:24] = shifts[8], shifts[9]
    return lifts


@njit
def place_runs(run, one_sided, are_small, lifts, unit, out, lane):
    """Values of as many elements of a plane as fill vectors; returns how many. ``are_small`` if none was escaped."""
    here, sides, up, down = U(run[0].ctypes.data), U(run[1].ctypes.data), U(run[2].ctypes.data), U(run[3].ctypes.data)
    done, table = out.shape[1] & ~(RUN - 1), U(lifts.ctypes.data)
    into = U(out.ctypes.data) + U(4 * out.shape[1] * lane)
    for i in range(U(0), U(done), U(RUN)):
        o = U(2) * i
        places, to = (here + o, sides + o, up + o, down + o), into + U(2) * o
        if one_sided and are_small:
            place_small_one_sided_group(*places, table, unit, to)
        elif one_sided:
            place_one_sided_group(*places, table, unit, to)
        elif are_small:
            place_small_signed_group(*places, table, unit, to)
        else:
            place_signed_group(*places, table, unit, to)
    return done


@njit
def expand(symbols, one_sided, rows, columns, here):
    """The numbers of a plane's symbols."""
    pairs = (columns + 1) // 2
    if columns % 2 == 0:
        for i in range(rows * pairs):
            first, second = np.int16(symbols[i] >> 4), np.int16(symbols[i] & 15)
            if not one_sided:
                first, second = signed_of(first), signed_of(second)
            here[2 * i], here[2 * i + 1] = first, second
        return
    for row in range(rows):
        line, into = symbols[row * pairs : (row + 1) * pairs], here[row * columns : (row + 1) * columns]
        for i in range(columns):
            nibble = np.int16(line[i >> 1] & 15 if i & 1 else line[i >> 1] >> 4)
            into[i] = nibble if one_sided else signed_of(nibble)


@inlined
def signed_of(nibble):
    """The number of a nibble in 16 bits: odd ones are positive."""
    return np.int16(np.int16(np.int16(nibble + np.int16(1)) >> 1) * np.int16(np.int16(np.int16(nibble & 1) << 1) - 1))


@njit
def beside(plane, begin, rows, columns, sums):
    """Sums of each element's neighbours on its left and on its right."""
    left, right = U(begin - 1), U(begin + 1)
    for i in range(U(sums.size)):
        sums[i] = np.int16(plane[left + i] + plane[right + i])
    for row in range(rows):
        first, last = row * columns, row * columns + columns - 1
        sums[last] = plane[begin + last - 1] if columns > 1 else 0
        if columns > 1:
            sums[first] = plane[begin + first + 1]


@njit
def place_wide_plane(
    here, one_sided, rows, columns, offset, found, places, numbers, shifts, unit, raw, raw_bits, progress, out
):
    """The same for one plane with large numbers or raw bits, without haste."""
    high, lifts = np.empty(here.size, np.int64), np.empty(here.size, np.int64)
    high[:] = here
    for i in range(found):
        if 0 <= places[i] - offset < here.size:
            high[places[i] - offset] = numbers[i]
    wide_lifts(high.reshape(rows, columns), one_sided, shifts, lifts.reshape(rows, columns))
    if raw_bits:
        progress[RAW] = join_raw(high, raw, raw_bits, progress[RAW], high)
    place_large_values(high, lifts, unit, out)
