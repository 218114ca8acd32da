"""Compiled loops of profile ``serverlight``: tokens along a trellis, from numbers to symbols and back.

The definition of what is computed is in ``reference/``; why no index leaves its array, in ``lanes.py``. A table's row is 16
times the state and the context.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec import tables
from serverlight.codec.backends.cpu.compiled import njit
from serverlight.codec.backends.cpu.lanes import LARGEST, get_line
from serverlight.codec.backends.cpu.pair_escapes import find_escapes, get_pairs
from serverlight.codec.backends.cpu.symbols import (
    borders_of,
    shift_of,
    starts_of,
    token_contexts,
    token_learn,
    token_line,
)
from serverlight.codec.backends.cpu.tokens import numbers_of

TRELLIS = tables.TRELLIS
NUM_ROWS = tables.NUM_ROWS[TRELLIS]


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
    """Takes each channel's state on by the parity of its number: the list of section 6.9 as sums of bits, which become vectors."""
    one = np.uint8(1)
    for channel in range(states.size):
        state, parity = states[channel], np.uint8(numbers[channel]) & one
        states[channel] = np.uint8(np.uint8(np.uint8(state & one) ^ parity) << one) | np.uint8(state >> one)


# -- the reader --------------------------------------------------------------------------------------------------


@njit
def get_trellis(rows, columns, start, spreads, streams, table, out):
    """Reads some segments line by line, as the bits of multiples of the step; stops where the words of one are not enough.

    Args:
        rows, columns: of the tensor.
        start, spreads: the channels' mean to begin with, and by how much each one's differs, if it does.
        streams: see :func:`serverlight.codec.backends.cpu.streams.streams_of`.
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
        number, sign = numbers[channel], np.int32(np.int32(numbers[channel] > 0) - np.int32(numbers[channel] < 0))
        out[channel] = np.int32(np.int32(number << np.int32(1)) - np.int32(np.int32(states[channel] >> 1) * sign))
    move(numbers, states)
