"""What kernels have to know of frames before they read them: proved and prepared on the host, for all frames of a call together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serverlight.codec import contextual, layout, tables
from serverlight.codec.backends.gpu.model import HAS_NUMBA, entries_of
from serverlight.codec.backends.reference.coder import frequencies_for
from serverlight.codec.coded import Coded, segments_of
from serverlight.codec.tables import Ints
from serverlight.codec.wire import Header, Reader
from serverlight.errors import FrameError, InconsistentFrame

__all__ = ["FAULTS", "MAX_ROWS", "Fault", "Outline", "outline"]

Fault = tuple[int, FrameError]
"""The first frame that breaks a rule, and how."""

FAULTS = {
    1: "entropy coder: a segment has more or fewer words than it needs, or dirty states",
    2: "escapes: a code runs past the end, is wider than 32 bits, or larger than any number of steps",
    3: "escapes: bits are left over",
    4: "raw bits: more or fewer than the numbers need, or dirty padding",
}

KIND, ONE_SIDED, LANES, STEP, START, RAW_BITS, HALF, STREAMS, ROW, SHIFTS, NUM_HEADS = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 19
"""Places in what is known of a frame: kind, -1 if all is zero; whether one-sided; lanes; the step's bfloat16; index of the starting
activity; raw bits; whether half escapes; where the streams begin in the section; its first row of the tables; and ten shifts."""

MAX_ROWS = 2 * max(tables.NUM_CONTEXTS)
"""No frame has more rows of tables."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outline:
    """F = frames, S = segments that such frames have at most, R = rows of all their tables."""

    heads: Ints
    """Shape (F, 19), by the places above."""

    lengths: Ints
    """Numbers of words and of escape bytes: shape (F, S, 2)."""

    entries: npt.NDArray[np.int32]
    """What kernels know of each symbol, see :func:`entries_of`: shape (R, 256)."""

    fault: Fault | None
    """A frame that is broken; those before it are outlined."""


def outline(sections: Sequence[memoryview], data: npt.NDArray[np.uint8], header: Header) -> Outline:
    """Outlines frames with one header, none of which goes along a trellis; ``data`` has their sections one after the other."""
    room = Outline(
        heads=np.zeros((len(sections), NUM_HEADS), np.int64),
        lengths=np.zeros((len(sections), max(1, -(-header.num_elements // layout.SEGMENT_ELEMENTS)), 2), np.int64),
        entries=np.empty((MAX_ROWS * len(sections), 256), np.int32),
        fault=None,
    )
    if HAS_NUMBA:
        num_sound, num_rows = _fill(room, sections, data, header)
    else:
        num_sound, num_rows = _fill_plainly(room, sections, header)
    return Outline(
        heads=room.heads[:num_sound],
        lengths=room.lengths[:num_sound],
        entries=room.entries[:num_rows],
        fault=(num_sound, _fault_of(sections[num_sound], header)) if num_sound < len(sections) else None,
    )


def _fill(
    room: Outline, sections: Sequence[memoryview], data: npt.NDArray[np.uint8], header: Header
) -> tuple[int, int]:
    """Returns how many frames are sound before the first that is not, and how many rows their tables have."""
    from serverlight.codec.backends.cpu.kernels import OUTLINE

    ends = np.cumsum([len(section) for section in sections])
    tensor = (*(1, 1, *header.shape)[-2:], header.num_elements)
    num_sound, num_rows = OUTLINE(data, ends, *tensor, room.heads, room.lengths, room.entries)
    return num_sound, num_rows


def _fill_plainly(room: Outline, sections: Sequence[memoryview], header: Header) -> tuple[int, int]:
    """The same without Numba."""
    row = 0
    for frame, section in enumerate(sections):
        try:
            coded = _read(section, header)
        except FrameError:
            return frame, row
        if coded is None:
            room.heads[frame, KIND] = -1
            continue
        streams = coded.streams
        if (streams.num_words < 2 * coded.lanes).any():
            return frame, row
        step = int(np.float32(coded.step).view(np.uint32)) >> 16
        known = (coded.kind, coded.one_sided, coded.lanes, step, coded.activity, coded.raw_bits, coded.half_escapes)
        at = len(section) - len(coded.raw) - len(streams.escapes) - 2 * len(streams.words)
        room.heads[frame] = (*known, at, row, *coded.shifts)
        room.lengths[frame, : len(streams.num_words)] = np.stack((streams.num_words, streams.num_escapes), axis=1)
        grid, _ = segments_of(header.shape, coded.kind)
        found = entries_of(frequencies_for(coded.levels, grid, coded.kind, coded.half_escapes))
        room.entries[row : row + len(found)] = found
        row += len(found)
    return len(sections), row


def _read(section: memoryview, header: Header) -> Coded | None:
    reader = Reader(section)
    coded = contextual.read(reader, header)
    reader.finish()
    return coded


def _fault_of(section: memoryview, header: Header) -> FrameError:
    """What is wrong with a frame that has no outline."""
    try:
        _read(section, header)
    except FrameError as error:
        return error
    return InconsistentFrame(FAULTS[1])
