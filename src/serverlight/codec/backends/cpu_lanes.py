"""Compiled loops of profile ``serverlight``: the range coder's reader, for pairs that lie in lines.

The definition of what is computed is in ``reference.py``. Groups of lanes are written out, so that their states stay in
registers; what is left over at an end goes through a loop over an array of states.

No index leaves its array, whatever the frame says. A stream of words is copied to an array with eight more words than it has,
and no group of eight pairs, each of which takes one word at most, is read from beyond the stream's end. A state chooses one of
4096 slots, and a context is a row of the tables by the way it is computed. Escapes and raw bits are checked one by one.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec.backends.cpu_kernels import inlined, njit
from serverlight.codec.backends.cpu_symbols import token_contexts, token_learn

U = np.uint64
LEAST = U(1 << 15)
LARGEST_NUMBER = 1 << 28
LARGEST_NARROW = 1 << 24
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
        row, slot = U(rows_of[o]), x0 & U(4095)
        symbol = U(symbols[row << U(12) | slot])
        x0, at = get(x0, slot, U(entries[row << U(8) | symbol]), U(words[at]), at)
        into[o] = symbol
        row, slot = U(rows_of[o + U(1)]), x1 & U(4095)
        symbol = U(symbols[row << U(12) | slot])
        x1, at = get(x1, slot, U(entries[row << U(8) | symbol]), U(words[at]), at)
        into[o + U(1)] = symbol
        row, slot = U(rows_of[o + U(2)]), x2 & U(4095)
        symbol = U(symbols[row << U(12) | slot])
        x2, at = get(x2, slot, U(entries[row << U(8) | symbol]), U(words[at]), at)
        into[o + U(2)] = symbol
        row, slot = U(rows_of[o + U(3)]), x3 & U(4095)
        symbol = U(symbols[row << U(12) | slot])
        x3, at = get(x3, slot, U(entries[row << U(8) | symbol]), U(words[at]), at)
        into[o + U(3)] = symbol
        row, slot = U(rows_of[o + U(4)]), x4 & U(4095)
        symbol = U(symbols[row << U(12) | slot])
        x4, at = get(x4, slot, U(entries[row << U(8) | symbol]), U(words[at]), at)
        into[o + U(4)] = symbol
        row, slot = U(rows_of[o + U(5)]), x5 & U(4095)
        symbol = U(symbols[row << U(12) | slot])
        x5, at = get(x5, slot, U(entries[row << U(8) | symbol]), U(words[at]), at)
        into[o + U(5)] = symbol
        row, slot = U(rows_of[o + U(6)]), x6 & U(4095)
        symbol = U(symbols[row << U(12) | slot])
        x6, at = get(x6, slot, U(entries[row << U(8) | symbol]), U(words[at]), at)
        into[o + U(6)] = symbol
        row, slot = U(rows_of[o + U(7)]), x7 & U(4095)
        symbol = U(symbols[row << U(12) | slot])
        x7, at = get(x7, slot, U(entries[row << U(8) | symbol]), U(words[at]), at)
        into[o + U(7)] = symbol
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return at


@njit
def get_fours(rows_of, groups, states, words, size, at, symbols, entries, into):
    """Reads ``groups`` groups of four pairs that lie side by side, one a lane; returns the position in ``words``."""
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    for group in range(groups):
        if at > size:
            break
        o = U(4 * group)
        row, slot = U(rows_of[o]), x0 & U(4095)
        symbol = U(symbols[row << U(12) | slot])
        x0, at = get(x0, slot, U(entries[row << U(8) | symbol]), U(words[at]), at)
        into[o] = symbol
        row, slot = U(rows_of[o + U(1)]), x1 & U(4095)
        symbol = U(symbols[row << U(12) | slot])
        x1, at = get(x1, slot, U(entries[row << U(8) | symbol]), U(words[at]), at)
        into[o + U(1)] = symbol
        row, slot = U(rows_of[o + U(2)]), x2 & U(4095)
        symbol = U(symbols[row << U(12) | slot])
        x2, at = get(x2, slot, U(entries[row << U(8) | symbol]), U(words[at]), at)
        into[o + U(2)] = symbol
        row, slot = U(rows_of[o + U(3)]), x3 & U(4095)
        symbol = U(symbols[row << U(12) | slot])
        x3, at = get(x3, slot, U(entries[row << U(8) | symbol]), U(words[at]), at)
        into[o + U(3)] = symbol
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    return at


@njit
def get_twos(rows_of, groups, states, words, size, at, symbols, entries, into):
    """Reads ``groups`` groups of two pairs that lie side by side, one a lane; returns the position in ``words``."""
    x0, x1 = states[0], states[1]
    for group in range(groups):
        if at > size:
            break
        o = U(2 * group)
        row, slot = U(rows_of[o]), x0 & U(4095)
        symbol = U(symbols[row << U(12) | slot])
        x0, at = get(x0, slot, U(entries[row << U(8) | symbol]), U(words[at]), at)
        into[o] = symbol
        row, slot = U(rows_of[o + U(1)]), x1 & U(4095)
        symbol = U(symbols[row << U(12) | slot])
        x1, at = get(x1, slot, U(entries[row << U(8) | symbol]), U(words[at]), at)
        into[o + U(1)] = symbol
    states[0], states[1] = x0, x1
    return at


@njit
def get_run(rows_of, count, states, words, size, at, symbols, entries, into):
    """Reads the symbols of a run of pairs, lane after lane, from their rows of the tables; returns the position in ``words``."""
    lanes = states.size
    groups = count // lanes if lanes > 1 else 0
    if lanes == 8:
        at = get_eights(rows_of, groups, states, words, size, at, symbols, entries, into)
    elif lanes == 4:
        at = get_fours(rows_of, groups, states, words, size, at, symbols, entries, into)
    elif lanes == 2:
        at = get_twos(rows_of, groups, states, words, size, at, symbols, entries, into)
    lane = 0
    for i in range(lanes * groups, count):
        row, slot = U(rows_of[i]), states[lane] & U(4095)
        symbol = U(symbols[row << U(12) | slot])
        entry, word = U(entries[row << U(8) | symbol]), U(words[min(at, size)])
        states[lane], at = get(states[lane], slot, entry, word, at)
        into[i] = symbol
        lane = lane + 1 if lane + 1 < lanes else 0
    return at


# -- lines of tokens ---------------------------------------------------------------------------------------------


@njit
def numbers_of(line, turned, upper, lower):
    """The numbers of a line's pairs; returns whether one has escapes."""
    one, large, any_escaped = np.int32(1), np.int32(15), np.int32(0)
    for i in range(upper.size):
        symbol = np.int32(line[i])
        a, b = np.int32(symbol >> np.int32(4)), np.int32(symbol & large)
        any_escaped |= np.int32(max(a, b) == large)
        first, second = np.int32((a + one) >> one), np.int32((b + one) >> one)
        flip = np.int32(turned[i])
        upper[i] = first if (a & one) ^ flip else np.int32(-first)
        lower[i] = second if (b & one) ^ flip else np.int32(-second)
    return any_escaped != 0


@njit
def get_line_escapes(line, upper, lower, is_single, escapes, progress):
    """Reads the escaped numbers of a line's pairs."""
    for i in range(upper.size):
        whole = line[i] == 255 and are_whole(escapes, progress)
        if line[i] >= 0xF0:
            upper[i] = get_number(whole, False, escapes, progress)
        if line[i] & 0x0F == 0x0F and not is_single:
            lower[i] = get_number(whole, False, escapes, progress)


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
