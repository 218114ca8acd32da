"""Compiled loops of profile ``serverlight``: the writer of numbers that are too large for a pair's symbol.

The definition of what is computed is in ``reference/``. Which numbers a pair sends, and how, nobody could foresee, so nothing
is decided by branches: flags are numbers, and what is not sent is no bits. Only codes too long for a register go another way.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec.backends.cpu.compiled import highest_mark, inlined, njit, write_long
from serverlight.codec.backends.cpu.model import ESCAPED, mark_of
from serverlight.codec.backends.cpu.quantiser import MOST, high_of, number_of

U = np.uint64
FLAT, TOKENS, PLANES = 0, 1, 2
MOST_BITS = 56
"""So many fit a register beside the bits of an unfinished byte."""


@inlined
def golomb_of(code):
    """An exponential Golomb code of order 1, least significant bit first, and its bits, which fit 64 up to a width of 32."""
    value = U(code + 2)
    width = highest_mark(value)
    return U(1) << (width - U(1)) | (value & ((U(1) << width) - U(1))) << width, np.int64(U(2) * width)


@njit
def put_golomb(buffer, at, code):
    """Writes the same bit by bit; returns the position after it. The buffer has zeros from there on."""
    value = U(code + 2)
    width = np.int64(highest_mark(value))
    at += width - 1
    buffer[at >> 3] |= np.uint8(1 << (at & 7))
    at += 1
    for i in range(width):
        if value >> U(i) & U(1):
            buffer[at >> 3] |= np.uint8(1 << (at & 7))
        at += 1
    return at


@inlined
def code_of(number, one_sided, whole):
    """What an escaped number is sent as: whole, or what it exceeds a nibble by; ``whole`` is 1 or 0."""
    number = np.int64(number)
    if one_sided:
        return number - 15 * (1 - whole)
    return 2 * abs(number) - whole * np.int64(number > 0) - (1 - whole) * (16 - np.int64(number < 0))


@inlined
def number_at(high, source, place):
    """A high part in full width, from the elements, the reciprocal of the step and the number of raw bits if need be."""
    values, inverse, bits = source
    if abs(np.int32(high[place])) < MOST:
        return np.int32(high[place])
    return high_of(number_of(values[place], True, inverse), bits)


@inlined
def pair_at(place, layout, rows, columns):
    """Where a pair's first number lies, how far the second is from it, and whether there is none (1 or 0)."""
    if layout == PLANES:
        pairs = (columns + 1) // 2
        line = np.int64(U(place) // U(pairs))
        first, step = line * columns + 2 * (place - line * pairs), 1
        is_single = np.int64(2 * (place - line * pairs) + 1 >= columns)
    elif layout == TOKENS:
        line = np.int64(U(place) // U(columns))
        first, step, is_single = place + line * columns, columns, np.int64(2 * line + 1 >= rows)
    else:
        first, step, is_single = 2 * place, 1, np.int64(2 * place + 1 >= columns)
    return first, step, is_single


@njit
def put_escapes(
    high, source, layout, rows, columns, one_sided, half_escapes, index, table, escaped, found, buffer, start
):
    """Writes the numbers of a segment's pairs with escapes to ``buffer``, from byte ``start``; returns the byte after them.

    Args:
        high: high parts of all numbers, in 16 bits.
        source: see :func:`number_at`.
        layout, rows, columns: how the tensor is seen.
        one_sided, half_escapes: of the frame.
        index: row of the table and symbol of each pair.
        table: the writer's table.
        escaped: the pairs, last one first, of which ``found`` are the segment's.
        buffer: zeros from ``start`` on, and eight bytes more than are needed.
        start: the first byte.
    """
    at, held, count, half = start, U(0), np.int64(0), np.int64(half_escapes)
    for i in range(found - 1, -1, -1):
        place = escaped[i]
        first, step, is_single = pair_at(place, layout, rows, columns)
        entry, second = np.int64(index[place]), first + step * (1 - is_single)
        is_escaped = np.int64(mark_of(table, index[place]) & ESCAPED != 0)
        tells, all_fifteens = is_escaped & half, 0xFF - 0x0F * is_single
        whole = is_escaped & (np.int64(entry & 0xFF != all_fifteens) | (1 - half))
        sends_first = is_escaped | np.int64(entry & 0xF0 == 0xF0)
        sends_second = (is_escaped | np.int64(entry & 0x0F == 0x0F)) & (1 - is_single)
        one, other = number_at(high, source, first), number_at(high, source, second)
        code, more = code_of(one, one_sided, whole) & -sends_first, code_of(other, one_sided, whole) & -sends_second
        bits, size = golomb_of(code)
        more_bits, more_size = golomb_of(more)
        size, more_size = size & -sends_first, more_size & -sends_second
        total = tells + size + more_size
        if total > MOST_BITS:
            after = 8 * at + count
            write_long(U(buffer.ctypes.data) + U(at), held | U(whole & tells) << U(count))
            after = put_golomb(buffer, after + tells, code) if sends_first else after + tells
            after = put_golomb(buffer, after, more) if sends_second else after
            at, count = after >> 3, after & 7
            held = U(buffer[at])
            continue
        bits &= U(-sends_first)
        more_bits &= U(-sends_second)
        held |= (U(whole & tells) | (bits | more_bits << U(size)) << U(tells)) << U(count)
        write_long(U(buffer.ctypes.data) + U(at), held)
        count += total
        at += count >> 3
        held, count = held >> U(count & ~7), count & 7
    return at + (count > 0)
