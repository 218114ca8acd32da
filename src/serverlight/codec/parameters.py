"""The parameters of the probability model as a frame has them, long or short (docs/wire-format.md, section 6.5).

As in :mod:`serverlight.codec.tables`, functions are plain Python on NumPy arrays that a compiler of loops can take as they are.
"""

from __future__ import annotations

import numpy as np

from serverlight.codec.tables import Bytes, Ints, clamp_level

__all__ = ["get_bits", "get_signed", "pack_model", "put_bits", "put_signed", "unpack_model"]

OFFSET_BITS, OFFSET_BIAS = 6, 32
OFFSET_ORDER = 2
"""Of the code that a short section has an offset in."""
MAX_ZEROS = 6


def pack_model(offsets: Ints, present: Ints, corrections: Ints, one_sided: bool, is_short: bool, buffer: Bytes) -> int:
    """Writes the parameters into a buffer of zeros; returns the number of bytes."""
    at = 0
    for decision in range(5):
        if one_sided and decision == 1:
            continue
        if is_short:
            at = put_signed(buffer, at, offsets[decision], OFFSET_ORDER)
        else:
            at = put_bits(buffer, at, offsets[decision] + OFFSET_BIAS, OFFSET_BITS)
        if corrections.shape[0] > 1 or not is_short:
            at = put_bits(buffer, at, present[decision], 1)
        if present[decision]:
            for context in range(corrections.shape[0]):
                at = put_signed(buffer, at, corrections[context, decision], 0)
    return (at + 7) >> 3


def put_bits(buffer: Bytes, at: int, value: int, width: int) -> int:
    """Writes a bit field, least significant bit first; returns the position after it."""
    for i in range(width):
        if (value >> i) & 1:
            buffer[at >> 3] |= 1 << (at & 7)
        at += 1
    return at


def put_signed(buffer: Bytes, at: int, number: int, order: int) -> int:
    """Writes a number's zigzag code as an exponential Golomb code."""
    value = (2 * number - 1 if number > 0 else -2 * number) + (1 << order)
    width = order
    while value >> (width + 1):
        width += 1
    at = put_bits(buffer, at + width - order, 1, 1)
    return put_bits(buffer, at, value, width)


def unpack_model(data: Bytes, defaults: Ints, one_sided: bool, is_short: bool, levels: Ints) -> int:
    """Reads the parameters and writes the levels; returns the number of bytes.

    Negative if they are broken: -1 cut short, -2 a number wider than any level, -3 padding that is not zero.
    """
    at, size, is_alone = 0, 8 * data.shape[0], is_short and levels.shape[0] == 1
    for decision in range(5):
        if one_sided and decision == 1:
            for context in range(levels.shape[0]):
                levels[context, decision] = 0
            continue
        if is_short:
            offset, at = get_signed(data, at, OFFSET_ORDER)
            if at < 0:
                return at
        else:
            if at + OFFSET_BITS > size:
                return -1
            offset = get_bits(data, at, OFFSET_BITS) - OFFSET_BIAS
            at += OFFSET_BITS
        present = 0
        if not is_alone:
            if at >= size:
                return -1
            present = get_bits(data, at, 1)
            at += 1
        for context in range(levels.shape[0]):
            correction = 0
            if present:
                correction, at = get_signed(data, at, 0)
                if at < 0:
                    return at
            levels[context, decision] = clamp_level(clamp_level(defaults[context, decision] + offset) + correction)
    if at & 7 and data[at >> 3] >> (at & 7):
        return -3
    return (at + 7) >> 3


def get_signed(data: Bytes, at: int, order: int) -> tuple[int, int]:
    """Reads what :func:`put_signed` wrote; the position after it is negative if it is broken, as of :func:`unpack_model`."""
    width, size = order, 8 * data.shape[0]
    while at < size and get_bits(data, at, 1) == 0:
        width, at = width + 1, at + 1
    if width - order > MAX_ZEROS:
        return 0, -2
    if at + 1 + width > size:
        return 0, -1
    value = (1 << width) + get_bits(data, at + 1, width) - (1 << order)
    return (value + 1) >> 1 if value & 1 else -(value >> 1), at + 1 + width


def get_bits(data: Bytes, at: int, width: int) -> int:
    """Reads a bit field."""
    value = 0
    for i in range(width):
        value |= int((np.int64(data[(at + i) >> 3]) >> ((at + i) & 7)) & 1) << i
    return value
