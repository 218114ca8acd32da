"""Compiled loops of the entropy coder: symbols of pairs by their contexts, and the interleaved range coder (rANS).

The definition of what is computed is in ``reference.py``. Eight lanes are written out, so that their states stay in registers;
other numbers of lanes, and what is left over at an end, go through the loop over an array of states.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec.backends.cpu_kernels import inlined, njit

U = np.uint64
LEAST = U(1 << 15)
ESCAPE = U(255)


# -- symbols ---------------------------------------------------------------------------------------------------


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


# -- escapes -----------------------------------------------------------------------------------------------------


@njit
def put_golomb(buffer, at, value):
    """An exponential Golomb code of order 1, least significant bit first; returns the position after it."""
    value += 2
    width = 1
    while value >> (width + 1):
        width += 1
    at += width - 1
    buffer[at >> 3] |= np.uint8(1 << (at & 7))
    at += 1
    for i in range(width):
        if value >> i & 1:
            buffer[at >> 3] |= np.uint8(1 << (at & 7))
        at += 1
    return at


@njit
def get_golomb(buffer, at):
    """Reads such a code; returns it and the position after it, or a position of -1 past the end or over 32 bits."""
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


@inlined
def code_of(number, one_sided):
    """What an escaped number is sent as."""
    if one_sided:
        return np.int64(number)
    return 2 * np.int64(number) - 1 if number > 0 else -2 * np.int64(number)


@njit
def escape_flags(frequencies, flags):
    """For each ``256 row + symbol``, whether a pair has no symbol of its own; returns whether any such pair is to be expected."""
    for row in range(frequencies.shape[0]):
        for symbol in range(256):
            too_large = (symbol >> 4) == 15 or (symbol & 15) == 15
            flags[256 * row + symbol] = too_large or frequencies[row, symbol] == 0


@njit
def count_escapes(histogram, flags):
    """How many pairs must be escaped."""
    found = 0
    for row in range(flags.size // 256):
        for symbol in range(256):
            if flags[256 * row + symbol]:
                found += histogram[row, symbol]
    return found


@njit
def escape_pair(high, first, second, one_sided, buffer, at):
    """Writes one escaped pair; ``second`` is -1 where there is none."""
    at = put_golomb(buffer, at, code_of(high[first], one_sided))
    if second >= 0:
        at = put_golomb(buffer, at, code_of(high[second], one_sided))
    return at


@njit
def escape_planes(high, rows, columns, one_sided, index, flags, lanes, first, last, buffer):
    """Marks the escaped pairs of a segment of planes, in coding order; returns the number of bits written."""
    at, pairs = 0, (columns + 1) // 2
    for block in range(first, last, lanes):
        for row in range(rows):
            for pair in range(pairs):
                for plane in range(block, min(block + lanes, last)):
                    entry = (plane * rows + row) * pairs + pair
                    if flags[index[entry]]:
                        element = (plane * rows + row) * columns + 2 * pair
                        second = element + 1 if 2 * pair + 1 < columns else -1
                        at = escape_pair(high, element, second, one_sided, buffer, at)
                        index[entry] |= np.uint16(255)
    return at


@njit
def escape_tokens(high, rows, columns, index, flags, first, last, buffer):
    """The same for tokens."""
    at = 0
    for row in range(0, rows, 2):
        for channel in range(first, last):
            entry = row // 2 * columns + channel
            if flags[index[entry]]:
                element = row * columns + channel
                at = escape_pair(high, element, element + columns if row + 1 < rows else -1, False, buffer, at)
                index[entry] |= np.uint16(255)
    return at


@njit
def escape_flat(high, index, flags, first, last, buffer):
    """The same for a flat run."""
    at = 0
    for pair in range(first, last):
        if flags[index[pair]]:
            at = escape_pair(high, 2 * pair, 2 * pair + 1 if 2 * pair + 1 < high.size else -1, False, buffer, at)
            index[pair] |= np.uint16(255)
    return at


# -- range coder: writing ----------------------------------------------------------------------------------------


@njit
def encoder_table(frequencies, table):
    """For each symbol: frequency, start and shift in one number, and the reciprocal that divides by the frequency.

    The reciprocal is exact for states below 2^31 (Alverson 1991, as rANS coders use it).
    """
    for row in range(frequencies.shape[0]):
        start = 0
        for symbol in range(256):
            frequency = frequencies[row, symbol]
            if frequency == 0:
                continue
            reciprocal, shift, bias = 0xFFFFFFFF, 32, start + 4095
            if frequency > 1:
                width = 0
                while frequency > (1 << width):
                    width += 1
                reciprocal, shift, bias = ((1 << (width + 31)) + frequency - 1) // frequency, width + 31, start
            table[row * 256 + symbol, 0] = U(frequency) | U(bias) << U(16) | U(shift) << U(32)
            table[row * 256 + symbol, 1] = U(reciprocal)
            start += frequency


@inlined
def put(state, packed, reciprocal, words, at):
    """Codes one symbol into one state; a word is written downwards if the state would grow too large."""
    frequency = packed & U(0xFFFF)
    full = (state >> U(19)) >= frequency
    words[at - U(1)] = np.uint16(state & U(0xFFFF))
    at = at - U(1) if full else at
    state = state >> U(16) if full else state
    quotient = (state * reciprocal) >> (packed >> U(32))
    return state + ((packed >> U(16)) & U(0xFFFF)) + quotient * (U(4096) - frequency), at


@njit
def put_loop(index, base, stride, count, table, states, words, at):
    """Codes ``count`` symbols, one a lane, last lane first."""
    for lane in range(count - 1, -1, -1):
        entry = U(index[base + lane * stride])
        states[lane], at = put(states[lane], table[entry, 0], table[entry, 1], words, at)
    return at


@njit
def put_groups(index, base, stride, advance, groups, table, states, words, at):
    """Codes ``groups`` groups of eight, last group first."""
    x0, x1, x2, x3 = states[0], states[1], states[2], states[3]
    x4, x5, x6, x7 = states[4], states[5], states[6], states[7]
    s = U(stride)
    for group in range(groups - 1, -1, -1):
        o = U(base + group * advance)
        e = U(index[o + U(7) * s])
        x7, at = put(x7, table[e, U(0)], table[e, U(1)], words, at)
        e = U(index[o + U(6) * s])
        x6, at = put(x6, table[e, U(0)], table[e, U(1)], words, at)
        e = U(index[o + U(5) * s])
        x5, at = put(x5, table[e, U(0)], table[e, U(1)], words, at)
        e = U(index[o + U(4) * s])
        x4, at = put(x4, table[e, U(0)], table[e, U(1)], words, at)
        e = U(index[o + U(3) * s])
        x3, at = put(x3, table[e, U(0)], table[e, U(1)], words, at)
        e = U(index[o + U(2) * s])
        x2, at = put(x2, table[e, U(0)], table[e, U(1)], words, at)
        e = U(index[o + s])
        x1, at = put(x1, table[e, U(0)], table[e, U(1)], words, at)
        e = U(index[o])
        x0, at = put(x0, table[e, U(0)], table[e, U(1)], words, at)
    states[0], states[1], states[2], states[3] = x0, x1, x2, x3
    states[4], states[5], states[6], states[7] = x4, x5, x6, x7
    return at


@njit
def encode_run(index, base, count, lanes, table, states, words, at):
    """Codes a run of pairs that lie side by side, lane after lane, last pair first."""
    groups = count // 8 if lanes == 8 else 0
    lane = (count - 1) % lanes
    for i in range(base + count - 1, base + 8 * groups - 1, -1):
        entry = U(index[i])
        states[lane], at = put(states[lane], table[entry, U(0)], table[entry, U(1)], words, at)
        lane = lanes - 1 if lane == 0 else lane - 1
    if groups:
        at = put_groups(index, base, 1, 8, groups, table, states, words, at)
    return at


@njit
def encode_planes(index, size, lanes, first, last, table, states, words):
    """Codes a segment of planes of ``size`` pairs each; returns where in ``words`` the stream starts."""
    at = U(words.size)
    blocks = (last - first + lanes - 1) // lanes
    for block in range(blocks - 1, -1, -1):
        plane = first + block * lanes
        count = min(lanes, last - plane)
        if count == 8:
            at = put_groups(index, plane * size, size, 1, size, table, states, words, at)
        else:
            for place in range(size - 1, -1, -1):
                at = put_loop(index, plane * size + place, size, count, table, states, words, at)
    return put_states(states, words, at)


@njit
def encode_tokens(index, lines, columns, lanes, first, last, table, states, words):
    """Codes a segment of channels; returns where in ``words`` the stream starts."""
    at = U(words.size)
    for line in range(lines - 1, -1, -1):
        at = encode_run(index, line * columns + first, last - first, lanes, table, states, words, at)
    return put_states(states, words, at)


@njit
def put_states(states, words, at):
    """Writes the states, so that a reader finds them first, lane 0 in front, high halves first."""
    for lane in range(states.size - 1, -1, -1):
        at -= U(2)
        words[at] = np.uint16(states[lane] >> U(16))
        words[at + U(1)] = np.uint16(states[lane] & U(0xFFFF))
    return at


# -- range coder: reading ----------------------------------------------------------------------------------------


@njit
def decoder_tables(frequencies, symbols, entries):
    """The symbol of each slot; and of each symbol frequency and start in one number."""
    for row in range(frequencies.shape[0]):
        start = 0
        for symbol in range(256):
            frequency = frequencies[row, symbol]
            entries[row * 256 + symbol] = np.uint32(frequency | start << 16)
            for slot in range(start, start + frequency):
                symbols[row * 4096 + slot] = symbol
            start += frequency


@njit
def get_states(words, states):
    """Reads the states; returns the position after them."""
    for lane in range(states.size):
        states[lane] = U(words[2 * lane]) << U(16) | U(words[2 * lane + 1])
    return U(2 * states.size)


@njit
def store_escaped(one_sided, high, first, second, escapes, bits):
    """Reads the numbers of an escaped pair; returns the position in their stream, -1 if it is broken."""
    number, bits = get_number(one_sided, escapes, bits)
    high[first] = number
    if second >= 0:
        number, bits = get_number(one_sided, escapes, bits)
        high[second] = number
    return bits


@njit
def get_number(one_sided, escapes, bits):
    """Reads one escaped number; returns it and the position after it, -1 if it is broken or too large."""
    code, bits = get_golomb(escapes, bits)
    number = code if one_sided else ((code + 1) >> 1 if code & 1 else -(code >> 1))
    return (number, bits) if abs(number) <= 1 << 28 else (0, -1)


# Words past the end read as the last one: the check of how many were used notices it, and no read leaves the array.


@njit
def decode_lines(rows_of, turned, count, lanes, symbols, entries, values, words, at, states, first, second, escaped):
    """Reads a line of pairs whose contexts are known, into ``first`` and ``second``; returns the position in ``words``.

    ``escaped`` receives the places of escaped pairs; its first element counts them.
    """
    end, lane = U(words.size - 1), 0
    num_escaped = 0
    for i in range(count):
        state, table = states[lane], U(rows_of[i])
        slot = state & U(4095)
        symbol = U(symbols[table << U(12) | slot])
        entry = U(entries[table << U(8) | symbol])
        state = (entry & U(0xFFFF)) * (state >> U(12)) + slot - (entry >> U(16))
        short = state < LEAST
        word = U(words[min(at, end)])
        states[lane] = state << U(16) | word if short else state
        at += U(short)
        pair = values[U(turned[i]) << U(8) | symbol]
        first[i], second[i] = np.int8(pair & np.uint32(255)), np.int8(pair >> np.uint32(8) & np.uint32(255))
        if symbol == ESCAPE:
            num_escaped += 1
            escaped[num_escaped] = i
        lane += 1
        if lane == lanes:
            lane = 0
    escaped[0] = num_escaped
    return at


@njit
def decode_tokens(
    words, escapes, rows, columns, lanes, first, last, start, borders, symbols, entries, values, tail_row, high
):
    """Reads a segment of channels into ``high``; returns words and bits of escapes used (-1: broken), and whether it ends well."""
    width = last - first
    busy, lean = np.full(width, start, np.int32), np.zeros(width, np.int32)
    contexts, turned = np.empty(width, np.uint8), np.empty(width, np.uint8)
    escaped, nothing = np.empty(width + 1, np.int64), np.empty(width, np.int32)
    states = np.empty(lanes, np.uint64)
    at, bits = get_states(words, states), 0
    for row in range(0, rows, 2):
        is_tail = row + 1 >= rows
        token_contexts(busy, lean, borders, contexts, turned)
        if is_tail:
            contexts += np.uint8(tail_row)
        base = row * columns + first
        upper = high[base : base + width]
        lower = nothing if is_tail else high[base + columns : base + columns + width]
        at = decode_lines(
            contexts, turned, width, lanes, symbols, entries, values, words, at, states, upper, lower, escaped
        )
        for i in range(1, escaped[0] + 1):
            element = base + escaped[i]
            bits = store_escaped(False, high, element, -1 if is_tail else element + columns, escapes, bits)
        if bits < 0:
            return at, bits, False
        if not is_tail:
            pair = row // 2
            token_learn(upper, lower, np.int32(1 if pair == 0 else (2 if pair < 3 else 3)), busy, lean)
    return at, bits, np.all(states == LEAST)


@njit
def decode_flat(words, escapes, size, lanes, first, last, symbols, entries, values, high):
    """The same for a flat run of pairs."""
    count = last - first
    rows_of, turned = np.zeros(count, np.uint8), np.zeros(count, np.uint8)
    is_tail = 2 * last > size
    if is_tail:
        rows_of[count - 1] = 1
    states, escaped = np.empty(lanes, np.uint64), np.empty(count + 1, np.int64)
    upper, lower = np.empty(count, np.int32), np.empty(count, np.int32)
    at, bits = get_states(words, states), 0
    at = decode_lines(rows_of, turned, count, lanes, symbols, entries, values, words, at, states, upper, lower, escaped)
    for i in range(count - is_tail):
        high[2 * (first + i)], high[2 * (first + i) + 1] = upper[i], lower[i]
    if is_tail:
        high[size - 1] = upper[count - 1]
    for i in range(1, escaped[0] + 1):
        element = 2 * (first + escaped[i])
        bits = store_escaped(False, high, element, element + 1 if element + 1 < size else -1, escapes, bits)
    return at, bits, np.all(states == LEAST)


@njit
def decode_planes(
    words, escapes, rows, columns, lanes, first, last, one_sided, row_of, symbols, entries, values, tail_row, high
):
    """Reads a segment of planes into ``high``; returns what :func:`decode_tokens` returns."""
    pairs, rest = (columns + 1) // 2, 0 if one_sided else 1
    states, left = np.empty(lanes, np.uint64), np.empty(lanes, np.uint64)
    above = np.empty(pairs * lanes, np.uint8)
    at, end, bits = get_states(words, states), U(words.size - 1), 0
    plane_size = rows * columns
    for block in range(first, last, lanes):
        count = min(lanes, last - block)
        above[:] = 4 * rest
        for row in range(rows):
            left[:] = 9 * rest
            for pair in range(pairs):
                is_tail = 2 * pair + 1 >= columns
                tail = U(tail_row) if is_tail else U(0)
                element = (block * rows + row) * columns + 2 * pair
                for lane in range(count):
                    place = left[lane] + U(above[pair * lanes + lane])
                    state, table = states[lane], U(row_of[place]) + tail
                    slot = state & U(4095)
                    symbol = U(symbols[table << U(12) | slot])
                    entry = U(entries[table << U(8) | symbol])
                    state = (entry & U(0xFFFF)) * (state >> U(12)) + slot - (entry >> U(16))
                    short = state < LEAST
                    word = U(words[min(at, end)])
                    states[lane] = state << U(16) | word if short else state
                    at += U(short)
                    number = values[(U(place < U(13)) & U(rest)) << U(8) | symbol]
                    high[element] = np.int8(number & np.uint32(255))
                    if not is_tail:
                        high[element + 1] = np.int8(number >> np.uint32(8) & np.uint32(255))
                    above[pair * lanes + lane] = np.uint8(number >> np.uint32(16) & np.uint32(15))
                    left[lane] = U(number >> np.uint32(24))
                    if symbol == ESCAPE:
                        bits = store_escaped(one_sided, high, element, -1 if is_tail else element + 1, escapes, bits)
                        if bits < 0:
                            return at, bits, False
                        up = neighbour_class(high[element], one_sided)
                        beside = up if is_tail else neighbour_class(high[element + 1], one_sided)
                        above[pair * lanes + lane], left[lane] = 3 * up + beside, 9 * beside
                    elif is_tail:
                        above[pair * lanes + lane] = np.uint8(number >> np.uint32(20) & np.uint32(15))
                    element += plane_size
    return at, bits, np.all(states == LEAST)


@njit
def neighbour_class(number, one_sided):
    """Class of one number as a neighbour."""
    return min(number, 2) if one_sided else (number > 0) - (number < 0) + 1
