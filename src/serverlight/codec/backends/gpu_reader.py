"""Reading frames on a graphics processor: what the host proves and prepares, and the kernels in their order."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from serverlight.codec import activity, contextual, tables
from serverlight.codec.backends import gpu_kernels as kernels
from serverlight.codec.backends.gpu_launch import BLOCK, DTYPE_CODES, as_bits, begins_of, blocks_of, launch, to_device
from serverlight.codec.backends.gpu_model import entries_of, frequencies_of, has_tail
from serverlight.codec.coded import SHIFT_UNIT, Coded, is_one_sided_kind, segments_of
from serverlight.codec.layout import Layout
from serverlight.codec.tensors import LARGEST
from serverlight.codec.wire import Header, Reader
from serverlight.errors import FrameError, InconsistentFrame

__all__ = ["read_frames"]

Fault = tuple[int, FrameError]

FAULTS = {
    1: "entropy coder: a segment has more or fewer words than it needs, or dirty states",
    2: "escapes: a code runs past the end, is wider than 32 bits, or larger than any number of steps",
    3: "escapes: bits are left over",
    4: "raw bits: more or fewer than the numbers need, or dirty padding",
}
NUM_FIELDS, NUM_FACTS = 17, 16
"""Numbers that kernels have of a segment, and of a frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parsed:
    """A frame that the host has read and proved, but for its streams."""

    index: int
    """Place in the batch."""

    section: memoryview
    coded: Coded


def read_frames(sections: Sequence[memoryview], header: Header, out: torch.Tensor) -> Fault | None:
    """See :meth:`serverlight.codec.backends.gpu.TritonKernels.decode_on_device`."""
    groups: dict[tuple[int, int, bool, bool], list[Parsed]] = {}
    fault: Fault | None = None
    for index, section in enumerate(sections):
        try:
            reader = Reader(section)
            coded = contextual.read(reader, header)
            reader.finish()
        except FrameError as error:
            fault = (index, error)
            break
        if coded is None:
            out[index * header.num_elements : (index + 1) * header.num_elements] = 0
        else:
            key = (coded.kind, coded.lanes, coded.raw_bits > 0, coded.half_escapes)
            groups.setdefault(key, []).append(Parsed(index=index, section=section, coded=coded))
    faults = [found for group in groups.values() if (found := Group(group, header, out.device).read(out)) is not None]
    return min([*faults, *([fault] if fault else [])], key=lambda found: found[0], default=None)


class Group:
    """Frames of one batch that the same kernels read: alike in kind, lanes, raw bits, half escapes."""

    def __init__(self, frames: Sequence[Parsed], header: Header, device: torch.device) -> None:
        self._frames, self._header, self._device = frames, header, device
        first = frames[0].coded
        self._kind, self._lanes, self._has_raw = first.kind, first.lanes, first.raw_bits > 0
        self._half_escapes = first.half_escapes
        self._grid, self._bounds = segments_of(header.shape, self._kind)

    def read(self, out: torch.Tensor) -> Fault | None:
        """Reads the frames into their places of ``out``."""
        jobs, facts, places = self._layout()
        frequencies = [
            frequencies_of(frame.coded.levels, self._grid, self._kind, self._half_escapes) for frame in self._frames
        ]
        entries = to_device(entries_of(np.concatenate(frequencies)).astype(np.int32), self._device)
        slots = torch.empty(len(entries) * tables.SCALE, dtype=torch.uint8, device=self._device)
        launch(kernels.fill_slots, (len(entries),), entries, slots)
        bytes_there = self._sections_there(places)
        high = torch.empty(len(out), dtype=torch.int32, device=self._device)
        status = self._read_streams(to_device(jobs, self._device), bytes_there, (entries, slots), high)
        raw_status = self._place(to_device(facts, self._device), bytes_there, high, out)
        return self._fault_in(status, raw_status)

    def _layout(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[int]]:
        """Jobs, facts of frames, and where each section goes in one array, so that the words of each lie at even places."""
        rows_a_frame = tables.NUM_CONTEXTS[self._kind] * (2 if has_tail(self._grid) else 1)
        jobs = np.empty((len(self._frames), len(self._bounds) - 1, NUM_FIELDS), np.int64)
        facts, places, at = [], [], 0
        for number, frame in enumerate(self._frames):
            coded, streams = frame.coded, frame.coded.streams
            raw_at = len(frame.section) - len(coded.raw)
            escapes_at = raw_at - len(streams.escapes)
            words_at = escapes_at - 2 * len(streams.words)
            at += (at + words_at) % 2
            base = frame.index * self._header.num_elements
            start = int(activity.ACTIVITY[coded.activity])
            fields = jobs[number].T
            fields[0], fields[1] = number * rows_a_frame, base
            fields[2], fields[3] = self._bounds[:-1], self._bounds[1:]
            fields[4], fields[5] = (at + words_at) // 2 + begins_of(streams.num_words), streams.num_words
            fields[6], fields[7] = at + escapes_at + begins_of(streams.num_escapes), streams.num_escapes
            fields[8], fields[9] = number * self._grid.columns, start
            fields[10:] = np.array(activity.thresholds_for(start))[:, None]
            unit = int((np.float32(coded.step) * np.float32(1 / SHIFT_UNIT)).view(np.int32))
            raw = (coded.raw_bits, at + raw_at, len(coded.raw))
            facts.append((base, unit, coded.one_sided, *raw, *coded.shifts))
            places.append(at)
            at += len(frame.section)
        return jobs.reshape(-1, NUM_FIELDS), np.array(facts, np.int64), [*places, at]

    def _sections_there(self, places: list[int]) -> torch.Tensor:
        """All sections in one array on the device; a single one goes there from where it lies."""
        there = torch.empty(places[-1] + places[-1] % 2 + 2, dtype=torch.uint8, device=self._device)
        if len(self._frames) == 1:
            section = np.frombuffer(self._frames[0].section, np.uint8)
            there[places[0] : places[1]].copy_(unguarded(section), non_blocking=True)
            return there
        data = np.empty(places[-1], np.uint8)
        for place, frame in zip(places, self._frames, strict=False):
            data[place : place + len(frame.section)] = np.frombuffer(frame.section, np.uint8)
        there[: len(data)].copy_(torch.from_numpy(data), non_blocking=True)
        return there

    def _read_streams(
        self, jobs: torch.Tensor, data: torch.Tensor, model: tuple[torch.Tensor, torch.Tensor], high: torch.Tensor
    ) -> torch.Tensor:
        status = torch.empty(len(jobs), dtype=torch.int32, device=self._device)
        streams = (jobs, data, data.view(torch.int16), *model, high)
        rows, columns = self._grid.rows, self._grid.columns
        options = {"HALF": self._half_escapes, "LANES": self._lanes, "num_warps": 1}
        if self._grid.layout is Layout.FLAT:
            launch(kernels.read_flat, (len(jobs),), *streams, status, columns, **options)
        elif self._grid.layout is Layout.TOKENS:
            means = torch.empty(columns * len(self._frames), dtype=torch.int64, device=self._device)
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

    def _place(
        self, facts: torch.Tensor, data: torch.Tensor, high: torch.Tensor, out: torch.Tensor
    ) -> torch.Tensor | None:
        size, num_frames = self._header.num_elements, len(facts)
        blocks, begins, raw_status = blocks_of(size), facts, None
        if self._has_raw:
            counts = torch.empty((num_frames, blocks), dtype=torch.int64, device=self._device)
            launch(
                kernels.count_nonzero, (blocks, num_frames), facts, high, counts, size, FIELDS=NUM_FACTS, BLOCK=BLOCK
            )
            ends = counts.cumsum(1)
            begins = ends - counts
            raw_status = torch.empty(num_frames, dtype=torch.int32, device=self._device)
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
        for frame, code in zip(self._frames, codes.tolist(), strict=True):
            if code:
                return frame.index, InconsistentFrame(FAULTS[code])
        return None


def unguarded(array: npt.NDArray[np.uint8]) -> torch.Tensor:
    """A tensor over an array that is only read: torch knows no such tensors, and warns of them."""
    pointer = ctypes.cast(array.ctypes.data, ctypes.POINTER(ctypes.c_uint8))
    return torch.from_numpy(np.ctypeslib.as_array(pointer, array.shape))
