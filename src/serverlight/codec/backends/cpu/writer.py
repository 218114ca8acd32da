"""Compiled loops of profile ``serverlight``: from values to section 6 of a frame, in one call.

The definition of what is computed is in ``reference/``.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec import activity, coded, tables, trellis
from serverlight.codec.backends.cpu.compiled import inlined, njit
from serverlight.codec.backends.cpu.escapes import put_escapes
from serverlight.codec.backends.cpu.filter import survey_and_rank
from serverlight.codec.backends.cpu.model import (
    build_tables,
    count_decisions,
    encoder_tables,
    fit_levels,
    levels_of,
    pack_model,
)
from serverlight.codec.backends.cpu.quantiser import (
    count_above,
    has_half_escapes,
    magnitude_sum,
    quantise_tensor,
    take_raw,
)
from serverlight.codec.backends.cpu.reconstruct import (
    are_shifts_worthy,
    is_shift_sent,
    measure_plane_shifts,
    measure_shifts,
    set_default_shifts,
)
from serverlight.codec.backends.cpu.segments import put_segments
from serverlight.codec.backends.cpu.symbols import (
    borders_of,
    flat_symbols,
    histogram_over,
    nearest_activity,
    num_segments_of,
    plane_symbols,
    token_symbols,
)
from serverlight.codec.backends.cpu.trellis import trellis_symbols
from serverlight.codec.backends.cpu.trellis_path import lead

U = np.uint64
FLAT, TOKENS, PLANES = 0, 1, 2
ONE_SIDED_PLANES = tables.ONE_SIDED_PLANES
lanes_for = njit(coded.lanes_for)

DEFAULT_LEVELS, NEXT, FLIP_NEXT = tables.DEFAULT_LEVELS, tables.NEXT, tables.FLIP_NEXT
COST, COST_OF_FREQUENCY = tables.COST, tables.COST_OF_FREQUENCY
FIRST, NUM_ROWS, TRELLIS = tables.FIRST, tables.NUM_ROWS, tables.TRELLIS
ACTIVITY, LEAST_ROWS, MOST_STEPS = activity.ACTIVITY, trellis.LEAST_ROWS, trellis.MOST_STEPS


# -- section 6 ---------------------------------------------------------------------------------------------------


@inlined
def symbols_of(high, kind, layout, start, spreads, planes, rows, columns, index):
    """Row of the table and symbol of each pair of the tensor, as ``256 row + symbol``."""
    one_sided, num_contexts = kind == ONE_SIDED_PLANES, NUM_ROWS[kind]
    if layout == PLANES:
        cube = high.reshape(planes, rows, columns)
        plane_symbols(cube, one_sided, num_contexts, index.reshape(planes, rows, (columns + 1) // 2))
    elif kind == TRELLIS:
        trellis_symbols(high, rows, columns, ACTIVITY[start], spreads, index)
    elif layout == TOKENS:
        begin = ACTIVITY[start]
        token_symbols(high, rows, columns, begin, spreads, borders_of(begin), num_contexts, index)
    else:
        flat_symbols(high, index)


@njit
def put_varint(out, at, value):
    """Writes an unsigned integer of seven bits a byte; returns the position after it."""
    while value > 0x7F:
        out[at] = value & 0x7F | 0x80
        value >>= 7
        at += 1
    out[at] = value
    return at + 1


@inlined
def write_section(values, num_kept, num_positive, asymmetry, budget, is_along, spreads, layout, planes, rows, columns):
    """Section 6 of the frame of ``values``, as bytes; none at all if a value is not finite.

    Args:
        values: float32, shape (n,), n > 0.
        num_kept: at most so many elements are kept.
        num_positive: how many of them are positive; negative if the scores are to tell.
        asymmetry: worth of a negative element beside a positive one, float32.
        budget: mean error as a share of the threshold; negative for the one that suits the kind of tensor.
        is_along: whether tokens are led along a trellis.
        spreads: of the channels, uint8; empty if there are none.
        layout, planes, rows, columns: how the tensor is seen.
    """
    num_nonzero, is_signed, is_finite, least = survey_and_rank(values.view(np.int32), max(num_kept, 1))
    if not is_finite:
        return np.empty(0, np.uint8)
    num_kept = min(num_kept, num_nonzero)
    if num_kept == 0:
        return np.full(1, 7, np.uint8)
    kind = layout + (1 if is_signed and layout == PLANES else 0)
    one_sided = kind == ONE_SIDED_PLANES
    numbers, shifts = np.empty(values.size, np.int16), np.zeros(10, np.int64)
    has_fixed_shifts = budget < 0 and layout != PLANES and is_signed
    budget = coded.AUTO_DISTORTION[kind] if budget < 0 else budget
    step, bits, half_escapes = quantise_tensor(
        values, least, num_kept, num_positive, num_nonzero, asymmetry, budget, kind, numbers
    )
    is_along = is_along and layout == TOKENS and is_signed and rows >= LEAST_ROWS and bits == 0
    is_along = is_along and count_above(values, numbers, np.float32(1) / step, np.int32(MOST_STEPS)) == 0
    if is_along:
        kind, step = TRELLIS, max(step * np.float32(0.5), np.float32(2.0**-126))
        lead(values, np.float32(1) / step, rows, columns, spreads, numbers)
        num_kept, num_large = np.count_nonzero(numbers), count_above(values, numbers, np.float32(1), np.int32(7))
        half_escapes = has_half_escapes(num_large, num_kept)
        if num_kept == 0:
            return np.full(1, 7, np.uint8)
    inverse, every, seen = np.float32(1) / step, max(1, values.size >> 13), np.zeros(10, np.int64)
    if has_fixed_shifts or is_along:
        set_default_shifts(kind, False, shifts)
    elif layout == PLANES:
        cubes = values.reshape(planes, rows, columns), numbers.reshape(planes, rows, columns)
        measure_plane_shifts(cubes[0], inverse, cubes[1], np.int32(bits), one_sided, every, shifts, seen)
    else:
        run = columns if layout == TOKENS else 256
        measure_shifts(values, inverse, numbers, np.int32(bits), run, not is_signed, every, shifts, seen)
    num_segments = num_segments_of(layout, units_of(layout, planes, columns), values.size)
    is_short = (num_segments == 1 and bits == 0) or is_along
    has_shifts = not is_short or are_shifts_worthy(shifts, seen, every, kind, not is_signed)
    raw = np.empty(values.size * bits // 8 + 9, np.uint8)
    raw = raw[: take_raw(values, numbers, inverse, bits, raw) if bits else 0]
    start = nearest_activity(magnitude_sum(values, numbers, inverse, bits), values.size) if layout == TOKENS else 0
    head = np.empty(340, np.uint8)
    mode = (4 + layout if is_short else kind) | (0 if is_signed else 8)
    head[0] = (15 if is_along else mode) | (128 if half_escapes else 0)
    head[0] |= 64 if bits or (is_short and has_shifts) else 0
    step_bits = np.float32(step).view(np.uint32) >> np.uint32(16)
    head[1], head[2], at = step_bits & 255, step_bits >> 8, 3
    if layout == TOKENS:
        head[at] = start
        at += 1
    if bits:
        head[at] = bits
        at += 1
    source = values, inverse, np.int32(bits)
    form = is_short, has_shifts, num_segments
    return code_section(
        numbers, source, kind, layout, is_signed, (start, spreads), form, shifts, planes, rows, columns, head, at, raw
    )


@inlined
def units_of(layout, planes, columns):
    """What segments are cut along: planes, channels, or pairs of elements."""
    return planes if layout == PLANES else (columns if layout == TOKENS else (columns + 1) // 2)


@inlined
def code_section(high, source, kind, layout, is_signed, starts, form, shifts, planes, rows, columns, head, at, raw):
    """Codes the high parts, and puts all sections together; ``head[:at]`` is written, but for the number of lanes.

    ``starts`` are the index of the starting activity and the channels' spreads; ``form`` tells whether the section is in short,
    whether it carries shifts, and the number of segments.
    """
    is_short, has_shifts, num_segments = form
    one_sided, pair_rows = kind == ONE_SIDED_PLANES, NUM_ROWS[kind]
    pairs_of_unit = rows * ((columns + 1) // 2) if layout == PLANES else ((rows + 1) // 2 if layout == TOKENS else 1)
    units = units_of(layout, planes, columns)
    has_tail = (rows if layout == TOKENS else columns) % 2 == 1
    index = np.empty(units * pairs_of_unit, np.uint16)
    symbols_of(high, kind, layout, starts[0], starts[1], planes, rows, columns, index)
    # The counts of decisions want rows for single elements even where there are none.
    histogram = np.zeros((2 * pair_rows, 256), np.int64)
    num_rows = pair_rows * (2 if has_tail else 1)
    histogram[:num_rows] = histogram_over(index, num_rows)
    counts = count_decisions(histogram, FIRST[kind], NEXT[kind], FLIP_NEXT[kind], one_sided)
    offsets, present, corrections = fit_levels(counts, DEFAULT_LEVELS[kind], one_sided, COST)
    levels = levels_of(DEFAULT_LEVELS[kind], offsets, corrections)
    half_escapes = head[0] & 128 != 0
    frequencies = build_tables(levels, FIRST[kind], NEXT[kind], FLIP_NEXT[kind], one_sided, has_tail, half_escapes)
    table = np.empty(num_rows * 1024, np.uint32)
    payload_bits, num_escaped = encoder_tables(frequencies, histogram, COST_OF_FREQUENCY, table)
    lanes = lanes_for(payload_bits, num_segments)
    head[0] |= (0 if lanes == 1 else (1 if lanes == 2 else (2 if lanes == 4 else 3))) << 4
    head[at:] = 0
    at += pack_model(offsets, present, corrections, one_sided, is_short, head[at:])
    for place in range(10):
        if has_shifts and is_shift_sent(place, kind, not is_signed):
            head[at] = np.uint8(shifts[place] & 255)
            at += 1
    escaped, escapes = np.empty(num_escaped, np.int64), np.zeros(18 * num_escaped + num_segments + 8, np.uint8)
    lengths, total = np.empty((num_segments, 2), np.int64), num_escaped
    words, ends = put_segments(index, layout, units, columns, pairs_of_unit, lanes, table, escaped, lengths)
    num_escape_bytes = 0
    for segment in range(num_segments):
        found = lengths[segment, 1]
        total -= found
        rest = escaped[total:]
        after = put_escapes(
            high,
            source,
            layout,
            rows,
            columns,
            one_sided,
            half_escapes,
            index,
            table,
            rest,
            found,
            escapes,
            num_escape_bytes,
        )
        lengths[segment, 1] = after - num_escape_bytes
        num_escape_bytes = after
    return joined(head[:at], lengths, is_short and num_segments == 1, words, ends, escapes[:num_escape_bytes], raw)


@njit
def joined(head, lengths, has_one_length, words, ends, escapes, raw):
    """All sections in one array of bytes; ``ends`` tells where in ``words`` each segment's end."""
    num_words, at = lengths[:, 0].sum(), head.size
    out = np.empty(head.size + 10 * lengths.shape[0] + 2 * num_words + escapes.size + raw.size, np.uint8)
    out[:at] = head
    for segment in range(lengths.shape[0]):
        if not has_one_length:
            at = put_varint(out, at, lengths[segment, 0])
        at = put_varint(out, at, lengths[segment, 1])
    for segment in range(lengths.shape[0]):
        size, end = 2 * lengths[segment, 0], ends[segment]
        out[at : at + size] = words[end - lengths[segment, 0] : end].view(np.uint8)
        at += size
    out[at : at + escapes.size] = escapes
    at += escapes.size
    out[at : at + raw.size] = raw
    return out[: at + raw.size]
