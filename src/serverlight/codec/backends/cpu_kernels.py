"""Compiled loops of profile ``serverlight``: the filter and the quantiser. Nothing here reads configuration or raises.

Integers are cast at every step on purpose: the compiler's own promotion to 64 bits would halve the width of its vectors. The
definition of what is computed is in ``reference.py``. Functions for Numba are made here only; what Python calls are the two entry
points that ``cpu_writer.py`` and ``cpu_reader.py`` make of them, each one machine-code function with all its callees.
"""

from __future__ import annotations

import numba
import numpy as np

njit = numba.njit(nogil=True, error_model="numpy")
inlined = numba.njit(nogil=True, error_model="numpy", inline="always")
exact_sums = numba.njit(nogil=True, error_model="numpy", fastmath={"reassoc"})
"""For sums of whole numbers in floats below 2^53, which come out the same in every order."""

entry_point = numba.njit(cache=True, nogil=True, error_model="numpy")

ABS = np.int32(0x7FFFFFFF)
INFINITE = np.int32(0x7F800000)
U = np.uint64


# -- filter: the K-th largest score ------------------------------------------------------------------------


@njit
def survey(values):
    """Number of non-zero elements, whether one is negative, and whether all are finite."""
    keys = values.view(np.int32)
    nonzero, negative, infinite = 0, np.int32(0), np.int32(0)
    for start in range(0, values.size, 16384):
        end = min(start + 16384, values.size)
        part, key = values[start:end], keys[start:end]
        num_nonzero = np.int32(0)
        for i in range(part.size):
            num_nonzero = np.int32(num_nonzero + (part[i] != 0))
            negative |= np.int32(part[i] < 0)
            infinite |= np.int32(np.int32(key[i] & ABS) >= INFINITE)
        nonzero += num_nonzero
    return nonzero, negative != 0, infinite == 0


@njit
def count_at_least(keys, first, second):
    """How many magnitudes reach two thresholds; short inner sums keep the vectors narrow."""
    total_first, total_second = 0, 0
    for start in range(0, keys.size, 16384):
        part = keys[start : min(start + 16384, keys.size)]
        num_first, num_second = np.int32(0), np.int32(0)
        for i in range(part.size):
            key = np.int32(part[i] & ABS)
            num_first = np.int32(num_first + (key >= first))
            num_second = np.int32(num_second + (key >= second))
        total_first += num_first
        total_second += num_second
    return total_first, total_second


@njit
def collect_between(keys, low, high, out):
    """Writes the magnitudes in [low, high) to ``out``, skipping blocks that hold none; returns how many."""
    found = 0
    for start in range(0, keys.size, 64):
        part = keys[start : min(start + 64, keys.size)]
        inside = np.int32(0)
        for i in range(part.size):
            key = np.int32(part[i] & ABS)
            inside = np.int32(inside + np.int32((key >= low) & (key < high)))
        if inside > 0:
            for i in range(part.size):
                key = np.int32(part[i] & ABS)
                out[found] = key
                found += (key >= low) & (key < high)
    return found


@njit
def rank_by_radix(work, size, rank, bins):
    """The ``rank``-th largest of ``work[:size]``, which is used up; ``bins`` has room for 1024."""
    low, high = work[0], work[0]
    for i in range(size):
        low, high = min(low, work[i]), max(high, work[i])
    num_bins = 1024 if size > 1024 else 128
    while True:
        span = np.int64(high) - np.int64(low)
        if span == 0:
            return low
        shift = 0
        while (span >> shift) >= num_bins:
            shift += 1
        bins[:num_bins] = 0
        for i in range(size):
            bins[(np.int64(work[i]) - low) >> shift] += 1
        place, above = span >> shift, 0
        while above + bins[place] < rank:
            above += bins[place]
            place -= 1
        rank -= above
        new_low = np.int32(low + (place << shift))
        if shift == 0:
            return new_low
        new_high = np.int32(min(np.int64(new_low) + (1 << shift) - 1, np.int64(high)))
        kept = 0
        for i in range(size):
            key = work[i]
            work[kept] = key
            kept += (key >= new_low) & (key <= new_high)
        size, low, high = kept, new_low, new_high


@njit
def kth_largest(keys, rank):
    """Bit pattern of the ``rank``-th largest magnitude: a sample brackets it, counting narrows, sorting the rest ends."""
    size = keys.size
    sample = 2048 if size > 1 << 16 else 256
    work = np.empty(max(2 * sample, 2 * few_of(size)) + 1, np.int32)
    bins = np.empty(1024, np.int32)
    if size <= 2 * sample:
        for i in range(size):
            work[i] = keys[i] & ABS
        return rank_by_radix(work, size, rank, bins)
    for i in range(sample):
        work[i] = keys[i * (size // sample)] & ABS
    work[sample : 2 * sample] = work[:sample]
    share = rank / size
    slack = 3.5 * (np.sqrt(share * (1 - share) * sample) + 1.0)
    low, high = np.int32(0), ABS
    if share * sample - slack >= 1:
        high = np.int32(rank_by_radix(work, sample, int(share * sample - slack), bins) + 1)
    work[:sample] = work[sample : 2 * sample]
    if share * sample + slack + 1 <= sample:
        low = rank_by_radix(work, sample, int(share * sample + slack) + 1, bins)
    num_low, num_high = count_at_least(keys, low, high)
    if num_low < rank:
        low, num_low = np.int32(0), size
    if num_high >= rank:
        low, num_low, high, num_high = high, num_high, ABS, 0
    low, high, num_low, num_high = narrow(keys, rank, low, high, num_low, num_high)
    if high - low <= 1:
        return low
    return rank_by_radix(work, collect_between(keys, low, high, work), rank - num_high, bins)


@inlined
def few_of(size):
    """So few keys are worth sorting."""
    return max(16, size >> 12)


@njit
def narrow(keys, rank, low, high, num_low, num_high):
    """Shrinks a bracket until few keys are left in it: guesses around the expected place, and halves in turn against bad luck."""
    few = few_of(keys.size)
    halve = False
    while num_low - num_high > few and high - low > 1:
        width = np.int64(high) - np.int64(low)
        if halve or width < 16:
            first = np.int32(low + (width >> 1))
            second = first
        else:
            centre = low + int((num_low - rank) / (num_low - num_high) * width)
            first = np.int32(max(low + 1, centre - (width >> 4)))
            second = np.int32(max(np.int64(first), min(high - 1, centre + (width >> 4))))
        halve = not halve
        num_first, num_second = count_at_least(keys, first, second)
        if num_second >= rank:
            low, num_low = second, num_second
        elif num_first >= rank:
            low, num_low, high, num_high = first, num_first, second, num_second
        else:
            high, num_high = first, num_first
    return low, high, num_low, num_high


@inlined
def score_of(value, asymmetry):
    """What the filter ranks by: an element that is not zero never scores less than the least magnitude there is."""
    score = value if value >= 0 else -value * asymmetry
    return abs(np.float32(1e-45) if (score == 0 and value != 0) else score)


@njit
def weigh(values, asymmetry, scores):
    """Scores of an asymmetric filter."""
    for i in range(values.size):
        scores[i] = score_of(values[i], asymmetry)


@njit
def keep_by_sign(values, num_positive, num_negative, scores):
    """Scores 1 for the largest positive and the largest negative elements, so many of each, and 0 for the others."""
    keys = scores.view(np.int32)
    borders, ties = np.full(2, np.inf, np.float32), np.zeros(2, np.int64)
    for side, sign, count in ((0, np.float32(1), num_positive), (1, np.float32(-1), num_negative)):
        if count > 0:
            for i in range(values.size):
                scores[i] = max(sign * values[i], np.float32(0))
            border = kth_largest(keys, count)
            above, _ = count_at_least(keys, np.int32(border + 1), ABS)
            borders[side], ties[side] = np.int32(border).view(np.float32), count - above
    for i in range(values.size):
        side = 1 if values[i] < 0 else 0
        magnitude = abs(values[i])
        tie = magnitude == borders[side] and ties[side] > 0
        ties[side] -= tie
        scores[i] = np.float32(1) if magnitude > borders[side] or tie else np.float32(0)


# -- quantiser -------------------------------------------------------------------------------------------------


@njit
def least_kept(values, scores, threshold):
    """The least magnitude among elements whose score reaches the threshold."""
    least = np.float32(np.inf)
    for i in range(values.size):
        if abs(scores[i]) >= threshold:
            least = min(least, abs(values[i]))
    return least


@njit
def quantise(values, scores, threshold, inverse, largest, out):
    """Signed numbers of steps; returns how many scores reach the threshold, and how many magnitudes are above ``largest``."""
    most, rounding, one = np.float32(2**28), np.float32(0.4), np.int32(1)
    reached, large = 0, 0
    for start in range(0, values.size, 16384):
        end = min(start + 16384, values.size)
        part, score, into = values[start:end], scores[start:end], out[start:end]
        num_reached, num_large = np.int32(0), np.int32(0)
        for i in range(part.size):
            number = np.int32(min(abs(part[i]) * inverse, most) + rounding)
            number = max(number, one)
            kept = abs(score[i]) >= threshold
            number = number if kept else np.int32(0)
            into[i] = -number if part[i] < 0 else number
            num_reached = np.int32(num_reached + kept)
            num_large = np.int32(num_large + (number > largest))
        reached += num_reached
        large += num_large
    return reached, large


@njit
def drop_ties(values, asymmetry, threshold, surplus, out):
    """Takes back the last elements whose score only ties with the threshold."""
    end = values.size
    while surplus > 0:
        start = max(0, end - 4096)
        part, into = values[start:end], out[start:end]
        ties = np.int32(0)
        for i in range(part.size):
            ties = np.int32(ties + (score_of(part[i], asymmetry) == threshold))
        if ties:
            i = part.size - 1
            while surplus > 0 and i >= 0:
                if score_of(part[i], asymmetry) == threshold:
                    into[i] = 0
                    surplus -= 1
                i -= 1
        end = start


@njit
def count_above(quantised, limit):
    """How many magnitudes are above a limit."""
    above = 0
    for start in range(0, quantised.size, 16384):
        part = quantised[start : min(start + 16384, quantised.size)]
        num_above = np.int32(0)
        for i in range(part.size):
            num_above = np.int32(num_above + (abs(part[i]) > limit))
        above += num_above
    return above


@njit
def magnitude_sum(high):
    """Sum of the magnitudes."""
    total = 0
    for i in range(high.size):
        total += abs(high[i])
    return total


@njit
def take_raw(quantised, bits, high, packed):
    """Splits numbers into high parts and packed low bits; returns the number of bytes."""
    held, count, size = U(0), 0, 0
    mask = (1 << bits) - 1
    for i in range(quantised.size):
        number = np.int64(quantised[i])
        if number == 0:
            high[i] = 0
            continue
        magnitude = abs(number)
        part = (magnitude + mask) >> bits
        high[i] = -part if number < 0 else part
        held |= U((magnitude - 1) & mask) << U(count)
        count += bits
        while count >= 8:
            packed[size] = np.uint8(held & U(255))
            size += 1
            held >>= U(8)
            count -= 8
    if count:
        packed[size] = np.uint8(held & U(255))
        size += 1
    return size
