"""Compiled loops of profile ``serverlight``: from section 6 of a frame to values, in one call.

The definition of what is computed is in ``reference.py``, that of what is accepted in ``contextual.py``; what is refused here is
read again there, to say why.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec import activity, tables
from serverlight.codec.backends.cpu_kernels import njit
from serverlight.codec.backends.cpu_lanes import RAW
from serverlight.codec.backends.cpu_model import build_tables, decoder_table, unpack_model
from serverlight.codec.backends.cpu_reconstruct import hold_within
from serverlight.codec.backends.cpu_streams import (
    BAD_ESCAPES,
    BAD_RAW,
    BAD_WORDS,
    GOOD,
    LEFT_ESCAPES,
    MALFORMED,
    ends_in_zeros,
    read_streams,
)
from serverlight.codec.backends.cpu_symbols import SMALL_MEAN
from serverlight.codec.backends.cpu_tokens import place_plain

__all__ = ["BAD_ESCAPES", "BAD_RAW", "BAD_WORDS", "GOOD", "LEFT_ESCAPES", "read_sections"]

U = np.uint64
FLAT, TOKENS, PLANES = 0, 1, 2
ONE_SIDED_PLANES, SIGNED_PLANES = tables.ONE_SIDED_PLANES, tables.SIGNED_PLANES
DEFAULT_LEVELS, NEXT, FLIP_NEXT = tables.DEFAULT_LEVELS, tables.NEXT, tables.FLIP_NEXT
ACTIVITY = activity.ACTIVITY
MAX_MODEL_BYTES = 300
LARGE_STEP = np.float32(1e20)


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
    fields, shifts = np.empty(7, np.int64), np.zeros(10, np.int16)
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
    table = decoder_table(frequencies)
    is_direct = raw_bits == 0 and (layout != TOKENS or ACTIVITY[start] <= SMALL_MEAN)
    stage, unit, progress = (
        (kind, one_sided, is_direct, start, raw_bits),
        step * np.float32(1 / 64),
        np.zeros(5, np.int64),
    )
    status = read_streams(
        data[at:], lengths, stage, fields[6], rows, columns, units, lanes, table, shifts, unit, progress, out
    )  # fmt: skip
    if status != GOOD:
        return status
    raw = data[at + 2 * lengths[:, 0].sum() + lengths[:, 1].sum() :]
    if layout != PLANES and not is_direct:
        place_plain(out, one_sided, shifts, unit, raw, raw_bits, progress)
    if not ends_in_zeros(raw, progress[RAW]):
        return BAD_RAW
    if largest < np.float32(1e30) or step > LARGE_STEP:
        hold_within(out, largest)
    return GOOD


@njit
def read_sections(data, ends, rows, columns, largest, out):
    """Reads the sections 6 of frames that end at ``ends`` of ``data``, or of the only one if there are none.

    Returns 0, or the first frame that is broken and what is wrong with it, as ``8 frame + status``.
    """
    if ends.size == 0:
        return read_section(data, rows, columns, largest, out)
    begin, size = 0, out.size // ends.size
    for frame in range(ends.size):
        values = out[frame * size : (frame + 1) * size]
        status = read_section(data[begin : ends[frame]], rows, columns, largest, values)
        if status != GOOD:
            return 8 * frame + status
        begin = ends[frame]
    return GOOD
