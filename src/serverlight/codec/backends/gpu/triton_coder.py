"""Kernels of profile ``serverlight`` for graphics processors: from numbers of steps to words. Nothing here decides or raises.

The definition of what is computed is in ``reference/``. Atomic additions are of whole numbers, so that their order does not
matter. Where a part's place depends on those before it, parts are counted first.
"""

from __future__ import annotations

import triton
import triton.language as tl

from serverlight.codec.backends.gpu.triton_filter import put_bits
from serverlight.codec.backends.gpu.triton_reader import (
    ONE_SIDED_PLANES,
    TOKENS,
    neighbour_class,
    token_context,
    token_learn,
)

MARK, MARK_WHOLE = tl.constexpr(1 << 30), tl.constexpr(1 << 29)
NOTHING = tl.constexpr(8191)
"""The coder's entry where a lane has no pair: a frequency that no state reaches."""


# -- symbols -----------------------------------------------------------------------------------------------------


@triton.jit
def nibble_of(number, flip, ONE_SIDED: tl.constexpr):
    """The nibble of a number; 15 if it is too large for one."""
    if ONE_SIDED:
        return tl.minimum(number, 15)
    magnitude = tl.minimum(tl.abs(number), 8)
    return tl.where(number * flip > 0, tl.minimum(2 * magnitude - 1, 15), tl.minimum(2 * magnitude, 15))


@triton.jit
def flat_symbols(high, index, size, BLOCK: tl.constexpr):
    """``256 row + symbol`` of the pairs of a flat run."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    a = tl.load(high + 2 * pair, mask=2 * pair < size, other=0)
    b = tl.load(high + 2 * pair + 1, mask=2 * pair + 1 < size, other=0)
    symbol = 16 * nibble_of(a, 1, False) + nibble_of(b, 1, False)
    symbol += tl.where(2 * pair + 1 >= size, 256, 0)
    tl.store(index + pair, symbol, mask=2 * pair < size)


@triton.jit
def token_symbols(high, index, borders, rows, columns, BLOCK: tl.constexpr):
    """The same for some channels of all tokens."""
    channel = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = channel < columns
    b0, b1, b2, b3 = tl.load(borders + 1), tl.load(borders + 2), tl.load(borders + 3), tl.load(borders + 4)
    b4, b5, b6 = tl.load(borders + 5), tl.load(borders + 6), tl.load(borders + 7)
    busy, lean = 0 * channel + tl.load(borders), 0 * channel
    for pair in tl.range(0, (rows + 1) // 2, num_stages=8):
        place = high + 2 * pair * columns + channel
        single = 2 * pair + 1 + 0 * channel >= rows
        a, b = tl.load(place, mask=inside, other=0), tl.load(place + columns, mask=inside & (single == 0), other=0)
        context, flip = token_context(busy, lean, b0, b1, b2, b3, b4, b5, b6)
        symbol = 16 * nibble_of(a, flip, False) + nibble_of(b, flip, False)
        symbol += 256 * (context + tl.where(single, 16, 0))
        tl.store(index + pair * columns + channel, symbol, mask=inside)
        busy, lean = token_learn(busy, lean, a, b, pair)


@triton.jit
def plane_symbols(high, index, size, rows, columns, contexts, ONE_SIDED: tl.constexpr, BLOCK: tl.constexpr):
    """The same for planes; ``size`` is the number of pairs."""
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pairs = (columns + 1) // 2
    line, column = pair // pairs, 2 * (pair % pairs)
    place, inside = high + line * columns + column, pair < size
    single, above = column + 1 >= columns, inside & (line % rows > 0)
    a, b = tl.load(place, mask=inside, other=0), tl.load(place + 1, mask=inside & (single == 0), other=0)
    left = neighbour_class(tl.load(place - 1, mask=inside & (column > 0), other=0), ONE_SIDED)
    up = neighbour_class(tl.load(place - columns, mask=above, other=0), ONE_SIDED)
    beside = neighbour_class(tl.load(place - columns + 1, mask=above & (single == 0), other=0), ONE_SIDED)
    context = 9 * left + 3 * up + tl.where(single, up, beside)
    flip = 1
    if not ONE_SIDED:
        flip = tl.where(context < 0, -1, 1)
        context = tl.abs(context)
    symbol = 16 * nibble_of(a, flip, ONE_SIDED) + nibble_of(b, flip, ONE_SIDED)
    symbol += 256 * (context + tl.where(single, contexts, 0))
    tl.store(index + pair, symbol, mask=inside)


@triton.jit
def count_symbols(index, bins, size, entries, copies, BLOCK: tl.constexpr):
    """How often each entry occurs; programs take turns at copies of the table, so that few wait for each other."""
    program = tl.program_id(0)
    i = program * BLOCK + tl.arange(0, BLOCK)
    entry = tl.load(index + i, mask=i < size, other=0)
    tl.atomic_add(bins + (program % copies) * entries + entry, 0 * entry + 1, mask=i < size, sem="relaxed")


# -- range coder -------------------------------------------------------------------------------------------------


@triton.jit
def places_at(index, inner, outer, where, KIND: tl.constexpr, LANES: tl.constexpr):
    """What ``index`` has of the lanes' pairs in a turn of the coder's loops, -1 where a lane has none; and the turn before it."""
    first, last, columns, pairs_of_unit, num_inner = where
    lane = tl.arange(0, LANES)
    if KIND >= ONE_SIDED_PLANES:
        unit = first + outer * LANES + lane
        pair = unit * pairs_of_unit + inner
    else:
        unit = first + inner * LANES + lane
        pair = outer * columns + unit
    place = tl.load(index + pair, mask=(unit < last) & (0 * lane + outer >= 0), other=-1)
    is_end = inner == 0
    return place, tl.where(is_end, num_inner, inner) - 1, outer - is_end.to(tl.int32)


@triton.jit
def entries_at(table, place):
    """What the table has of the places."""
    entry = tl.load(table + 2 * place, mask=place >= 0, other=NOTHING)
    return entry, tl.load(table + 2 * place + 1, mask=place >= 0, other=0)


@triton.jit
def put(entry, inverse, states, words, at, LANES: tl.constexpr):
    """Codes one symbol for each lane; those whose state has become too large give a word each, in their order."""
    digit = 4 * tl.arange(0, LANES)
    frequency, begin = (entry & 8191).to(tl.uint32), ((entry >> 13) & 4095).to(tl.uint32)
    full = (states >> 19) >= frequency
    gives = tl.sum(full.to(tl.int32) << digit, 0)  # see ``get`` in triton_reader.py
    total, before = ((gives * 0x11111111) >> 28) & 15, ((gives * 0x11111110) >> digit) & 15
    tl.store(words + (at - total + before), (states & 0xFFFF).to(tl.int16), mask=full)
    reduced = tl.where(full, states >> 16, states)
    quotient = tl.umulhi(reduced, inverse.to(tl.uint32, bitcast=True)) >> ((entry >> 25) & 15).to(tl.uint32)
    quotient = tl.where(frequency == 1, reduced, quotient)
    after = (quotient << 12) + (reduced - quotient * frequency) + begin
    return tl.where(entry == NOTHING, states, after), at - total


@triton.jit
def write_words(
    index, table, ends, words, lengths, bounds, lines, columns, pairs_of_unit, KIND: tl.constexpr, LANES: tl.constexpr
):
    """Codes a segment, last pair first, into the room that ends at ``ends``, downwards; and notes its number of words.

    Entries of the table are what ``coder_table`` in coder.py says. What is far away is fetched some turns before it is needed.
    """
    segment, lane = tl.program_id(0), tl.arange(0, LANES)
    first, last = tl.load(bounds + segment), tl.load(bounds + segment + 1)
    end = tl.load(ends + segment)
    words, at, states = words + end, tl.full((), 0, tl.int32), tl.full((LANES,), 32768, tl.uint32)
    groups = (last - first + LANES - 1) // LANES
    num_inner, num_outer = groups, lines
    if KIND >= ONE_SIDED_PLANES:
        num_inner, num_outer = pairs_of_unit, groups
    here = (first, last, columns, pairs_of_unit, num_inner)
    inner, outer = num_inner - 1, num_outer - 1
    place_0, inner, outer = places_at(index, inner, outer, here, KIND, LANES)
    place_1, inner, outer = places_at(index, inner, outer, here, KIND, LANES)
    place_2, inner, outer = places_at(index, inner, outer, here, KIND, LANES)
    place_3, inner, outer = places_at(index, inner, outer, here, KIND, LANES)
    entry_0, inverse_0 = entries_at(table, place_0)
    for _ in range((num_inner * num_outer + 3) // 4):
        # Four turns, so that what is fetched stays in the register that it comes to: moving it would be waiting for it.
        place_0, inner, outer = places_at(index, inner, outer, here, KIND, LANES)
        entry_1, inverse_1 = entries_at(table, place_1)
        states, at = put(entry_0, inverse_0, states, words, at, LANES)
        place_1, inner, outer = places_at(index, inner, outer, here, KIND, LANES)
        entry_0, inverse_0 = entries_at(table, place_2)
        states, at = put(entry_1, inverse_1, states, words, at, LANES)
        place_2, inner, outer = places_at(index, inner, outer, here, KIND, LANES)
        entry_1, inverse_1 = entries_at(table, place_3)
        states, at = put(entry_0, inverse_0, states, words, at, LANES)
        place_3, inner, outer = places_at(index, inner, outer, here, KIND, LANES)
        entry_0, inverse_0 = entries_at(table, place_0)
        states, at = put(entry_1, inverse_1, states, words, at, LANES)
    at -= 2 * LANES
    tl.store(words + at + 2 * lane, (states >> 16).to(tl.int16))
    tl.store(words + at + 2 * lane + 1, (states & 0xFFFF).to(tl.int16))
    tl.store(lengths + segment, -at.to(tl.int64))


@triton.jit
def copy_words(words, ends, starts, lengths, into, BLOCK: tl.constexpr):
    """Moves each segment's words to where the frame has them."""
    segment, j = tl.program_id(1), tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    size = tl.load(lengths + segment)
    word = tl.load(words + tl.load(ends + segment) - size + j, mask=j < size, other=0)
    tl.store(into + tl.load(starts + segment) + j, word, mask=j < size)


@triton.jit
def golomb_code(number, is_whole, ONE_SIDED: tl.constexpr):
    """An escaped number's code, whole or of its excess, as a bit field, and the field's width."""
    number = number.to(tl.int64)
    if ONE_SIDED:
        code = tl.where(is_whole, number, number - 15)
    else:
        excess = 2 * (tl.abs(number) - 8) + (number < 0).to(tl.int64)
        code = tl.where(is_whole, tl.where(number > 0, 2 * number - 1, -2 * number), excess)
    code = tl.maximum(code, 0) + 2  # what is not sent may have no excess
    # The exponent of a binary64 number, which holds it exactly, is the place of its top bit.
    width = (code.to(tl.float64).to(tl.int64, bitcast=True) >> 52) - 1023
    top = 0 * width + 1
    return top << (width - 1) | (code - (top << width)) << width, 2 * width


@triton.jit
def write_escapes(
    index,
    table,
    high,
    bounds,
    counts,
    into,
    size,
    rows,
    columns,
    pairs_of_unit,
    KIND: tl.constexpr,
    LANES: tl.constexpr,
    ONE_SIDED: tl.constexpr,
    HALF: tl.constexpr,
    COUNT_ONLY: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The escaped numbers of a part of a segment, in the order of reading: counts their bits, or writes them from ``counts`` on."""
    segment, part = tl.program_id(1), tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    first, last = tl.load(bounds + segment), tl.load(bounds + segment + 1)
    units = last - first
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = j < units * pairs_of_unit
    if KIND >= ONE_SIDED_PLANES:
        block = j // (LANES * pairs_of_unit)
        count = tl.maximum(tl.minimum(units - block * LANES, LANES), 1)
        rest = j - block * LANES * pairs_of_unit
        pair = (first + block * LANES + rest % count) * pairs_of_unit + rest // count
        pairs = (columns + 1) // 2
        one, step, single = (pair // pairs) * columns + 2 * (pair % pairs), 1, 2 * (pair % pairs) + 1 >= columns
    else:
        line = j // units
        pair = line * columns + first + j % units
        if KIND == TOKENS:
            one, step, single = 2 * line * columns + first + j % units, columns, 2 * line + 1 >= rows
        else:
            one, step, single = 2 * pair, 1, 2 * pair + 1 >= size
    place = tl.load(index + pair, mask=inside, other=0)
    entry = tl.load(table + 2 * place, mask=inside, other=0)
    escaped = (entry & MARK) != 0
    total = tl.sum(escaped.to(tl.int64), 0)
    if total > 0:
        a = tl.load(high + one, mask=escaped, other=0)
        b = tl.load(high + one + step, mask=escaped & (single == 0), other=0)
        has_first, has_second, is_whole, flag_width = escaped, escaped & (single == 0), escaped, 0 * place
        if HALF:
            by_escape = (entry & MARK_WHOLE) != 0
            first_large, second_large = (place & 240) == 240, (place & 15) == 15
            is_whole = by_escape & ((first_large == 0) | ((single == 0) & (second_large == 0)))
            has_first, has_second = has_first & (by_escape | first_large), has_second & (by_escape | second_large)
            flag_width = by_escape.to(tl.int32)
        upper, upper_width = golomb_code(a, is_whole, ONE_SIDED)
        lower, lower_width = golomb_code(b, is_whole, ONE_SIDED)
        upper_width, lower_width = tl.where(has_first, upper_width, 0), tl.where(has_second, lower_width, 0)
        width = flag_width + upper_width + lower_width
        if not COUNT_ONLY:
            bit = tl.load(counts + part) + tl.cumsum(width, 0) - width
            if HALF:
                put_bits(into, bit, is_whole.to(tl.int64), flag_width, flag_width > 0)
            put_bits(into, bit + flag_width, upper, upper_width, upper_width > 0)
            put_bits(into, bit + flag_width + upper_width, lower, lower_width, lower_width > 0)
        total = tl.sum(width.to(tl.int64), 0)
    if COUNT_ONLY:
        tl.store(counts + part, total)
