"""Compiled loops of profile ``serverlight``: nothing here reads configuration, allocates outputs or raises.

Integers are cast at every step on purpose: the compiler's own promotion to 64 bits would halve the width of its vectors. The
definition of what is computed is in ``reference.py``.
"""

from __future__ import annotations

import types
from typing import Any

import numba
import numpy as np

from serverlight.codec import tables

njit = numba.njit(cache=True, nogil=True, error_model="numpy")
inlined = numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")

ABS = np.int32(0x7FFFFFFF)
SAMPLE = 2048
U = np.uint64


def compiled(*names: str) -> list[Any]:
    """Functions of :mod:`serverlight.codec.tables` as machine code: the same definition, at another speed.

    ``names`` come in an order in which each function calls only earlier ones.
    """
    namespace = dict(vars(tables))
    for name in names:
        source = vars(tables)[name]
        copy = types.FunctionType(source.__code__, namespace, name)
        copy.__qualname__, copy.__module__ = f"compiled.{name}", __name__
        namespace[name] = njit(copy)
    return [namespace[name] for name in names]


(
    class_of_nibble,
    count_nibble,
    count_decisions,
    price,
    clamp_level,
    correction_bits,
    total_price,
    best_offset,
    best_correction,
    fit_levels,
    payload_bits,
    nibble_shares,
    frequency_of,
    settle,
    build_tables,
    levels_of,
    put_bits,
    put_correction,
    pack_model,
    get_bits,
    unpack_model,
) = compiled(
    "class_of_nibble",
    "count_nibble",
    "count_decisions",
    "price",
    "clamp_level",
    "correction_bits",
    "total_price",
    "best_offset",
    "best_correction",
    "fit_levels",
    "payload_bits",
    "nibble_shares",
    "frequency_of",
    "settle",
    "build_tables",
    "levels_of",
    "put_bits",
    "put_correction",
    "pack_model",
    "get_bits",
    "unpack_model",
)


# -- filter: the K-th largest score ------------------------------------------------------------------------


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
    for start in range(0, keys.size, 256):
        part = keys[start : min(start + 256, keys.size)]
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
    while True:
        span = np.int64(high) - np.int64(low)
        if span == 0:
            return low
        shift = 0
        while (span >> shift) >= 1024:
            shift += 1
        bins[:1024] = 0
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
def kth_largest(keys, rank, work, bins):
    """Bit pattern of the ``rank``-th largest magnitude: a sample brackets it, counting narrows, sorting the rest ends."""
    size = keys.size
    if size <= 4 * SAMPLE:
        for i in range(size):
            work[i] = keys[i] & ABS
        return rank_by_radix(work, size, rank, bins)
    for i in range(SAMPLE):
        work[i] = keys[i * (size // SAMPLE)] & ABS
    work[SAMPLE : 2 * SAMPLE] = work[:SAMPLE]
    share = rank / size
    slack = 3.5 * (np.sqrt(share * (1 - share) * SAMPLE) + 1.0)
    low, high = np.int32(0), ABS
    if share * SAMPLE - slack >= 1:
        high = np.int32(rank_by_radix(work, SAMPLE, int(share * SAMPLE - slack), bins) + 1)
    work[:SAMPLE] = work[SAMPLE : 2 * SAMPLE]
    if share * SAMPLE + slack + 1 <= SAMPLE:
        low = rank_by_radix(work, SAMPLE, int(share * SAMPLE + slack) + 1, bins)
    num_low, num_high = count_at_least(keys, low, high)
    if num_low < rank:
        low, num_low = np.int32(0), size
    if num_high >= rank:
        low, num_low, high, num_high = high, num_high, ABS, 0
    low, high, num_low, num_high = narrow(keys, rank, low, high, num_low, num_high)
    if high - low <= 1:
        return low
    return rank_by_radix(work, collect_between(keys, low, high, work), rank - num_high, bins)


@njit
def narrow(keys, rank, low, high, num_low, num_high):
    """Shrinks a bracket until few keys are left in it: guesses around the expected place, and halves in turn against bad luck."""
    few = max(64, keys.size >> 11)
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
def weigh(values, asymmetry, scores):
    """Scores of an asymmetric filter; a score that would round to zero keeps the least magnitude there is."""
    tiny = np.float32(1e-45)
    for i in range(values.size):
        value = values[i]
        score = value if value >= 0 else -value * asymmetry
        scores[i] = tiny if (score == 0 and value != 0) else score


# -- quantiser -------------------------------------------------------------------------------------------------


@njit
def survey(values):
    """Number of non-zero elements, and whether one is negative."""
    nonzero, negative = 0, 0
    for start in range(0, values.size, 16384):
        part = values[start : min(start + 16384, values.size)]
        num_nonzero, num_negative = np.int32(0), np.int32(0)
        for i in range(part.size):
            num_nonzero = np.int32(num_nonzero + (part[i] != 0))
            num_negative = np.int32(num_negative + (part[i] < 0))
        nonzero += num_nonzero
        negative += num_negative
    return nonzero, negative > 0


@njit
def least_kept(values, scores, threshold):
    """The least magnitude among elements whose score reaches the threshold."""
    least = np.float32(np.inf)
    for i in range(values.size):
        if abs(scores[i]) >= threshold:
            least = min(least, abs(values[i]))
    return least


@njit
def quantise(values, scores, threshold, inverse, out):
    """Signed numbers of steps; returns how many scores reach the threshold."""
    most, rounding, one = np.float32(2**28), np.float32(0.4), np.int32(1)
    reached = 0
    for start in range(0, values.size, 16384):
        end = min(start + 16384, values.size)
        part, score, into = values[start:end], scores[start:end], out[start:end]
        num_reached = np.int32(0)
        for i in range(part.size):
            number = np.int32(min(abs(part[i]) * inverse, most) + rounding)
            number = max(number, one)
            kept = abs(score[i]) >= threshold
            number = number if kept else np.int32(0)
            into[i] = -number if part[i] < 0 else number
            num_reached = np.int32(num_reached + kept)
        reached += num_reached
    return reached


@njit
def drop_ties(scores, threshold, surplus, out):
    """Takes back the last elements that only tie with the threshold."""
    i = scores.size - 1
    while surplus > 0:
        if abs(scores[i]) == threshold:
            out[i] = 0
            surplus -= 1
        i -= 1


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


@njit
def give_raw(high, packed, bits, quantised):
    """Joins high parts and low bits; ``packed`` has been proved long enough."""
    held, count, at = U(0), 0, 0
    mask = U((1 << bits) - 1)
    for i in range(high.size):
        number = np.int64(high[i])
        if number == 0:
            quantised[i] = 0
            continue
        while count < bits:
            held |= U(packed[at]) << U(count)
            at += 1
            count += 8
        magnitude = ((abs(number) - 1) << bits) + np.int64(held & mask) + 1
        held >>= U(bits)
        count -= bits
        quantised[i] = -magnitude if number < 0 else magnitude


@njit
def count_nonzero(high):
    """Number of non-zero elements."""
    total = 0
    for i in range(high.size):
        total += high[i] != 0
    return total


# -- reconstruction ----------------------------------------------------------------------------------------------


# Arrays are indexed as [plane, row, column] with offsets that the compiler can prove to be positive: an index that might wrap
# around, as negative ones do in Python, would keep a loop from being turned into vectors.


@njit
def pad_row(high, plane, row, padded, into):
    """Copies a row of a plane to row ``into`` of ``padded``, between zeros; a row outside the plane is zeros."""
    if row < 0 or row >= high.shape[1]:
        for x in range(high.shape[2]):
            padded[into, x + 1] = 0
    else:
        for x in range(high.shape[2]):
            padded[into, x + 1] = high[plane, row, x]


@njit
def signed_classes(padded, row, places):
    """Class of each element of line ``row + 1`` of a signed plane, plus 20, 10 or 0 for a direction of +1, 0 or -1."""
    zero, one, two, four = np.int32(0), np.int32(1), np.int32(2), np.int32(4)
    for x in range(places.size):
        number = padded[row + 1, x + 1]
        beside = np.int32(padded[row + 1, x] + padded[row + 1, x + 2])
        around = np.int32(beside + np.int32(padded[row, x + 1] + padded[row + 2, x + 1]))
        magnitude = np.int32(abs(number))
        leaning = np.int32(-around) if number < zero else around
        ones = np.int32(np.int32(5) + min(max(np.int32(np.int32(leaning + four) >> two), zero), two))
        larger = np.int32(8) if magnitude == two else np.int32(9)
        zeros = min(np.int32(abs(around)), four)
        place = zeros if magnitude == zero else (ones if magnitude == one else larger)
        decides = around if magnitude == zero else number
        turn = np.int32(np.int32(decides > zero) - np.int32(decides < zero) + one)
        places[x] = np.int32(place + np.int32(10) * turn)


@njit
def one_sided_classes(padded, row, places):
    """The same for a plane without negative elements: the direction is always +1."""
    zero, one, two, four = np.int32(0), np.int32(1), np.int32(2), np.int32(4)
    for x in range(places.size):
        number = padded[row + 1, x + 1]
        beside = np.int32(padded[row + 1, x] + padded[row + 1, x + 2])
        around = np.int32(beside + np.int32(padded[row, x + 1] + padded[row + 2, x + 1]))
        ones = np.int32(np.int32(5) + min(np.int32(around >> one), two))
        larger = np.int32(8) if number == two else np.int32(9)
        place = min(around, four) if number == zero else (ones if number == one else larger)
        places[x] = np.int32(place + np.int32(20))


@njit
def tally(values, inverse, quantised, places, sums, counts):
    """Adds the distances of one line's elements from their nominal values, in 64ths of a step."""
    most = np.float32(2**28)
    for x in range(places.size):
        scaled = np.rint(max(min(values[x] * inverse, most), -most) * np.float32(64))
        place = places[x]
        sums[place] += np.int64(scaled) - 64 * np.int64(quantised[x])
        counts[place] += 1


@njit
def measure_plane_shifts(values, inverse, quantised, high, one_sided, every, sums, counts):
    """Sums of distances and numbers of elements by class and direction, over every so-manieth row."""
    planes, rows, columns = high.shape
    padded, places = np.zeros((3, columns + 2), np.int32), np.empty(columns, np.int32)
    for line in range(0, planes * rows, every):
        plane, row = line // rows, line % rows
        for into in range(3):
            pad_row(high, plane, row - 1 + into, padded, into)
        if one_sided:
            one_sided_classes(padded, 0, places)
        else:
            signed_classes(padded, 0, places)
        tally(values[plane, row], inverse, quantised[plane, row], places, sums, counts)


@njit
def measure_shifts(values, inverse, quantised, high, columns, one_sided, every, sums, counts):
    """The same where elements have no neighbours, over every so-manieth run of ``columns`` elements."""
    for begin in range(0, values.size, columns * every):
        end = min(begin + columns, values.size)
        here = high[begin:end]
        places = np.empty(end - begin, np.int32)
        zero, one, two = np.int32(0), np.int32(1), np.int32(2)
        for x in range(places.size):
            number = here[x]
            magnitude = np.int32(abs(number))
            larger = np.int32(8) if magnitude == two else np.int32(9)
            place = zero if magnitude == zero else (np.int32(5) if magnitude == one else larger)
            turn = two if one_sided else np.int32(np.int32(number > zero) - np.int32(number < zero) + one)
            places[x] = np.int32(place + np.int32(10) * turn)
        tally(values[begin:end], inverse, quantised[begin:end], places, sums, counts)


@njit
def reconstruct_planes(quantised, high, one_sided, turned_shifts, unit, out):
    """Values from numbers of steps and the neighbourhood's shift, which knows its direction; all with three dimensions."""
    planes, rows, columns = high.shape
    padded, places = np.zeros((rows + 2, columns + 2), np.int32), np.empty(columns, np.int32)
    for plane in range(planes):
        for row in range(rows):
            pad_row(high, plane, row, padded, row + 1)
        for row in range(rows):
            if one_sided:
                one_sided_classes(padded, row, places)
            else:
                signed_classes(padded, row, places)
            for x in range(columns):
                steps = 64 * np.int64(quantised[plane, row, x])
                out[plane, row, x] = np.float32(steps + turned_shifts[places[x]]) * unit


@njit
def reconstruct(quantised, high, one_sided, shifts, unit, out):
    """Values from numbers of steps and the magnitude's shift."""
    zero, one, two, more = shifts[0], shifts[5], shifts[8], shifts[9]
    for i in range(quantised.size):
        magnitude = abs(high[i])
        shift = zero if magnitude == 0 else (one if magnitude == 1 else (two if magnitude == 2 else more))
        if not one_sided:
            shift = -shift if high[i] < 0 else shift
        out[i] = np.float32(64 * np.int64(quantised[i]) + shift) * unit
