"""Writing frames on a graphics processor: the kernels in their order, and what the host decides between them.

The host waits for the device for the threshold, which sets the step; for what the raw bits and the starting activity depend on; and
then as ``coder.py`` says.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from serverlight.codec import activity, coded, tables
from serverlight.codec.backends.gpu import triton_filter as kernels
from serverlight.codec.backends.gpu.coder import Coder
from serverlight.codec.backends.gpu.launch import BLOCK, DTYPE_CODES, as_bits, blocks_of, launch, to_host
from serverlight.codec.coded import Coded, is_one_sided_kind
from serverlight.codec.config import CodecConfig
from serverlight.codec.layout import Grid, natural_layout
from serverlight.codec.tensors import check_finite

__all__ = ["coded_tensor"]

NONZERO, NEGATIVE, INFINITE, SCORE, MAGNITUDE, LEAST, NUM_STATES = 0, 1, 2, 3, 6, 9, 10
"""Places of ``state``, as triton_filter.py has them."""
FIRST_DIGIT, TURNS = 28, 15
"""Where the first hexadecimal digit of a score lies in its bits; and how often a counter of four bits may count."""
ZERO_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}
"""So many low bits of an element are zero once it is binary32."""


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
        is_fixed = coded.has_fixed_shifts(self._config, kind, one_sided)
        tallies = None if is_fixed else self._tallied(quantised.numbers, split.high, step, one_sided, kind, grid)
        start = activity.nearest_activity(split.total, len(split.high)) if kind == tables.TOKENS else 0
        is_short = coded.is_short(len(bounds) - 1, split.raw_bits, kind)
        coder = Coder(split.high, kind, grid, bounds, start, split.half_escapes, is_short)
        shifts = coded.default_shifts(kind, one_sided)
        if tallies is not None:
            sums, counts = np.split(to_host(tallies).numpy(), 2)
            shifts = coded.settled_shifts(sums, counts, len(self._x), kind, one_sided=one_sided, short=is_short)
        return Coded(
            kind=kind,
            one_sided=one_sided,
            lanes=coder.lanes,
            step=float(step),
            activity=start,
            raw_bits=split.raw_bits,
            half_escapes=split.half_escapes,
            is_short=is_short,
            model=coder.model,
            levels=coder.levels,
            shifts=shifts,
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
