"""Compiled loops of profile ``serverlight``: tokens along a trellis, both ways.

The definition of what is computed is in ``reference.py`` and ``reference_trellis.py``; why no index leaves its array, in
``cpu_lanes.py``. A table's row is 16 times the state and the context.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec import activity, tables, trellis
from serverlight.codec.backends.cpu_kernels import inlined, njit
from serverlight.codec.backends.cpu_lanes import LARGEST, get_line
from serverlight.codec.backends.cpu_model import (
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
from serverlight.codec.backends.cpu_pair_escapes import find_escapes, get_pairs
from serverlight.codec.backends.cpu_quantiser import magnitude_sum
from serverlight.codec.backends.cpu_symbols import (
    borders_of,
    histogram_over,
    nearest_activity,
    shift_of,
    starts_of,
    token_contexts,
    token_learn,
    token_line,
)
from serverlight.codec.backends.cpu_tokens import numbers_of

TRELLIS, TOKENS = tables.TRELLIS, tables.TOKENS
NUM_ROWS, NUM_STATES = tables.NUM_ROWS[TRELLIS], len(trellis.MOVES)
MOVES, TRADE = trellis.MOVES, trellis.TRADE
TOKENS_NEXT, TOKENS_FLIP = tables.NEXT[TOKENS].astype(np.uint8), tables.FLIP_NEXT[TOKENS].astype(np.int8)
ACTIVITY = activity.ACTIVITY
OUT_OF_REACH = 1 << 60
MOST_SEEN = 255


# -- the writer's path -------------------------------------------------------------------------------------------


@njit
def lead(values, inverse, rows, columns, spreads, numbers):
    """Makes numbers of steps numbers along a trellis: what :func:`reference_trellis.path_of` returns.

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
    """The cheapest path of each channel; ``targets`` are in 64ths of the step."""
    borders, starts = borders_of(begin), starts_of(begin, spreads, columns)
    total, busy, lean = np.empty(NUM_STATES, np.int64), np.empty(NUM_STATES, np.int64), np.empty(NUM_STATES, np.int64)
    context, flip, last = np.empty(NUM_STATES, np.int64), np.empty(NUM_STATES, np.int64), np.empty(NUM_STATES, np.int64)
    best, taken, came_from = (
        np.empty(NUM_STATES, np.int64),
        np.empty(NUM_STATES, np.int64),
        np.empty(NUM_STATES, np.int64),
    )
    new_busy, new_lean = np.empty(NUM_STATES, np.int64), np.empty(NUM_STATES, np.int64)
    new_context, new_flip = np.empty(NUM_STATES, np.int64), np.empty(NUM_STATES, np.int64)
    paths, sources = np.empty((rows, NUM_STATES), np.int16), np.empty((rows, NUM_STATES), np.uint8)
    for channel in range(columns):
        total[:], busy[:], lean[:] = OUT_OF_REACH, starts[channel], 0
        total[0] = 0
        for row in range(rows):
            is_second, shift = row & 1, shift_of(row // 2, spreads.size > 0)
            if not is_second:
                for state in range(NUM_STATES):
                    context[state] = context_of(busy[state], lean[state], borders)
                    flip[state] = -1 if lean[state] < 0 else 1
            target = np.int64(targets[row * columns + channel])
            best[:] = 2 * OUT_OF_REACH
            for state in range(NUM_STATES):
                if total[state] < OUT_OF_REACH:
                    row_of_costs = 16 * (state >> 1) + context[state]
                    step_from(state, target, total[state], costs, row_of_costs, flip[state], best, taken, came_from)
            for into in range(NUM_STATES):
                source, number = came_from[into], taken[into]
                if best[into] >= OUT_OF_REACH:
                    continue
                if is_second:
                    first, second = clipped(last[source]), clipped(number)
                    new_busy[into] = busy[source] + (((abs(first) + abs(second)) * 64 - busy[source]) >> shift)
                    new_lean[into] = lean[source] + (((first + second) * 64 - lean[source]) >> shift)
                else:
                    new_busy[into], new_lean[into] = busy[source], lean[source]
                    sign = number * flip[source]
                    place = 1 if sign == 0 else (2 if sign > 0 else 0)
                    new_context[into] = TOKENS_NEXT[context[source], place]
                    new_flip[into] = flip[source] * TOKENS_FLIP[context[source], place]
                paths[row, into], sources[row, into] = number, source
            total[:], last[:], busy[:], lean[:] = best, taken, new_busy, new_lean
            context[:], flip[:] = new_context, new_flip
        state = np.argmin(total)
        for row in range(rows - 1, -1, -1):
            numbers[row * columns + channel] = paths[row, state]
            state = np.int64(sources[row, state])


@njit
def step_from(state, target, total, costs, row, flip, best, taken, came_from):
    """Tries the numbers near the target from one state, and notes what is cheaper than all that led to the same state so far."""
    quantiser, magnitude = state >> 1, abs(target)
    nearest = (magnitude + 64 * (1 + quantiser)) // 128
    turn = (-1 if target < 0 else 1) * flip
    for choice in range(4 if nearest == 2 else 3):
        candidate = nearest + 1 - choice if choice < 3 else 0
        if candidate < 0:
            continue
        distance = magnitude - 64 * (2 * candidate - (quantiser if candidate else 0))
        nibble = 15 if candidate > 7 else 2 * candidate - (1 if turn > 0 and candidate else 0)
        price = total + 256 * distance * distance + TRADE * costs[row, nibble]
        into = MOVES[state, candidate & 1]
        if price < best[into]:
            best[into], came_from[into] = price, state
            taken[into] = -candidate if target < 0 else candidate


@inlined
def context_of(busy, lean, borders):
    """Context of a channel by its running means."""
    row = 0
    for border in borders:
        row += 1 if busy >= border else 0
    return 2 * row + (1 if 8 * abs(lean) >= 3 * busy + 24 else 0)


@inlined
def clipped(number):
    """A number as it enters the running means."""
    return min(max(number, -MOST_SEEN), MOST_SEEN)


# -- symbols -----------------------------------------------------------------------------------------------------


@njit
def trellis_symbols(numbers, rows, columns, begin, spreads, index):
    """Row of the table and symbol of each pair, as ``256 row + symbol``: one line of pairs for every two rows."""
    busy, lean, borders = starts_of(begin, spreads, columns), np.zeros(columns, np.int32), borders_of(begin)
    contexts, turned = np.empty(columns, np.uint8), np.empty(columns, np.uint8)
    states, nothing = np.zeros(columns, np.uint8), np.zeros(columns, np.int16)
    for row in range(0, rows, 2):
        first, is_single = numbers[row * columns : (row + 1) * columns], row + 1 >= rows
        second = nothing if is_single else numbers[(row + 1) * columns : (row + 2) * columns]
        into = index[row // 2 * columns : (row // 2 + 1) * columns]
        token_contexts(busy, lean, borders, contexts, turned)
        for channel in range(columns):
            contexts[channel] += np.uint8(16 * states[channel] + (NUM_ROWS if is_single else 0))
        token_line(first, second, contexts, turned, into)
        token_learn(first, second, shift_of(row // 2, spreads.size > 0), busy, lean)
        move(first, states)
        move(second, states)


@njit
def move(numbers, states):
    """Takes each channel's state on by the parity of its number."""
    for channel in range(states.size):
        states[channel] = MOVES[states[channel], numbers[channel] & 1]


# -- the reader --------------------------------------------------------------------------------------------------


@njit
def get_trellis(rows, columns, start, spreads, streams, table, out):
    """Reads some segments line by line, as the bits of multiples of the step; stops where the words of one are not enough.

    Args:
        rows, columns: of the tensor.
        start, spreads: the channels' mean to begin with, and by how much each one's differs, if it does.
        streams: see :func:`serverlight.codec.backends.cpu_streams.streams_of`.
        table: the reader's table.
        out: float32, shape (rows * columns,).
    """
    offset, width = streams[0][0], streams[0][-1] - streams[0][0]
    busy = starts_of(start, spreads[offset : offset + width] if spreads.size else spreads, width)
    lean, borders, states = np.zeros(width, np.int32), borders_of(start), np.zeros(width, np.uint8)
    contexts, turned = np.zeros(width + 8, np.uint8), np.empty(width, np.uint8)
    line, found = np.empty(width + 64, np.uint8), np.empty(width, np.int64)
    upper, lower, numbers = np.empty(width, np.int32), np.empty(width, np.int32), np.empty((2, width), np.int64)
    segment_of = np.empty(width, np.uint16)
    for i in range(streams[1].shape[0]):
        segment_of[streams[0][i] - offset : streams[0][i + 1] - offset] = i
    for row in range(0, rows, 2):
        base, is_single = row * columns + offset, row + 1 >= rows
        token_contexts(busy, lean, borders, contexts[:width], turned)
        for channel in range(width):
            contexts[channel] += np.uint8(16 * states[channel] + (NUM_ROWS if is_single else 0))
        if not get_line(streams, contexts, table, line):
            return
        numbers_of(line, turned, upper, lower)
        count = find_escapes(line, width, found)
        get_pairs(line, turned, found[:count], is_single, segment_of, streams, numbers)
        for i in range(count):
            upper[found[i]], lower[found[i]] = numbers[0, i], numbers[1, i]
        place_steps(upper, states, out.view(np.int32)[base : base + width])
        if not is_single:
            place_steps(lower, states, out.view(np.int32)[base + columns : base + columns + width])
            token_learn(upper, lower, shift_of(row // 2, spreads.size > 0), busy, lean)
    for segment in range(streams[4].shape[0]):
        streams[4][segment, LARGEST] *= 2


@njit
def place_steps(numbers, states, out):
    """The multiples of the step that numbers stand for; takes the states on."""
    for channel in range(out.size):
        number, quantiser = numbers[channel], np.int32(states[channel] >> 1)
        out[channel] = np.int32(2) * number - quantiser * np.int32(np.int32(number > 0) - np.int32(number < 0))
    move(numbers, states)
