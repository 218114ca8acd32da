"""Compiled loops of profile ``serverlight``: the range coder's reader, and what it needs beside words.

The definition of what is computed is in ``reference/``. Groups of lanes are written out, so that their states stay in
registers; what is left over at an end goes through a loop over an array of states.

No index leaves its array, whatever the frame says. All words are copied to an array with more words than they are, by a line's
pairs and eight, each pair takes one word at most, and nothing goes on beyond the end of its stream: what checks less often than
every eight pairs reads a line at most in between. A state chooses one of
4096 slots, and a context is a row of the tables by the way it is computed. Escapes and raw bits are checked one by one.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec.backends.cpu.compiled import inlined, lowest_mark, njit, read_long
from serverlight.codec.backends.cpu.vectors import HAS_VECTORS, get_group

U = np.uint64
LEAST = U(1 << 15)
LARGEST_NUMBER = 1 << 28
BITS, LARGEST, RAW, HALF, END = range(5)
"""What a segment's row of ``progress`` holds: the bit of the escapes that is next, -1 if they are broken; the largest magnitude
among them; raw bits read; whether the frame has half escapes; and the bit of the escapes where the segment's end."""


# -- escapes -----------------------------------------------------------------------------------------------------


@inlined
def get_golomb(buffer, at, end):
    """Reads an exponential Golomb code; returns it and the position after it, or a position of -1 past the end or over 32 bits."""
    if at >= 0 and (at >> 3) + 8 <= buffer.size:  # a window of 57 bits and more has codes of up to 28 bits
        window = read_long(U(buffer.ctypes.data) + U(at >> 3)) >> U(at & 7)
        width = np.int64(lowest_mark(window | U(1 << 56))) + 1
        if width <= 28:
            value = np.int64(1 << width) | np.int64((window >> U(width)) & U((1 << width) - 1))
            return (value - 2, at + 2 * width) if at + 2 * width <= end else (0, -1)
    return get_long_golomb(buffer, at, end)


@njit
def get_long_golomb(buffer, at, end):
    """The same bit by bit, for long codes and those at the end."""
    width = 1
    if at < 0:
        return 0, -1
    while at < end and not (buffer[at >> 3] >> (at & 7)) & 1:
        width += 1
        at += 1
    if width > 32 or at + 1 + width > end:
        return 0, -1
    at += 1
    value = 1 << width
    for i in range(width):
        value |= np.int64((buffer[at >> 3] >> (at & 7)) & 1) << i
        at += 1
    return value - 2, at


@inlined
def are_whole(escapes, progress, segment):
    """Whether the numbers of a pair with the escape symbol are sent whole; with half escapes there is a bit to tell."""
    at = progress[segment, BITS]
    if not progress[segment, HALF] or at < 0:
        return True
    if at >= progress[segment, END]:
        progress[segment, BITS] = -1
        return True
    progress[segment, BITS] = at + 1
    return (escapes[at >> 3] >> (at & 7)) & 1 != 0


@inlined
def get_number(whole, one_sided, escapes, progress, segment):
    """Reads an escaped number; a broken one, or one that is too large, is zero and ends the reading of all others.

    ``whole`` tells whether the number was sent, or only what it exceeds a nibble by.
    """
    code, bits = get_golomb(escapes, progress[segment, BITS], progress[segment, END])
    if whole:
        number = code if one_sided else ((code + 1) >> 1 if code & 1 else -(code >> 1))
    else:
        number = code + 15 if one_sided else (-8 - (code >> 1) if code & 1 else 8 + (code >> 1))
    if abs(number) > LARGEST_NUMBER:
        number, bits = 0, -1
    progress[segment, BITS] = bits
    progress[segment, LARGEST] = max(progress[segment, LARGEST], abs(number))
    return np.int32(number)


# -- range coder -------------------------------------------------------------------------------------------------


@inlined
def get(state, entry, words, at):
    """The state, in 64 bits, after a symbol, which takes a word in if it has become too small, and the position in ``words``."""
    state = U(entry >> np.uint32(20)) * (state >> U(12)) + U((entry >> np.uint32(8)) & np.uint32(4095))
    short, longer = state < LEAST, state << U(16) | U(words[at])
    return longer if short else state, at + U(short)


@njit
def get_eights(rows_of, groups, states, words, size, at, table, into):
    """Reads ``groups`` groups of eight pairs that lie side by side, one a lane; returns the position in ``words``."""
    x0, x1, x2, x3 = U(states[0]), U(states[1]), U(states[2]), U(states[3])
    x4, x5, x6, x7 = U(states[4]), U(states[5]), U(states[6]), U(states[7])
    for group in range(groups):
        if at > size:
            break
        o = U(8 * group)
        entry = table[U(rows_of[o]) << U(12) | (x0 & U(4095))]
        x0, at = get(x0, entry, words, at)
        into[o] = np.uint8(entry)
        entry = table[U(rows_of[o + U(1)]) << U(12) | (x1 & U(4095))]
        x1, at = get(x1, entry, words, at)
        into[o + U(1)] = np.uint8(entry)
        entry = table[U(rows_of[o + U(2)]) << U(12) | (x2 & U(4095))]
        x2, at = get(x2, entry, words, at)
        into[o + U(2)] = np.uint8(entry)
        entry = table[U(rows_of[o + U(3)]) << U(12) | (x3 & U(4095))]
        x3, at = get(x3, entry, words, at)
        into[o + U(3)] = np.uint8(entry)
        entry = table[U(rows_of[o + U(4)]) << U(12) | (x4 & U(4095))]
        x4, at = get(x4, entry, words, at)
        into[o + U(4)] = np.uint8(entry)
        entry = table[U(rows_of[o + U(5)]) << U(12) | (x5 & U(4095))]
        x5, at = get(x5, entry, words, at)
        into[o + U(5)] = np.uint8(entry)
        entry = table[U(rows_of[o + U(6)]) << U(12) | (x6 & U(4095))]
        x6, at = get(x6, entry, words, at)
        into[o + U(6)] = np.uint8(entry)
        entry = table[U(rows_of[o + U(7)]) << U(12) | (x7 & U(4095))]
        x7, at = get(x7, entry, words, at)
        into[o + U(7)] = np.uint8(entry)
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return at


@njit
def get_fours(rows_of, groups, states, words, size, at, table, into):
    """Reads ``groups`` groups of four pairs that lie side by side, one a lane; returns the position in ``words``."""
    x0, x1, x2, x3 = U(states[0]), U(states[1]), U(states[2]), U(states[3])
    for group in range(groups):
        if at > size:
            break
        o = U(4 * group)
        entry = table[U(rows_of[o]) << U(12) | (x0 & U(4095))]
        x0, at = get(x0, entry, words, at)
        into[o] = np.uint8(entry)
        entry = table[U(rows_of[o + U(1)]) << U(12) | (x1 & U(4095))]
        x1, at = get(x1, entry, words, at)
        into[o + U(1)] = np.uint8(entry)
        entry = table[U(rows_of[o + U(2)]) << U(12) | (x2 & U(4095))]
        x2, at = get(x2, entry, words, at)
        into[o + U(2)] = np.uint8(entry)
        entry = table[U(rows_of[o + U(3)]) << U(12) | (x3 & U(4095))]
        x3, at = get(x3, entry, words, at)
        into[o + U(3)] = np.uint8(entry)
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    return at


@njit
def get_run(rows_of, count, states, words, size, at, table, into):
    """Reads the symbols of a run of pairs, lane after lane, from their rows of the tables; returns the position in ``words``.

    States have 32 bits.
    """
    lanes, done = states.size, 0
    if lanes == 8:
        done = count & ~7
        at = get_eights(rows_of, count >> 3, states, words, size, at, table, into)
    elif lanes == 4:
        done = count & ~3
        at = get_fours(rows_of, count >> 2, states, words, size, at, table, into)
    lane = U(0)
    for i in range(U(done), U(count)):
        if at > size:
            break
        entry = table[U(rows_of[i]) << U(12) | (U(states[lane]) & U(4095))]
        states[lane], at = get(U(states[lane]), entry, words, at)
        into[i] = np.uint8(entry)
        lane = lane + U(1) if lane + U(1) < U(lanes) else U(0)
    return at


# -- lines of all segments -----------------------------------------------------------------------------------------


@njit
def get_line(streams, rows_of, table, line):
    """Reads a line of pairs that lie side by side, of all segments; returns whether none needed more words than it has.

    Args:
        streams: see :func:`serverlight.codec.backends.cpu.streams.streams_of`.
        rows_of: each pair's row of the tables; uint8, with seven more that are rows of the tables.
        table: the reader's table.
        line: receives the symbols; uint8, with room for seven more.
    """
    borders, states, at, limits, _, words, _ = streams
    if HAS_VECTORS and states.shape[1] == 8:
        get_line_by_eights(borders, states, at, words, rows_of, table, line)
    else:
        for i in range(at.size):
            first, end = borders[i] - borders[0], borders[i + 1] - borders[0]
            rows, into = rows_of[first:end], line[first:end]
            at[i] = get_run(rows, rows.size, states[i], words, limits[i], at[i], table, into)
    return not np.any(at > limits)


@njit
def get_line_by_eights(borders, states, at, words, rows_of, table, line):
    """Reads groups of eight lanes, in four segments at a time: what each of them waits for, the others fill."""
    from_row, from_table, from_word = U(rows_of.ctypes.data), U(table.ctypes.data), U(words.ctypes.data)
    into, count = U(line.ctypes.data), at.size
    starts = (borders - borders[0]).astype(np.uint64)
    for i in range(0, count - 3, 4):
        o0, o1, o2, o3 = starts[i], starts[i + 1], starts[i + 2], starts[i + 3]
        groups = min(min(o1 - o0, o2 - o1), min(o3 - o2, starts[i + 4] - o3)) >> U(3)
        x = U(states[i].ctypes.data)
        w0, w1, w2, w3 = U(2) * at[i], U(2) * at[i + 1], U(2) * at[i + 2], U(2) * at[i + 3]
        for group in range(groups):
            o = U(8) * group
            r, s = from_row + o, into + o
            w0 += U(2) * get_group(x, r + o0, from_table, from_word + w0, s + o0, U(255))
            w1 += U(2) * get_group(x + U(32), r + o1, from_table, from_word + w1, s + o1, U(255))
            w2 += U(2) * get_group(x + U(64), r + o2, from_table, from_word + w2, s + o2, U(255))
            w3 += U(2) * get_group(x + U(96), r + o3, from_table, from_word + w3, s + o3, U(255))
        at[i], at[i + 1], at[i + 2], at[i + 3] = w0 >> U(1), w1 >> U(1), w2 >> U(1), w3 >> U(1)
        for way in range(i, i + 4):
            first, end = starts[way] + U(8) * groups, starts[way + 1]
            at[way] = get_rest(first, end, states[way], at[way], words, rows_of, table, line)
    for way in range(count & ~3, count):
        at[way] = get_rest(starts[way], starts[way + 1], states[way], at[way], words, rows_of, table, line)


@njit
def get_rest(first, end, states, at, words, rows_of, table, line):
    """Reads what is left of a segment's part of a line; what follows it there stays as it is."""
    from_row, from_table, into = U(rows_of.ctypes.data), U(table.ctypes.data), U(line.ctypes.data)
    x, w, o = U(states.ctypes.data), U(words.ctypes.data) + U(2) * at, first
    while o + U(8) <= end:
        w += U(2) * get_group(x, from_row + o, from_table, w, into + o, U(255))
        o += U(8)
    if o < end:
        others, idle = line[end : o + U(8)].copy(), states[end - o :].copy()
        w += U(2) * get_group(x, from_row + o, from_table, w, into + o, (U(1) << (end - o)) - U(1))
        line[end : o + U(8)], states[end - o :] = others, idle
    return (w - U(words.ctypes.data)) >> U(1)


# -- four frames at once -----------------------------------------------------------------------------------------


@njit
def get_four_runs(streams, tables, lines, count):
    """Reads ``count`` pairs of each of four frames of one segment, two lanes and one row of the tables: none waits for itself.

    Beyond the end of a frame's words there are as many more as it has pairs, and eight.
    """
    t0, t1, t2, t3 = tables
    l0, l1, l2, l3 = lines
    w0, w1, w2, w3 = streams[0][5], streams[1][5], streams[2][5], streams[3][5]
    p0, p1, p2, p3 = streams[0][2][0], streams[1][2][0], streams[2][2][0], streams[3][2][0]
    a0, b0, a1, b1 = U(streams[0][1][0, 0]), U(streams[0][1][0, 1]), U(streams[1][1][0, 0]), U(streams[1][1][0, 1])
    a2, b2, a3, b3 = U(streams[2][1][0, 0]), U(streams[2][1][0, 1]), U(streams[3][1][0, 0]), U(streams[3][1][0, 1])
    for i in range(U(0), U(count & ~1), U(2)):
        a0, p0 = get_into(a0, t0, w0, p0, l0, i)
        a1, p1 = get_into(a1, t1, w1, p1, l1, i)
        a2, p2 = get_into(a2, t2, w2, p2, l2, i)
        a3, p3 = get_into(a3, t3, w3, p3, l3, i)
        b0, p0 = get_into(b0, t0, w0, p0, l0, i + U(1))
        b1, p1 = get_into(b1, t1, w1, p1, l1, i + U(1))
        b2, p2 = get_into(b2, t2, w2, p2, l2, i + U(1))
        b3, p3 = get_into(b3, t3, w3, p3, l3, i + U(1))
    if count & 1:
        a0, p0 = get_into(a0, t0, w0, p0, l0, U(count - 1))
        a1, p1 = get_into(a1, t1, w1, p1, l1, U(count - 1))
        a2, p2 = get_into(a2, t2, w2, p2, l2, U(count - 1))
        a3, p3 = get_into(a3, t3, w3, p3, l3, U(count - 1))
    for frame, (a, b, position) in enumerate(((a0, b0, p0), (a1, b1, p1), (a2, b2, p2), (a3, b3, p3))):
        streams[frame][1][0, 0], streams[frame][1][0, 1], streams[frame][2][0] = a, b, position


@inlined
def get_into(state, table, words, at, line, place):
    """Reads one symbol of a single row of the tables to its place; returns what :func:`get` does."""
    entry = table[state & U(4095)]
    line[place] = np.uint8(entry)
    return get(state, entry, words, at)


# -- raw bits ----------------------------------------------------------------------------------------------------


@njit
def join_raw(high, raw, raw_bits, at, numbers):
    """Joins high parts and raw bits, read from bit ``at``; returns the bit after them, -1 past the end.

    Which numbers are zero no branch could foresee, so flags are numbers while eight bytes can be read at once.
    """
    mask, begin, last, done = (1 << raw_bits) - 1, U(raw.ctypes.data), 8 * (raw.size - 8), 0
    while done < high.size and 0 <= at <= last:
        number = np.int64(high[done])
        kept, sign = -np.int64(number != 0), -np.int64(number < 0)
        low = np.int64(read_long(begin + U(at >> 3)) >> U(at & 7)) & mask
        numbers[done] = (((((abs(number) - 1) << raw_bits) + low + 1) ^ sign) - sign) & kept
        at += raw_bits & kept
        done += 1
    for x in range(done, high.size):
        number = np.int64(high[x])
        if number:
            if at < 0 or at + raw_bits > 8 * raw.size:
                return -1
            low, start = 0, at >> 3
            for i in range(min(5, raw.size - start)):
                low |= np.int64(raw[start + i]) << (8 * i)
            magnitude = ((abs(number) - 1) << raw_bits) + ((low >> (at & 7)) & mask) + 1
            number = -magnitude if number < 0 else magnitude
            at += raw_bits
        numbers[x] = number
    return at
