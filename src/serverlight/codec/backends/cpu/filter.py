"""Compiled loops of profile ``serverlight``: the filter, which looks for the K-th largest score.

The definition of what is computed is in ``reference/``.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec.backends.cpu.compiled import ABS, INFINITE, inlined, lowest_mark, marks_within, njit
from serverlight.codec.backends.cpu.filter_vectors import survey_groups

U = np.uint64
LOWEST, NEGATIVE_ZERO = np.int32(-(2**31)), U(1 << 31)


# -- the K-th largest of all ---------------------------------------------------------------------------------------


@njit
def survey(keys, low, high, work):
    """Looks over the bit patterns of all elements.

    Returns the number of non-zero elements, whether one is negative, whether all are finite, how many magnitudes are at least
    ``low`` and ``high``, and how many of those in between were written to ``work``: as many as fit.
    """
    signed, unsigned, nonzero, num_low, num_high, found = LOWEST, U(0), keys.size, 0, 0, 0
    marks, tallies = np.empty(64, np.uint64), np.empty(4, np.int32)
    whole, start = keys.size & ~63, U(keys.ctypes.data)
    for begin in range(0, whole, 4096):
        groups, at = U(min(whole - begin, 4096) >> 6), start + U(4 * begin)
        marked = np.int64(survey_groups(at, groups, low, high, U(marks.ctypes.data), U(tallies.ctypes.data)))
        if found + marked <= work.size:
            collect_marked(keys[begin:], marks[:groups], work[found:])
            found += marked
        nonzero -= tallies[0]
        num_high += tallies[1]
        num_low += marked + tallies[1]
        signed, unsigned = max(signed, tallies[2]), max(unsigned, U(np.uint32(tallies[3])))
    for i in range(whole, keys.size):
        key = np.int32(keys[i] & ABS)
        if key >= low and key < high and found < work.size:
            work[found] = key
            found += 1
        nonzero -= key == 0
        num_low += key >= low
        num_high += key >= high
        signed, unsigned = max(signed, keys[i]), max(unsigned, U(np.uint32(keys[i])))
    is_negative = unsigned > NEGATIVE_ZERO  # without their signs, negative patterns are the largest
    is_finite = signed < INFINITE and (not is_negative or np.int32(unsigned & U(ABS)) < INFINITE)
    return nonzero, is_negative, is_finite, num_low, num_high, found


@njit
def collect_marked(keys, marks, into):
    """Writes the magnitudes of marked elements to ``into``."""
    found, base = U(0), U(0)
    for i in range(marks.size):
        left = marks[i]
        while left:
            into[found] = np.int32(keys[base + lowest_mark(left)] & ABS)
            left &= left - U(1)
            found += U(1)
        base += U(64)


@njit
def collect_between(keys, low, high, into):
    """Writes the magnitudes in [low, high) to ``into``, which may be ``keys``; returns how many."""
    found, whole, width = U(0), keys.size & ~63, np.int32(high - low)
    for start in range(U(0), U(whole), U(64)):
        marks = marks_within(U(keys.ctypes.data) + U(4) * start, low, width)
        while marks:
            into[found] = np.int32(keys[start + lowest_mark(marks)] & ABS)
            marks &= marks - U(1)
            found += U(1)
    for i in range(U(whole), U(keys.size)):
        key = np.int32(keys[i] & ABS)
        if key >= low and key < high:
            into[found] = key
            found += U(1)
    return np.int64(found)


@njit
def survey_and_rank(keys, rank):
    """What :func:`survey` finds first, and the bit pattern of the ``rank``-th largest magnitude, 0 if fewer are not zero.

    A sample brackets it, one pass over all counts and collects what is within the bracket, and what was collected is sorted.
    """
    size = keys.size
    sample = sample_of(size)
    work, bins = np.empty(max(2 * sample, size >> 3) + 64, np.int32), np.empty(1024, np.int32)
    low, high = np.int32(0), ABS
    if size > work.size:
        low, high = bracket_of(keys, rank, sample, work, bins)
    nonzero, is_signed, is_finite, num_low, num_high, found = survey(keys, low, high, work)
    if nonzero < rank:  # infinite ones have their rank: weighed scores of finite values may overflow
        return nonzero, is_signed, is_finite, np.int32(0)
    if num_low < rank:
        low, num_low, high, num_high, found = np.int32(0), size, low, num_low, -1
    elif num_high >= rank:
        low, num_low, high, num_high, found = high, num_high, ABS, 0, -1
    if found != num_low - num_high:
        low, high, num_low, num_high = narrow(keys, rank, low, high, num_low, num_high, work.size)
        found = collect_between(keys, low, high, work) if high - low > 1 else 0
    place = rank_by_radix(work, found, rank - num_high, bins) if high - low > 1 else low
    return nonzero, is_signed, is_finite, place


@njit
def kth_largest(keys, rank):
    """Bit pattern of the ``rank``-th largest magnitude, which is not zero."""
    return survey_and_rank(keys, rank)[3]


@inlined
def sample_of(size):
    """So many elements tell about where the K-th largest is."""
    return 8192 if size > 1 << 19 else (2048 if size > 1 << 15 else 256)


@njit
def bracket_of(keys, rank, sample, work, bins):
    """Two bit patterns between which the ``rank``-th largest magnitude lies, most likely."""
    size, stride = keys.size, U(keys.size // sample)
    for i in range(U(sample)):  # not at even distances, which may hit the same few channels again and again
        shift = ((i * U(0x9E3779B1) & U(0xFFFFFFFF)) * stride) >> U(32)
        work[i] = keys[i * stride + shift] & ABS
    work[sample : 2 * sample] = work[:sample]
    share = rank / size
    slack = 2.7 * (np.sqrt(share * (1 - share) * sample) + 1.0)
    low, high = np.int32(0), ABS
    if share * sample - slack >= 1:
        high = np.int32(rank_by_radix(work, sample, int(share * sample - slack), bins) + 1)
    if share * sample + slack + 1 <= sample:
        low = rank_by_radix(work[sample:], sample, int(share * sample + slack) + 1, bins)
    return low, high


@njit
def narrow(keys, rank, low, high, num_low, num_high, few):
    """Shrinks a bracket until few keys are left in it: guesses around the expected place, and halves in turn against bad luck."""
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
def rank_by_radix(work, size, rank, bins):
    """The ``rank``-th largest of ``work[:size]``, which is used up; ``bins`` has room for 1024."""
    low, most = work[0], work[0]
    for i in range(size):
        low, most = min(low, work[i]), max(most, work[i])
    num_bins = 1024 if size > 1024 else 128
    while True:
        span = np.int64(most) - np.int64(low)
        shift = 0
        while (span >> shift) >= num_bins:
            shift += 1
        bins[:num_bins] = 0
        for i in range(size):
            bins[U(work[i] - low) >> U(shift)] += np.int32(1)
        place, above = span >> shift, 0
        while above + bins[place] < rank:
            above += bins[place]
            place -= 1
        rank -= above
        low = np.int32(low + (place << shift))
        if shift == 0:
            return low
        after = np.int32(min(np.int64(low) + (1 << shift), np.int64(ABS)))
        size = collect_between(work[:size], low, after, work)
        most = np.int32(after - 1)


# -- scores ---------------------------------------------------------------------------------------------------------


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


@njit
def least_kept(values, scores, threshold):
    """The least magnitude among elements whose score reaches the threshold."""
    least = np.float32(np.inf)
    for i in range(values.size):
        if abs(scores[i]) >= threshold:
            least = min(least, abs(values[i]))
    return least
