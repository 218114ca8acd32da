"""Compiled loops of profile ``serverlight``: the quantiser.

Numbers of steps are held in 16 bits, which is narrow enough for a large tensor's to stay in the cache; what is too large for
them is held as the largest, and worked out again from the element where its worth is needed. The definition of what is
computed is in ``reference/``.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec import tables
from serverlight.codec.backends.cpu.compiled import ABS, highest_mark, inlined, marks_within, njit, write_long
from serverlight.codec.backends.cpu.filter import keep_by_sign, kth_largest, least_kept, weigh
from serverlight.codec.coded import has_half_escapes, needs_raw_bit

U = np.uint64
ONE_SIDED_PLANES = tables.ONE_SIDED_PLANES
needs_raw_bit, has_half_escapes = njit(needs_raw_bit), njit(has_half_escapes)
MOST = np.int32(32767)
"""The largest number that is held as it is."""


# -- numbers -----------------------------------------------------------------------------------------------------


@inlined
def magnitude_of(value, inverse):
    """Number of steps of the magnitude of an element that the filter keeps."""
    return max(np.int32(min(abs(value) * inverse, np.float32(2**28)) + np.float32(0.4)), np.int32(1))


@inlined
def number_of(value, kept, inverse):
    """Signed number of steps of an element, in full width."""
    number = magnitude_of(value, inverse) if kept else np.int32(0)
    return np.int32(-number) if value < 0 else number


@inlined
def high_of(number, bits):
    """High part of a number with so many raw bits."""
    mask = np.int32(np.int32(np.int32(1) << bits) - np.int32(1))
    part = np.int32(np.int32(abs(number) + mask) >> bits)
    return np.int32(-part) if number < 0 else part


@njit
def quantise(values, scores, threshold, inverse, largest, out):
    """Signed numbers of steps; returns how many scores reach the threshold, and how many magnitudes are above ``largest``."""
    reached, large = 0, 0
    for start in range(0, values.size, 16384):
        end = min(start + 16384, values.size)
        part, score, into = values[start:end], scores[start:end], out[start:end]
        num_reached, num_large = np.int32(0), np.int32(0)
        for i in range(part.size):
            kept = abs(score[i]) >= threshold
            number = magnitude_of(part[i], inverse)
            number = min(number, MOST) if kept else np.int32(0)
            into[i] = np.int16(-number if part[i] < 0 else number)
            num_reached = np.int32(num_reached + kept)
            num_large = np.int32(num_large + (number > largest))
        reached += num_reached
        large += num_large
    return reached, large


@njit
def drop_ties(keys, border, surplus, out):
    """Takes back the last elements whose score only ties with the threshold; ``keys`` and ``border`` are their bits.

    A tensor of halves has few values, so that thousands may tie.
    """
    end = keys.size
    while surplus > 0 and end & 63:
        end -= 1
        if np.int32(keys[end] & ABS) == border:
            out[end] = 0
            surplus -= 1
    while surplus > 0 and end > 0:
        end -= 64
        marks = marks_within(U(keys.ctypes.data) + U(4 * end), border, np.int32(1))
        while marks and surplus > 0:
            last = highest_mark(marks)
            out[U(end) + last] = 0
            marks ^= U(1) << last
            surplus -= 1


@njit
def count_above(values, numbers, inverse, limit):
    """How many magnitudes are above a limit."""
    above = 0
    for start in range(0, numbers.size, 16384):
        end = min(start + 16384, numbers.size)
        part, num_above = numbers[start:end], np.int32(0)
        if limit < MOST:
            for i in range(part.size):
                num_above = np.int32(num_above + (abs(np.int32(part[i])) > limit))
        else:
            for i in range(part.size):
                num_above = np.int32(num_above + (abs(number_of(values[start + i], part[i] != 0, inverse)) > limit))
        above += num_above
    return above


@njit
def magnitude_sum(values, high, inverse, bits):
    """Sum of the magnitudes of high parts."""
    total = 0
    for start in range(0, high.size, 16384):
        end = min(start + 16384, high.size)
        part, sum_of_part, largest = high[start:end], np.int32(0), np.int32(0)
        for i in range(part.size):
            magnitude = np.int32(abs(np.int32(part[i])))
            sum_of_part = np.int32(sum_of_part + magnitude)
            largest = max(largest, magnitude)
        if largest < MOST:
            total += sum_of_part
        else:
            for i in range(start, end):
                total += abs(high_of(number_of(values[i], high[i] != 0, inverse), bits))
    return total


@njit
def take_raw(values, numbers, inverse, bits, packed):
    """Makes high parts of numbers and packs their low bits; returns the number of bytes. ``packed`` has room for eight more.

    Which numbers are zero no branch could foresee, so flags are numbers, and a zero has no bits.
    """
    held, count, size, begin = U(0), np.int64(0), np.int64(0), U(packed.ctypes.data)
    mask = (1 << bits) - 1
    for i in range(numbers.size):
        kept, sign = -np.int64(numbers[i] != 0), -np.int64(numbers[i] < 0)
        magnitude = np.int64(magnitude_of(values[i], inverse))
        part = min((magnitude + mask) >> bits, np.int64(MOST))
        numbers[i] = np.int16(((part ^ sign) - sign) & kept)
        held |= U((magnitude - 1) & mask & kept) << U(count)
        write_long(begin + U(size), held)
        count += bits & kept
        size += count >> 3
        held, count = held >> U(count & ~7), count & 7
    return size + (count > 0)


# -- tensors -----------------------------------------------------------------------------------------------------


@njit
def step_of(threshold, budget):
    """What :func:`serverlight.codec.coded.step_of` returns."""
    step = np.float32(min(np.float64(threshold) * 4 * budget, 3.0e38))
    bits = (np.float32(step).view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
    return max(np.uint32(bits).view(np.float32), np.float32(2.0**-126))


@inlined
def quantise_tensor(values, least, num_kept, num_positive, num_nonzero, asymmetry, budget, kind, numbers):
    """Filters and quantises; returns the step, the number of raw bits, and whether half escapes pay.

    ``least`` is the ``num_kept``-th largest magnitude, or zero where that is the least one that is not zero.
    """
    largest = np.int32(14 if kind == ONE_SIDED_PLANES else 7)
    by_sign = num_positive >= 0
    is_weighed = by_sign or asymmetry != 1
    scores, rank = values, -(-9 * num_nonzero // 10)  # what floor_rank of coded.py returns
    if by_sign:
        scores, threshold = np.empty(values.size, np.float32), np.float32(1)
        keep_by_sign(values, num_positive, num_kept - num_positive, scores)
    elif is_weighed:
        scores = np.empty(values.size, np.float32)
        weigh(values, asymmetry, scores)
        threshold = np.int32(kth_largest(scores.view(np.int32), num_kept)).view(np.float32)
    elif least > 0:
        threshold = np.int32(least).view(np.float32)
    elif num_kept > rank:
        threshold = np.float32(1e-45)  # all that are not zero are kept, and another element sets the step
    else:
        threshold = np.int32(kth_largest(values.view(np.int32), num_kept)).view(np.float32)
    floor = least_kept(values, scores, threshold) if is_weighed else threshold
    if num_kept > rank or is_weighed:  # otherwise the threshold is of a higher rank already
        floor = max(floor, np.int32(kth_largest(values.view(np.int32), rank)).view(np.float32))
    step = step_of(floor, budget)
    inverse = np.float32(1) / step
    reached, large = quantise(values, scores, threshold, inverse, largest, numbers)
    if reached > num_kept:
        drop_ties(scores.view(np.int32), np.float32(threshold).view(np.int32), reached - num_kept, numbers)
        if (
            is_weighed
        ):  # else, where ties are large, so is all that is kept, and what is counted too much changes nothing
            large = count_above(values, numbers, inverse, largest)
    bits = 0
    while needs_raw_bit(large, num_kept, kind):
        bits += 1
        large = count_above(values, numbers, inverse, np.int32(largest << bits))
    return step, bits, has_half_escapes(large, num_kept)
