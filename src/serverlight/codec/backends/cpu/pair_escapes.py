"""Compiled loops of profile ``serverlight``: the reader of numbers that are too large for a pair's symbol, of tokens and flat runs.

The definition of what is computed is in ``reference/``. Which numbers a pair sends, and how, no branch could foresee, so where
all of a pair lies within a register, flags are numbers, 1 or 0, and nothing is decided by branches.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec.backends.cpu.compiled import inlined, lowest_mark, marks_of_fifteens, njit, read_long
from serverlight.codec.backends.cpu.lanes import BITS, END, HALF, LARGEST, are_whole, get_number
from serverlight.codec.backends.cpu.symbols import token_contexts, token_learn

U = np.uint64
MOST_BITS = 56
"""So many are sure to be in a window of 64 from any bit of a byte on."""


# -- numbers -----------------------------------------------------------------------------------------------------


@njit
def find_escapes(line, size, found):
    """Notes which of a line's symbols have escapes; returns how many. ``line`` has room for 63 more, which do not count."""
    count, start = U(0), U(line.ctypes.data)
    for first in range(U(0), U(size), U(64)):
        marks = marks_of_fifteens(start + first)
        while marks:
            place = first + lowest_mark(marks)
            marks &= marks - U(1)
            if place < U(size):
                found[count] = place
                count += U(1)
    return np.int64(count)


@njit
def get_pair(symbol, turned, is_single, escapes, progress, segment):
    """Reads the escaped numbers of a pair; returns both of its numbers."""
    whole = symbol == 255 and are_whole(escapes, progress, segment)
    first, second = small_number(symbol >> 4, turned), small_number(symbol & 15, turned)
    if symbol >= 0xF0:
        first = np.int64(get_number(whole, False, escapes, progress, segment))
    if symbol & 0x0F == 0x0F and not is_single:
        second = np.int64(get_number(whole, False, escapes, progress, segment))
    return first, second


@inlined
def small_number(nibble, turned):
    """The number of a nibble that is not an escape; ``turned`` is 1 or 0."""
    nibble = np.int64(nibble)
    return signed((nibble + 1) >> 1, (nibble & 1) ^ turned ^ 1)


@inlined
def signed(magnitude, is_negative):
    """A magnitude with its sign; ``is_negative`` is 1 or 0."""
    return (magnitude ^ -is_negative) + is_negative


@inlined
def chosen(flag, one, other):
    """One number if ``flag`` is 1, the other if it is 0."""
    return other ^ ((one ^ other) & -flag)


@njit
def get_pairs(line, turned, found, is_single, segment_of, streams, numbers):
    """Reads the numbers of the pairs of a line that have escapes, each from its segment's bytes.

    Nothing is read that was written just before, since no processor could foresee where: segments begin at what they had in the
    beginning, and go on from number to number.
    """
    progress, escapes, is_pair = streams[4], streams[6], np.int64(not is_single)
    begins, before, after, largest = progress[:, BITS].copy(), np.int64(-1), np.int64(0), np.int64(0)
    for i in range(found.size):
        channel = U(found[i])
        segment, symbol, turn = np.int64(segment_of[channel]), np.int64(line[channel]), np.int64(turned[channel])
        at = chosen(np.int64(segment == before), after, begins[U(segment)])
        before, half, end = segment, progress[U(segment), U(HALF)], progress[U(segment), U(END)]
        if at < 0 or (at >> 3) + 8 > escapes.size:
            numbers[0, i], numbers[1, i] = get_pair(symbol, turn, is_single, escapes, progress, segment)
            after = progress[U(segment), U(BITS)]
            continue
        window = read_long(U(escapes.ctypes.data) + U(at >> 3)) >> U(at & 7)
        first, second, size = near_pair(window, symbol, turn, half, is_pair)
        if size > MOST_BITS or at + size > end:
            numbers[0, i], numbers[1, i] = get_pair(symbol, turn, is_single, escapes, progress, segment)
            after = progress[U(segment), U(BITS)]
            continue
        numbers[0, i], numbers[1, i] = first, second
        after = at + size
        progress[U(segment), U(BITS)] = after
        largest = max(largest, max(abs(first), abs(second)))
    progress[0, LARGEST] = max(progress[0, LARGEST], largest)


@inlined
def near_pair(window, symbol, turn, half, is_pair):
    """The numbers of a pair with escapes, from the next bits, and how many they are: more than 56 if the window has too few."""
    is_both = np.int64(symbol == 255)
    tells = is_both & half
    whole = is_both & (np.int64(window & U(1)) | (1 - tells))
    is_first, is_second = np.int64(symbol >= 0xF0), np.int64(symbol & 0x0F == 0x0F) & is_pair
    first, taken = near_number(window >> U(tells), whole)
    taken &= -is_first
    second, more = near_number(window >> U((tells + taken) & 63), whole)
    more &= -is_second
    first = chosen(is_first, first, small_number(symbol >> 4, turn))
    second = chosen(is_second, second, small_number(symbol & 15, turn))
    too_long = np.int64(max(taken, more) > 52)
    return first, second, tells + taken + more + 64 * too_long


@inlined
def near_number(window, whole):
    """The signed number that the lowest bits are the code of, and how many they are: right if those of the window are enough."""
    width = lowest_mark(window | U(1 << 56)) + U(1)
    code = np.int64((U(1) << width) | ((window >> width) & ((U(1) << width) - U(1)))) - 2
    odd = code & 1
    return signed((code >> 1) + chosen(whole, odd, np.int64(8)), odd ^ whole), np.int64(U(2) * width)


# -- values and contexts -----------------------------------------------------------------------------------------


@inlined
def exact_value(number, shift_of, unit):
    """The value of a number of any size; ``shift_of`` as for ``value_of`` of ``tokens.py``."""
    number, (z, o, m2, m3, both) = np.int64(number), shift_of
    magnitude = abs(number)
    lift = o if magnitude == 1 else (m2 if magnitude == 2 else m3)
    lift = np.int64(z if magnitude == 0 else lift)
    lift = -lift if (number < 0) & (both != 0) else lift
    return np.float32(np.int64(64) * number + lift) * unit


@njit
def exact_line(numbers, facts, unit, out):
    """Values of a line of such numbers."""
    shift_of = facts[0], facts[1], facts[2], facts[3], facts[4]
    for i in range(numbers.size):
        out[i] = exact_value(numbers[i], shift_of, unit)


@njit
def put_right(found, numbers, old, room, borders, facts, unit, busy, lean, contexts, upper, lower):
    """Puts right what escaped numbers change in a line.

    ``old`` has the means of their channels before it, int32. ``room`` is for their values, contexts and signs: some loops make
    them, another takes them to their places.
    """
    (exact, rows_of, turned), count = room, found.size
    exact_line(numbers[0, :count], facts, unit, exact[0])
    exact_line(numbers[1, :count], facts, unit, exact[1])
    token_learn(numbers[0, :count], numbers[1, :count], np.int32(3), old[0, :count], old[1, :count])
    token_contexts(old[0, :count], old[1, :count], borders, rows_of, turned)
    for i in range(count):
        channel = U(found[i])
        upper[channel], lower[channel] = exact[0, i], exact[1, i]
        busy[channel], lean[channel], contexts[channel] = old[0, i], old[1, i], rows_of[i]
