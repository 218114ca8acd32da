"""Kernels of profile ``serverlight`` for graphics processors: reading. Nothing here decides anything or raises.

The definition of what is computed is in ``reference/``. A *job* is one segment of one frame, and one program. Its lanes are one
vector; what takes turns on a processor happens here at once, and a prefix sum over the lanes tells which of them takes which word.

No index leaves its array, whatever a frame says: words and escape bits beyond a stream's end read as zero and are found out at the
end, a state chooses one of 4096 slots, and a context is a row of the tables by the way it is computed. Floating point is single
products and sums: the kernels are launched with fusion off, and Triton flushes no subnormals.
"""

from __future__ import annotations

import triton
import triton.language as tl

NUM_FIELDS = tl.constexpr(17)
GOOD, BAD_WORDS, BAD_ESCAPES, LEFT_ESCAPES, BAD_RAW = (tl.constexpr(code) for code in range(5))
FLAT, TOKENS, ONE_SIDED_PLANES, SIGNED_PLANES = (tl.constexpr(kind) for kind in range(4))
FLOAT32, FLOAT16, BFLOAT16 = (tl.constexpr(dtype) for dtype in range(3))
LARGEST_NUMBER = tl.constexpr(1 << 28)
MOST_WORDS = tl.constexpr((1 << 31) - 1)
"""More than any segment has pairs: a stream of more words has some left over at the end."""


# -- range coder -------------------------------------------------------------------------------------------------


@triton.jit
def fill_slots(entries, slots):
    """The symbol that each of a row's 4096 slots stands for.

    An entry has a symbol's frequency in 13 bits, and from there on the sum of those before it; a search in halves finds the first
    one that ends beyond a slot. The symbols are a table of their own, of bytes, so that the nearest cache holds all of them.
    """
    row, slot = tl.program_id(0), tl.arange(0, 4096)
    symbol = tl.full((4096,), 0, tl.int32)
    for i in tl.static_range(8):
        entry = tl.load(entries + row * 256 + symbol + (127 >> i))
        symbol += tl.where((entry & 8191) + (entry >> 13) <= slot, 128 >> i, 0)
    tl.store(slots + row * 4096 + slot, symbol.to(tl.uint8))


@triton.jit
def start_states(words, size, lane):
    """The states that a stream begins with, high halves first."""
    upper = tl.load(words + 2 * lane, mask=2 * lane < size, other=0).to(tl.uint32) & 0xFFFF
    lower = tl.load(words + 2 * lane + 1, mask=2 * lane + 1 < size, other=0).to(tl.uint32) & 0xFFFF
    return upper << 16 | lower


@triton.jit
def words_ahead(words, size, at, LANES: tl.constexpr):
    """The words that the next symbols may take: as many as there are lanes; zeros past the end."""
    place = at + tl.arange(0, LANES)
    return tl.load(words + place, mask=place < size, other=0).to(tl.uint32) & 0xFFFF


@triton.jit
def get(states, row, active, entries, slots, words, size, at, ahead, LANES: tl.constexpr):
    """One symbol for each active lane; lanes whose state has become too small take a word each, in their order.

    A single sum tells all lanes of each other: lane i sends the i-th hexadecimal digit of it, 1 if it takes a word, and 2 if a
    nibble of its symbol is 15. Times 0x11..1 each digit becomes the sum of those up to it, of which there are at most eight.
    Returns states, symbols, where the next words are and which, and whether any nibble is 15.
    """
    digit = 4 * tl.arange(0, LANES)
    slot = (states & 4095).to(tl.int32)
    symbol = tl.load(slots + (row * 4096 + slot), mask=active, other=0).to(tl.int32)
    entry = tl.load(entries + (row * 256 + symbol), mask=active, other=1)
    after = (entry & 8191).to(tl.uint32) * (states >> 12) + (slot - (entry >> 13)).to(tl.uint32)
    short = active & (after < 32768)
    ones = symbol & (symbol >> 1)
    is_large = (ones & (ones >> 2) & 0x11) != 0
    notes = tl.sum((short.to(tl.int32) + 2 * is_large.to(tl.int32)) << digit, 0)
    takes = notes & 0x11111111
    before = ((takes * 0x11111110) >> digit) & (LANES - 1)
    after = tl.where(short, after << 16 | tl.gather(ahead, before, 0), after)
    at += ((takes * 0x11111111) >> 28) & 15
    return tl.where(active, after, states), symbol, at, words_ahead(words, size, at, LANES), (notes & 0x22222222) != 0


@triton.jit
def get_bit(escapes, num_bits, at):
    """One bit of the escapes, and the position after it: -1 past the end."""
    good = (at >= 0) & (at < num_bits)
    byte = tl.load(escapes + (tl.maximum(at, 0) >> 3), mask=good, other=0).to(tl.int32)
    return (byte >> (tl.maximum(at, 0) & 7).to(tl.int32)) & 1, tl.where(good, at + 1, -1)


@triton.jit
def get_number(escapes, num_bits, at, is_whole, ONE_SIDED: tl.constexpr):
    """One escaped number, whole or as its excess, and the position after it: -1 past the end, over 32 bits, or if too large."""
    i = tl.arange(0, 64)
    place = at + i
    byte = tl.load(escapes + (place >> 3), mask=(place >= i) & (place < num_bits), other=0).to(tl.int32)
    bit = (byte >> (place & 7).to(tl.int32)) & 1
    zeros = tl.min(tl.where(bit == 1, i, 64), 0)
    width = zeros + 1
    after, field = at + zeros + 1 + width, i - zeros - 1
    is_field = (field >= 0) & (field < width)
    low = tl.sum(tl.where(is_field, bit.to(tl.int64) << tl.minimum(tl.maximum(field, 0), 40).to(tl.int64), 0), 0)
    code = low + (tl.full((), 1, tl.int64) << tl.minimum(width, 40).to(tl.int64)) - 2
    if ONE_SIDED:
        number = tl.where(is_whole, code, code + 15)
    else:
        whole = tl.where((code & 1) == 1, (code + 1) >> 1, -(code >> 1))
        excess = tl.where((code & 1) == 1, -8 - (code >> 1), 8 + (code >> 1))
        number = tl.where(is_whole, whole, excess)
    good = (at >= 0) & (width <= 32) & (after <= num_bits) & (tl.abs(number) <= LARGEST_NUMBER)
    return tl.where(good, number, 0).to(tl.int32), tl.where(good, after, -1)


@triton.jit
def number_of(nibble, flip, ONE_SIDED: tl.constexpr):
    """The number of a nibble below 15."""
    if ONE_SIDED:
        return nibble
    magnitude = (nibble + 1) >> 1
    return tl.where((nibble & 1) == 1, magnitude, -magnitude) * flip


@triton.jit
def numbers_of(
    symbol,
    flip,
    active,
    single,
    any_large,
    escapes,
    num_bits,
    bits,
    ONE_SIDED: tl.constexpr,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
):
    """The two numbers of each lane's pair; those that have no nibble of their own come from the escape bits, lane by lane."""
    first, second = number_of(symbol >> 4, flip, ONE_SIDED), number_of(symbol & 15, flip, ONE_SIDED)
    if any_large:
        lane = tl.arange(0, LANES)
        first_escaped = (active & ((symbol >> 4) == 15)).to(tl.int32)
        second_escaped = (active & ((symbol & 15) == 15) & (single == 0)).to(tl.int32)
        escaped = first_escaped | second_escaped << 1 | (active & (symbol == 255)).to(tl.int32) << 2
        all_escaped = tl.sum(escaped << (4 * lane), 0)
        for i in range(LANES):
            which = (all_escaped >> (4 * i)) & 7
            is_whole = which * 0 + (0 if HALF else 1)
            if HALF:
                if (which & 4) != 0:
                    is_whole, bits = get_bit(escapes, num_bits, bits)
            if (which & 1) != 0:
                number, bits = get_number(escapes, num_bits, bits, is_whole != 0, ONE_SIDED)
                first = tl.where(lane == i, number, first)
            if (which & 2) != 0:
                number, bits = get_number(escapes, num_bits, bits, is_whole != 0, ONE_SIDED)
                second = tl.where(lane == i, number, second)
    return first, tl.where(single != 0, 0, second), bits


@triton.jit
def settle(status, job, states, at, size, escapes, num_bytes, bits):
    """Notes whether a segment's streams ended where they must."""
    dirty = tl.sum((states != 32768).to(tl.int32), 0)
    code = tl.where((at != size) | (dirty != 0), BAD_WORDS, GOOD)
    used = tl.maximum(bits, 0)
    rest = tl.load(escapes + (used >> 3), mask=((used & 7) != 0) & ((used >> 3) < num_bytes), other=0).to(tl.int32)
    left = (num_bytes != (used + 7) >> 3) | ((rest >> (used & 7).to(tl.int32)) != 0)
    code = tl.where((code == GOOD) & left, LEFT_ESCAPES, code)
    tl.store(status + job, tl.where(bits < 0, BAD_ESCAPES, code))


@triton.jit
def read_flat(jobs, data, halves, entries, slots, high, status, columns, HALF: tl.constexpr, LANES: tl.constexpr):
    """Reads a segment of a flat run."""
    job, lane = tl.program_id(0), tl.arange(0, LANES)
    facts = jobs + job * NUM_FIELDS
    entries, slots = entries + 256 * tl.load(facts), slots + 4096 * tl.load(facts)
    high += tl.load(facts + 1)
    first, last = tl.load(facts + 2).to(tl.int32), tl.load(facts + 3).to(tl.int32)
    words, size = halves + tl.load(facts + 4), tl.minimum(tl.load(facts + 5), MOST_WORDS).to(tl.int32)
    escapes, num_bytes = data + tl.load(facts + 6), tl.load(facts + 7)
    at, bits = tl.full((), 2 * LANES, tl.int32), tl.full((), 0, tl.int64)
    states, ahead = start_states(words, size, lane), words_ahead(words, size, at, LANES)
    for begin in range(first, last, LANES):
        pair = begin + lane
        active, single = pair < last, (2 * pair + 1 >= columns).to(tl.int32)
        states, symbol, at, ahead, large = get(states, single, active, entries, slots, words, size, at, ahead, LANES)
        a, b, bits = numbers_of(symbol, 1, active, single, large, escapes, 8 * num_bytes, bits, False, HALF, LANES)
        tl.store(high + 2 * pair, a, mask=active)
        tl.store(high + 2 * pair + 1, b, mask=active & (single == 0))
    settle(status, job, states, at, size, escapes, num_bytes, bits)


@triton.jit
def token_context(busy, lean, b0, b1, b2, b3, b4, b5, b6):
    """Context of each channel from its running means and the borders between classes of activity; and its flip."""
    row = (busy >= b0).to(tl.int32) + (busy >= b1).to(tl.int32) + (busy >= b2).to(tl.int32)
    row += (busy >= b3).to(tl.int32) + (busy >= b4).to(tl.int32) + (busy >= b5).to(tl.int32) + (busy >= b6).to(tl.int32)
    leaning = 8 * tl.abs(lean) >= 3 * busy + 24
    return 2 * row + leaning.to(tl.int32), tl.where(lean < 0, -1, 1)


@triton.jit
def token_learn(busy, lean, a, b, pair):
    """The running means after a pair."""
    shift = tl.where(pair == 0, 1, tl.where(pair < 3, 2, 3))
    a, b = tl.minimum(tl.maximum(a, -255), 255), tl.minimum(tl.maximum(b, -255), 255)
    return busy + (((tl.abs(a) + tl.abs(b)) * 64 - busy) >> shift), lean + (((a + b) * 64 - lean) >> shift)


@triton.jit
def read_token_pairs(
    stream,
    sources,
    borders,
    known,
    place,
    columns,
    active,
    single,
    pair,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
):
    """One pair of tokens in each lane's channel; returns the stream as it goes on, and what the channels are known by then."""
    states, at, ahead, bits = stream
    entries, slots, words, size, escapes, num_bits = sources
    b0, b1, b2, b3, b4, b5, b6 = borders
    busy, lean = (known >> 32).to(tl.int32), known.to(tl.int32)
    context, flip = token_context(busy, lean, b0, b1, b2, b3, b4, b5, b6)
    row = context + 16 * single
    states, symbol, at, ahead, large = get(states, row, active, entries, slots, words, size, at, ahead, LANES)
    a, b, bits = numbers_of(symbol, flip, active, single, large, escapes, num_bits, bits, False, HALF, LANES)
    tl.store(place, a, mask=active)
    tl.store(place + columns, b, mask=active & (single == 0))
    busy, lean = token_learn(busy, lean, a, b, pair)
    return states, at, ahead, bits, busy.to(tl.int64) << 32 | lean.to(tl.uint32, bitcast=True).to(tl.int64)


@triton.jit
def read_tokens(
    jobs,
    data,
    halves,
    entries,
    slots,
    high,
    means,
    status,
    rows,
    columns,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Reads a segment of channels, a group of as many as there are lanes at a time.

    ``means`` has room for a number a channel of each frame, which is both running means. Those of up to four groups, ``GROUPS`` of
    them, stay in registers instead, in the order in which they are needed next; 0 stands for more.
    """
    job, lane = tl.program_id(0), tl.arange(0, LANES)
    facts = jobs + job * NUM_FIELDS
    entries, slots = entries + 256 * tl.load(facts), slots + 4096 * tl.load(facts)
    high += tl.load(facts + 1)
    first, last = tl.load(facts + 2).to(tl.int32), tl.load(facts + 3).to(tl.int32)
    words, size = halves + tl.load(facts + 4), tl.minimum(tl.load(facts + 5), MOST_WORDS).to(tl.int32)
    escapes, num_bytes = data + tl.load(facts + 6), tl.load(facts + 7)
    means, start = means + tl.load(facts + 8), tl.load(facts + 9).to(tl.int32)
    b0, b1, b2 = tl.load(facts + 10).to(tl.int32), tl.load(facts + 11).to(tl.int32), tl.load(facts + 12).to(tl.int32)
    b3, b4 = tl.load(facts + 13).to(tl.int32), tl.load(facts + 14).to(tl.int32)
    b5, b6 = tl.load(facts + 15).to(tl.int32), tl.load(facts + 16).to(tl.int32)
    at, bits = tl.full((), 2 * LANES, tl.int32), tl.full((), 0, tl.int64)
    states, ahead = start_states(words, size, lane), words_ahead(words, size, at, LANES)
    sources, borders = (entries, slots, words, size, escapes, 8 * num_bytes), (b0, b1, b2, b3, b4, b5, b6)
    unknown = start.to(tl.int64) << 32
    known = tl.full((LANES,), 0, tl.int64) + unknown
    known_1, known_2, known_3 = known, known, known
    for pair in range(0, (rows + 1) // 2):
        single = 0 * lane + (2 * pair + 1 >= rows).to(tl.int32)
        line = high + 2 * pair * columns
        if GROUPS > 0:
            for group in tl.static_range(GROUPS):
                channel = first + group * LANES + lane
                active = channel < last
                stream = (states, at, ahead, bits)
                states, at, ahead, bits, learned = read_token_pairs(
                    stream, sources, borders, known, line + channel, columns, active, single, pair, HALF, LANES
                )
                if GROUPS == 1:
                    known = learned
                elif GROUPS == 2:
                    known, known_1 = known_1, learned
                elif GROUPS == 3:
                    known, known_1, known_2 = known_1, known_2, learned
                else:
                    known, known_1, known_2, known_3 = known_1, known_2, known_3, learned
        else:
            tl.debug_barrier()  # the means that one thread has written another may read
            for begin in range(first, last, LANES):
                channel = begin + lane
                active = channel < last
                # What the next channels are known by comes while these wait for their symbols.
                is_last = begin + LANES >= last
                following = tl.where(is_last, first, begin + LANES) + lane
                has_past = (following < last) & (0 * lane + pair + is_last.to(tl.int32) > 0)
                following_known = tl.load(means + following, mask=has_past, other=unknown)
                stream = (states, at, ahead, bits)
                states, at, ahead, bits, learned = read_token_pairs(
                    stream, sources, borders, known, line + channel, columns, active, single, pair, HALF, LANES
                )
                tl.store(means + channel, learned, mask=active)
                known = following_known
    settle(status, job, states, at, size, escapes, num_bytes, bits)


@triton.jit
def neighbour_class(number, ONE_SIDED: tl.constexpr):
    """Class of one number as a neighbour."""
    if ONE_SIDED:
        return tl.minimum(number, 2)
    return (number > 0).to(tl.int32) - (number < 0).to(tl.int32)


@triton.jit
def read_planes(
    jobs,
    data,
    halves,
    entries,
    slots,
    high,
    status,
    rows,
    columns,
    contexts,
    ONE_SIDED: tl.constexpr,
    HALF: tl.constexpr,
    LANES: tl.constexpr,
):
    """Reads a segment of planes, as many at a time as there are lanes."""
    job, lane = tl.program_id(0), tl.arange(0, LANES)
    facts = jobs + job * NUM_FIELDS
    entries, slots = entries + 256 * tl.load(facts), slots + 4096 * tl.load(facts)
    high += tl.load(facts + 1)
    first, last = tl.load(facts + 2).to(tl.int32), tl.load(facts + 3).to(tl.int32)
    words, size = halves + tl.load(facts + 4), tl.minimum(tl.load(facts + 5), MOST_WORDS).to(tl.int32)
    escapes, num_bytes = data + tl.load(facts + 6), tl.load(facts + 7)
    at, bits = tl.full((), 2 * LANES, tl.int32), tl.full((), 0, tl.int64)
    states, ahead = start_states(words, size, lane), words_ahead(words, size, at, LANES)
    for begin in range(first, last, LANES):
        plane = begin + lane
        active = plane < last
        for row in range(0, rows):
            tl.debug_barrier()  # the row above, which one thread has written, another may read
            left, line = 0 * lane, high + (plane * rows + row) * columns
            above = active & (row + 0 * lane > 0)
            up = tl.load(line - columns, mask=above, other=0)
            beside = tl.load(line - columns + 1, mask=above & (0 * lane + columns > 1), other=0)
            for column in range(0, columns, 2):
                place, single = line + column, 0 * lane + (column + 1 >= columns).to(tl.int32)
                up = neighbour_class(up, ONE_SIDED)
                context, flip = 9 * left + 3 * up, tl.full((LANES,), 1, tl.int32)
                context += tl.where(single != 0, up, neighbour_class(beside, ONE_SIDED))
                if not ONE_SIDED:
                    flip = tl.where(context < 0, -1, 1)
                    context = tl.abs(context)
                # The next pair's neighbours above come while these wait for their symbols.
                up = tl.load(place - columns + 2, mask=above & (0 * lane + column + 2 < columns), other=0)
                beside = tl.load(place - columns + 3, mask=above & (0 * lane + column + 3 < columns), other=0)
                row_of_table = context + contexts * single
                states, symbol, at, ahead, large = get(
                    states, row_of_table, active, entries, slots, words, size, at, ahead, LANES
                )
                a, b, bits = numbers_of(
                    symbol, flip, active, single, large, escapes, 8 * num_bytes, bits, ONE_SIDED, HALF, LANES
                )
                tl.store(place, a, mask=active)
                tl.store(place + 1, b, mask=active & (single == 0))
                left = neighbour_class(b, ONE_SIDED)
    settle(status, job, states, at, size, escapes, num_bytes, bits)


# -- values ------------------------------------------------------------------------------------------------------


@triton.jit
def classes_of(high, i, inside, rows, columns, one_sided, KIND: tl.constexpr):
    """Class of each element, and the direction in which its shift is added (section 6.7)."""
    here = tl.load(high + i, mask=inside, other=0)
    magnitude, sign = tl.abs(here), (here > 0).to(tl.int32) - (here < 0).to(tl.int32)
    larger = tl.where(magnitude == 2, 8, 9)
    if KIND < ONE_SIDED_PLANES:
        return tl.where(magnitude == 0, 0, tl.where(magnitude == 1, 5, larger)), tl.where(one_sided, 1, sign)
    else:
        column, row = i % columns, (i // columns) % rows
        around = tl.load(high + i - 1, mask=inside & (column > 0), other=0)
        around += tl.load(high + i + 1, mask=inside & (column + 1 < columns), other=0)
        around += tl.load(high + i - columns, mask=inside & (row > 0), other=0)
        around += tl.load(high + i + columns, mask=inside & (row + 1 < rows), other=0)
        zeros = tl.minimum(tl.abs(around), 4)
        if KIND == ONE_SIDED_PLANES:
            ones, direction = tl.minimum(around >> 1, 2), tl.full(here.shape, 1, tl.int32)
        else:
            ones = tl.minimum(tl.maximum((around * sign + 4) >> 2, 0), 2)
            turn = (around > 0).to(tl.int32) - (around < 0).to(tl.int32)
            direction = tl.where(magnitude == 0, turn, sign)
        return tl.where(magnitude == 0, zeros, tl.where(magnitude == 1, 5 + ones, larger)), direction


@triton.jit
def count_nonzero(frames, numbers, counts, size, FIELDS: tl.constexpr, BLOCK: tl.constexpr):
    """How many numbers of each block of each frame are not zero."""
    block, frame = tl.program_id(0), tl.program_id(1)
    base, i = tl.load(frames + frame * FIELDS), block * BLOCK + tl.arange(0, BLOCK)
    number = tl.load(numbers + base + i, mask=i < size, other=0)
    tl.store(counts + frame * tl.num_programs(0) + block, tl.sum((number != 0).to(tl.int64), 0))


@triton.jit
def join_raw(number, rank, raw, raw_bits, num_bytes):
    """Joins high parts and raw bits; ``rank`` counts the numbers before each that are not zero."""
    at, low = rank * raw_bits, 0 * rank
    for i in tl.static_range(5):
        place = (at >> 3) + i
        byte = tl.load(raw + place, mask=(number != 0) & (place < num_bytes), other=0).to(tl.int64)
        low |= byte << (8 * i)
    low = (low >> (at & 7)) & ((tl.full((), 1, tl.int64) << raw_bits) - 1)
    magnitude = ((tl.abs(number) - 1) << raw_bits) + low + 1
    return tl.where(number > 0, magnitude, tl.where(number < 0, -magnitude, 0))


@triton.jit
def check_raw(frames, data, ends, status, blocks, FIELDS: tl.constexpr):
    """Notes whether a frame has just the raw bits that its numbers need; ``ends`` counts those that are not zero, by block."""
    frame = tl.program_id(0)
    facts = frames + frame * FIELDS
    raw_bits, raw, num_bytes = tl.load(facts + 3), data + tl.load(facts + 4), tl.load(facts + 5)
    used = tl.load(ends + frame * blocks + blocks - 1) * raw_bits
    rest = tl.load(raw + (used >> 3), mask=((used & 7) != 0) & ((used >> 3) < num_bytes), other=0).to(tl.int32)
    wrong = (num_bytes != (used + 7) >> 3) | ((rest >> (used & 7).to(tl.int32)) != 0)
    tl.store(status + frame, tl.where(wrong, BAD_RAW, GOOD))


@triton.jit
def place_values(
    frames,
    data,
    high,
    begins,
    out,
    size,
    rows,
    columns,
    largest,
    FIELDS: tl.constexpr,
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    HAS_RAW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Values of each frame's elements: an exact integer, one conversion, one product, one rounding to the dtype.

    bfloat16 goes out as its bits. A result that rounds to -0 becomes +0.
    """
    block, frame = tl.program_id(0), tl.program_id(1)
    facts = frames + frame * FIELDS
    base, i = tl.load(facts), block * BLOCK + tl.arange(0, BLOCK)
    inside, unit = i < size, tl.load(facts + 1).to(tl.int32).to(tl.float32, bitcast=True)
    place, direction = classes_of(high + base, i, inside, rows, columns, tl.load(facts + 2) != 0, KIND)
    number = tl.load(high + base + i, mask=inside, other=0).to(tl.int64)
    if HAS_RAW:
        present = (number != 0).to(tl.int64)
        rank = tl.load(begins + frame * tl.num_programs(0) + block) + tl.cumsum(present, 0) - present
        number = join_raw(number, rank, data + tl.load(facts + 4), tl.load(facts + 3), tl.load(facts + 5))
    units = 64 * number + tl.load(facts + 6 + place) * direction.to(tl.int64)
    value = tl.minimum(tl.maximum(units.to(tl.float32) * unit, -largest), largest)
    if DTYPE == BFLOAT16:
        bits = value.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        tl.store(out + base + i, tl.where((bits & 0x7FFF) == 0, 0, bits).to(tl.int16), mask=inside)
    else:
        value = value.to(tl.float16) if DTYPE == FLOAT16 else value
        tl.store(out + base + i, tl.where(value == 0, 0.0, value), mask=inside)
