"""Compiled loops of profile ``serverlight``: the cheapest paths of tokens along a trellis.

The definition of what is computed is in ``reference/trellis.py``. Channels go side by side, ``WIDTH`` at a time. What is known of
them is one array, whose places are known when the loops are compiled: so the loops become vectors.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec import activity, trellis
from serverlight.codec.backends.cpu.compiled import inlined, njit
from serverlight.codec.backends.cpu.model import (
    COST,
    DEFAULT_LEVELS,
    FIRST,
    FLIP_NEXT,
    NEXT,
    count_decisions,
    fit_levels,
    levels_of,
    nibble_costs,
)
from serverlight.codec.backends.cpu.quantiser import magnitude_sum
from serverlight.codec.backends.cpu.symbols import (
    borders_of,
    histogram_over,
    nearest_activity,
    shift_of,
    starts_of,
)
from serverlight.codec.backends.cpu.trellis import NUM_ROWS, TRELLIS, trellis_symbols

U = np.uint64
ACTIVITY = activity.ACTIVITY
NUM_STATES, TRADE = len(trellis.MOVES), np.int32(trellis.TRADE)
OUT_OF_REACH = 1 << 30
WIDTH = 64

TOTAL, BUSY, LEAN, PLACE, NUMBER, NUM_FIELDS = 0, 1, 2, 3, 4, 5
"""What is known of the cheapest path to each state: its price, the running means, ``32 context + turn`` of the next number, and the
first number of a pair."""
FIELD = NUM_STATES * WIDTH
SIDE = NUM_FIELDS * FIELD
"""The first number of a pair leads from the lower half of the array to the upper one, and the second back."""
INDICES, SIZE = 2 * SIDE, 2 * SIDE + 2 * WIDTH
"""Behind both halves: where prices of the candidates are found."""


@njit
def lead(values, inverse, rows, columns, spreads, numbers):
    """Makes numbers of steps numbers along a trellis: what :func:`serverlight.codec.backends.reference.trellis.path_of` returns.

    Args:
        values: float32, shape (n,).
        inverse: the reciprocal of the trellis' step, float32.
        rows, columns: of the tensor.
        spreads: of the channels; empty if there are none.
        numbers: int16, shape (n,): those without a trellis, and then the path's.
    """
    levels, costs = DEFAULT_LEVELS[TRELLIS], np.empty((DEFAULT_LEVELS[TRELLIS].shape[0], 16), np.int64)
    targets = np.zeros(values.size + WIDTH, np.int32)
    for i in range(values.size):
        targets[i] = np.int32(np.rint(values[i] * inverse * np.float32(64)))
    for index in range(2):
        start = nearest_activity(magnitude_sum(values, numbers, inverse, 0), numbers.size)
        if index:
            symbols = np.empty((rows + 1) // 2 * columns, np.uint16)
            trellis_symbols(numbers, rows, columns, ACTIVITY[start], spreads, symbols)
            histogram = histogram_over(symbols, 2 * NUM_ROWS)
            counts = count_decisions(histogram, FIRST[TRELLIS], NEXT[TRELLIS], FLIP_NEXT[TRELLIS], False)
            offsets, _, corrections = fit_levels(counts, DEFAULT_LEVELS[TRELLIS], False, COST)
            levels = levels_of(DEFAULT_LEVELS[TRELLIS], offsets, corrections)
        for context in range(levels.shape[0]):
            nibble_costs(levels[context], COST, costs[context])
        follow(targets, rows, columns, prices_of(costs), ACTIVITY[start], spreads, numbers)


@njit
def prices_of(costs):
    """What the bits of the candidates cost, 16 bits each: the nearest number, the next larger and smaller in magnitude, and zero.

    By quantiser and context, the nearest magnitude, 9 standing for larger ones, and whether the sign is the rarer one.
    """
    prices = np.zeros(32 * costs.shape[0], np.int64)
    for row in range(costs.shape[0]):
        for magnitude in range(10):
            for is_down in range(2):
                nibble, own = 2 * magnitude - 1 + is_down, costs[row]
                pair = own[max(min(nibble, 15), 0)] | own[min(nibble + 2, 15)] << 16
                other_pair = own[max(min(nibble - 2, 15), 0)] | own[0] << 16
                prices[32 * row + 2 * magnitude + is_down] = pair | other_pair << 32
    return prices


@njit
def follow(targets, rows, columns, prices, begin, spreads, numbers):
    """The cheapest path of each channel; ``targets`` are in 64ths of the step."""
    borders, starts = borders_of(begin), starts_of(begin, spreads, columns)
    paths, room = np.empty((rows, NUM_STATES * WIDTH), np.int16), np.empty(SIZE, np.int32)
    found = np.empty(4 * WIDTH, np.int32)
    for first in range(0, columns, WIDTH):
        width = min(WIDTH, columns - first)
        begin_paths(starts[first : first + width], borders, room)
        for row in range(0, rows, 2):
            line = targets[row * columns + first : row * columns + first + WIDTH]
            shift = shift_of(row // 2, spreads.size > 0)
            FIRST_FROM_EVEN(line, prices, found, shift, borders, room, paths[row])
            FIRST_FROM_ODD(line, prices, found, shift, borders, room, paths[row])
            if row + 1 < rows:
                line = targets[(row + 1) * columns + first : (row + 1) * columns + first + WIDTH]
                SECOND_FROM_EVEN(line, prices, found, shift, borders, room, paths[row + 1])
                SECOND_FROM_ODD(line, prices, found, shift, borders, room, paths[row + 1])
                lower(room)
        trace(room[rows % 2 * SIDE :], paths, width, numbers[first:], columns)


@njit
def begin_paths(starts, borders, room):
    """Every path begins in state 0, with what channels start with."""
    room[:] = 0
    b0, b1, b2, b3, b4, b5, b6 = borders[0], borders[1], borders[2], borders[3], borders[4], borders[5], borders[6]
    for state in range(NUM_STATES):
        for channel in range(WIDTH):
            at = state * WIDTH + channel
            busy = starts[min(channel, starts.size - 1)]
            room[TOTAL * FIELD + at] = OUT_OF_REACH if state else 0
            room[BUSY * FIELD + at] = busy
            room[PLACE * FIELD + at] = place_of(busy, np.int32(0), b0, b1, b2, b3, b4, b5, b6)


@inlined
def place_of(busy, lean, b0, b1, b2, b3, b4, b5, b6):
    """Context and turn of the first of a pair, see :func:`serverlight.codec.backends.cpu.symbols.token_contexts`."""
    level = np.int32(busy >= b0) + np.int32(busy >= b1) + np.int32(busy >= b2) + np.int32(busy >= b3)
    level += np.int32(busy >= b4) + np.int32(busy >= b5) + np.int32(busy >= b6)
    is_leaning = np.int32(np.int32(abs(lean)) << np.int32(3)) >= np.int32(np.int32(np.int32(3) * busy) + np.int32(24))
    return np.int32(np.int32(level << np.int32(6)) | np.int32(is_leaning) << np.int32(5) | np.int32(lean < 0))


@inlined
def place_after(place, number):
    """Context and turn of the second of a pair, by those of the first and its number (section 6.5)."""
    one, most = np.int32(1), np.int32(7)
    level, turn = np.int32(place >> np.int32(6)), np.int32(place & one)
    leaning = np.int32(np.int32(place >> np.int32(5)) & one)
    is_up = np.int32(np.int32(number > 0) ^ turn)
    busier, calmer = np.int32(min(np.int32(level + one), most)), np.int32(max(np.int32(level - one), np.int32(0)))
    is_zero = number == 0
    level = calmer if is_zero else busier
    leans = leaning if is_zero else np.int32(is_up | np.int32(one - leaning))
    turns = np.int32(0) if is_zero else np.int32(np.int32(one - is_up) & np.int32(one - leaning))
    return np.int32(np.int32(level << np.int32(6)) | np.int32(leans << np.int32(5)) | np.int32(turn ^ turns))


@inlined
def priced(distance, bits):
    """A squared error and the bits beside it."""
    return np.int32(np.int32(distance * distance) + np.int32(TRADE * np.int32(bits & np.int32(0xFFFF))))


@inlined
def judged(target, quantiser, lower, upper, total):
    """What the paths to the cheapest even and to the cheapest odd number near a target cost from a state, and the numbers.

    ``lower`` and ``upper`` are the halves of what ``prices_of`` has of the candidates.
    """
    one, step, beyond = np.int32(1), np.int32(128), np.int32(1 << 29)
    magnitude, shift = np.int32(abs(target)), np.int32(64 * quantiser)
    nearest = np.int32(np.int32(magnitude + np.int32(64 + 64 * quantiser)) >> np.int32(7))
    far = np.int32(magnitude - np.int32(nearest << np.int32(7)))  # from the even multiple
    same = priced(np.int32(far + shift) if nearest > 0 else far, lower)
    above = priced(np.int32(np.int32(far + shift) - step), lower >> np.int32(16))
    below = np.int32(far + step)
    below = priced(np.int32(below + shift) if nearest > one else below, upper)
    zero = priced(magnitude, upper >> np.int32(16)) if nearest == np.int32(2) else beyond
    below = below if nearest > 0 else beyond
    number = np.int32(0) if zero < same else nearest
    neighbour = np.int32(nearest - one) if below < above else np.int32(nearest + one)
    same, other = np.int32(total + min(same, zero)), np.int32(total + min(above, below))
    number = np.int32(-number) if target < 0 else number
    neighbour = np.int32(-neighbour) if target < 0 else neighbour
    is_odd = np.int32(nearest & one) != 0
    return (
        other if is_odd else same,
        same if is_odd else other,
        neighbour if is_odd else number,
        number if is_odd else neighbour,
    )


def _step(quantiser, is_second):
    """Makes the loops that lead from two states of a quantiser, ``one`` and its twin, to the two that follow both.

    To ``even`` lead the even numbers of the one and the odd ones of its twin, to ``odd`` the others. Of equally cheap ways that of
    the one is taken. A path is noted as twice the number, and one more if it comes from the twin.
    """
    source, into = (SIDE, 0) if is_second else (0, SIDE)
    one, twin, even, odd = (state * WIDTH for state in (2 * quantiser, 2 * quantiser + 1, quantiser, quantiser + 2))
    half, base, known_at = 64 + 64 * quantiser, 512 * quantiser, (NUMBER if is_second else PLACE) * FIELD

    @njit
    def step(line, prices, found, shift, borders, room, path):
        for channel in range(U(WIDTH)):
            target, here = line[channel], U(source + PLACE * FIELD) + channel
            nearest = np.int32(np.int32(np.int32(abs(target)) + np.int32(half)) >> np.int32(7))
            key = np.int32(np.int32(min(nearest, np.int32(9)) << np.int32(1)) | np.int32(target < 0))
            room[U(INDICES) + channel] = np.int32(room[here + U(one)] ^ key)
            room[U(INDICES + WIDTH) + channel] = np.int32(room[here + U(twin)] ^ key)
        # Apart from the other loops, since none that looks something up becomes vectors.
        for channel in range(U(2 * WIDTH)):
            price = prices[U(base) + U(room[U(INDICES) + channel])]
            found[channel], found[U(2 * WIDTH) + channel] = np.int32(price), np.int32(price >> 32)
        b0, b1, b2, b3, b4, b5, b6 = borders[0], borders[1], borders[2], borders[3], borders[4], borders[5], borders[6]
        for channel in range(U(WIDTH)):
            target, here, there = line[channel], U(source) + channel, U(into) + channel
            even_price, odd_price, even_number, odd_number = judged(
                target, quantiser, found[channel], found[U(2 * WIDTH) + channel], room[here + U(one)]
            )
            even_twin, odd_twin, even_twin_number, odd_twin_number = judged(
                target, quantiser, found[U(WIDTH) + channel], found[U(3 * WIDTH) + channel], room[here + U(twin)]
            )
            busy, twin_busy = room[here + U(BUSY * FIELD + one)], room[here + U(BUSY * FIELD + twin)]
            lean, twin_lean = room[here + U(LEAN * FIELD + one)], room[here + U(LEAN * FIELD + twin)]
            known, twin_known = room[here + U(known_at + one)], room[here + U(known_at + twin)]
            is_even, is_odd = odd_twin < even_price, even_twin < odd_price
            even_number = odd_twin_number if is_even else even_number
            odd_number = even_twin_number if is_odd else odd_number
            even_busy, even_lean = twin_busy if is_even else busy, twin_lean if is_even else lean
            odd_busy, odd_lean = twin_busy if is_odd else busy, twin_lean if is_odd else lean
            even_known, odd_known = twin_known if is_even else known, twin_known if is_odd else known
            if is_second:
                even_busy, even_lean = learned(even_busy, even_lean, even_known, even_number, shift)
                odd_busy, odd_lean = learned(odd_busy, odd_lean, odd_known, odd_number, shift)
                even_place = place_of(even_busy, even_lean, b0, b1, b2, b3, b4, b5, b6)
                odd_place = place_of(odd_busy, odd_lean, b0, b1, b2, b3, b4, b5, b6)
            else:
                even_place, odd_place = place_after(even_known, even_number), place_after(odd_known, odd_number)
                room[there + U(NUMBER * FIELD + even)], room[there + U(NUMBER * FIELD + odd)] = even_number, odd_number
            room[there + U(even)], room[there + U(odd)] = min(even_price, odd_twin), min(odd_price, even_twin)
            room[there + U(BUSY * FIELD + even)], room[there + U(BUSY * FIELD + odd)] = even_busy, odd_busy
            room[there + U(LEAN * FIELD + even)], room[there + U(LEAN * FIELD + odd)] = even_lean, odd_lean
            room[there + U(PLACE * FIELD + even)], room[there + U(PLACE * FIELD + odd)] = even_place, odd_place
            path[U(even) + channel] = np.int16(np.int32(even_number << np.int32(1)) | np.int32(is_even))
            path[U(odd) + channel] = np.int16(np.int32(odd_number << np.int32(1)) | np.int32(is_odd))

    return step


FIRST_FROM_EVEN, FIRST_FROM_ODD = _step(0, is_second=False), _step(1, is_second=False)
SECOND_FROM_EVEN, SECOND_FROM_ODD = _step(0, is_second=True), _step(1, is_second=True)


@inlined
def learned(busy, lean, first, second, shift):
    """The running means after a pair, see :func:`serverlight.codec.backends.cpu.symbols.token_learn`."""
    most, six = np.int32(255), np.int32(6)
    shift = np.int32(shift & np.int32(31))  # one that could be larger takes numbers of 64 bits
    a, b = max(min(first, most), np.int32(-most)), max(min(second, most), np.int32(-most))
    size, balance = np.int32(np.int32(abs(a)) + np.int32(abs(b))), np.int32(a + b)
    busy = np.int32(busy + np.int32(np.int32(np.int32(size << six) - busy) >> shift))
    return busy, np.int32(lean + np.int32(np.int32(np.int32(balance << six) - lean) >> shift))


@njit
def lower(room):
    """Takes off what all paths of a channel have cost, so that sums stay small."""
    one, two, three = U(WIDTH), U(2 * WIDTH), U(3 * WIDTH)
    for channel in range(U(WIDTH)):
        least = min(min(room[channel], room[channel + one]), min(room[channel + two], room[channel + three]))
        for state in range(U(NUM_STATES)):
            room[channel + state * one] = np.int32(room[channel + state * one] - least)


@njit
def trace(totals, paths, width, numbers, columns):
    """Goes back along the cheapest path of each channel."""
    states, line = np.zeros(WIDTH, np.int16), np.empty(WIDTH, np.int16)
    for channel in range(WIDTH):
        for other in range(1, NUM_STATES):
            if totals[other * WIDTH + channel] < totals[states[channel] * WIDTH + channel]:
                states[channel] = other
    for row in range(paths.shape[0] - 1, -1, -1):
        go_back(paths[row], states, line)
        numbers[row * columns : row * columns + width] = line[:width]


@njit
def go_back(path, states, line):
    """The numbers that led to the states of channels, and the states before."""
    one = np.int16(1)
    for channel in range(U(WIDTH)):
        state = states[channel]
        taken, twin = path[channel], path[channel + U(WIDTH)]
        later, later_twin = path[channel + U(2 * WIDTH)], path[channel + U(3 * WIDTH)]
        is_odd = np.int16(state & one) != 0
        taken, later = twin if is_odd else taken, later_twin if is_odd else later
        taken = later if state > one else taken
        line[channel] = np.int16(taken >> one)
        states[channel] = np.int16(np.int16(np.int16(state & one) << one) | np.int16(taken & one))
