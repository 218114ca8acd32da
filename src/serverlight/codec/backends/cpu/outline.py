"""Compiled loops for tensors on a device: what its kernels have to know of many frames, proved on the host in one call."""

from __future__ import annotations

import numpy as np

from serverlight.codec import tables
from serverlight.codec.backends.cpu.compiled import njit
from serverlight.codec.backends.cpu.reader import frequencies_by, parse_front

__all__ = ["outline_sections"]

TRELLIS = tables.TRELLIS


@njit
def outline_sections(data, ends, rows, columns, size, heads, lengths, entries):
    """Outlines frames of ``size`` elements, up to the first that breaks a rule or goes along a trellis; returns how many, and how
    many rows their tables have.

    Args:
        data, ends: sections 6 one after the other, uint8, and where each ends.
        rows, columns: the tensor's last two dimensions, 1 where it has fewer.
        heads: receives the numbers that ``gpu/outline.py`` names; shape (frames, 19).
        lengths: receives numbers of words and of escape bytes, by segment; shape (frames, S, 2).
        entries: receives the tables; int32, shape (R, 256).
    """
    row = 0
    for frame in range(ends.size):
        section = data[ends[frame - 1] if frame else 0 : ends[frame]]
        head = heads[frame]
        head[:] = 0
        if section.size == 1 and section[0] == 7:
            head[0] = -1
            continue
        at, fields, sides, shifts, levels, found = parse_front(section, rows, columns, size)
        if at < 0 or fields[0] == TRELLIS or found[:, 0].min() < 0:
            return frame, row
        left = section.size - at - 2 * found[:, 0].sum() - found[:, 1].sum()
        if fields[5] == 0 and left > 0:
            return frame, row
        head[:7] = fields[:7]
        head[7], head[8] = at, row
        head[9:] = shifts
        lengths[frame, : found.shape[0]] = found
        row += set_entries(frequencies_by(fields, sides, levels), entries[row:])
    return ends.size, row


@njit
def set_entries(frequencies, entries):
    """Writes what :func:`serverlight.codec.backends.gpu.model.entries_of` returns; returns the number of rows."""
    for row in range(frequencies.shape[0]):
        begin = np.int32(0)
        for symbol in range(256):
            frequency = frequencies[row, symbol]
            entries[row, symbol] = frequency | begin << np.int32(13)
            begin += frequency
    return frequencies.shape[0]
