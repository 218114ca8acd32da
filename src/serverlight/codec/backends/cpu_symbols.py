"""Compiled loops of profile ``serverlight``: contexts, and the symbols of pairs that the writer counts and codes.

The definition of what is computed is in ``reference.py``.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec.backends.cpu_kernels import njit

# Arrays are indexed as [plane, row, column] with offsets that the compiler can prove to be positive: an index that might wrap
# around, as negative ones do in Python, would keep a loop from being turned into vectors.


@njit
def pad_classes(high, plane, one_sided, padded):
    """Classes of a plane with a row above and a column on either side: what lies outside counts as zero."""
    rows, columns = high.shape[1], high.shape[2]
    for row in range(rows):
        if one_sided:
            for x in range(columns):
                padded[row + 1, x + 1] = np.uint8(min(high[plane, row, x], np.int32(2)))
        else:
            for x in range(columns):
                padded[row + 1, x + 1] = np.uint8((high[plane, row, x] > 0) - (high[plane, row, x] < 0) + 1)
        padded[row + 1, columns + 1] = padded[row + 1, columns]  # beside an odd end stands its own class


@njit
def one_sided_line(high, plane, row, padded, index):
    """``256 context + symbol`` of the whole pairs of one line of a one-sided plane."""
    nine, three, sixteen, most = np.int32(9), np.int32(3), np.int32(16), np.int32(15)
    for pair in range(high.shape[2] // 2):
        first, second = high[plane, row, 2 * pair], high[plane, row, 2 * pair + 1]
        context = np.int32(
            nine * padded[row + 1, 2 * pair] + three * padded[row, 2 * pair + 1] + padded[row, 2 * pair + 2]
        )
        symbol = np.int32(sixteen * min(first, most) + min(second, most))
        index[plane, row, pair] = np.uint16(np.int32(256) * context + symbol)


@njit
def signed_line(high, plane, row, padded, index):
    """The same for a signed plane, where the neighbours' signs may turn the pair's signs around."""
    nine, three, sixteen, most, two = np.int32(9), np.int32(3), np.int32(16), np.int32(15), np.int32(2)
    for pair in range(high.shape[2] // 2):
        first, second = high[plane, row, 2 * pair], high[plane, row, 2 * pair + 1]
        place = np.int32(
            nine * padded[row + 1, 2 * pair] + three * padded[row, 2 * pair + 1] + padded[row, 2 * pair + 2]
        )
        leaning = np.int32(place - np.int32(13))
        a = np.int32(-first) if leaning < 0 else first
        b = np.int32(-second) if leaning < 0 else second
        upper = min(np.int32(two * np.int32(abs(a)) - np.int32(a > 0)), most)
        lower = min(np.int32(two * np.int32(abs(b)) - np.int32(b > 0)), most)
        index[plane, row, pair] = np.uint16(np.int32(256) * np.int32(abs(leaning)) + np.int32(sixteen * upper) + lower)


@njit
def odd_end(high, plane, row, one_sided, padded, num_contexts, index):
    """The single element at the end of an odd line."""
    last = high.shape[2] - 1
    place = 9 * np.int32(padded[row + 1, last]) + 4 * np.int32(padded[row, last + 1])
    number = high[plane, row, last]
    if one_sided:
        nibble = min(number, 15)
    else:
        number = -number if place < 13 else number
        place = abs(place - 13)
        nibble = min(2 * abs(number) - (number > 0), 15)
    index[plane, row, last // 2] = np.uint16(256 * (place + num_contexts) + 16 * nibble)


@njit
def plane_symbols(high, one_sided, num_contexts, index):
    """Row of the table and symbol of each pair, as ``256 row + symbol``; ``high`` and ``index`` have three dimensions."""
    planes, rows, columns = high.shape
    padded = np.full((rows + 1, columns + 2), 0 if one_sided else 1, np.uint8)
    for plane in range(planes):
        pad_classes(high, plane, one_sided, padded)
        for row in range(rows):
            if one_sided:
                one_sided_line(high, plane, row, padded, index)
            else:
                signed_line(high, plane, row, padded, index)
            if columns % 2:
                odd_end(high, plane, row, one_sided, padded, num_contexts, index)


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
        a, b = max(min(first[channel], most), -most), max(min(second[channel], most), -most)
        busy[channel] = np.int32(busy[channel] + (((abs(a) + abs(b)) * np.int32(64) - busy[channel]) >> shift))
        lean[channel] = np.int32(lean[channel] + (((a + b) * np.int32(64) - lean[channel]) >> shift))


@njit
def token_line(first, second, contexts, turned, index):
    """``256 context + symbol`` of the pairs of two rows of tokens."""
    for channel in range(index.size):
        a = -first[channel] if turned[channel] else first[channel]
        b = -second[channel] if turned[channel] else second[channel]
        high = min(np.int32(2) * abs(a) - np.int32(a > 0), np.int32(15))
        low = min(np.int32(2) * abs(b) - np.int32(b > 0), np.int32(15))
        index[channel] = np.uint16(np.int32(256) * contexts[channel] + np.int32(16) * high + low)


@njit
def token_symbols(high, rows, columns, start, borders, num_contexts, index):
    """The same for tokens: one line of pairs for every two rows."""
    busy, lean = np.full(columns, start, np.int32), np.zeros(columns, np.int32)
    contexts, turned = np.empty(columns, np.uint8), np.empty(columns, np.uint8)
    nothing = np.zeros(columns, np.int32)
    for row in range(0, rows, 2):
        token_contexts(busy, lean, borders, contexts, turned)
        first = high[row * columns : (row + 1) * columns]
        into = index[row // 2 * columns : (row // 2 + 1) * columns]
        if row + 1 < rows:
            second = high[(row + 1) * columns : (row + 2) * columns]
            token_line(first, second, contexts, turned, into)
            pair = row // 2
            token_learn(first, second, np.int32(1 if pair == 0 else (2 if pair < 3 else 3)), busy, lean)
        else:
            token_line(first, nothing, contexts, turned, into)
            into += np.uint16(256 * num_contexts)


@njit
def flat_symbols(high, index):
    """The same where nothing is known of an element's neighbours."""
    for pair in range(high.size // 2):
        a, b = high[2 * pair], high[2 * pair + 1]
        first = min(np.int32(2) * abs(a) - np.int32(a > 0), np.int32(15))
        second = min(np.int32(2) * abs(b) - np.int32(b > 0), np.int32(15))
        index[pair] = np.uint16(np.int32(16) * first + second)
    if high.size % 2:
        a = high[high.size - 1]
        index[index.size - 1] = np.uint16(256 + 16 * min(2 * abs(a) - (a > 0), 15))


@njit
def histogram_of(index, counts):
    """How often each entry occurs; four tables take turns, since equal entries in a row would wait for each other."""
    size = index.size // 4
    for i in range(size):
        counts[0, index[4 * i]] += 1
        counts[1, index[4 * i + 1]] += 1
        counts[2, index[4 * i + 2]] += 1
        counts[3, index[4 * i + 3]] += 1
    for i in range(4 * size, index.size):
        counts[0, index[i]] += 1
