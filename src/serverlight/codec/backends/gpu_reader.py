"""Reading frames on a graphics processor: what the host proves and prepares, and the kernels in their order."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from serverlight.codec import activity, contextual, tables
from serverlight.codec.backends import gpu_kernels as kernels
from serverlight.codec.backends.gpu_launch import BLOCK, DTYPE_CODES, as_bits, blocks_of, launch, to_device
from serverlight.codec.backends.gpu_model import frequencies_of, has_tail
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
NUM_FACTS = 16


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
        jobs, facts, data = self._layout()
        frequencies = [
            frequencies_of(frame.coded.levels, self._grid, self._kind, self._half_escapes) for frame in self._frames
        ]
        ends = np.cumsum(np.concatenate(frequencies), axis=1, dtype=np.int32)
        slots = torch.empty(len(ends) * tables.SCALE, dtype=torch.int32, device=self._device)
        launch(kernels.fill_slots, (len(ends),), to_device(ends, self._device), slots)
        bytes_there = to_device(data, self._device)
        high = torch.empty(len(out), dtype=torch.int32, device=self._device)
        status = self._read_streams(to_device(jobs, self._device), bytes_there, slots, high)
        raw_status = self._place(to_device(facts, self._device), bytes_there, high, out)
        return self._fault_in(status, raw_status)

    def _layout(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint8]]:
        """Jobs, facts of frames, and all sections in one array, in which the words of each lie at even places."""
        rows_a_frame = tables.NUM_CONTEXTS[self._kind] * (2 if has_tail(self._grid) else 1)
        jobs, facts, parts, at = [], [], [], 0
        for number, frame in enumerate(self._frames):
            coded, size = frame.coded, len(frame.section)
            num_words = [len(segment.words) for segment in coded.segments]
            num_escapes = [len(segment.escapes) for segment in coded.segments]
            raw_at = size - len(coded.raw)
            words_at = raw_at - sum(num_escapes) - 2 * sum(num_words)
            at += (at + words_at) % 2
            parts.append((at, frame.section))
            base = frame.index * self._header.num_elements
            word_places = itertools.accumulate(num_words, initial=(at + words_at) // 2)
            escape_places = itertools.accumulate(num_escapes, initial=at + raw_at - sum(num_escapes))
            start = int(activity.ACTIVITY[coded.activity])
            common = (number * self._grid.columns, start, *activity.thresholds_for(start))
            for bounds, *streams in zip(
                itertools.pairwise(self._bounds), word_places, num_words, escape_places, num_escapes, strict=False
            ):
                jobs.append((number * rows_a_frame, base, *bounds, *streams, *common))
            unit = np.float32(coded.step) * np.float32(1 / SHIFT_UNIT)
            facts.append(
                (
                    base,
                    int(unit.view(np.int32)),
                    coded.one_sided,
                    coded.raw_bits,
                    at + raw_at,
                    len(coded.raw),
                    *coded.shifts,
                )
            )
            at += size
        data = np.zeros(at + at % 2 + 2, np.uint8)
        for place, section in parts:
            data[place : place + len(section)] = section
        return np.array(jobs, np.int64), np.array(facts, np.int64), data

    def _read_streams(
        self, jobs: torch.Tensor, data: torch.Tensor, slots: torch.Tensor, high: torch.Tensor
    ) -> torch.Tensor:
        status = torch.empty(len(jobs), dtype=torch.int32, device=self._device)
        streams = (jobs, data, data.view(torch.int16), slots, high)
        rows, columns = self._grid.rows, self._grid.columns
        options = {"HALF": self._half_escapes, "LANES": self._lanes, "num_warps": 1}
        if self._grid.layout is Layout.FLAT:
            launch(kernels.read_flat, (len(jobs),), *streams, status, columns, **options)
        elif self._grid.layout is Layout.TOKENS:
            means = torch.empty(2 * columns * len(self._frames), dtype=torch.int32, device=self._device)
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
