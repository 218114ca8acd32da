"""Compiled loops of profile ``serverlight``: from section 6 of a frame to values, in one call.

The definition of what is computed is in ``reference/``, that of what is accepted in ``contextual.py``; what is refused here is
read again there, to say why.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec import activity, tables
from serverlight.codec.backends.cpu.compiled import inlined, njit
from serverlight.codec.backends.cpu.lanes import RAW, get_four_runs
from serverlight.codec.backends.cpu.model import (
    DEFAULT_LEVELS,
    FIRST,
    FLIP_NEXT,
    NEXT,
    build_tables,
    decoder_table,
    unpack_model,
)
from serverlight.codec.backends.cpu.reconstruct import hold_within, is_shift_sent, layout_of, set_default_shifts
from serverlight.codec.backends.cpu.streams import (
    BAD_ESCAPES,
    BAD_RAW,
    BAD_WORDS,
    GOOD,
    LEFT_ESCAPES,
    MALFORMED,
    ends_in_zeros,
    fault_of,
    read_streams,
    streams_of,
)
from serverlight.codec.backends.cpu.symbols import SMALL_MEAN, num_segments_of
from serverlight.codec.backends.cpu.tokens import facts_of, place_flat, place_plain

__all__ = [
    "BAD_ESCAPES",
    "BAD_RAW",
    "BAD_WORDS",
    "GOOD",
    "LEFT_ESCAPES",
    "frequencies_by",
    "parse_front",
    "read_sections",
]

U = np.uint64
FLAT, TOKENS, PLANES = 0, 1, 2
ONE_SIDED_PLANES, SIGNED_PLANES, TRELLIS = tables.ONE_SIDED_PLANES, tables.SIGNED_PLANES, tables.TRELLIS
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
    """Reads the stage header into ``fields``: kind, one-sided, lanes, step's bits, activity, raw bits, half escapes, whether the
    section is in short, and whether it carries shifts.

    Returns the position after it, -1 if it is broken.
    """
    if data.size < 3:
        return -1
    mode = np.int64(data[0])
    kind, one_sided, at = mode & 7, (mode >> 3) & 1, 3
    is_short, flag = kind > SIGNED_PLANES, mode & 64
    if is_short and kind < 7:
        kind -= 4
        kind += 1 if kind == PLANES and not one_sided else 0
    elif mode & 15 == 15:
        kind, one_sided = TRELLIS, 0
    step = np.int64(data[1]) | np.int64(data[2]) << 8
    if kind > TRELLIS or step < 0x0080 or step >= 0x7F80:
        return -1
    if (kind == ONE_SIDED_PLANES and not one_sided) or (kind == SIGNED_PLANES and one_sided):
        return -1
    start, raw_bits = 0, 0
    if layout_of(kind) == TOKENS:
        if at >= data.size or data[at] >= ACTIVITY.size:
            return -1
        start = np.int64(data[at])
        at += 1
    if flag and not is_short:
        if at >= data.size or data[at] < 1 or data[at] > 26:
            return -1
        raw_bits = np.int64(data[at])
        at += 1
    fields[0], fields[1], fields[2] = kind, one_sided, 1 << ((mode >> 4) & 3)
    fields[3], fields[4], fields[5], fields[6] = step, start, raw_bits, mode >> 7
    fields[7], fields[8] = is_short, 1 if flag or not is_short else 0
    return at


@njit
def get_shifts(data, at, kind, one_sided, shifts):
    """Reads the shifts; returns the position after them, -1 past the end."""
    for place in range(10):
        if is_shift_sent(place, kind, one_sided):
            if at >= data.size:
                return -1
            shifts[place] = np.int8(data[at])
            at += 1
    return at


@njit
def get_lengths(data, at, lanes, is_short, lengths):
    """Reads the numbers of words and of escape bytes; returns the position after them, -1 if the streams do not fit what is left.

    A segment without words for its states is refused by setting its number of words to -1.
    """
    total = 0
    for segment in range(lengths.shape[0]):
        if is_short:
            lengths[segment, 1], at = get_varint(data, at)
            left = data.size - at - lengths[segment, 1]
            if left & 1:
                return -1
            lengths[segment, 0] = left >> 1
        else:
            for i in range(2):
                lengths[segment, i], at = get_varint(data, at)
        total += 2 * lengths[segment, 0] + lengths[segment, 1]
        if at < 0 or lengths[segment, 0] < 0 or total > data.size - at:
            return -1
        if lengths[segment, 0] < 2 * lanes:
            lengths[segment, 0] = -1
    return at


@njit
def parse_front(data, rows, columns, size):
    """Reads all that comes before the streams of a frame of ``size`` elements.

    Returns the position of the streams, -1 if something is broken; what :func:`get_head` reads; rows, columns and units as the
    tensor is seen; shifts; levels; and numbers of words and of escape bytes.
    """
    fields, shifts = np.zeros(9, np.int64), np.zeros(10, np.int16)
    at, lengths, levels = get_head(data, fields), np.empty((0, 2), np.int64), np.empty((0, 5), np.int64)
    kind, one_sided, is_short, units = fields[0], fields[1] != 0, fields[7] != 0, 0
    if size == 0:
        at = -1
    if at >= 0:
        levels = np.empty(DEFAULT_LEVELS[kind].shape, np.int64)
        source = data[at : at + MAX_MODEL_BYTES]
        model = unpack_model(source, DEFAULT_LEVELS[kind], kind == ONE_SIDED_PLANES, is_short, levels)
        at = at + model if model >= 0 else -1
        if fields[8] == 0:
            set_default_shifts(kind, one_sided, shifts)
        elif at >= 0:
            at = get_shifts(data, at, kind, one_sided, shifts)
    if at >= 0:
        if layout_of(kind) == PLANES:
            units = size // (rows * columns)
        elif layout_of(kind) == TOKENS:
            rows, units = size // columns, columns
        else:
            rows, columns, units = 1, size, (size + 1) // 2
        lengths = np.empty((num_segments_of(layout_of(kind), units, size), 2), np.int64)
        is_lone = lengths.shape[0] == 1
        is_allowed = is_lone or not is_short or kind == TRELLIS
        at = get_lengths(data, at, fields[2], is_short and is_lone, lengths) if is_allowed else -1
    return at, fields, (rows, columns, units), shifts, levels, lengths


@njit
def frequencies_by(fields, sides, levels):
    """The frequencies of all symbols, by what :func:`parse_front` returns; shape (rows, 256)."""
    kind = fields[0]
    has_tail = (sides[0] if layout_of(kind) == TOKENS else sides[1]) % 2 == 1
    rules, is_one_sided = (FIRST[kind], NEXT[kind], FLIP_NEXT[kind]), kind == ONE_SIDED_PLANES
    return build_tables(levels, *rules, is_one_sided, has_tail, fields[6] != 0)


@njit
def parse_section(data, rows, columns, size, spreads):
    """Reads all that comes before the streams of a frame of ``size`` elements, and builds the reader's table.

    Returns the position of the streams, -1 if something is broken; numbers of lanes and of units, and whether there are half
    escapes; rows and columns as the tensor is seen; what :func:`read_streams` calls the stage; the step; shifts; numbers of words
    and of escape bytes; and the reader's table.
    """
    at, fields, sides, shifts, levels, lengths = parse_front(data, rows, columns, size)
    table = decoder_table(frequencies_by(fields, sides, levels)) if at >= 0 else np.empty(0, np.uint32)
    kind, start, raw_bits = fields[0], fields[4], fields[5]
    is_direct = raw_bits == 0 and kind != TRELLIS and (layout_of(kind) != TOKENS or ACTIVITY[start] <= SMALL_MEAN)
    stage, step = (
        (kind, fields[1] != 0, is_direct, start, raw_bits, spreads),
        np.uint32(fields[3] << 16).view(np.float32),
    )
    return at, (fields[2], sides[2], fields[6]), (sides[0], sides[1]), stage, step, shifts, lengths, table


@inlined
def read_section(data, rows, columns, largest, spreads, out):
    """Writes the values of a frame, and returns ``GOOD`` or what is wrong, in which case the values have no meaning.

    Args:
        data: section 6, uint8.
        rows, columns: the tensor's last two dimensions, 1 where it has fewer.
        largest: largest finite number of the dtype, float32.
        spreads: of the channels, uint8; empty if there are none.
        out: float32, shape (n,).
    """
    if data.size == 1 and data[0] == 7:
        out[:] = 0
        return GOOD
    parsed = parse_section(data, rows, columns, out.size, spreads)
    at, (lanes, units, half), sides, stage, step, shifts, lengths, table = parsed
    if at < 0:
        return MALFORMED
    progress, unit, rest = np.zeros(5, np.int64), step * np.float32(1 / 64), data[at:]
    status = read_streams(
        rest, lengths, stage, half, sides[0], sides[1], units, lanes, table, shifts, unit, progress, out
    )
    return status if status != GOOD else finish_section(rest, lengths, stage, step, shifts, progress, largest, out)


@njit
def finish_section(data, lengths, stage, step, shifts, progress, largest, out):
    """Does what is left when the streams are read: raw bits, and the dtype's range."""
    kind, one_sided, is_direct, _, raw_bits, _ = stage
    raw = data[2 * lengths[:, 0].sum() + lengths[:, 1].sum() :]
    if layout_of(kind) != PLANES and not is_direct:
        place_plain(out, one_sided, shifts, step * np.float32(1 / 64), raw, raw_bits, progress)
    if not ends_in_zeros(raw, progress[RAW]):
        return BAD_RAW
    if largest < np.float32(1e30) or step > LARGE_STEP:
        hold_within(out, largest)
    return GOOD


@njit
def is_small(parsed):
    """Whether a frame has a flat run of one segment, two lanes and one row of the tables, and no raw bits."""
    at, (lanes, _, _), (_, columns), stage, _, _, lengths, _ = parsed
    return at >= 0 and stage[0] == FLAT and lanes == 2 and stage[4] == 0 and columns % 2 == 0 and lengths[0, 0] >= 0


@njit
def read_four(data, ends, first, columns, largest, spreads, out):
    """Reads four frames of flat runs at once; returns ``GOOD`` or -1 if they are of another kind, or any is broken."""
    size, begin = out.size // ends.size, ends[first - 1] if first else 0
    e0, e1, e2, e3 = ends[first], ends[first + 1], ends[first + 2], ends[first + 3]
    row = np.int64(1)  # not a literal, for which functions would be compiled once more
    parts = data[begin:e0], data[e0:e1], data[e1:e2], data[e2:e3]
    p0, p1 = parse_section(parts[0], row, columns, size, spreads), parse_section(parts[1], row, columns, size, spreads)
    p2, p3 = parse_section(parts[2], row, columns, size, spreads), parse_section(parts[3], row, columns, size, spreads)
    if not (is_small(p0) and is_small(p1) and is_small(p2) and is_small(p3)):
        return -1
    parsed, count = (p0, p1, p2, p3), size // 2
    s0, s1 = small_streams(parts[0], p0), small_streams(parts[1], p1)
    s2, s3 = small_streams(parts[2], p2), small_streams(parts[3], p3)
    room, found = np.empty((4, count + 64), np.uint8), np.empty(count, np.int64)
    get_four_runs((s0, s1, s2, s3), (p0[7], p1[7], p2[7], p3[7]), (room[0], room[1], room[2], room[3]), count)
    for i, streams in enumerate((s0, s1, s2, s3)):
        at, _, _, stage, step, shifts, lengths, _ = parsed[i]
        if streams[2][0] > streams[3][0]:
            return -1
        values, progress = out[(first + i) * size : (first + i + 1) * size], np.zeros(5, np.int64)
        place_flat(streams, room[i], True, facts_of(shifts, stage[1]), step * np.float32(1 / 64), found, values)
        if fault_of(streams) != GOOD:
            return -1
        if finish_section(parts[i][at:], lengths, stage, step, shifts, progress, largest, values) != GOOD:
            return -1
    return GOOD


@njit
def small_streams(data, parsed):
    """The streams of a frame of a flat run, whose words are looked at for their end only when all pairs are read."""
    at, (lanes, units, half), _, stage, _, _, lengths, _ = parsed
    return streams_of(data[at:], lengths, layout_of(stage[0]), units, lanes, half, units)


@inlined
def read_sections(data, ends, rows, columns, largest, spreads, out):
    """Reads the sections 6 of frames that end at ``ends`` of ``data``, or of the only one if there are none.

    Returns 0, or the first frame that is broken and what is wrong with it, as ``8 frame + status``.
    """
    num_frames = max(ends.size, 1)
    size, frame, are_small = out.size // num_frames, np.int64(0), rows == 1 and ends.size > 0
    while frame < num_frames:
        if are_small and frame + 4 <= num_frames:
            are_small = read_four(data, ends, frame, columns, largest, spreads, out) == GOOD
            if are_small:
                frame += 4
                continue
        begin, end = ends[frame - 1] if frame else 0, ends[frame] if ends.size else data.size
        values = out[frame * size : (frame + 1) * size]
        status = read_section(data[begin:end], rows, columns, largest, spreads, values)
        if status != GOOD:
            return 8 * frame + status
        frame += 1
    return GOOD
