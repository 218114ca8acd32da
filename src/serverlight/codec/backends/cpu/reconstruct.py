"""Compiled loops of profile ``serverlight``: reconstruction classes, their shifts measured by the writer and used by the reader.

The writer's lines of planes lie in a *padded* array, with two columns of zeros to the left and at least one to the right, so
that neighbours beyond the border need no branch.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec import tables
from serverlight.codec.backends.cpu.compiled import ABS, inlined, njit
from serverlight.codec.backends.cpu.quantiser import high_of, number_of
from serverlight.codec.coded import DEFAULT_SHIFTS, WORTH_OF_SHIFT

TOKENS, PLANES, TRELLIS = 1, 2, tables.TRELLIS


@njit
def neighbourhood(padded, first, size):
    """Runs of ``size`` elements of a padded plane: those from ``first`` on, and what lies beside, above and below them."""
    flat, width = padded.reshape(-1), padded.shape[1]
    return (
        flat[first : first + size],
        flat[first - 1 : first - 1 + size],
        flat[first + 1 : first + 1 + size],
        flat[first - width : first - width + size],
        flat[first + width : first + width + size],
    )


@njit
def signed_classes(run, places):
    """Class of each element of a run of a signed plane, plus 20, 10 or 0 for a direction of +1, 0 or -1."""
    here, left, right, up, down = run
    zero, one, two, four = np.int32(0), np.int32(1), np.int32(2), np.int32(4)
    for i in range(places.size):
        number = here[i]
        around = np.int32(np.int32(left[i] + right[i]) + np.int32(up[i] + down[i]))
        magnitude = np.int32(abs(number))
        leaning = np.int32(-around) if number < zero else around
        ones = np.int32(np.int32(5) + min(max(np.int32(np.int32(leaning + four) >> two), zero), two))
        larger = np.int32(8) if magnitude == two else np.int32(9)
        zeros = min(np.int32(abs(around)), four)
        place = zeros if magnitude == zero else (ones if magnitude == one else larger)
        decides = around if magnitude == zero else number
        turn = np.int32(np.int32(decides > zero) - np.int32(decides < zero) + one)
        places[i] = np.int32(place + np.int32(10) * turn)


@njit
def one_sided_classes(run, places):
    """The same for a plane without negative elements: the direction is always +1."""
    here, left, right, up, down = run
    zero, one, two, four = np.int32(0), np.int32(1), np.int32(2), np.int32(4)
    for i in range(places.size):
        number = here[i]
        around = np.int32(np.int32(left[i] + right[i]) + np.int32(up[i] + down[i]))
        ones = np.int32(np.int32(5) + min(np.int32(around >> one), two))
        larger = np.int32(8) if number == two else np.int32(9)
        place = min(around, four) if number == zero else (ones if number == one else larger)
        places[i] = np.int32(place + np.int32(20))


# -- writing: shifts ---------------------------------------------------------------------------------------------


@njit
def tally(values, inverse, numbers, places, distances, sums, counts):
    """Adds the distances of one line's elements from their nominal values, in 64ths of a step; four tables take turns."""
    most = np.float32(2**28)
    for x in range(places.size):
        scaled = np.rint(max(min(values[x] * inverse, most), -most) * np.float32(64))
        distances[x] = np.int64(scaled) - np.int64(64) * np.int64(number_of(values[x], numbers[x] != 0, inverse))
    for x in range(places.size):
        sums[x & 3, places[x]] += distances[x]
        counts[x & 3, places[x]] += 1


@njit
def measure_plane_shifts(values, inverse, numbers, bits, one_sided, every, shifts, seen):
    """Shifts by class from every so-manieth row, and how many elements of each were looked at.

    ``values`` and ``numbers`` have three dimensions, ``shifts`` and ``seen`` the shape (10,).
    """
    planes, rows, columns = numbers.shape
    padded, places = np.zeros((3, columns + 4), np.int32), np.empty(columns, np.int32)
    distances, run = np.empty(columns, np.int64), neighbourhood(padded, columns + 6, columns)
    sums, counts = np.zeros((4, 30), np.int64), np.zeros((4, 30), np.int64)
    for line in range(0, planes * rows, every):
        plane, row = line // rows, line % rows
        for into in range(3):
            source = row - 1 + into
            if source < 0 or source >= rows:
                padded[into, :] = 0
            else:
                for x in range(columns):
                    number = number_of(values[plane, source, x], numbers[plane, source, x] != 0, inverse)
                    padded[into, x + 2] = high_of(number, bits)
        if one_sided:
            one_sided_classes(run, places)
        else:
            signed_classes(run, places)
        tally(values[plane, row], inverse, numbers[plane, row], places, distances, sums, counts)
    for place in range(10):
        against, along = sums[:, place].sum(), sums[:, 20 + place].sum()
        seen[place] = counts[:, place].sum() + counts[:, 10 + place].sum() + counts[:, 20 + place].sum()
        shifts[place] = settled(along - against, seen[place])


@inlined
def settled(total, times):
    """A mean, rounded to 64ths of the step and held within a byte; none where nothing was seen."""
    return min(max((2 * total + times) // (2 * times), -127), 127) if times > 0 else 0


@njit
def add_run(values, inverse, numbers, bits, sums, counts):
    """Adds a run of at most 1024 elements without neighbours to the sums of classes 0, 1, 2 and more; the run must not be wide.

    Returns whether it was, in which case nothing was added.
    """
    zero, most, keys, largest = np.int32(0), np.float32(2**28), values.view(np.int32), np.int32(0)
    for x in range(values.size):
        largest = max(largest, np.int32(keys[x] & ABS))
    if not np.int32(largest).view(np.float32) * inverse < np.float32(
        1 << 14
    ):  # then 1024 distances in 64ths of a step may not fit 32 bits
        return True
    s0, s1, s2, s3, c0, c1, c2 = zero, zero, zero, zero, zero, zero, zero
    for x in range(values.size):
        number = number_of(values[x], numbers[x] != 0, inverse)
        magnitude = np.int32(abs(high_of(number, bits)))
        scaled = np.int32(np.rint(max(min(values[x] * inverse, most), -most) * np.float32(64)))
        distance = np.int32(scaled - np.int32(np.int32(64) * number))
        distance = np.int32(-distance) if number < 0 else distance
        s0 = np.int32(s0 + (distance if magnitude == 0 else zero))
        s1 = np.int32(s1 + (distance if magnitude == 1 else zero))
        s2 = np.int32(s2 + (distance if magnitude == 2 else zero))
        s3 = np.int32(s3 + (distance if magnitude > 2 else zero))
        c0 = np.int32(c0 + np.int32(magnitude == 0))
        c1 = np.int32(c1 + np.int32(magnitude == 1))
        c2 = np.int32(c2 + np.int32(magnitude == 2))
    sums[0] += s0
    sums[1] += s1
    sums[2] += s2
    sums[3] += s3
    counts[0] += c0
    counts[1] += c1
    counts[2] += c2
    counts[3] += values.size - c0 - c1 - c2
    return False


@njit
def add_wide_run(values, inverse, numbers, bits, sums, counts):
    """The same for elements of any size."""
    most = np.float32(2**28)
    for x in range(values.size):
        number = number_of(values[x], numbers[x] != 0, inverse)
        place = min(abs(high_of(number, bits)), 3)
        scaled = np.rint(max(min(values[x] * inverse, most), -most) * np.float32(64))
        distance = np.int64(scaled) - np.int64(64) * np.int64(number)
        sums[place] += -distance if number < 0 else distance
        counts[place] += 1


@njit
def measure_shifts(values, inverse, numbers, bits, run, one_sided, every, shifts, seen):
    """The same where elements have no neighbours, over every so-manieth run of ``run`` elements."""
    sums, counts = np.zeros(4, np.int64), np.zeros(4, np.int64)
    for begin in range(0, values.size, run * every):
        end = min(begin + run, values.size)
        for start in range(begin, end, 1024):
            stop = min(start + 1024, end)
            part = values[start:stop], inverse, numbers[start:stop], bits, sums, counts
            if add_run(*part):
                add_wide_run(*part)
    shifts[0] = settled(sums[0], counts[0]) if one_sided else 0
    shifts[5], shifts[8], shifts[9] = (
        settled(sums[1], counts[1]),
        settled(sums[2], counts[2]),
        settled(sums[3], counts[3]),
    )
    seen[0], seen[5], seen[8], seen[9] = counts[0], counts[1], counts[2], counts[3]


@njit
def layout_of(kind):
    """What :func:`serverlight.codec.coded.layout_of_kind` returns."""
    return TOKENS if kind == TRELLIS else min(kind, PLANES)


@njit
def is_shift_sent(place, kind, one_sided):
    """Whether a frame may carry the shift of a class (section 6.7)."""
    return (layout_of(kind) == PLANES or place == 0 or place == 5 or place >= 8) and (place > 0 or one_sided)


@njit
def set_default_shifts(kind, one_sided, shifts):
    """The shifts of a short section that carries none."""
    for place in range(10):
        shifts[place] = DEFAULT_SHIFTS[kind, place] if is_shift_sent(place, kind, one_sided) else 0


@njit
def are_shifts_worthy(shifts, seen, every, kind, one_sided):
    """Whether a short section carries the shifts; see :func:`serverlight.codec.coded.settled_shifts`."""
    saved, num_sent = 0, 0
    for place in range(10):
        if is_shift_sent(place, kind, one_sided):
            saved += seen[place] * (shifts[place] - DEFAULT_SHIFTS[kind, place]) ** 2
            num_sent += 1
    return saved * every > WORTH_OF_SHIFT * num_sent


# -- reading: values ---------------------------------------------------------------------------------------------


@njit
def signed_lifts(run, shifts, lifts):
    """What each element of a signed plane is shifted by, in 64ths of a step, from numbers of 16 bits.

    ``run`` has the elements, the sums of those beside them, those above and those below. ``shifts`` has 16 bits too: a wider
    number would make a loop's vectors wider.
    """
    here, sides, up, down = run
    zero, one, two, three, four = np.int16(0), np.int16(1), np.int16(2), np.int16(3), np.int16(4)
    z1, z2, z3, z4 = shifts[1], shifts[2], shifts[3], shifts[4]
    o0, o1, o2 = shifts[5], shifts[6], shifts[7]
    m2, m3 = shifts[8], shifts[9]
    for i in range(lifts.size):
        number = here[i]
        around = np.int16(sides[i] + np.int16(up[i] + down[i]))
        magnitude = np.int16(abs(number))
        leaning = np.int16(-around) if number < zero else around
        ones = o2 if leaning >= four else (o1 if leaning >= zero else o0)
        near = np.int16(abs(around))
        zeros = (
            z4 if near >= four else (z3 if near == three else (z2 if near == two else (z1 if near == one else zero)))
        )
        lift = zeros if magnitude == zero else (ones if magnitude == one else (m2 if magnitude == two else m3))
        decides = around if magnitude == zero else number
        lifts[i] = np.int16(-lift) if decides < zero else lift


@njit
def one_sided_lifts(run, shifts, lifts):
    """The same for a plane without negative elements."""
    here, sides, up, down = run
    zero, one, two, three, four = np.int16(0), np.int16(1), np.int16(2), np.int16(3), np.int16(4)
    z0, z1, z2 = shifts[0], shifts[1], shifts[2]
    z3, z4 = shifts[3], shifts[4]
    o0, o1, o2 = shifts[5], shifts[6], shifts[7]
    m2, m3 = shifts[8], shifts[9]
    for i in range(lifts.size):
        number = here[i]
        around = np.int16(sides[i] + np.int16(up[i] + down[i]))
        ones = o2 if around >= four else (o1 if around >= two else o0)
        zeros = z4 if around >= four else (z3 if around == three else z2)
        zeros = z0 if around == zero else (z1 if around == one else zeros)
        lifts[i] = zeros if number == zero else (ones if number == one else (m2 if number == two else m3))


@njit
def wide_lifts(high, one_sided, shifts, lifts):
    """The same for either kind of plane and numbers of any size; ``high`` and ``lifts`` have two dimensions."""
    rows, columns = high.shape
    for row in range(rows):
        for x in range(columns):
            around = (high[row - 1, x] if row else 0) + (high[row + 1, x] if row + 1 < rows else 0)
            around += (high[row, x - 1] if x else 0) + (high[row, x + 1] if x + 1 < columns else 0)
            number, magnitude = high[row, x], abs(high[row, x])
            decides = around if number == 0 else number
            if magnitude == 0:
                place = min(abs(around), 4)
            elif magnitude == 1:
                leaning = around >> 1 if one_sided else (around * number + 4) >> 2
                place = 5 + min(max(leaning, 0), 2)
            else:
                place = 8 if magnitude == 2 else 9
            turned = decides < 0 and not one_sided
            lift = 0 if place == 0 and not one_sided else shifts[place]
            lifts[row, x] = -lift if turned else lift


@njit
def plain_lifts(high, one_sided, shifts, lifts):
    """The same where elements have no neighbours."""
    zero, one, two = np.int32(0), np.int32(1), np.int32(2)
    s0, s1 = np.int32(shifts[0]), np.int32(shifts[5])
    s2, s3 = np.int32(shifts[8]), np.int32(shifts[9])
    s0 = s0 if one_sided else zero
    least = np.int32(-2147483648) if one_sided else zero
    for x in range(lifts.size):
        magnitude = np.int32(abs(high[x]))
        lift = s0 if magnitude == zero else (s1 if magnitude == one else (s2 if magnitude == two else s3))
        lifts[x] = np.int32(-lift) if high[x] < least else lift


@njit
def place_values(numbers, lifts, unit, out):
    """Values of a line from its numbers of steps, at most 2^24 in magnitude."""
    for x in range(out.size):
        out[x] = np.float32(np.int32(np.int32(64) * np.int32(numbers[x]) + np.int32(lifts[x]))) * unit


@njit
def place_large_values(numbers, lifts, unit, out):
    """The same for numbers of 64 bits."""
    for x in range(out.size):
        out[x] = np.float32(np.int64(64) * np.int64(numbers[x]) + np.int64(lifts[x])) * unit


@njit
def hold_within(values, largest):
    """Holds values within a dtype's finite range."""
    for i in range(values.size):
        values[i] = min(max(values[i], -largest), largest)
