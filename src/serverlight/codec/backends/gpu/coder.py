"""Coding on a graphics processor: from numbers of steps to a frame's model, words and escapes, the kernels in their order.

The host waits for the device three times: for the histogram, which the model is fitted to; for the lengths of the streams; and for
the streams themselves.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from serverlight.codec import activity, coded, tables
from serverlight.codec.backends.gpu import triton_coder as kernels
from serverlight.codec.backends.gpu.launch import BLOCK, begins_of, blocks_of, launch, to_device, to_host
from serverlight.codec.backends.gpu.model import entries_of, fit
from serverlight.codec.coded import Streams, is_one_sided_kind
from serverlight.codec.layout import Grid, Layout
from serverlight.codec.tables import Ints

__all__ = ["Coder"]

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


class Coder:
    """High parts on their way to words and escapes. S = segments."""

    def __init__(
        self,
        high: torch.Tensor,
        kind: int,
        grid: Grid,
        bounds: list[int],
        start: int,
        half_escapes: bool,
        is_short: bool,
    ) -> None:
        self._high, self._kind, self._grid, self._num_segments = high, kind, grid, len(bounds) - 1
        self._half_escapes = half_escapes
        self._lines = (grid.rows + 1) // 2 if grid.layout is Layout.TOKENS else 1
        self._pairs_of_unit = grid.rows * ((grid.columns + 1) // 2) if grid.layout is Layout.PLANES else self._lines
        self._sizes = np.diff(bounds) * self._pairs_of_unit
        self._bounds = to_device(np.array(bounds, np.int32), high.device)
        self._index = self._symbols(start)
        histogram = self._histogram()
        fitted = fit(histogram, grid, kind, half_escapes, is_short)
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
        words_at, escapes_at = begins_of(num_words), begins_of(num_escapes)
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
        shape = self._num_segments, -(-int(self._sizes.max()) // ESCAPE_BLOCK)
        counts = torch.empty(shape, dtype=torch.int64, device=self._high.device)
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
            options = {"BLOCK": CHANNELS, "num_warps": 1}
            launch(kernels.token_symbols, programs, high, index, borders, grid.rows, grid.columns, **options)
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
    entries = entries_of(frequencies) | SHIFTS[frequencies] << 25
    table = np.stack((entries, INVERSES[frequencies]), axis=-1)
    table = np.where(by_escape[..., None], table[:, tables.ESCAPE :], table)
    table[..., 0] |= np.where(by_escape, MARK_WHOLE, 0) | np.where(apart, MARK, 0)
    return table.astype(np.uint32).view(np.int32), apart
