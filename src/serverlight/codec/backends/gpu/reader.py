"""Reading frames on a graphics processor: the kernels in their order, over what ``outline.py`` has proved of the frames."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from serverlight.codec import activity, tables
from serverlight.codec.backends.gpu import outline as outlines
from serverlight.codec.backends.gpu import triton_reader as kernels
from serverlight.codec.backends.gpu.launch import BLOCK, DTYPE_CODES, as_bits, begins_of, blocks_of, launch, to_device
from serverlight.codec.backends.gpu.outline import FAULTS, Fault, Outline, outline
from serverlight.codec.coded import SHIFT_UNIT, is_one_sided_kind, segments_of
from serverlight.codec.layout import Layout
from serverlight.codec.tables import Ints
from serverlight.codec.tensors import LARGEST
from serverlight.codec.wire import Header
from serverlight.errors import InconsistentFrame

__all__ = ["read_frames"]

NUM_FIELDS, NUM_FACTS = 17, 16
"""Numbers that kernels have of a segment, and of a frame."""

MOST_GROUPS = 4
"""Of channels, whose means stay in registers."""


def read_frames(sections: Sequence[memoryview], header: Header, out: torch.Tensor) -> Fault | None:
    """See :meth:`serverlight.codec.backends.gpu.TritonKernels.decode_on_device`."""
    data = np.frombuffer(sections[0] if len(sections) == 1 else b"".join(sections), np.uint8)
    known = outline(sections, data, header)
    if not len(known.heads):
        return known.fault
    faults = [known.fault] if known.fault is not None else []
    there = There(data, sections, known, out.device)
    keys = known.heads[:, [outlines.KIND, outlines.LANES, outlines.RAW_BITS, outlines.HALF]]
    keys[:, 2] = keys[:, 2] > 0
    for key in np.unique(keys, axis=0):
        frames = np.flatnonzero((keys == key).all(axis=1))
        if key[0] < 0:
            out.view(len(sections), -1)[to_device(frames, out.device)] = 0
        elif (fault := Group(frames, there, header).read(out)) is not None:
            faults.append(fault)
    return min(faults, key=lambda fault: fault[0], default=None)


class There:
    """What all frames of a call share on the device: their bytes and tables; and where the streams of each lie among the bytes.

    Words are read from even places. Where streams of some begin at odd ones there is a second copy of all bytes, shifted by one.
    """

    def __init__(
        self, data: npt.NDArray[np.uint8], sections: Sequence[memoryview], known: Outline, device: torch.device
    ) -> None:
        self.known = known
        sizes = np.array([len(section) for section in sections[: len(known.heads)]], np.int64)
        streams = np.cumsum(sizes) - sizes + known.heads[:, outlines.STREAMS]
        lead = int(streams[0]) % 2
        self.streams, self.ends = lead + streams, lead + np.cumsum(sizes)
        size = lead + len(data)
        second = size + size % 2 + 1
        is_odd = self.streams % 2 > 0
        self.words = np.where(is_odd, second + self.streams, self.streams) // 2
        copies = 2 if is_odd.any() else 1
        self.data = torch.empty(copies * (second + 1), dtype=torch.uint8, device=device)
        self.data[lead:size].copy_(unguarded(data), non_blocking=True)
        if copies == 2:
            self.data[second : second + size].copy_(self.data[:size])
        self.entries = to_device(known.entries, device)
        self.slots = torch.empty(len(known.entries) * tables.SCALE, dtype=torch.uint8, device=device)
        launch(kernels.fill_slots, (len(known.entries),), self.entries, self.slots)


class Group:
    """Frames of a call that the same kernels read: alike in kind, lanes, half escapes, and in having raw bits. G = frames."""

    def __init__(self, frames: Ints, there: There, header: Header) -> None:
        self._frames, self._there, self._header = frames, there, header
        self._heads = there.known.heads[frames]
        first = self._heads[0].tolist()
        self._kind, self._lanes = first[outlines.KIND], first[outlines.LANES]
        self._has_raw, self._half_escapes = first[outlines.RAW_BITS] > 0, first[outlines.HALF] > 0
        self._grid, self._bounds = segments_of(header.shape, self._kind)

    def read(self, out: torch.Tensor) -> Fault | None:
        """Reads the frames into their places of ``out``."""
        jobs, facts = self._layout()
        high = torch.empty(len(out), dtype=torch.int32, device=out.device)
        status = self._read_streams(to_device(jobs, out.device), high)
        raw_status = self._place(to_device(facts, out.device), high, out)
        return self._fault_in(status, raw_status)

    def _layout(self) -> tuple[Ints, Ints]:
        """What kernels have of each segment, shape (G S, 17), and of each frame, shape (G, 16)."""
        heads, there, frames = self._heads, self._there, self._frames
        base, starts = frames * self._header.num_elements, activity.ACTIVITY[heads[:, outlines.START]]
        num_words, num_escapes = np.moveaxis(there.known.lengths[frames, : len(self._bounds) - 1], 2, 0)
        words, escapes = begins_of(num_words), begins_of(num_escapes)
        escapes_at = there.streams[frames] + 2 * num_words.sum(axis=1)
        jobs = np.empty((len(frames), len(self._bounds) - 1, NUM_FIELDS), np.int64)
        fields = np.moveaxis(jobs, 2, 0)
        fields[0], fields[1] = heads[:, outlines.ROW, None], base[:, None]
        fields[2], fields[3] = self._bounds[:-1], self._bounds[1:]
        fields[4], fields[5] = there.words[frames, None] + words, num_words
        fields[6], fields[7] = escapes_at[:, None] + escapes, num_escapes
        fields[8], fields[9] = np.arange(len(frames))[:, None] * self._grid.columns, starts[:, None]
        jobs[:, :, 10:] = activity.thresholds_for(starts[:, None])[:, None]
        raw_at = escapes_at + num_escapes.sum(axis=1)
        facts = np.empty((len(frames), NUM_FACTS), np.int64)
        facts[:, 0], facts[:, 1] = base, units_of(heads[:, outlines.STEP])
        facts[:, 2], facts[:, 3] = heads[:, outlines.ONE_SIDED], heads[:, outlines.RAW_BITS]
        facts[:, 4], facts[:, 5] = raw_at, there.ends[frames] - raw_at
        facts[:, 6:] = heads[:, outlines.SHIFTS :]
        return jobs.reshape(-1, NUM_FIELDS), facts

    def _read_streams(self, jobs: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
        there, device = self._there, high.device
        status = torch.empty(len(jobs), dtype=torch.int32, device=device)
        streams = (jobs, there.data, there.data.view(torch.int16), there.entries, there.slots, high)
        rows, columns = self._grid.rows, self._grid.columns
        options = {"HALF": self._half_escapes, "LANES": self._lanes, "num_warps": 1}
        if self._grid.layout is Layout.FLAT:
            launch(kernels.read_flat, (len(jobs),), *streams, status, columns, **options)
        elif self._grid.layout is Layout.TOKENS:
            means = torch.empty(columns * len(self._frames), dtype=torch.int64, device=device)
            groups = -(-int(np.diff(self._bounds).max()) // self._lanes)
            options["GROUPS"] = groups if groups <= MOST_GROUPS else 0
            launch(kernels.read_tokens, (len(jobs),), *streams, means, status, rows, columns, **options)
        else:
            one_sided, contexts = is_one_sided_kind(self._kind), tables.NUM_CONTEXTS[self._kind]
            launch(
                kernels.read_planes,
                (len(jobs),),
                *(*streams, status, rows, columns, contexts),
                ONE_SIDED=one_sided,
                **options,
            )
        return status

    def _place(self, facts: torch.Tensor, high: torch.Tensor, out: torch.Tensor) -> torch.Tensor | None:
        data, device, size, num_frames = self._there.data, high.device, self._header.num_elements, len(facts)
        blocks, begins, raw_status = blocks_of(size), facts, None
        if self._has_raw:
            counts = torch.empty((num_frames, blocks), dtype=torch.int64, device=device)
            launch(
                kernels.count_nonzero, (blocks, num_frames), facts, high, counts, size, FIELDS=NUM_FACTS, BLOCK=BLOCK
            )
            ends = counts.cumsum(1)
            begins = ends - counts
            raw_status = torch.empty(num_frames, dtype=torch.int32, device=device)
            launch(kernels.check_raw, (num_frames,), facts, data, ends, raw_status, blocks, FIELDS=NUM_FACTS)
        launch(
            kernels.place_values,
            (blocks, num_frames),
            *(facts, data, high, begins, as_bits(out)),
            *(size, self._grid.rows, self._grid.columns, LARGEST[self._header.dtype]),
            FIELDS=NUM_FACTS,
            KIND=self._kind,
            DTYPE=DTYPE_CODES[out.dtype],
            HAS_RAW=self._has_raw,
            BLOCK=BLOCK,
        )
        return raw_status

    def _fault_in(self, status: torch.Tensor, raw_status: torch.Tensor | None) -> Fault | None:
        codes = status.view(len(self._frames), -1).amax(1)
        if raw_status is not None:
            codes = torch.maximum(codes, raw_status)
        for frame, code in zip(self._frames.tolist(), codes.tolist(), strict=True):
            if code:
                return frame, InconsistentFrame(FAULTS[code])
        return None


def units_of(steps: Ints) -> Ints:
    """The bits of a 64th of each step, by the step's bits as bfloat16."""
    unit = (steps << 16).astype(np.int32).view(np.float32) * np.float32(1 / SHIFT_UNIT)
    return unit.view(np.int32).astype(np.int64)


def unguarded(array: npt.NDArray[np.uint8]) -> torch.Tensor:
    """A tensor over an array that is only read: torch knows no such tensors, and warns of them."""
    pointer = ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
    return torch.from_numpy(np.ctypeslib.as_array(pointer, array.shape))
