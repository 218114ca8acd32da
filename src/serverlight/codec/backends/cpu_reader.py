"""Compiled loops of profile ``serverlight``: from section 6 of a frame to values, in one call.

The definition of what is computed is in ``reference.py``, that of what is accepted in ``contextual.py``; what is refused here is
read again there, to say why.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec import activity, tables
from serverlight.codec.backends.cpu_kernels import njit
from serverlight.codec.backends.cpu_lanes import BITS, HALF, LARGEST, LARGEST_NARROW, LEAST, RAW, get_flat, get_tokens
from serverlight.codec.backends.cpu_model import build_tables, decoder_tables, unpack_model
from serverlight.codec.backends.cpu_planes import (
    FACTS_OF,
    OUTSIDE,
    PAIR_OF,
    get_eight_planes,
    get_four_planes,
    get_planes,
)
from serverlight.codec.backends.cpu_reconstruct import (
    hold_within,
    neighbourhood,
    one_sided_lifts,
    place_large_values,
    place_values,
    plain_lifts,
    signed_lifts,
)
from serverlight.codec.backends.cpu_writer import borders_of

U = np.uint64
FLAT, TOKENS, PLANES = 0, 1, 2
ONE_SIDED_PLANES, SIGNED_PLANES = tables.ONE_SIDED_PLANES, tables.SIGNED_PLANES
DEFAULT_LEVELS, NEXT, FLIP_NEXT = tables.DEFAULT_LEVELS, tables.NEXT, tables.FLIP_NEXT
ACTIVITY = activity.ACTIVITY
MAX_MODEL_BYTES = 300
LARGE_STEP = np.float32(1e20)

GOOD, MALFORMED, BAD_WORDS, BAD_ESCAPES, LEFT_ESCAPES, BAD_RAW = range(6)
"""What :func:`read_section` finds."""


# -- sections ----------------------------------------------------------------------------------------------------


@njit
def get_varint(data, at):
    """Reads an unsigned integer of seven bits a byte; returns it and the position after it, -1 if it is broken."""
    value = 0
    for i in range(5):
        if at < 0 or at >= data.size:
            return 0, -1
        byte = np.int64(data[at])
        at += 1
        value |= (byte & 0x7F) << (7 * i)
        if byte < 0x80:
            return (0, -1) if (byte == 0 and i > 0) or value > 0xFFFFFFFF else (value, at)
    return 0, -1


@njit
def get_head(data, fields):
    """Reads the stage header into ``fields``: kind, one-sided, lanes, step's bits, activity, raw bits, half escapes.

    Returns the position after it, -1 if it is broken.
    """
    if data.size < 3:
        return -1
    mode = np.int64(data[0])
    kind, one_sided, at = mode & 7, (mode >> 3) & 1, 3
    step = np.int64(data[1]) | np.int64(data[2]) << 8
    if kind > SIGNED_PLANES or step < 0x0080 or step >= 0x7F80:
        return -1
    if (kind == ONE_SIDED_PLANES and not one_sided) or (kind == SIGNED_PLANES and one_sided):
        return -1
    start, raw_bits = 0, 0
    if kind == TOKENS:
        if at >= data.size or data[at] >= ACTIVITY.size:
            return -1
        start = np.int64(data[at])
        at += 1
    if mode & 64:
        if at >= data.size or data[at] < 1 or data[at] > 26:
            return -1
        raw_bits = np.int64(data[at])
        at += 1
    fields[0], fields[1], fields[2] = kind, one_sided, 1 << ((mode >> 4) & 3)
    fields[3], fields[4], fields[5], fields[6] = step, start, raw_bits, mode >> 7
    return at


@njit
def get_shifts(data, at, kind, one_sided, shifts):
    """Reads the shifts; returns the position after them, -1 past the end."""
    for place in range(10):
        is_sent = kind >= ONE_SIDED_PLANES or place == 0 or place == 5 or place >= 8
        if is_sent and (place or one_sided):
            if at >= data.size:
                return -1
            shifts[place] = np.int8(data[at])
            at += 1
    return at


@njit
def get_lengths(data, at, lanes, lengths):
    """Reads the numbers of words and of escape bytes; returns the position after them, -1 if the streams do not fit what is left.

    A segment without words for its states is refused by setting its number of words to -1.
    """
    total = 0
    for segment in range(lengths.shape[0]):
        for i in range(2):
            lengths[segment, i], at = get_varint(data, at)
        total += 2 * lengths[segment, 0] + lengths[segment, 1]
        if at < 0 or total > data.size - at:
            return -1
        if lengths[segment, 0] < 2 * lanes:
            lengths[segment, 0] = -1
    return at


@njit
def read_section(data, rows, columns, largest, out):
    """Writes the values of a frame, and returns ``GOOD`` or what is wrong, in which case the values have no meaning.

    Args:
        data: section 6, uint8.
        rows, columns: the tensor's last two dimensions, 1 where it has fewer.
        largest: largest finite number of the dtype, float32.
        out: float32, shape (n,).
    """
    if data.size == 1 and data[0] == 7:
        out[:] = 0
        return GOOD
    fields, shifts = np.empty(7, np.int64), np.zeros(10, np.int64)
    at = get_head(data, fields)
    if at < 0 or out.size == 0:
        return MALFORMED
    kind, one_sided, lanes, start, raw_bits = fields[0], fields[1] != 0, fields[2], fields[4], fields[5]
    step = np.uint32(fields[3] << 16).view(np.float32)
    layout = min(kind, PLANES)
    levels = np.empty(DEFAULT_LEVELS[kind].shape, np.int64)
    model_size = unpack_model(data[at : at + MAX_MODEL_BYTES], DEFAULT_LEVELS[kind], kind == ONE_SIDED_PLANES, levels)
    if model_size < 0:
        return MALFORMED
    at = get_shifts(data, at + model_size, kind, one_sided, shifts)
    if at < 0:
        return MALFORMED
    if layout == PLANES:
        units = out.size // (rows * columns)
    elif layout == TOKENS:
        rows, units = out.size // columns, columns
    else:
        rows, columns, units = 1, out.size, (out.size + 1) // 2
    lengths = np.empty((max(1, min(out.size >> 16, units >> 3)), 2), np.int64)
    at = get_lengths(data, at, lanes, lengths)
    if at < 0:
        return MALFORMED
    has_tail = (rows if layout == TOKENS else columns) % 2 == 1
    frequencies = build_tables(levels, NEXT[kind], FLIP_NEXT[kind], kind == ONE_SIDED_PLANES, has_tail, fields[6] != 0)
    symbols, entries = decoder_tables(frequencies)
    unit = step * np.float32(1 / 64)
    progress = np.zeros(4, np.int64)
    progress[HALF] = fields[6]
    status = read_streams(
        data,
        at,
        lengths,
        kind,
        layout,
        rows,
        columns,
        units,
        lanes,
        start,
        symbols,
        entries,
        shifts,
        unit,
        raw_bits,
        progress,
        out,
    )
    if status != GOOD:
        return status
    raw = data[at + 2 * lengths[:, 0].sum() + lengths[:, 1].sum() :]
    if layout != PLANES:
        place_plain(out, one_sided, shifts, unit, raw, raw_bits, progress)
    if not ends_in_zeros(raw, progress[RAW]):
        return BAD_RAW
    if largest < np.float32(1e30) or step > LARGE_STEP:
        hold_within(out, largest)
    return GOOD


@njit
def ends_in_zeros(data, num_bits):
    """Whether so many bits are all that ``data`` has, but for zero padding; a negative number of bits is never all."""
    if num_bits < 0 or data.size != (num_bits + 7) >> 3:
        return False
    return num_bits & 7 == 0 or data[data.size - 1] >> (num_bits & 7) == 0


@njit
def read_streams(
    data,
    at,
    lengths,
    kind,
    layout,
    rows,
    columns,
    units,
    lanes,
    start,
    symbols,
    entries,
    shifts,
    unit,
    raw_bits,
    progress,
    out,
):
    """Reads all segments: planes become values in ``out``, other elements the bits of their high parts."""
    num_segments, num_contexts = lengths.shape[0], DEFAULT_LEVELS[kind].shape[0]
    high, states = out.view(np.int32), np.empty(lanes, np.uint64)
    escapes_at = at
    for segment in range(num_segments):
        if lengths[segment, 0] < 0:
            return BAD_WORDS
        escapes_at += 2 * lengths[segment, 0]
    raw = data[escapes_at + lengths[:, 1].sum() :]
    words = np.empty(lengths[:, 0].max() + 8, np.uint16)
    block_rows, block_width = (rows + 2, (columns + 1) // 2 + 2) if layout == PLANES else (1, 1)
    block = np.zeros((lanes, block_rows, block_width), np.int64)
    for segment in range(num_segments):
        first, last = units * segment // num_segments, units * (segment + 1) // num_segments
        num_words, num_bytes = lengths[segment, 0], lengths[segment, 1]
        stream, escapes = data[at : at + 2 * num_words], data[escapes_at : escapes_at + num_bytes]
        for i in range(num_words):
            words[i] = np.uint16(stream[2 * i]) | np.uint16(stream[2 * i + 1]) << np.uint16(8)
        words[num_words : num_words + 8] = 0
        for lane in range(lanes):
            states[lane] = U(words[2 * lane]) << U(16) | U(words[2 * lane + 1])
        size, used = U(num_words), U(2 * lanes)
        progress[BITS] = 0
        if layout == PLANES:
            used = read_planes(
                kind,
                rows,
                columns,
                first,
                last,
                states,
                words,
                size,
                used,
                symbols,
                entries,
                block,
                escapes,
                shifts,
                unit,
                raw,
                raw_bits,
                progress,
                out,
            )
        elif layout == TOKENS:
            begin = ACTIVITY[start]
            used = get_tokens(
                rows,
                columns,
                first,
                last,
                begin,
                borders_of(begin),
                num_contexts,
                states,
                words,
                size,
                used,
                symbols,
                entries,
                high,
                escapes,
                progress,
            )
        else:
            used = get_flat(first, last, states, words, size, used, symbols, entries, high, escapes, progress)
        if progress[BITS] < 0:
            return BAD_ESCAPES
        if used != size or np.any(states != LEAST):
            return BAD_WORDS
        if not ends_in_zeros(escapes, progress[BITS]):
            return LEFT_ESCAPES
        at += 2 * num_words
        escapes_at += num_bytes
    return GOOD


# -- values ------------------------------------------------------------------------------------------------------


@njit
def read_planes(
    kind,
    rows,
    columns,
    first,
    last,
    states,
    words,
    size,
    at,
    symbols,
    entries,
    block,
    escapes,
    shifts,
    unit,
    raw,
    raw_bits,
    progress,
    out,
):
    """Reads a segment of planes, block by block, and makes values of them; returns the position in ``words``."""
    one_sided, num_contexts = kind == ONE_SIDED_PLANES, DEFAULT_LEVELS[kind].shape[0]
    which = 1 if one_sided else 0
    pair_of, facts_of, outside = PAIR_OF[which], FACTS_OF[which], OUTSIDE[which]
    lanes, cubes = states.size, out.reshape(out.size // (rows * columns), rows, columns)
    for plane in range(first, last, lanes):
        count = min(lanes, last - plane)
        if count == 8:
            at = get_eight_planes(
                rows,
                columns,
                states,
                words,
                size,
                at,
                symbols,
                entries,
                pair_of,
                facts_of,
                outside,
                num_contexts,
                block,
                escapes,
                progress,
            )
        elif count == 4 and lanes == 4:
            at = get_four_planes(
                rows,
                columns,
                states,
                words,
                size,
                at,
                symbols,
                entries,
                pair_of,
                facts_of,
                outside,
                num_contexts,
                block,
                escapes,
                progress,
            )
        else:
            at = get_planes(
                count,
                rows,
                columns,
                states,
                words,
                size,
                at,
                symbols,
                entries,
                pair_of,
                facts_of,
                outside,
                num_contexts,
                block,
                escapes,
                progress,
            )
        if at > size or progress[BITS] < 0:
            return at
        place_planes(block, one_sided, shifts, unit, raw, raw_bits, progress, cubes[plane : plane + count])
    return at


@njit
def place_planes(block, one_sided, shifts, unit, raw, raw_bits, progress, out):
    """Values of the planes of a block."""
    planes, rows, columns = out.shape
    padded = block.view(np.int32)
    width = padded.shape[2]
    lifts, values = np.empty(rows * width, np.int32), np.empty(rows * width, np.float32)
    numbers = np.zeros(rows * width if raw_bits else 1, np.int64)
    for plane in range(planes):
        run = neighbourhood(padded[plane], width, rows * width)
        if one_sided:
            one_sided_lifts(run, shifts, lifts)
        else:
            signed_lifts(run, shifts, lifts)
        if raw_bits:
            for row in range(rows):
                begin, end = row * width + 2, row * width + 2 + columns
                progress[RAW] = join_raw(run[0][begin:end], raw, raw_bits, progress[RAW], numbers[begin:end])
            place_large_values(numbers, lifts, unit, values)
        elif progress[LARGEST] > LARGEST_NARROW:
            place_large_values(run[0], lifts, unit, values)
        else:
            place_values(run[0], lifts, unit, values)
        for row in range(rows):
            out[plane, row] = values[row * width + 2 : row * width + 2 + columns]


@njit
def place_plain(out, one_sided, shifts, unit, raw, raw_bits, progress):
    """Values of elements without neighbours, from the bits of their high parts in the same place."""
    bits, run = out.view(np.int32), min(out.size, 1024)
    copy, lifts, numbers = np.empty(run, np.int32), np.empty(run, np.int32), np.empty(run, np.int64)
    for begin in range(0, out.size, run):
        part = bits[begin : begin + run]
        high, lift = copy[: part.size], lifts[: part.size]
        for i in range(part.size):
            high[i] = part[i]
        plain_lifts(high, one_sided, shifts, lift)
        if raw_bits:
            progress[RAW] = join_raw(high, raw, raw_bits, progress[RAW], numbers)
            place_large_values(numbers[: part.size], lift, unit, out[begin : begin + part.size])
        elif progress[LARGEST] > LARGEST_NARROW:
            place_large_values(high, lift, unit, out[begin : begin + part.size])
        else:
            place_values(high, lift, unit, out[begin : begin + part.size])


@njit
def join_raw(high, raw, raw_bits, at, numbers):
    """Joins high parts and raw bits, read from bit ``at``; returns the bit after them, -1 past the end."""
    mask = (1 << raw_bits) - 1
    for x in range(high.size):
        number = np.int64(high[x])
        if number:
            if at < 0 or at + raw_bits > 8 * raw.size:
                return -1
            low, start = 0, at >> 3
            for i in range(min(5, raw.size - start)):
                low |= np.int64(raw[start + i]) << (8 * i)
            magnitude = ((abs(number) - 1) << raw_bits) + ((low >> (at & 7)) & mask) + 1
            number = -magnitude if number < 0 else magnitude
            at += raw_bits
        numbers[x] = number
    return at
