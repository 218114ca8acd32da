"""Compiled loops of profile ``serverlight``: the range coder's reader, and what it needs beside words.

The definition of what is computed is in ``reference.py``. Groups of lanes are written out, so that their states stay in
registers; what is left over at an end goes through a loop over an array of states.

No index leaves its array, whatever the frame says. A stream of words is copied to an array with eight more words than it has,
and no group of eight pairs, each of which takes one word at most, is read from beyond the stream's end. A state chooses one of
4096 slots, and a context is a row of the tables by the way it is computed. Escapes and raw bits are checked one by one.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec.backends.cpu_kernels import inlined, njit

U = np.uint64
LEAST = U(1 << 15)
LARGEST_NUMBER = 1 << 28
BITS, LARGEST, RAW, HALF = range(4)
"""What ``progress`` holds: bits of escapes read, -1 if they are broken; the largest magnitude among them; raw bits read; and
whether the frame has half escapes."""


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
def are_whole(escapes, progress):
    """Whether the numbers of a pair with the escape symbol are sent whole; with half escapes there is a bit to tell."""
    at = progress[BITS]
    if not progress[HALF] or at < 0:
        return True
    if at >= 8 * escapes.size:
        progress[BITS] = -1
        return True
    progress[BITS] = at + 1
    return (escapes[at >> 3] >> (at & 7)) & 1 != 0


@njit
def get_number(whole, one_sided, escapes, progress):
    """Reads an escaped number; a broken one, or one that is too large, is zero and ends the reading of all others.

    ``whole`` tells whether the number was sent, or only what it exceeds a nibble by.
    """
    code, bits = get_golomb(escapes, progress[BITS])
    if whole:
        number = code if one_sided else ((code + 1) >> 1 if code & 1 else -(code >> 1))
    else:
        number = code + 15 if one_sided else (-8 - (code >> 1) if code & 1 else 8 + (code >> 1))
    if abs(number) > LARGEST_NUMBER:
        number, bits = 0, -1
    progress[BITS] = bits
    progress[LARGEST] = max(progress[LARGEST], abs(number))
    return np.int32(number)


# -- range coder -------------------------------------------------------------------------------------------------


@inlined
def get(state, entry, words, at):
    """The state after a symbol, which takes a word in if it has become too small, and the position in ``words``."""
    state = U(entry & np.uint32(4095)) * (state >> U(12)) + U((entry >> np.uint32(12)) & np.uint32(4095))
    short, longer = state < LEAST, state << U(16) | U(words[at])
    return longer if short else state, at + U(short)


@njit
def get_eights(rows_of, groups, states, words, size, at, table, into):
    """Reads ``groups`` groups of eight pairs that lie side by side, one a lane; returns the position in ``words``."""
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    x4, x5, x6, x7 = states[4], states[5], states[6], states[7]
    for group in range(groups):
        if at > size:
            break
        o = U(8 * group)
        entry = table[U(rows_of[o]) << U(12) | (x0 & U(4095))]
        x0, at = get(x0, entry, words, at)
        into[o] = np.uint8(entry >> np.uint32(24))
        entry = table[U(rows_of[o + U(1)]) << U(12) | (x1 & U(4095))]
        x1, at = get(x1, entry, words, at)
        into[o + U(1)] = np.uint8(entry >> np.uint32(24))
        entry = table[U(rows_of[o + U(2)]) << U(12) | (x2 & U(4095))]
        x2, at = get(x2, entry, words, at)
        into[o + U(2)] = np.uint8(entry >> np.uint32(24))
        entry = table[U(rows_of[o + U(3)]) << U(12) | (x3 & U(4095))]
        x3, at = get(x3, entry, words, at)
        into[o + U(3)] = np.uint8(entry >> np.uint32(24))
        entry = table[U(rows_of[o + U(4)]) << U(12) | (x4 & U(4095))]
        x4, at = get(x4, entry, words, at)
        into[o + U(4)] = np.uint8(entry >> np.uint32(24))
        entry = table[U(rows_of[o + U(5)]) << U(12) | (x5 & U(4095))]
        x5, at = get(x5, entry, words, at)
        into[o + U(5)] = np.uint8(entry >> np.uint32(24))
        entry = table[U(rows_of[o + U(6)]) << U(12) | (x6 & U(4095))]
        x6, at = get(x6, entry, words, at)
        into[o + U(6)] = np.uint8(entry >> np.uint32(24))
        entry = table[U(rows_of[o + U(7)]) << U(12) | (x7 & U(4095))]
        x7, at = get(x7, entry, words, at)
        into[o + U(7)] = np.uint8(entry >> np.uint32(24))
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return at


@njit
def get_fours(rows_of, groups, states, words, size, at, table, into):
    """Reads ``groups`` groups of four pairs that lie side by side, one a lane; returns the position in ``words``."""
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    for group in range(groups):
        if at > size:
            break
        o = U(4 * group)
        entry = table[U(rows_of[o]) << U(12) | (x0 & U(4095))]
        x0, at = get(x0, entry, words, at)
        into[o] = np.uint8(entry >> np.uint32(24))
        entry = table[U(rows_of[o + U(1)]) << U(12) | (x1 & U(4095))]
        x1, at = get(x1, entry, words, at)
        into[o + U(1)] = np.uint8(entry >> np.uint32(24))
        entry = table[U(rows_of[o + U(2)]) << U(12) | (x2 & U(4095))]
        x2, at = get(x2, entry, words, at)
        into[o + U(2)] = np.uint8(entry >> np.uint32(24))
        entry = table[U(rows_of[o + U(3)]) << U(12) | (x3 & U(4095))]
        x3, at = get(x3, entry, words, at)
        into[o + U(3)] = np.uint8(entry >> np.uint32(24))
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    return at


@njit
def get_run(rows_of, count, states, words, size, at, table, into):
    """Reads the symbols of a run of pairs, lane after lane, from their rows of the tables; returns the position in ``words``."""
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
        entry = table[U(rows_of[i]) << U(12) | (states[lane] & U(4095))]
        states[lane], at = get(states[lane], entry, words, at)
        into[i] = np.uint8(entry >> np.uint32(24))
        lane = lane + U(1) if lane + U(1) < U(lanes) else U(0)
    return at


# -- raw bits ----------------------------------------------------------------------------------------------------


@njit
def join_raw(high, raw, raw_bits, at, numbers):
    """Joins high parts and raw bits, read from bit ``at``; returns the bit after them, -1 past the end."""
    mask = (1 << raw_bits) - 1
    for x in range(high.size):
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
