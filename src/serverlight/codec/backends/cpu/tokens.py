"""Compiled loops of profile ``serverlight``: the reader for tokens and for flat runs, from symbols to values.

The definition of what is computed is in ``reference/``; why no index leaves its array, in ``lanes.py``. Lines become values
at once, but where there are raw bits or a starting mean is large; then numbers take the values' places first.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec.backends.cpu.compiled import inlined, njit, read_long
from serverlight.codec.backends.cpu.lanes import BITS, END, HALF, LARGEST, RAW, get_line, get_run, join_raw
from serverlight.codec.backends.cpu.pair_escapes import (
    MOST_BITS,
    exact_line,
    exact_value,
    find_escapes,
    get_pair,
    get_pairs,
    near_pair,
    put_right,
    small_number,
)
from serverlight.codec.backends.cpu.reconstruct import place_large_values, place_values, plain_lifts
from serverlight.codec.backends.cpu.symbols import (
    SMALL_MEAN,
    borders_of,
    is_leaning,
    moved,
    shift_of,
    starts_of,
    token_contexts,
    token_learn,
)
from serverlight.codec.backends.cpu.token_vectors import CHANNELS, busy_group
from serverlight.codec.backends.cpu.vectors import HAS_VECTORS

U = np.uint64
LARGEST_NARROW = 1 << 24


# -- symbols to values -------------------------------------------------------------------------------------------


@inlined
def value_of(nibble, turned, shift_of):
    """A number's magnitude, the number, and its value in 64ths of a step, all in 16 bits; ``turned`` is 1 if signs are, else 0."""
    z, o, m2, m3, both = shift_of
    magnitude = np.int16(np.int16(nibble + np.int16(1)) >> 1)
    sign = np.int16(np.int16(np.int16(nibble & 1) ^ turned) - np.int16(1))  # 0, or -1 for a negative number
    lift = o if magnitude == 1 else (m2 if magnitude == 2 else m3)
    lift = z if magnitude == 0 else lift
    number, turn = np.int16(np.int16(magnitude ^ sign) - sign), np.int16(sign & both)
    lift = np.int16(np.int16(lift ^ turn) - turn)
    return magnitude, number, np.int16(np.int16(number << 6) + lift)


@njit
def facts_of(shifts, is_even):
    """Shifts by magnitude, and -1 if they turn around with the sign, else 0; int16, shape (5,).

    They are read from memory as they are used: a number that came in 64 bits would have a loop's vectors that wide.
    """
    facts = np.empty(5, np.int16)
    facts[0], facts[1], facts[2], facts[3] = shifts[0] if is_even else 0, shifts[5], shifts[8], shifts[9]
    facts[4] = 0 if is_even else -1
    return facts


@njit
def tables_of(facts):
    """What groups look up, by a nibble, plus 16 where signs are turned around: values in 64ths of a step, and numbers."""
    found, shift_of = np.empty((2, 32), np.int16), (facts[0], facts[1], facts[2], facts[3], facts[4])
    for place in range(32):
        _, number, value = value_of(np.int16(place & 15), np.int16(place >> 4), shift_of)
        found[0, place], found[1, place] = value, number
    return found


@njit
def busy_values(line, borders, facts, by_nibble, unit, busy, lean, contexts, upper, lower):
    """Values of a line's pairs, which are taken into the running means by an eighth; and the contexts of the next line's.

    Means fit 16 bits; numbers that are sent apart are put right later, by :func:`put_right`. ``by_nibble`` is what
    :func:`tables_of` returns.
    """
    done = line.size & ~(CHANNELS - 1) if HAS_VECTORS else 0
    symbols, rows = U(line.ctypes.data), U(contexts.ctypes.data)
    means, leads = U(busy.ctypes.data), U(lean.ctypes.data)
    first, second = U(upper.ctypes.data), U(lower.ctypes.data)
    tables, limits = U(by_nibble.ctypes.data), U(borders.ctypes.data)
    for i in range(U(0), U(done), U(CHANNELS)):
        pair, quad = U(2) * i, U(4) * i
        busy_group(
            symbols + i, means + pair, leads + pair, rows + i, tables, limits, unit, first + quad, second + quad
        )  # fmt: skip
    if done < line.size:
        rest = line[done:], borders, facts, unit, busy[done:], lean[done:], contexts[done:], upper[done:], lower[done:]
        busy_loop(*rest)


@njit
def busy_loop(line, borders, facts, unit, busy, lean, contexts, upper, lower):
    """The same for any number of channels."""
    b0, b1, b2, b3, b4, b5, b6 = borders[0], borders[1], borders[2], borders[3], borders[4], borders[5], borders[6]
    shift_of = facts[0], facts[1], facts[2], facts[3], facts[4]
    for channel in range(line.size):
        symbol, mean, lead = np.int16(line[channel]), busy[channel], lean[channel]
        turned = np.int16(lead < 0)
        a, first, value = value_of(np.int16(symbol >> 4), turned, shift_of)
        upper[channel] = np.float32(value) * unit
        b, second, value = value_of(np.int16(symbol & 15), turned, shift_of)
        lower[channel] = np.float32(value) * unit
        mean, lead = moved(mean, np.int16(a + b)), moved(lead, np.int16(first + second))
        busy[channel], lean[channel] = mean, lead
        row = np.int16(np.int16(mean >= b0) + np.int16(mean >= b1))
        row = np.int16(row + np.int16(np.int16(mean >= b2) + np.int16(mean >= b3)))
        row = np.int16(row + np.int16(np.int16(mean >= b4) + np.int16(mean >= b5)))
        row = np.int16(row + np.int16(mean >= b6))
        contexts[channel] = np.uint8(np.int16(row + row) + np.int16(is_leaning(mean, lead)))


@njit
def numbers_of(line, turned, upper, lower):
    """The numbers of a line's pairs."""
    one = np.int32(1)
    for i in range(upper.size):
        symbol = np.int32(line[i])
        a, b = np.int32(symbol >> np.int32(4)), np.int32(symbol & np.int32(15))
        first, second = np.int32((a + one) >> one), np.int32((b + one) >> one)
        flip = np.int32(turned[i])
        upper[i] = first if (a & one) ^ flip else np.int32(-first)
        lower[i] = second if (b & one) ^ flip else np.int32(-second)


# -- segments ----------------------------------------------------------------------------------------------------


@njit
def get_tokens(rows, columns, start, spreads, num_contexts, streams, table, is_direct, facts, unit, out):
    """Reads some segments line by line, as values or the bits of numbers; stops where the words of one are not enough.

    Args:
        rows, columns: of the tensor.
        start, spreads: the channels' mean to begin with, and by how much each one's differs, if it does.
        num_contexts: rows of the tables for pairs.
        streams: see :func:`serverlight.codec.backends.cpu.streams.streams_of`.
        table: the reader's table.
        is_direct: whether lines become values at once.
        facts, unit: shifts, and a 64th of the step.
        out: float32, shape (rows * columns,).
    """
    offset, width = streams[0][0], streams[0][-1] - streams[0][0]
    busy = starts_of(start, spreads[offset : offset + width] if spreads.size else spreads, width)
    lean, has_spreads = np.zeros(width, np.int32), spreads.size > 0
    small_busy, small_lean = np.empty(width, np.int16), np.empty(width, np.int16)
    contexts, turned, line = (
        np.zeros(width + 8, np.uint8),
        np.empty(width, np.uint8),
        np.empty(width + 64, np.uint8),
    )
    upper, lower, found = np.empty(width, np.int32), np.empty(width, np.int32), np.empty(width, np.int64)
    old, numbers = np.empty((2, width), np.int32), np.empty((2, width), np.int64)
    room = np.empty((2, width), np.float32), np.empty(width, np.uint8), np.empty(width, np.uint8)
    borders = borders_of(start)
    narrow_borders, by_nibble = np.minimum(borders, SMALL_MEAN + 1).astype(np.int16), tables_of(facts)
    token_contexts(busy, lean, borders, contexts, turned)
    segment_of = np.empty(width, np.uint16)
    for i in range(streams[1].shape[0]):
        segment_of[streams[0][i] - offset : streams[0][i + 1] - offset] = i
    for row in range(0, rows, 2):
        pair, base, is_single = row // 2, row * columns + offset, row + 1 >= rows
        if is_single:
            contexts += np.uint8(num_contexts)
        if not get_line(streams, contexts, table, line):
            return
        above = out[base : base + width]
        if is_direct and pair >= 3 and not is_single:
            count = find_escapes(line, width, found)
            for i in range(count):
                channel = found[i]
                old[0, i], old[1, i] = small_busy[channel], small_lean[channel]
                turned[channel] = small_lean[channel] < 0
            get_pairs(line, turned, found[:count], False, segment_of, streams, numbers)
            below = out[base + columns : base + columns + width]
            means, known = (small_busy, small_lean), (narrow_borders, facts, by_nibble, unit)
            busy_values(line[:width], *known, *means, contexts, above, below)
            put_right(found[:count], numbers, old, room, borders, facts, unit, *means, contexts, above, below)
            continue
        if is_direct and pair >= 3:
            for channel in range(width):
                turned[channel] = small_lean[channel] < 0
        numbers_of(line, turned, upper, lower)
        count = find_escapes(line, width, found)
        get_pairs(line, turned, found[:count], is_single, segment_of, streams, numbers)
        for i in range(count):
            upper[found[i]], lower[found[i]] = numbers[0, i], numbers[1, i]
        place_line(upper, is_direct, facts, unit, above)
        if not is_single:
            place_line(lower, is_direct, facts, unit, out[base + columns : base + columns + width])
            token_learn(upper, lower, shift_of(pair, has_spreads), busy, lean)
            token_contexts(busy, lean, borders, contexts, turned)
        if pair == 2 and is_direct:
            small_busy[:], small_lean[:] = busy, lean


@njit
def place_line(numbers, is_direct, facts, unit, out):
    """A line's numbers as values, or as the bits of values."""
    if is_direct:
        exact_line(numbers, facts, unit, out)
    else:
        out.view(np.int32)[:] = numbers


@njit
def get_flat(streams, table, is_direct, facts, unit, out):
    """The same for one segment of a flat run of pairs."""
    borders, states, positions, limits, _, words, _ = streams
    count, is_single = borders[1] - borders[0], 2 * borders[1] > out.size
    rows_of, line = np.zeros(count, np.uint8), np.empty(count + 64, np.uint8)
    rows_of[count - 1] = is_single
    positions[0] = get_run(rows_of, count, states[0], words, limits[0], positions[0], table, line)
    if positions[0] <= limits[0]:
        place_flat(streams, line, is_direct, facts, unit, np.empty(count, np.int64), out)


@njit
def place_flat(streams, line, is_direct, facts, unit, found, out):
    """Makes values, or the bits of numbers, of the symbols of a segment of a flat run, with its escapes.

    ``found`` has room for as many numbers as there are pairs.
    """
    borders, progress, escapes = streams[0], streams[4], streams[6]
    first, last = borders[0], borders[1]
    count, is_single = last - first, 2 * last > out.size
    whole, part = count - is_single, out[2 * first : 2 * last]
    bits = part.view(np.int32)
    if is_direct:
        flat_values(line[:whole], facts, unit, part)
    else:
        for i in range(whole):
            bits[2 * i], bits[2 * i + 1] = small_number(line[i] >> 4, 0), small_number(line[i] & 15, 0)
    if is_single:
        place_one(small_number(line[whole] >> 4, 0), is_direct, facts, unit, part, bits, 2 * whole)
    at, half, end, largest = progress[0, BITS], progress[0, HALF], progress[0, END], np.int64(0)
    for i in range(find_escapes(line, count, found)):
        pair, size, upper, lower = found[i], 64, np.int64(0), np.int64(0)
        if at >= 0 and (at >> 3) + 8 <= escapes.size:
            window = read_long(U(escapes.ctypes.data) + U(at >> 3)) >> U(at & 7)
            upper, lower, size = near_pair(window, np.int64(line[pair]), 0, half, np.int64(pair < whole))
        if size > MOST_BITS or at + size > end:
            progress[0, BITS] = at
            upper, lower = get_pair(line[pair], 0, pair >= whole, escapes, progress, 0)
            at = progress[0, BITS]
        else:
            at, largest = at + size, max(largest, max(abs(upper), abs(lower)))
        place_one(upper, is_direct, facts, unit, part, bits, 2 * pair)
        if pair < whole:
            place_one(lower, is_direct, facts, unit, part, bits, 2 * pair + 1)
    progress[0, BITS], progress[0, LARGEST] = at, max(progress[0, LARGEST], largest)


@njit
def place_one(number, is_direct, facts, unit, out, bits, at):
    """A number as a value, or as the bits of one."""
    if is_direct:
        out[at] = exact_value(number, (facts[0], facts[1], facts[2], facts[3], facts[4]), unit)
    else:
        bits[at] = number


@njit
def flat_values(line, facts, unit, out):
    """Values of pairs that lie side by side, by a table of both for each symbol."""
    shift_of, straight = (facts[0], facts[1], facts[2], facts[3], facts[4]), np.int16(0)
    single, both = np.empty(16, np.float32), np.empty(512, np.float32)
    for nibble in range(16):
        single[nibble] = np.float32(value_of(np.int16(nibble), straight, shift_of)[2]) * unit
    for symbol in range(256):
        both[2 * symbol], both[2 * symbol + 1] = single[symbol >> 4], single[symbol & 15]
    pairs, into = both.view(np.uint64), out[: 2 * line.size].view(np.uint64)
    for i in range(U(line.size)):
        into[i] = pairs[U(line[i])]


# -- numbers to values -------------------------------------------------------------------------------------------


@njit
def place_plain(out, one_sided, shifts, unit, raw, raw_bits, progress):
    """Values of elements without neighbours, from the bits of their high parts in the same place."""
    bits, run = out.view(np.int32), min(out.size, 1024)
    copy, lifts, numbers = np.empty(run, np.int32), np.empty(run, np.int32), np.empty(run, np.int64)
    for begin in range(0, out.size, run):
        part = bits[begin : begin + run]
        high, lift = copy[: part.size], lifts[: part.size]
        for i in range(part.size):
            high[i] = part[i]
        plain_lifts(high, one_sided, shifts, lift)
        if raw_bits:
            progress[RAW] = join_raw(high, raw, raw_bits, progress[RAW], numbers)
            place_large_values(numbers[: part.size], lift, unit, out[begin : begin + part.size])
        elif progress[LARGEST] > LARGEST_NARROW:
            place_large_values(high, lift, unit, out[begin : begin + part.size])
        else:
            place_values(high, lift, unit, out[begin : begin + part.size])
