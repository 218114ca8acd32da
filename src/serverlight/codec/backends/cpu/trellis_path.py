"""Compiled loops of profile ``serverlight``: the cheapest paths of tokens along a trellis.

The definition of what is computed is in ``reference/trellis.py``. Channels go side by side, and what each state of each channel
knows lies field by field, so that loops become vectors.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec import activity, trellis
from serverlight.codec.backends.cpu.compiled import njit
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
    token_contexts,
    token_learn,
)
from serverlight.codec.backends.cpu.trellis import NUM_ROWS, TRELLIS, trellis_symbols

U = np.uint64
ACTIVITY = activity.ACTIVITY
NUM_STATES, TRADE = len(trellis.MOVES), np.int32(trellis.TRADE)
OUT_OF_REACH = 1 << 30
MOST_WIDTH = 256
"""So many channels' survivors stay in the nearest cache."""


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
    targets = np.empty(values.size, np.int32)
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
        follow(targets, rows, columns, costs, ACTIVITY[start], spreads, numbers)


@njit
def follow(targets, rows, columns, costs, begin, spreads, numbers):
    """The cheapest path of each channel; ``targets`` are in 64ths of the step. Many channels go side by side, for vectors."""
    borders, starts, prices = borders_of(begin), starts_of(begin, spreads, columns), costs.reshape(-1).astype(np.int32)
    for first in range(0, columns, MOST_WIDTH):
        width = min(MOST_WIDTH, columns - first)
        paths, totals = np.empty((rows, NUM_STATES, width), np.int16), np.zeros((NUM_STATES, width), np.int32)
        totals[1:] = OUT_OF_REACH
        survivors = np.zeros((NUM_STATES, 6, width), np.int32)
        following, room = np.zeros_like(survivors), np.empty((8, width), np.int32)
        survivors[:, BUSY] = starts[first : first + width]
        errors, taken = np.empty((NUM_STATES, 2, width), np.int32), np.empty((NUM_STATES, 2, width), np.int32)
        for row in range(rows):
            line, is_first = targets[row * columns + first : row * columns + first + width], row & 1 == 0
            for state in range(NUM_STATES):
                own = survivors[state]
                if is_first:
                    token_contexts(own[BUSY], own[LEAN], borders, own[CONTEXT], own[TURNED])
                near(line, np.int32(state >> 1), own, prices, totals[state], room, errors[state], taken[state])
            for state in range(NUM_STATES):
                low, parity = 2 * (state & 1), state >> 1
                ways = errors[low, parity], errors[low + 1, 1 - parity], taken[low, parity], taken[low + 1, 1 - parity]
                own = following[state]
                choose(ways, survivors[low], survivors[low + 1], totals[state], paths[row, state], own)
                if is_first:
                    go_on(own)
                else:
                    token_learn(
                        own[FIRST_OF_PAIR], own[NUMBER], shift_of(row // 2, spreads.size > 0), own[BUSY], own[LEAN]
                    )
            survivors, following = following, survivors
            lower(totals)
        trace(totals, paths, numbers[first:], columns)


BUSY, LEAN, CONTEXT, TURNED, FIRST_OF_PAIR, NUMBER = range(6)
"""What is known of a survivor: its running means, the context and turn of the next number, the first number of a pair, and the last
one taken."""

NEAREST, UP, DOWN, ZERO = range(4)
"""The candidates: the nearest number, the next larger and smaller in magnitude, and zero, which counts beside a two."""


@njit
def near(line, quantiser, own, prices, total, room, errors, taken):
    """The cheapest even and the cheapest odd number near each target from one state, and what the path to it costs then.

    ``room`` takes the prices of the four candidates, and their places in the table of prices. No loop that looks something up
    becomes vectors, so looking up has a loop of its own.
    """
    found, places = room[:4], room[4:]
    look_around(line, quantiser, own[CONTEXT], own[TURNED], places)
    for candidate in range(4):
        look_up(places[candidate], prices, found[candidate])
    judge(line, quantiser, found, total, errors, taken)


@njit
def look_around(line, quantiser, contexts, turned, places):
    """Where in the table of prices the bits of each candidate are."""
    zero, one, most = np.int32(0), np.int32(1), np.int32(15)
    base, half = np.int32(quantiser << np.int32(8)), np.int32(np.int32(64) * (one + quantiser))
    nearest, up, down, none = places[NEAREST], places[UP], places[DOWN], places[ZERO]
    for channel in range(line.size):
        target = line[channel]
        magnitude, is_negative = np.int32(abs(target)), np.int32(target < 0)
        twice = np.int32(np.int32(np.int32(magnitude + half) >> np.int32(7)) << one)
        row = np.int32(base + np.int32(contexts[channel] << np.int32(4)))
        is_up = np.int32(one - np.int32(is_negative ^ turned[channel]))
        none[channel] = row
        nearest[channel] = np.int32(row + max(min(np.int32(twice - is_up), most), zero))
        up[channel] = np.int32(row + min(np.int32(np.int32(twice + np.int32(2)) - is_up), most))
        down[channel] = np.int32(row + max(min(np.int32(np.int32(twice - np.int32(2)) - is_up), most), zero))


@njit
def look_up(places, prices, found):
    """The prices at some places, of 32 contexts' 16 nibbles."""
    for channel in range(U(places.size)):
        found[channel] = prices[U(places[channel])]


@njit
def judge(line, quantiser, found, total, errors, taken):
    """Adds squared errors to the prices of bits, and chooses the even and the odd number."""
    one, two, six, beyond = np.int32(1), np.int32(2), np.int32(6), np.int32(1 << 29)
    half = np.int32(np.int32(64) * (one + quantiser))
    even, odd, even_number, odd_number = errors[0], errors[1], taken[0], taken[1]
    nearest_bits, up_bits, down_bits, zero_bits = found[NEAREST], found[UP], found[DOWN], found[ZERO]
    for channel in range(line.size):
        target, here = line[channel], total[channel]
        magnitude = np.int32(abs(target))
        nearest = np.int32(np.int32(magnitude + half) >> np.int32(7))
        shift = np.int32(quantiser << six)
        far = np.int32(magnitude - np.int32(nearest << np.int32(7)))  # from the even multiple
        same = np.int32(far + shift) if nearest > 0 else far
        above = np.int32(np.int32(far + shift) - np.int32(128))
        below = np.int32(far + np.int32(128))
        below = np.int32(below + shift) if nearest > one else below
        same = np.int32(np.int32(same * same) + np.int32(TRADE * nearest_bits[channel]))
        above = np.int32(np.int32(above * above) + np.int32(TRADE * up_bits[channel]))
        below = np.int32(np.int32(below * below) + np.int32(TRADE * down_bits[channel]))
        zero = np.int32(np.int32(magnitude * magnitude) + np.int32(TRADE * zero_bits[channel]))
        zero = zero if nearest == two else beyond
        below = below if nearest > 0 else beyond
        number = np.int32(0) if zero < same else nearest
        neighbour = np.int32(nearest - one) if below < above else np.int32(nearest + one)
        same, other = min(same, zero), min(above, below)
        number = np.int32(-number) if target < 0 else number
        neighbour = np.int32(-neighbour) if target < 0 else neighbour
        is_odd = np.int32(nearest & one) != 0
        even[channel] = np.int32(here + (other if is_odd else same))
        odd[channel] = np.int32(here + (same if is_odd else other))
        even_number[channel] = neighbour if is_odd else number
        odd_number[channel] = number if is_odd else neighbour


@njit
def choose(ways, one, other, total, path, following):
    """Takes the cheaper of the two ways into a state, the one from the lower state if they are equal.

    ``path`` gets twice the number, and one more if it comes from the other state.
    """
    price, more, number, twin = ways
    taken = following[NUMBER]
    for channel in range(total.size):
        is_other = more[channel] < price[channel]
        total[channel] = more[channel] if is_other else price[channel]
        taken[channel] = twin[channel] if is_other else number[channel]
        path[channel] = np.int16(np.int32(taken[channel] << np.int32(1)) | np.int32(is_other))
    for field in range(NUMBER):
        take(price, more, one[field], other[field], following[field])


@njit
def take(price, more, one, other, kept):
    """What is known of the cheaper way."""
    for channel in range(kept.size):
        kept[channel] = other[channel] if more[channel] < price[channel] else one[channel]


@njit
def go_on(own):
    """Context and turn of the second of a pair, by the first."""
    context, turned, first, taken = own[CONTEXT], own[TURNED], own[FIRST_OF_PAIR], own[NUMBER]
    one, most = np.int32(1), np.int32(7)
    for channel in range(taken.size):
        number, turn = taken[channel], turned[channel]
        level, leaning = np.int32(context[channel] >> one), np.int32(context[channel] & one)
        is_zero, is_up = number == 0, np.int32(np.int32(number > 0) ^ turn)
        busier, calmer = (
            np.int32(min(np.int32(level + one), most) << one),
            np.int32(max(np.int32(level - one), np.int32(0)) << one),
        )
        context[channel] = (
            np.int32(calmer + leaning) if is_zero else np.int32(busier + (is_up | np.int32(one - leaning)))
        )
        is_turning = np.int32(np.int32(number != 0) & np.int32(one - is_up) & np.int32(one - leaning))
        turned[channel], first[channel] = np.int32(turn ^ is_turning), number


@njit
def lower(totals):
    """Takes off what all paths of a channel have cost, so that sums stay small."""
    for channel in range(totals.shape[1]):
        least = min(min(totals[0, channel], totals[1, channel]), min(totals[2, channel], totals[3, channel]))
        for state in range(NUM_STATES):
            totals[state, channel] -= least


@njit
def trace(totals, paths, numbers, columns):
    """Goes back along the cheapest path of each channel."""
    for channel in range(totals.shape[1]):
        state = 0
        for other in range(1, NUM_STATES):
            state = other if totals[other, channel] < totals[state, channel] else state
        for row in range(paths.shape[0] - 1, -1, -1):
            step = np.int64(paths[row, state, channel])
            numbers[row * columns + channel], state = step >> 1, 2 * (state & 1) + (step & 1)
