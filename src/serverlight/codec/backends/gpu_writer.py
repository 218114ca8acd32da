"""Writing frames on a graphics processor: the kernels in their order, and what the host decides between them.

The host waits for the device a few times: for the threshold, which sets the step; for what the raw bits and the starting activity
depend on; for the histogram, which the model is fitted to; for the lengths of the streams; and for the streams themselves.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch

from serverlight.codec import activity, coded, tables
from serverlight.codec.backends import gpu_writer_kernels as kernels
from serverlight.codec.backends.gpu_launch import BLOCK, DTYPE_CODES, as_bits, blocks_of, launch, to_device
from serverlight.codec.backends.gpu_model import fit
from serverlight.codec.coded import Coded, Segment, is_one_sided_kind
from serverlight.codec.config import CodecConfig
from serverlight.codec.layout import Grid, Layout, natural_layout
from serverlight.codec.tables import Ints
from serverlight.codec.tensors import check_finite

__all__ = ["coded_tensor"]

NONZERO, NEGATIVE, INFINITE, SCORE, MAGNITUDE, LEAST, LARGE, SUM, NUM_STATES = 0, 1, 2, 3, 6, 9, 10, 11, 12
"""Places of ``state``, as gpu_writer_kernels.py has them."""
DIGITS = ((23, 8), (15, 8), (7, 8), (0, 7))
"""Place and width of the digits that scores are sorted by, in their bits."""
ZERO_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
"""So many low bits of an element are zero once it is binary32."""
MARK, MARK_WHOLE = 1 << 30, 1 << 29
COPIES, CHANNELS = 64, 32


def coded_tensor(x: torch.Tensor, shape: tuple[int, ...], config: CodecConfig) -> Coded | None:
    """What a frame says of a flat tensor on the device; ``None`` if all of it is zero, or nothing is to be kept.

    Raises:
        NonFiniteTensor: a value is NaN or infinite.
    """
    return Writing(x, shape, config).coded() if len(x) else None


class Writing:
    """One tensor on its way to a frame. n = its elements."""

    def __init__(self, x: torch.Tensor, shape: tuple[int, ...], config: CodecConfig) -> None:
        self._x, self._shape, self._config = x, shape, config
        self._asymmetry = float(np.float32(config.asymmetry))
        self._options = {"DTYPE": DTYPE_CODES[x.dtype], "BLOCK": BLOCK}
        self._blocks = (blocks_of(len(x)),)
        self._state = torch.zeros(NUM_STATES, dtype=torch.int64, device=x.device)
        self._state[LEAST] = 1 << 31

    def coded(self) -> Coded | None:
        """All stages."""
        num_kept = self._config.num_kept(len(self._x))
        found = self._threshold(num_kept)
        if found[INFINITE]:
            check_finite(self._x.float().numpy(force=True))
        num_kept = min(num_kept, found[NONZERO])
        if num_kept == 0:
            return None
        one_sided = not found[NEGATIVE]
        kind = coded.kind_of(natural_layout(self._shape), one_sided)
        grid, bounds = coded.segments_of(self._shape, kind)
        least = max(found[SCORE if self._asymmetry == 1 else LEAST], found[MAGNITUDE])
        step = coded.step_of(np.int32(least).view(np.float32), self._config, kind)
        numbers = self._quantised(step, kind)
        high, raw_bits, half_escapes, raw = self._split(numbers, num_kept, kind)
        tallies = self._tallied(numbers, high, step, one_sided, kind, grid)
        start = activity.nearest_activity(int(self._state[SUM]), len(high)) if kind == tables.TOKENS else 0
        stream = Streams(high, kind, grid, bounds, start, half_escapes)
        sums, counts = np.split(tallies.numpy(force=True), 2)
        return Coded(
            kind=kind,
            one_sided=one_sided,
            lanes=stream.lanes,
            step=float(step),
            activity=start,
            raw_bits=raw_bits,
            half_escapes=half_escapes,
            model=stream.model,
            levels=stream.levels,
            shifts=coded.settled_shifts(sums, counts, one_sided),
            segments=stream.segments(),
            raw=raw,
        )

    def _launch(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        """A kernel over all elements."""
        launch(kernel, self._blocks, *arguments, **self._options, **constants)

    def _threshold(self, num_kept: int) -> list[int]:
        """Finds the least score kept, and the least magnitude that may set the step; returns ``state``."""
        x, state, size = as_bits(self._x), self._state, len(self._x)
        bins = torch.zeros(256, dtype=torch.int64, device=x.device)
        for which in (SCORE, MAGNITUDE):
            zero_bits = ZERO_BITS[self._x.dtype] if which == MAGNITUDE or self._asymmetry == 1 else 0
            for place, width in DIGITS:
                if place + width <= zero_bits:
                    break
                is_first = which == SCORE and place == DIGITS[0][0]
                options = {"WHICH": which, "SHIFT": place, "WIDTH": width, "SURVEY": is_first}
                self._launch(kernels.count_digits, x, state, bins, size, self._asymmetry, **options)
                if is_first:
                    launch(kernels.set_ranks, (1,), state, num_kept)
                launch(kernels.take_digit, (1,), state, bins, WHICH=which, SHIFT=place)
        if self._asymmetry != 1:
            self._launch(kernels.find_least, x, state, size, self._asymmetry)
        found: list[int] = state.tolist()
        return found

    def _quantised(self, step: np.float32, kind: int) -> torch.Tensor:
        """Signed numbers of steps."""
        x, size = as_bits(self._x), len(self._x)
        counts = torch.empty(self._blocks, dtype=torch.int64, device=x.device)
        self._launch(kernels.count_ties, x, self._state, counts, size, self._asymmetry)
        numbers = torch.empty(size, dtype=torch.int32, device=x.device)
        inverse = float(np.float32(1) / step)
        limits = (size, self._asymmetry, inverse, largest_nibble(kind))
        self._launch(kernels.quantise, x, self._state, counts.cumsum(0) - counts, numbers, *limits)
        return numbers

    def _split(self, numbers: torch.Tensor, num_kept: int, kind: int) -> tuple[torch.Tensor, int, bool, Any]:
        """High parts, the number of raw bits, whether half escapes pay, and the raw bits."""
        size, bits, device = len(numbers), 0, numbers.device
        while coded.needs_raw_bit(num_large := int(self._state[LARGE]), num_kept, kind):
            bits += 1
            self._state[LARGE] = 0
            limit = largest_nibble(kind) << bits
            launch(kernels.count_large, self._blocks, numbers, self._state, size, limit, BLOCK=BLOCK)
        half_escapes = coded.has_half_escapes(num_large, num_kept)
        if bits == 0:
            return numbers, 0, half_escapes, np.zeros(0, np.uint8)
        counts = torch.empty(self._blocks, dtype=torch.int64, device=device)
        launch(kernels.count_kept, self._blocks, numbers, counts, size, BLOCK=BLOCK)
        high, num_bits = torch.empty_like(numbers), bits * num_kept
        raw = torch.zeros(num_bits // 32 + 3, dtype=torch.int32, device=device)
        self._state[SUM] = 0
        begins = counts.cumsum(0) - counts
        launch(kernels.split_raw, self._blocks, numbers, begins, high, raw, self._state, size, bits, BLOCK=BLOCK)
        return high, bits, half_escapes, raw.view(torch.uint8)[: (num_bits + 7) // 8].numpy(force=True)

    def _tallied(
        self, numbers: torch.Tensor, high: torch.Tensor, step: np.float32, one_sided: bool, kind: int, grid: Grid
    ) -> torch.Tensor:
        """Distances from the nominal values and numbers of elements, by class."""
        tallies = torch.zeros(2 * coded.NUM_SHIFTS, dtype=torch.int64, device=high.device)
        run, every, size = coded.sample_run(grid), coded.sample_stride(len(high)), len(high)
        looked_at = -(-size // (run * every)) * run
        sizes = (size, grid.rows, grid.columns, run, every, looked_at)
        inverse = float(np.float32(1) / step)
        arguments = (as_bits(self._x), numbers, high, tallies, *sizes, inverse, one_sided)
        launch(kernels.tally, (blocks_of(looked_at),), *arguments, KIND=kind, **self._options)
        return tallies


def largest_nibble(kind: int) -> int:
    """The largest magnitude that has a nibble."""
    return 14 if is_one_sided_kind(kind) else 7


class Streams:
    """High parts on their way to words and escapes."""

    def __init__(
        self, high: torch.Tensor, kind: int, grid: Grid, bounds: list[int], start: int, half_escapes: bool
    ) -> None:
        self._high, self._kind, self._grid, self._num_segments = high, kind, grid, len(bounds) - 1
        self._half_escapes = half_escapes
        self._lines = (grid.rows + 1) // 2 if grid.layout is Layout.TOKENS else 1
        self._pairs_of_unit = grid.rows * ((grid.columns + 1) // 2) if grid.layout is Layout.PLANES else self._lines
        self._sizes = np.diff(bounds) * self._pairs_of_unit
        self._bounds = to_device(np.array(bounds, np.int32), high.device)
        self._index = self._symbols(start)
        histogram = self._histogram()
        fitted = fit(histogram, grid, kind, half_escapes)
        self.model, self.levels = fitted.packed, fitted.levels
        self.lanes = coded.lanes_for(fitted.payload_bits, self._num_segments)
        table, escaped = coder_table(fitted.frequencies)
        self._any_escaped = bool(histogram[: len(escaped)][escaped].any())
        self._table = to_device(table, high.device)

    def segments(self) -> tuple[Segment, ...]:
        """Codes all segments, and fetches them."""
        device, grid, programs = self._high.device, self._grid, (self._num_segments,)
        ends = to_device(np.cumsum(self._sizes + 2 * self.lanes), device)
        room = torch.empty(
            int(self._sizes.sum()) + 2 * self.lanes * self._num_segments, dtype=torch.int16, device=device
        )
        lengths = torch.zeros((2, self._num_segments), dtype=torch.int64, device=device)
        where = (self._lines, grid.columns, self._pairs_of_unit)
        options = {"KIND": self._kind, "LANES": self.lanes}
        coding = (self._index, self._table, ends, room, lengths[0], self._bounds)
        launch(kernels.write_words, programs, *coding, *where, **options, num_warps=1)
        if self._any_escaped:
            self._write_escapes(lengths[1], lengths[1], self._high, is_counting=True)
        num_words, num_bits = lengths.tolist()
        words_at, escapes_at = offsets(num_words), offsets([(bits + 7) // 8 for bits in num_bits])
        begin = (words_at[-1] + 1) // 2
        into = torch.zeros(begin + escapes_at[-1] // 4 + 3, dtype=torch.int32, device=device)
        copying = (room, ends, to_device(np.array(words_at), device), lengths[0], into.view(torch.int16))
        launch(kernels.copy_words, (blocks_of(max(num_words)), self._num_segments), *copying, BLOCK=BLOCK)
        if self._any_escaped:
            self._write_escapes(
                to_device(8 * np.array(escapes_at), device), lengths[1], into[begin:], is_counting=False
            )
        streams = into.numpy(force=True)
        words, escapes = streams[:begin].view(np.uint16), streams[begin:].view(np.uint8)
        return tuple(
            Segment(words=words[slice(*place)], escapes=escapes[slice(*other)])
            for place, other in zip(itertools.pairwise(words_at), itertools.pairwise(escapes_at), strict=True)
        )

    def _write_escapes(
        self, starts: torch.Tensor, lengths: torch.Tensor, into: torch.Tensor, *, is_counting: bool
    ) -> None:
        arguments = (self._index, self._table, self._high, self._bounds, starts, lengths, into, len(self._high))
        launch(
            kernels.write_escapes,
            (self._num_segments,),
            *arguments,
            *(self._grid.rows, self._grid.columns, self._pairs_of_unit),
            KIND=self._kind,
            LANES=self.lanes,
            ONE_SIDED=is_one_sided_kind(self._kind),
            HALF=self._half_escapes,
            COUNT_ONLY=is_counting,
            BLOCK=BLOCK,
        )

    def _symbols(self, start: int) -> torch.Tensor:
        """Row of the table and symbol of each pair of the tensor, as ``256 row + symbol``."""
        high, grid, size = self._high, self._grid, int(self._sizes.sum())
        index = torch.empty(size, dtype=torch.int16, device=high.device)
        if grid.layout is Layout.PLANES:
            sizes = (size, grid.rows, grid.columns, tables.NUM_CONTEXTS[self._kind])
            options = {"ONE_SIDED": is_one_sided_kind(self._kind), "BLOCK": BLOCK}
            launch(kernels.plane_symbols, (blocks_of(size),), high, index, *sizes, **options)
        elif grid.layout is Layout.TOKENS:
            begin = int(activity.ACTIVITY[start])
            borders = to_device(np.array([begin, *activity.thresholds_for(begin)], np.int32), high.device)
            programs = (-(-grid.columns // CHANNELS),)
            launch(kernels.token_symbols, programs, high, index, borders, grid.rows, grid.columns, BLOCK=CHANNELS)
        else:
            launch(kernels.flat_symbols, (blocks_of(size),), high, index, grid.columns, BLOCK=BLOCK)
        return index

    def _histogram(self) -> Ints:
        """How often each symbol was seen in each row: shape (2 C, 256)."""
        entries, size = 512 * tables.NUM_CONTEXTS[self._kind], len(self._index)
        copies = min(COPIES, blocks_of(size))
        bins = torch.zeros((copies, entries), dtype=torch.int32, device=self._high.device)
        launch(kernels.count_symbols, (blocks_of(size),), self._index, bins, size, entries, copies, BLOCK=BLOCK)
        histogram: Ints = bins.sum(0, dtype=torch.int64).view(-1, 256).numpy(force=True)
        return histogram


def coder_table(frequencies: Ints) -> tuple[Any, Any]:
    """The writer's entry of each symbol: frequency, sum of those before it, and marks; and which symbols send numbers apart.

    One mark is for such symbols, another for those among them that the escape symbol stands for.
    """
    symbols = np.arange(256)
    by_escape = (frequencies == 0) | (symbols == tables.ESCAPE)
    apart = by_escape | (symbols >> 4 == tables.LARGE) | (symbols & 15 == tables.LARGE)
    entries = frequencies | (np.cumsum(frequencies, axis=1) - frequencies) << 13
    table = np.where(by_escape, entries[:, tables.ESCAPE :] | MARK_WHOLE, entries) | np.where(apart, MARK, 0)
    return table.astype(np.int32), apart


def offsets(sizes: list[int]) -> list[int]:
    """Where each of several runs begins, and where the last one ends."""
    return list(itertools.accumulate(sizes, initial=0))
