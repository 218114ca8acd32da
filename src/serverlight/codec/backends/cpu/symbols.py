"""Compiled loops of profile ``serverlight``: contexts, and the symbols of pairs that the writer counts and codes.

The definition of what is computed is in ``reference/``.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec import layout
from serverlight.codec.activity import ACTIVITY, LARGEST_START, SLOW, SPREAD_BITS, THRESHOLDS
from serverlight.codec.backends.cpu.compiled import inlined, njit

U = np.uint64
num_segments_of, first_unit = njit(layout.num_segments_of), njit(layout.first_unit)
SMALL_MEAN = 32640
"""The largest mean that numbers up to 255 can lead to, but for the one to start with; it fits 16 bits."""

# Arrays are indexed as [plane, row, column] with offsets that the compiler can prove to be positive: an index that might wrap
# around, as negative ones do in Python, would keep a loop from being turned into vectors. High parts are numbers of 16 bits.


# -- planes ------------------------------------------------------------------------------------------------------


@njit
def one_sided_plane(twins, own, beside, symbols):
    """What pairs of a one-sided plane are to those below and to those on their right, and their symbols.

    ``twins`` has both numbers of a pair in 32 bits, the first in the lower half.
    """
    two, three, nine, most = np.int32(2), np.int32(3), np.int32(9), np.int32(15)
    for pair in range(twins.size):
        first, second = np.int32(twins[pair] & np.int32(0xFFFF)), np.int32(twins[pair] >> np.int32(16))
        up = min(second, two)
        own[pair] = np.uint8(np.int32(three * min(first, two)) + up)
        beside[pair] = np.uint8(nine * up)
        symbols[pair] = np.uint8(np.int32(min(first, most) << np.int32(4)) + min(second, most))


@njit
def one_sided_entries(above, left, symbols, index):
    """``256 context + symbol`` of pairs of a one-sided plane."""
    for pair in range(index.size):
        index[pair] = np.uint16((np.int32(np.int32(above[pair]) + left[pair]) << np.int32(8)) + np.int32(symbols[pair]))


@njit
def signed_plane(twins, own, beside):
    """What pairs of a signed plane are to those below and to those on their right; ``twins`` as for one-sided planes."""
    three, nine = np.int32(3), np.int32(9)
    for pair in range(twins.size):
        first, second = np.int32(twins[pair] << np.int32(16)), np.int32(twins[pair] >> np.int32(16))
        upper = np.int32(np.int32(first > 0) - np.int32(first < 0) + np.int32(1))
        lower = np.int32(np.int32(second > 0) - np.int32(second < 0) + np.int32(1))
        own[pair] = np.uint8(three * upper + lower)
        beside[pair] = np.uint8(nine * lower)


@njit
def signed_entries(twins, above, left, index):
    """``256 context + symbol`` of pairs of a signed plane, where the neighbours' signs may turn the pair's signs around."""
    most, two, half = np.int32(15), np.int32(2), np.int32(16)
    for pair in range(index.size):
        leaning = np.int32(np.int32(above[pair]) + np.int32(left[pair]) - np.int32(13))
        first, second = np.int32(np.int32(twins[pair] << half) >> half), np.int32(twins[pair] >> half)
        a = np.int32(-first) if leaning < 0 else first
        b = np.int32(-second) if leaning < 0 else second
        upper = min(np.int32(two * np.int32(abs(a)) - np.int32(a > 0)), most)
        lower = min(np.int32(two * np.int32(abs(b)) - np.int32(b > 0)), most)
        symbol = np.int32(np.int32(upper << np.int32(4)) + lower)
        index[pair] = np.uint16(np.int32(np.int32(abs(leaning)) << np.int32(8)) + symbol)


@njit
def even_planes(high, one_sided, index):
    """Row of the table and symbol of each pair of planes whose lines have no odd end.

    The pairs of a plane are one long run. ``around`` holds what each is to the pair below, after a line of zeros; ``beside``
    what it is to the next one, after a zero, and at a line's end a zero for the line below.
    """
    planes, rows, pairs = index.shape
    size = rows * pairs
    around, beside = np.empty(size + pairs, np.uint8), np.empty(size + 1, np.uint8)
    symbols = np.empty(size, np.uint8)
    around[:pairs] = 0 if one_sided else 4
    for plane in range(planes):
        twins, into = high[plane].reshape(-1).view(np.int32), index[plane].reshape(-1)
        if one_sided:
            one_sided_plane(twins, around[pairs:], beside[1:], symbols)
        else:
            signed_plane(twins, around[pairs:], beside[1:])
        for row in range(rows):
            beside[row * pairs] = 0 if one_sided else 9
        if one_sided:
            one_sided_entries(around, beside, symbols, into)
        else:
            signed_entries(twins, around, beside, into)


@njit
def odd_line(high, above, one_sided, num_contexts, index):
    """The same for a line with an odd end; ``above`` is the line above, or zeros."""
    columns, left = high.size, np.int32(0 if one_sided else 1)
    for pair in range(index.size):
        is_single = 2 * pair + 1 >= columns
        first, second = np.int32(high[2 * pair]), np.int32(0 if is_single else high[2 * pair + 1])
        up = class_of(above[2 * pair], one_sided)
        place = np.int32(9) * left + np.int32(3) * up + (up if is_single else class_of(above[2 * pair + 1], one_sided))
        left = class_of(second, one_sided)
        if one_sided:
            upper, lower = min(first, np.int32(15)), min(second, np.int32(15))
        else:
            place -= np.int32(13)
            turn = np.int32(-1 if place < 0 else 1)
            first, second, place = np.int32(turn * first), np.int32(turn * second), abs(place)
            upper = min(np.int32(2) * abs(first) - np.int32(first > 0), np.int32(15))
            lower = min(np.int32(2) * abs(second) - np.int32(second > 0), np.int32(15))
        index[pair] = np.uint16(256 * (place + (num_contexts if is_single else 0)) + 16 * upper + lower)


@inlined
def class_of(number, one_sided):
    """Class of a number as a neighbour: 0, 1 and more, or its sign plus one."""
    return np.int32(min(number, 2)) if one_sided else np.int32(np.int32(number > 0) - np.int32(number < 0) + 1)


@njit
def plane_symbols(high, one_sided, num_contexts, index):
    """Row of the table and symbol of each pair, as ``256 row + symbol``; ``high`` and ``index`` have three dimensions."""
    planes, rows, columns = high.shape
    if columns % 2 == 0:
        even_planes(high, one_sided, index)
        return
    nothing = np.zeros(columns, np.int16)
    for plane in range(planes):
        for row in range(rows):
            above = high[plane, row - 1] if row else nothing
            odd_line(high[plane, row], above, one_sided, num_contexts, index[plane, row])


# -- tokens ------------------------------------------------------------------------------------------------------


@njit
def borders_of(start):
    """What :func:`serverlight.codec.activity.thresholds_for` returns."""
    borders = np.empty(THRESHOLDS.size, np.int32)
    for i in range(borders.size):
        borders[i] = max(1, (start * THRESHOLDS[i]) >> 8)
    return borders


@njit
def token_contexts(busy, lean, borders, contexts, turned):
    """Context of each channel from its running means, and whether it leans to the negative side."""
    b0, b1, b2, b3 = borders[0], borders[1], borders[2], borders[3]
    b4, b5, b6, two = borders[4], borders[5], borders[6], np.int32(2)
    for channel in range(busy.size):
        a, s = busy[channel], lean[channel]
        row = np.int32(a >= b0) + np.int32(a >= b1) + np.int32(a >= b2) + np.int32(a >= b3)
        row += np.int32(a >= b4) + np.int32(a >= b5) + np.int32(a >= b6)
        leaning = np.int32(8) * abs(s) >= np.int32(3) * a + np.int32(24)
        contexts[channel] = np.uint8(two * row + np.int32(leaning))
        turned[channel] = np.uint8(s < 0)


@njit
def token_learn(first, second, shift, busy, lean):
    """Takes two rows of tokens into the running means; numbers beyond 255 count as 255."""
    most = np.int32(255)
    for channel in range(busy.size):
        a = max(min(np.int32(first[channel]), most), np.int32(-most))
        b = max(min(np.int32(second[channel]), most), np.int32(-most))
        busy[channel] = np.int32(busy[channel] + (((abs(a) + abs(b)) * np.int32(64) - busy[channel]) >> shift))
        lean[channel] = np.int32(lean[channel] + (((a + b) * np.int32(64) - lean[channel]) >> shift))


@njit
def token_line(first, second, contexts, turned, index):
    """``256 context + symbol`` of the pairs of two rows of tokens."""
    for channel in range(index.size):
        index[channel] = entry_of(first[channel], second[channel], contexts[channel], turned[channel] != 0)


@inlined
def entry_of(first, second, context, turned):
    """``256 context + symbol`` of a pair of signed numbers of 16 bits."""
    high = nibble_of(np.int16(-first) if turned else first)
    low = nibble_of(np.int16(-second) if turned else second)
    return np.uint16(np.int16(np.int16(context) << 8) + np.int16(np.int16(high << 4) + low))


@inlined
def nibble_of(number):
    """The zigzag code of a number, at most 15."""
    return min(np.int16(np.int16(min(np.int16(abs(number)), np.int16(8)) << 1) - np.int16(number > 0)), np.int16(15))


@njit
def busy_line(first, second, borders, busy, lean, index):
    """``256 context + symbol`` of the pairs of two rows of tokens, which are taken into the running means by an eighth.

    This is what ``token_contexts``, ``token_line`` and ``token_learn`` do in turn, for means that fit 16 bits: where a product
    or a difference would not, it is taken apart.
    """
    b0, b1, b2, b3 = np.int16(borders[0]), np.int16(borders[1]), np.int16(borders[2]), np.int16(borders[3])
    b4, b5, b6 = np.int16(borders[4]), np.int16(borders[5]), np.int16(borders[6])
    most = np.int16(255)
    for channel in range(index.size):
        mean, lead = busy[channel], lean[channel]
        row = np.int16(np.int16(mean >= b0) + np.int16(mean >= b1))
        row = np.int16(row + np.int16(np.int16(mean >= b2) + np.int16(mean >= b3)))
        row = np.int16(row + np.int16(np.int16(mean >= b4) + np.int16(mean >= b5)))
        row = np.int16(row + np.int16(mean >= b6))
        row = np.int16(np.int16(row + row) + np.int16(is_leaning(mean, lead)))
        index[channel] = entry_of(first[channel], second[channel], row, lead < 0)
        a, b = max(min(first[channel], most), np.int16(-most)), max(min(second[channel], most), np.int16(-most))
        busy[channel] = moved(mean, np.int16(np.int16(abs(a)) + np.int16(abs(b))))
        lean[channel] = moved(lead, np.int16(a + b))


@inlined
def is_leaning(mean, lead):
    """Whether ``8 |lead| >= 3 mean + 24``, without a product that 16 bits cannot hold."""
    eighths = np.int16(np.int16(np.int16(np.int16(mean & 7) * np.int16(3)) + np.int16(7)) >> 3)
    return np.int16(abs(lead)) >= np.int16(
        np.int16(np.int16(mean >> 3) * np.int16(3)) + np.int16(eighths + np.int16(3))
    )


@inlined
def moved(mean, total):
    """``mean + ((64 total - mean) >> 3)``; what overflows 16 bits on the way comes back."""
    return np.int16(np.int16(mean + np.int16(total << 3)) - np.int16(np.int16(mean + np.int16(7)) >> 3))


@njit
def starts_of(start, spreads, columns):
    """The activity that each channel starts with: :func:`serverlight.codec.activity.starts_for`, or the same for all."""
    starts = np.full(columns, start, np.int32)
    for channel in range(spreads.size):
        starts[channel] = min(max((start * ACTIVITY[spreads[channel]]) >> SPREAD_BITS, 1), LARGEST_START)
    return starts


@njit
def nearest_activity(magnitudes, num_elements):
    """What :func:`serverlight.codec.activity.nearest_activity` returns."""
    mean, best = max(1, 128 * magnitudes // num_elements), 0
    for i in range(1, ACTIVITY.size):
        if abs(ACTIVITY[i] - mean) < abs(ACTIVITY[best] - mean):
            best = i
    return best


@njit
def shift_of(pair, has_spreads):
    """What :func:`serverlight.codec.activity.forgetting` returns."""
    return np.int32(SLOW if has_spreads or pair >= 3 else (1 if pair == 0 else 2))


@njit
def token_symbols(high, rows, columns, start, spreads, borders, num_contexts, index):
    """The same for tokens: one line of pairs for every two rows."""
    busy, lean = starts_of(start, spreads, columns), np.zeros(columns, np.int32)
    contexts, turned = np.empty(columns, np.uint8), np.empty(columns, np.uint8)
    nothing = np.zeros(columns, np.int16)
    small_busy, small_lean = np.empty(columns, np.int16), np.empty(columns, np.int16)
    is_small, narrow_borders = start <= SMALL_MEAN, np.minimum(borders, SMALL_MEAN + 1)
    for row in range(0, rows, 2):
        first = high[row * columns : (row + 1) * columns]
        into = index[row // 2 * columns : (row // 2 + 1) * columns]
        pair = row // 2
        if row + 1 < rows and pair >= 3 and is_small:
            if pair == 3:
                small_busy[:], small_lean[:] = busy, lean
            second = high[(row + 1) * columns : (row + 2) * columns]
            busy_line(first, second, narrow_borders, small_busy, small_lean, into)
            continue
        if pair > 3 and is_small:
            busy[:], lean[:] = small_busy, small_lean
        token_contexts(busy, lean, borders, contexts, turned)
        if row + 1 < rows:
            second = high[(row + 1) * columns : (row + 2) * columns]
            token_line(first, second, contexts, turned, into)
            token_learn(first, second, shift_of(pair, spreads.size > 0), busy, lean)
        else:
            token_line(first, nothing, contexts, turned, into)
            into += np.uint16(256 * num_contexts)


# -- flat --------------------------------------------------------------------------------------------------------


@njit
def flat_symbols(high, index):
    """The same where nothing is known of an element's neighbours."""
    for pair in range(high.size // 2):
        index[pair] = entry_of(high[2 * pair], high[2 * pair + 1], np.int16(0), False)
    if high.size % 2:
        index[index.size - 1] = entry_of(high[high.size - 1], np.int16(0), np.int16(1), False)


# -- histogram ---------------------------------------------------------------------------------------------------


@njit
def histogram_of(index, even, odd):
    """How often each entry occurs; two tables take turns, since equal entries in a row would wait for each other.

    They are arrays of their own, and no more than two, so that they stay in the nearest cache.
    """
    size = U(index.size // 4)
    for i in range(size):
        at = U(4) * U(i)
        a, b, c, d = index[at], index[at + U(1)], index[at + U(2)], index[at + U(3)]
        even[a] += np.uint32(1)
        odd[b] += np.uint32(1)
        even[c] += np.uint32(1)
        odd[d] += np.uint32(1)
    for i in range(U(4) * size, U(index.size)):
        even[index[i]] += np.uint32(1)


@njit
def histogram_over(index, num_rows):
    """How often each entry occurs: shape (num_rows, 256)."""
    even, odd = np.zeros(num_rows * 256, np.uint32), np.zeros(num_rows * 256, np.uint32)
    histogram_of(index, even, odd)
    histogram = np.empty(num_rows * 256, np.int64)
    for i in range(histogram.size):
        histogram[i] = np.int64(even[i]) + np.int64(odd[i])
    return histogram.reshape(num_rows, 256)
