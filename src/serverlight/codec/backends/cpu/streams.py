"""Compiled loops of profile ``serverlight``: all segments of a frame beside each other, from their streams to values.

The definition of what is computed is in ``reference/``; why no index leaves its array, in ``lanes.py``. Segments have
streams of their own, so that many can be read in turn: what one waits for, the others fill.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec import activity, tables
from serverlight.codec.backends.cpu.compiled import inlined, njit
from serverlight.codec.backends.cpu.lanes import BITS, END, HALF, LARGEST, LEAST, RAW
from serverlight.codec.backends.cpu.plane_vectors import turn_group
from serverlight.codec.backends.cpu.planes import (
    GET_ONE_SIDED,
    GET_ONE_SIDED_BY_EIGHTS,
    GET_SIGNED,
    GET_SIGNED_BY_EIGHTS,
    place_planes,
)
from serverlight.codec.backends.cpu.reconstruct import layout_of
from serverlight.codec.backends.cpu.symbols import first_unit
from serverlight.codec.backends.cpu.tokens import facts_of, get_flat, get_tokens
from serverlight.codec.backends.cpu.trellis import get_trellis
from serverlight.codec.backends.cpu.vectors import HAS_VECTORS

U = np.uint64
FLAT, TOKENS, PLANES = 0, 1, 2
DEFAULT_LEVELS, ACTIVITY, TRELLIS = tables.DEFAULT_LEVELS, activity.ACTIVITY, tables.TRELLIS
MOST_CHANNELS = 4096
"""So many are read at once, if they are of several segments: what is known of channels fits the nearer caches, and lines of the
tensor are written as a whole."""

GOOD, MALFORMED, BAD_WORDS, BAD_ESCAPES, LEFT_ESCAPES, BAD_RAW = range(6)
"""What is found in a section."""


# -- streams -----------------------------------------------------------------------------------------------------


@njit
def streams_of(data, lengths, layout, units, lanes, half_escapes, longest):
    """The streams of all segments, as one tuple.

    Args:
        data: begins with the words.
        lengths: numbers of words and of escape bytes by segment.
        layout, units: what the segments share, channels, planes or pairs, and how many there are.
        lanes: lanes of a segment.
        half_escapes: whether the frame has them.
        longest: how many words may be taken before the end of them is looked for.

    Returns:
        Borders of segments in the units, one more than segments; states, shape (segments, lanes); positions in the words; where
        each segment's words end; progress, shape (segments, 5); words, with ``longest`` and eight more; and escapes.
    """
    count, total = lengths.shape[0], lengths[:, 0].sum()
    words = np.empty(total + longest + 8, np.uint16)
    for i in range(total):
        words[i] = np.uint16(data[2 * i]) | np.uint16(data[2 * i + 1]) << np.uint16(8)
    words[total:] = 0
    borders, progress, end = np.zeros(count + 1, np.int64), np.zeros((count, 5), np.int64), 0
    states, at, limits, begin = (
        np.empty((count, lanes), np.uint32),
        np.empty(count, np.uint64),
        np.empty(count, np.uint64),
        0,
    )
    for i in range(count):
        borders[i + 1], progress[i, BITS] = first_unit(layout, units, i + 1, count), end
        end += 8 * lengths[i, 1]
        progress[i, END], progress[i, HALF] = end, half_escapes
        for lane in range(lanes):
            states[i, lane] = np.uint32(words[begin + 2 * lane]) << np.uint32(16) | words[begin + 2 * lane + 1]
        at[i], begin = begin + 2 * lanes, begin + lengths[i, 0]
        limits[i] = begin
    return borders, states, at, limits, progress, words, data[2 * total : 2 * total + end // 8]


@njit
def some_of(streams, start, stop):
    """The streams of some segments."""
    borders, states, at, limits, progress, words, escapes = streams
    own = states[start:stop], at[start:stop], limits[start:stop], progress[start:stop]
    return borders[start : stop + 1], own[0], own[1], own[2], own[3], words, escapes


@njit
def fault_of(streams):
    """What is wrong with streams that were read to their ends, or to where they broke."""
    _, states, at, limits, progress, _, escapes = streams
    for i in range(at.size):
        if progress[i, BITS] < 0:
            return BAD_ESCAPES
        if at[i] != limits[i] or np.any(states[i] != LEAST):
            return BAD_WORDS
        if not ends_in_zeros(escapes[: progress[i, END] >> 3], progress[i, BITS]):
            return LEFT_ESCAPES
    return GOOD


@njit
def ends_in_zeros(data, num_bits):
    """Whether so many bits are all that ``data`` has, but for zero padding; a negative number of bits is never all."""
    if num_bits < 0 or data.size != (num_bits + 7) >> 3:
        return False
    return num_bits & 7 == 0 or data[data.size - 1] >> (num_bits & 7) == 0


@inlined
def read_streams(data, lengths, stage, half_escapes, rows, columns, units, lanes, table, shifts, unit, progress, out):
    """Reads all segments: planes become values in ``out``, other elements values too, or the bits of their high parts.

    Args:
        data: words, escapes and raw bits.
        lengths, half_escapes, units, lanes: see :func:`streams_of`.
        stage: kind of tables, whether all elements are positive, whether they become values, the channels' mean to begin with,
            the number of raw bits, and the channels' spreads.
        rows, columns: how the tensor is seen.
        table: the reader's table.
        shifts, unit: shifts of the classes in ``unit``, a 64th of the step.
        progress: receives the largest escaped number, and the raw bits read.
        out: float32, shape (n,).
    """
    kind, one_sided, is_direct, start, _, spreads = stage
    if np.any(lengths[:, 0] < 0):
        return BAD_WORDS
    is_along, num_contexts = kind == TRELLIS, DEFAULT_LEVELS[kind].shape[0]
    layout = layout_of(kind)
    longest = units if layout == TOKENS else (min(units, 8) * ((columns + 1) // 2) if layout == PLANES else 0)
    streams = streams_of(data, lengths, layout, units, lanes, half_escapes, longest)
    if layout == TOKENS:
        form = is_along, is_direct, num_contexts
        read_tokens(
            rows, columns, ACTIVITY[start], spreads, form, streams, table, facts_of(shifts, one_sided), unit, out
        )
    elif layout == PLANES:
        raw = data[2 * lengths[:, 0].sum() + lengths[:, 1].sum() :]
        read_planes(stage, rows, columns, streams, table, shifts, unit, raw, out)
    else:
        for i in range(lengths.shape[0]):
            get_flat(some_of(streams, i, i + 1), table, is_direct, facts_of(shifts, one_sided), unit, out)
    status = fault_of(streams)
    own = streams[4]
    progress[LARGEST], progress[RAW] = own[:, LARGEST].max(), own[0, RAW]
    return status


# -- tokens ------------------------------------------------------------------------------------------------------


@inlined
def read_tokens(rows, columns, start, spreads, form, streams, table, facts, unit, out):
    """Reads channels, those of some segments at a time.

    ``form`` tells whether they go along a trellis, whether they become values at once, and the number of contexts.
    """
    borders, first = streams[0], 0
    is_along, is_direct, num_contexts = form
    while first + 1 < borders.size:
        stop = first + 1
        while stop + 1 < borders.size and borders[stop + 1] - borders[first] <= MOST_CHANNELS:
            stop += 1
        some = some_of(streams, first, stop)
        if is_along:
            get_trellis(rows, columns, start, spreads, some, table, out)
        else:
            get_tokens(rows, columns, start, spreads, num_contexts, some, table, is_direct, facts, unit, out)
        first = stop


# -- planes ------------------------------------------------------------------------------------------------------


@inlined
def read_planes(stage, rows, columns, streams, table, shifts, unit, raw, out):
    """Reads planes, a block of each of up to four segments at a time, and makes values of them; stops where one is broken.

    It is one segment at a time where there are raw bits, which lie in the order of elements, or many escapes, which take room.
    Raw bits that were read are noted in the progress of the first segment.
    """
    states, progress = streams[1], streams[4]
    count, lanes, size = states.shape[0], states.shape[1], rows * columns
    most = 0
    for i in range(count):
        most = max(most, (progress[i, END] - progress[i, BITS]) >> 3)
    planes = out.size // size
    room = min(4 * most + 2, min(lanes, planes) * size)  # no escaped number takes less than two bits
    is_vector = HAS_VECTORS and lanes == 8 and planes >= 4  # a vector of eight takes room for eight
    ways = min(4, count) if is_vector and stage[4] == 0 and 4 * 12 * room <= out.size + 1024 else 1
    places, numbers = np.empty((ways, room), np.int64), np.empty((ways, room), np.int32)
    pitch = (rows * ((columns + 1) // 2) + 7) & ~7
    mixed = np.empty((ways if is_vector else 0, 8 * pitch), np.uint8)
    block = np.empty((lanes if is_vector else min(lanes, planes), pitch), np.uint8)
    padded, lifts = np.zeros(size + 2 * columns + 2, np.int16), np.empty((2, size), np.int16)
    for start in range(0, count, ways):
        some = some_of(streams, start, min(start + ways, count))
        begins = some[0][:-1].copy()
        counts, found = np.empty(begins.size, np.int64), np.empty(begins.size, np.int64)
        while np.any(begins < some[0][1:]):
            counts[:], found[:] = np.minimum(some[0][1:] - begins, lanes), 0
            read_block(stage, rows, columns, counts, some, table, is_vector, mixed, block, places, numbers, found)
            if np.any(some[2] > some[3]) or np.any(some[4][:, BITS] < 0):
                return
            for way in range(begins.size):
                if is_vector:
                    turn(mixed[way], block)
                values = out[begins[way] * size : (begins[way] + counts[way]) * size].reshape(counts[way], size)
                sent = found[way], places[way], numbers[way]
                place_planes(
                    block, stage, rows, columns, sent, shifts, unit, raw, progress[0], padded, lifts, values
                )  # fmt: skip
            begins += counts


@inlined
def read_block(stage, rows, columns, counts, streams, table, is_vector, mixed, block, places, numbers, found):
    """Reads the next planes of some segments, or of one, to ``mixed`` or to ``block``."""
    one_sided = stage[1]
    if is_vector and one_sided:
        GET_ONE_SIDED_BY_EIGHTS(rows, columns, counts, streams, table, mixed, places, numbers, found)
    elif is_vector:
        GET_SIGNED_BY_EIGHTS(rows, columns, counts, streams, table, mixed, places, numbers, found)
    elif one_sided:
        found[0] = GET_ONE_SIDED(rows, columns, counts[0], streams, table, block, places[0], numbers[0])
    else:
        found[0] = GET_SIGNED(rows, columns, counts[0], streams, table, block, places[0], numbers[0])


@njit
def turn(mixed, block):
    """Makes rows of planes from symbols that lie place by place."""
    source, target, pitch = U(mixed.ctypes.data), U(block.ctypes.data), U(block.shape[1])
    for place in range(U(0), pitch, U(8)):
        turn_group(source + U(8) * place, target + place, pitch)
