"""Kernels of profile ``serverlight`` for graphics processors: from elements to numbers of steps. Nothing here decides or raises.

The definition of what is computed is in ``reference/``. Sums are sums of whole numbers, so that the order of programs and of
their atomic additions does not matter. Where an element's place depends on those before it, blocks are counted first, and a prefix
sum over the blocks says where each begins. What passes between kernels and does not concern the host stays in ``state``: see the
numbers below.
"""

from __future__ import annotations

import triton
import triton.language as tl

from serverlight.codec.backends.gpu.triton_reader import BFLOAT16, classes_of

NONZERO, NEGATIVE, INFINITE = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
SCORE, SCORE_TIES, SCORE_AT = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
"""Bits of the least score kept, how many that tie with it are kept, and how many tie."""
MAGNITUDE = tl.constexpr(6)
"""The same for the magnitude of the floor's rank, in three places."""
LEAST = tl.constexpr(9)
"""Bits of the least magnitude whose score is kept."""

ABS, INFINITY = tl.constexpr(0x7FFFFFFF), tl.constexpr(0x7F800000)
MOST = tl.constexpr(float(1 << 28))


# -- filter: the K-th largest score ------------------------------------------------------------------------------


@triton.jit
def values_at(x, i, inside, DTYPE: tl.constexpr):
    """Elements in binary32; bfloat16 comes as its bits."""
    if DTYPE == BFLOAT16:
        return (tl.load(x + i, mask=inside, other=0).to(tl.int32) << 16).to(tl.float32, bitcast=True)
    else:
        return tl.load(x + i, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def score_bits(value, asymmetry):
    """Bits of what the filter ranks by, which grow as it does."""
    score = tl.where(value < 0, -value * asymmetry, value)
    bits = score.to(tl.int32, bitcast=True) & ABS
    return tl.where((bits == 0) & (value != 0), 1, bits)


@triton.jit
def count_digits(
    x,
    state,
    bins,
    size,
    asymmetry,
    SHIFT: tl.constexpr,
    SURVEY: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    DTYPE: tl.constexpr,
    TURNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Counts a hexadecimal digit of all scores, and of all magnitudes, whose higher digits are those found so far.

    Sixteen counters of four bits are one number of 64, so that each element of a block may be seen in fifteen turns.
    """
    found, found_magnitude = tl.load(state + SCORE).to(tl.int32), tl.load(state + MAGNITUDE).to(tl.int32)
    lane = tl.arange(0, BLOCK)
    scores, magnitudes = tl.zeros((BLOCK,), tl.int64), tl.zeros((BLOCK,), tl.int64)
    nonzero, negative, infinite = (
        tl.zeros((BLOCK,), tl.int32),
        tl.zeros((BLOCK,), tl.int32),
        tl.zeros((BLOCK,), tl.int32),
    )
    one = tl.full((BLOCK,), 1, tl.int64)
    for turn in range(TURNS):
        i = (tl.program_id(0) * TURNS + turn) * BLOCK + lane
        inside = i < size
        value = values_at(x, i, inside, DTYPE)
        magnitude = value.to(tl.int32, bitcast=True) & ABS
        bits = magnitude if SYMMETRIC else score_bits(value, asymmetry)
        counts = one << (4 * ((magnitude >> SHIFT) & 15)).to(tl.int64)
        magnitudes += tl.where(inside & (((magnitude ^ found_magnitude) >> SHIFT) < 16), counts, 0)
        if not SYMMETRIC:
            counts = one << (4 * ((bits >> SHIFT) & 15)).to(tl.int64)
        scores += tl.where(inside & (((bits ^ found) >> SHIFT) < 16), counts, 0)
        if SURVEY:
            nonzero += (value != 0).to(tl.int32)
            negative += (value < 0).to(tl.int32)
            infinite += (magnitude >= INFINITY).to(tl.int32)
    for digit in tl.static_range(16):
        count = tl.sum(((scores >> (4 * digit)) & 15).to(tl.int32), 0)
        tl.atomic_add(bins + digit, count.to(tl.int64), mask=count != 0, sem="relaxed")
        count = tl.sum(((magnitudes >> (4 * digit)) & 15).to(tl.int32), 0)
        tl.atomic_add(bins + 16 + digit, count.to(tl.int64), mask=count != 0, sem="relaxed")
    if SURVEY:
        tl.atomic_add(state + NONZERO, tl.sum(nonzero, 0).to(tl.int64), sem="relaxed")
        tl.atomic_add(state + NEGATIVE, tl.sum(negative, 0).to(tl.int64), sem="relaxed")
        tl.atomic_add(state + INFINITE, tl.sum(infinite, 0).to(tl.int64), sem="relaxed")


@triton.jit
def take_digits(state, bins, num_kept, SHIFT: tl.constexpr, SURVEY: tl.constexpr):
    """Finds the next digit of the least score kept, and of the magnitude that the step's threshold is at least, from the counts."""
    if SURVEY:
        nonzero = tl.load(state + NONZERO)
        take_digit(state, bins, SCORE, tl.minimum(nonzero, num_kept), SHIFT)
        take_digit(state, bins + 16, MAGNITUDE, (9 * nonzero + 9) // 10, SHIFT)
    else:
        take_digit(state, bins, SCORE, tl.load(state + SCORE_TIES), SHIFT)
        take_digit(state, bins + 16, MAGNITUDE, tl.load(state + MAGNITUDE + 1), SHIFT)


@triton.jit
def take_digit(state, bins, which, rank, SHIFT: tl.constexpr):
    """Finds the next digit of the bits of a rank from the counts, and how far the rank reaches into those of that digit."""
    bin = tl.arange(0, 16)
    counts = tl.load(bins + bin)
    from_here = tl.sum(counts, 0) - tl.cumsum(counts, 0) + counts
    digit = tl.maximum(tl.sum((from_here >= rank).to(tl.int64), 0) - 1, 0)
    here = tl.sum(tl.where(bin == digit, counts, 0), 0)
    beyond = tl.sum(tl.where(bin > digit, counts, 0), 0)
    tl.store(state + which, tl.load(state + which) | digit << SHIFT)
    tl.store(state + which + 1, rank - beyond)
    tl.store(state + which + 2, here)
    tl.store(bins + bin, 0 * counts)


@triton.jit
def find_least(x, state, size, asymmetry, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """The least magnitude whose score reaches the least score kept."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = values_at(x, i, i < size, DTYPE)
    kept = (i < size) & (score_bits(value, asymmetry) >= tl.load(state + SCORE).to(tl.int32))
    bits = tl.where(kept, value.to(tl.int32, bitcast=True) & ABS, ABS)
    tl.atomic_min(state + LEAST, tl.min(bits, 0).to(tl.int64), sem="relaxed")


# -- quantiser ---------------------------------------------------------------------------------------------------


@triton.jit
def count_ties(x, state, counts, size, asymmetry, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """How many elements of each block tie with the least score kept."""
    block = tl.program_id(0)
    i = block * BLOCK + tl.arange(0, BLOCK)
    ties = (score_bits(values_at(x, i, i < size, DTYPE), asymmetry) == tl.load(state + SCORE).to(tl.int32)) & (i < size)
    tl.store(counts + block, tl.sum(ties.to(tl.int64), 0))


@triton.jit
def quantise(
    x, state, begins, numbers, sums, size, asymmetry, inverse, largest, DTYPE: tl.constexpr, BLOCK: tl.constexpr
):
    """Signed numbers of steps; of equal scores at the threshold those with the lowest index are kept.

    Notes of each block how many numbers are too large for a nibble, and the sum of their magnitudes.
    """
    block = tl.program_id(0)
    i = block * BLOCK + tl.arange(0, BLOCK)
    inside = i < size
    value = values_at(x, i, inside, DTYPE)
    bits, least = score_bits(value, asymmetry), tl.load(state + SCORE).to(tl.int32)
    ties = ((bits == least) & inside).to(tl.int64)
    rank = tl.load(begins + block) + tl.cumsum(ties, 0) - ties
    kept = inside & ((bits > least) | ((ties != 0) & (rank < tl.load(state + SCORE_TIES))))
    number = tl.maximum((tl.minimum(tl.abs(value) * inverse, MOST) + 0.4).to(tl.int32), 1)
    number = tl.where(kept, number, 0)
    tl.store(numbers + i, tl.where(value < 0, -number, number), mask=inside)
    tl.store(sums + block, tl.sum((number > largest).to(tl.int64), 0))
    tl.store(sums + tl.num_programs(0) + block, tl.sum(number.to(tl.int64), 0))


@triton.jit
def count_large(numbers, counts, size, largest, BLOCK: tl.constexpr):
    """How many magnitudes of each block are above a limit."""
    block = tl.program_id(0)
    i = block * BLOCK + tl.arange(0, BLOCK)
    number = tl.load(numbers + i, mask=i < size, other=0)
    tl.store(counts + block, tl.sum((tl.abs(number) > largest).to(tl.int64), 0))


@triton.jit
def put_bits(buffer, at, value, width, is_put):
    """Writes fields of at most 62 bits, least significant first, from bit ``at`` on."""
    place, shift = buffer + (at >> 5), at & 31
    rest = value >> (32 - shift)
    tl.atomic_or(place, (value << shift).to(tl.int32), mask=is_put, sem="relaxed")
    tl.atomic_or(place + 1, rest.to(tl.int32), mask=is_put & (shift + width > 32), sem="relaxed")
    tl.atomic_or(place + 2, (rest >> 32).to(tl.int32), mask=is_put & (shift + width > 64), sem="relaxed")


@triton.jit
def split_raw(numbers, begins, high, raw, sums, size, raw_bits, BLOCK: tl.constexpr):
    """Splits numbers into high parts, whose sum is noted of each block, and packed low bits."""
    block = tl.program_id(0)
    i = block * BLOCK + tl.arange(0, BLOCK)
    number = tl.load(numbers + i, mask=i < size, other=0).to(tl.int64)
    magnitude, present = tl.abs(number), (number != 0).to(tl.int64)
    mask = (tl.full((), 1, tl.int64) << raw_bits) - 1
    part = (magnitude + mask) >> raw_bits
    rank = tl.load(begins + block) + tl.cumsum(present, 0) - present
    put_bits(raw, rank * raw_bits, (magnitude - 1) & mask, raw_bits, number != 0)
    tl.store(high + i, tl.where(number < 0, -part, part).to(tl.int32), mask=i < size)
    tl.store(sums + block, tl.sum(part, 0))


# -- shifts ------------------------------------------------------------------------------------------------------


@triton.jit
def tally(
    x,
    numbers,
    high,
    tallies,
    size,
    rows,
    columns,
    run,
    every,
    looked_at,
    inverse,
    one_sided,
    KIND: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Adds the distances of elements from their nominal values, in 64ths of a step, to ten sums by class; and counts them."""
    j = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    i = (j // run) * every * run + j % run
    inside = (j < looked_at) & (i < size)
    place, direction = classes_of(high, i, inside, rows, columns, one_sided, KIND)
    scaled = tl.minimum(tl.maximum(values_at(x, i, inside, DTYPE) * inverse, -MOST), MOST) * 64.0
    # From 2^23 on every binary32 number is whole; below, adding that leaves no room for a fraction, and rounds it to even.
    magnitude = tl.abs(scaled)
    magnitude = tl.where(magnitude < 8388608.0, (magnitude + 8388608.0) - 8388608.0, magnitude).to(tl.int64)
    scaled = tl.where(scaled < 0, -magnitude, magnitude)
    number = tl.load(numbers + i, mask=inside, other=0).to(tl.int64)
    distance = (scaled - 64 * number) * direction.to(tl.int64)
    for which in tl.static_range(10):
        member = inside & (place == which)
        tl.atomic_add(tallies + which, tl.sum(tl.where(member, distance, 0), 0), sem="relaxed")
        tl.atomic_add(tallies + 10 + which, tl.sum(member.to(tl.int64), 0), sem="relaxed")
