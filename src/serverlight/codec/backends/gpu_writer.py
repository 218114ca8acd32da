"""Writing frames on a graphics processor: the kernels in their order, and what the host decides between them.

The host waits for the device a few times: for the threshold, which sets the step; for what the raw bits and the starting activity
depend on; for the histogram, which the model is fitted to; for the lengths of the streams; and for the streams themselves.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from serverlight.codec import activity, coded, tables
from serverlight.codec.backends import gpu_writer_kernels as kernels
from serverlight.codec.backends.gpu_launch import BLOCK, DTYPE_CODES, as_bits, blocks_of, launch, to_device, to_host
from serverlight.codec.backends.gpu_model import fit
from serverlight.codec.coded import Coded, Streams, is_one_sided_kind
from serverlight.codec.config import CodecConfig
from serverlight.codec.layout import Grid, Layout, natural_layout
from serverlight.codec.tables import Ints
from serverlight.codec.tensors import check_finite

__all__ = ["coded_tensor"]

NONZERO, NEGATIVE, INFINITE, SCORE, MAGNITUDE, LEAST, NUM_STATES = 0, 1, 2, 3, 6, 9, 10
"""Places of ``state``, as gpu_writer_kernels.py has them."""
FIRST_DIGIT, TURNS = 28, 15
"""Where the first hexadecimal digit of a score lies in its bits; and how often a counter of four bits may count."""
ZERO_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
"""So many low bits of an element are zero once it is binary32."""
MARK, MARK_WHOLE = 1 << 30, 1 << 29
COPIES, CHANNELS = 64, 32
ESCAPE_BLOCK = 128
"""Few enough pairs that often none of them is escaped, which ends a program at once."""

DIVISORS = np.maximum(np.arange(tables.SCALE + 1), 2)
SHIFTS = np.ceil(np.log2(DIVISORS)).astype(np.int64) - 1
INVERSES = -(-(1 << SHIFTS + 32) // DIVISORS)
"""By frequency f: s, of which 2^(s + 1) is the least power of two that is at least f, and 2^(s + 32) / f, rounded up. The upper 32
bits of the latter's product with a number below 2^31, shifted right by s, are the number's quotient by f (Granlund and Montgomery,
"Division by invariant integers using multiplication", 1994). An f of 1 has no such numbers."""


def coded_tensor(x: torch.Tensor, shape: tuple[int, ...], config: CodecConfig) -> Coded | None:
    """What a frame says of a flat tensor on the device; ``None`` if all of it is zero, or nothing is to be kept.

    Raises:
        NonFiniteTensor: a value is NaN or infinite.
    """
    return Writing(x, shape, config).coded() if len(x) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantised:
    """Signed numbers of steps, how many have no nibble of their own, and the sum of their magnitudes."""

    numbers: torch.Tensor
    num_large: int
    total: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """High parts of numbers, the sum of their magnitudes, and whether half escapes pay; and the low bits, packed."""

    high: torch.Tensor
    total: int
    half_escapes: bool
    raw_bits: int = 0
    raw: npt.NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))


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
        quantised = self._quantised(step, kind)
        split = self._split(quantised, num_kept, kind)
        tallies = self._tallied(quantised.numbers, split.high, step, one_sided, kind, grid)
        start = activity.nearest_activity(split.total, len(split.high)) if kind == tables.TOKENS else 0
        coder = Coder(split.high, kind, grid, bounds, start, split.half_escapes)
        sums, counts = np.split(to_host(tallies).numpy(), 2)
        return Coded(
            kind=kind,
            one_sided=one_sided,
            lanes=coder.lanes,
            step=float(step),
            activity=start,
            raw_bits=split.raw_bits,
            half_escapes=split.half_escapes,
            model=coder.model,
            levels=coder.levels,
            shifts=coded.settled_shifts(sums, counts, one_sided),
            streams=coder.streams(),
            raw=split.raw,
        )

    def _launch(self, kernel: Any, *arguments: Any, **constants: Any) -> None:
        """A kernel over all elements."""
        launch(kernel, self._blocks, *arguments, **self._options, **constants)

    def _threshold(self, num_kept: int) -> list[int]:
        """Finds the least score kept, and the least magnitude that may set the step; returns ``state``."""
        x, state, size = as_bits(self._x), self._state, len(self._x)
        bins = torch.zeros(32, dtype=torch.int64, device=x.device)
        lowest = ZERO_BITS[self._x.dtype] if self._asymmetry == 1 else 0
        programs = (-(-size // (TURNS * BLOCK)),)
        for place in range(FIRST_DIGIT, lowest - 4, -4):
            where = {"SHIFT": place, "SURVEY": place == FIRST_DIGIT}
            options = {**where, **self._options, "SYMMETRIC": self._asymmetry == 1, "TURNS": TURNS}
            launch(kernels.count_digits, programs, x, state, bins, size, self._asymmetry, **options)
            launch(kernels.take_digits, (1,), state, bins, num_kept, **where)
        if self._asymmetry != 1:
            self._launch(kernels.find_least, x, state, size, self._asymmetry)
        found: list[int] = to_host(state).tolist()
        return found

    def _quantised(self, step: np.float32, kind: int) -> Quantised:
        """Signed numbers of steps."""
        x, size = as_bits(self._x), len(self._x)
        counts = torch.empty(self._blocks, dtype=torch.int64, device=x.device)
        self._launch(kernels.count_ties, x, self._state, counts, size, self._asymmetry)
        numbers = torch.empty(size, dtype=torch.int32, device=x.device)
        sums = torch.empty((2, *self._blocks), dtype=torch.int64, device=x.device)
        inverse = float(np.float32(1) / step)
        limits = (size, self._asymmetry, inverse, largest_nibble(kind))
        self._launch(kernels.quantise, x, self._state, counts.cumsum(0) - counts, numbers, sums, *limits)
        num_large, total = sums.sum(1).tolist()
        return Quantised(numbers=numbers, num_large=num_large, total=total)

    def _split(self, quantised: Quantised, num_kept: int, kind: int) -> Split:
        """Raw bits are taken off as long as they are worth it."""
        numbers, num_large, bits = quantised.numbers, quantised.num_large, 0
        size, device, options = len(numbers), numbers.device, {"BLOCK": BLOCK}
        counts = torch.empty(self._blocks, dtype=torch.int64, device=device)
        while coded.needs_raw_bit(num_large, num_kept, kind):
            bits += 1
            launch(kernels.count_large, self._blocks, numbers, counts, size, largest_nibble(kind) << bits, **options)
            num_large = int(counts.sum())
        half_escapes = coded.has_half_escapes(num_large, num_kept)
        if bits == 0:
            return Split(high=numbers, total=quantised.total, half_escapes=half_escapes)
        launch(kernels.count_large, self._blocks, numbers, counts, size, 0, **options)
        high, num_bits = torch.empty_like(numbers), bits * num_kept
        raw = torch.zeros(num_bits // 32 + 3, dtype=torch.int32, device=device)
        begins, sums = counts.cumsum(0) - counts, torch.empty_like(counts)
        launch(kernels.split_raw, self._blocks, numbers, begins, high, raw, sums, size, bits, **options)
        packed = to_host(raw.view(torch.uint8)[: (num_bits + 7) // 8]).numpy()
        return Split(high=high, total=int(sums.sum()), half_escapes=half_escapes, raw_bits=bits, raw=packed)

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


class Coder:
    """High parts on their way to words and escapes. S = segments."""

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

    def streams(self) -> Streams:
        """Codes all segments, and fetches them."""
        device, grid, num_segments = self._high.device, self._grid, self._num_segments
        ends = to_device(np.cumsum(self._sizes + 2 * self.lanes), device)
        room = torch.empty(int(self._sizes.sum()) + 2 * self.lanes * num_segments, dtype=torch.int16, device=device)
        lengths = torch.zeros((2, num_segments), dtype=torch.int64, device=device)
        where = (self._lines, grid.columns, self._pairs_of_unit)
        coding = (self._index, self._table, ends, room, lengths[0], self._bounds)
        launch(kernels.write_words, (num_segments,), *coding, *where, KIND=self._kind, LANES=self.lanes, num_warps=1)
        bits_before = self._count_escapes(lengths[1])
        num_words, num_bits = to_host(lengths).numpy()
        num_escapes = (num_bits + 7) // 8
        words_at, escapes_at = np.cumsum(num_words) - num_words, np.cumsum(num_escapes) - num_escapes
        begin = (int(num_words.sum()) + 1) // 2
        into = torch.zeros(begin + int(num_escapes.sum()) // 4 + 3, dtype=torch.int32, device=device)
        copying = (room, ends, to_device(words_at, device), lengths[0], into.view(torch.int16))
        launch(kernels.copy_words, (blocks_of(int(num_words.max())), num_segments), *copying, BLOCK=BLOCK)
        if bits_before is not None:
            bits_before += to_device(8 * escapes_at, device)[:, None]
            self._write_escapes(bits_before, into[begin:], is_counting=False)
        fetched = to_host(into).numpy()
        return Streams(
            num_words=num_words,
            num_escapes=num_escapes,
            words=fetched[:begin].view(np.uint16)[: int(num_words.sum())],
            escapes=fetched[begin:].view(np.uint8)[: int(num_escapes.sum())],
        )

    def _count_escapes(self, lengths: torch.Tensor) -> torch.Tensor | None:
        """Notes how many bits of escapes each segment has; returns how many lie before each of its parts, if there are any."""
        if not self._any_escaped:
            return None
        counts = torch.empty(
            (self._num_segments, -(-int(self._sizes.max()) // ESCAPE_BLOCK)),
            dtype=torch.int64,
            device=self._high.device,
        )
        self._write_escapes(counts, counts, is_counting=True)
        ends = counts.cumsum(1)
        lengths.copy_(ends[:, -1])
        return ends - counts

    def _write_escapes(self, counts: torch.Tensor, into: torch.Tensor, *, is_counting: bool) -> None:
        launch(
            kernels.write_escapes,
            counts.shape[::-1],
            *(self._index, self._table, self._high, self._bounds, counts, into, len(self._high)),
            *(self._grid.rows, self._grid.columns, self._pairs_of_unit),
            KIND=self._kind,
            LANES=self.lanes,
            ONE_SIDED=is_one_sided_kind(self._kind),
            HALF=self._half_escapes,
            COUNT_ONLY=is_counting,
            BLOCK=ESCAPE_BLOCK,
            num_warps=1,
        )

    def _symbols(self, start: int) -> torch.Tensor:
        """Row of the table and symbol of each pair of the tensor, as ``256 row + symbol``."""
        high, grid, size = self._high, self._grid, int(self._sizes.sum())
        index = torch.empty(size, dtype=torch.int32, device=high.device)
        if grid.layout is Layout.PLANES:
            sizes = (size, grid.rows, grid.columns, tables.NUM_CONTEXTS[self._kind])
            options = {"ONE_SIDED": is_one_sided_kind(self._kind), "BLOCK": BLOCK}
            launch(kernels.plane_symbols, (blocks_of(size),), high, index, *sizes, **options)
        elif grid.layout is Layout.TOKENS:
            begin = int(activity.ACTIVITY[start])
            borders = to_device(np.array([begin, *activity.thresholds_for(begin)], np.int32), high.device)
            programs = (-(-grid.columns // CHANNELS),)
            launch(
                kernels.token_symbols,
                programs,
                high,
                index,
                borders,
                grid.rows,
                grid.columns,
                BLOCK=CHANNELS,
                num_warps=1,
            )
        else:
            launch(kernels.flat_symbols, (blocks_of(size),), high, index, grid.columns, BLOCK=BLOCK)
        return index

    def _histogram(self) -> Ints:
        """How often each symbol was seen in each row: shape (2 C, 256)."""
        entries, size = 512 * tables.NUM_CONTEXTS[self._kind], len(self._index)
        copies = min(COPIES, blocks_of(size))
        bins = torch.zeros((copies, entries), dtype=torch.int32, device=self._high.device)
        launch(kernels.count_symbols, (blocks_of(size),), self._index, bins, size, entries, copies, BLOCK=BLOCK)
        histogram: Ints = to_host(bins.sum(0, dtype=torch.int64)).view(-1, 256).numpy()
        return histogram


def coder_table(frequencies: Ints) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """The writer's two numbers for each symbol of each row, and which symbols send numbers apart.

    The first has the frequency in 13 bits, the sum of those before it in 12, and its shift in 4; and two marks: for symbols that
    send numbers apart, and for those among them that the escape symbol stands for. The second is its inverse: see ``INVERSES``.
    """
    symbols = np.arange(256)
    by_escape = (frequencies == 0) | (symbols == tables.ESCAPE)
    apart = by_escape | (symbols >> 4 == tables.LARGE) | (symbols & 15 == tables.LARGE)
    entries = frequencies | (np.cumsum(frequencies, axis=1) - frequencies) << 13 | SHIFTS[frequencies] << 25
    inverses = INVERSES[frequencies]
    table = np.stack((entries, inverses), axis=-1)
    table = np.where(by_escape[..., None], table[:, tables.ESCAPE :], table)
    table[..., 0] |= np.where(by_escape, MARK_WHOLE, 0) | np.where(apart, MARK, 0)
    return table.astype(np.uint32).view(np.int32), apart
