"""The model's small work on the host, for tensors on a device: compiled where Numba is installed, else as ``tables.py`` has it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serverlight.codec import parameters, tables
from serverlight.codec.backends import is_installed
from serverlight.codec.backends.reference.coder import frequencies_for
from serverlight.codec.coded import is_one_sided_kind
from serverlight.codec.layout import Grid, Layout
from serverlight.codec.tables import Ints

__all__ = ["HAS_NUMBA", "Fitted", "entries_of", "fit", "has_tail"]

HAS_NUMBA = is_installed("numba")


@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """The probability model that suits a histogram of symbols. C = contexts of the kind."""

    packed: bytes
    """The parameters as a frame has them."""

    levels: Ints
    """Shape (C, 5)."""

    frequencies: Ints
    """Shape (C or 2 C, 256): the upper half, where there is one, is for single elements."""

    payload_bits: int
    """What the symbols will take."""


def has_tail(grid: Grid) -> bool:
    """Whether there are single elements."""
    return (grid.rows if grid.layout is Layout.TOKENS else grid.columns) % 2 == 1


def entries_of(frequencies: Ints) -> Ints:
    """What kernels know of each symbol: its frequency in 13 bits, and from there on the sum of those before it in its row."""
    entries: Ints = frequencies | (np.cumsum(frequencies, axis=1) - frequencies) << 13
    return entries


def fit(histogram: Ints, grid: Grid, kind: int, half_escapes: bool, is_short: bool) -> Fitted:
    """Fits the model to counts of shape (2 C, 256), as section 7 has it."""
    if HAS_NUMBA:
        from serverlight.codec.backends.cpu.kernels import FIT

        packed, levels, frequencies, payload_bits = FIT(histogram, kind, has_tail(grid), half_escapes, is_short)
        return Fitted(packed=packed.tobytes(), levels=levels, frequencies=frequencies, payload_bits=payload_bits)
    one_sided, defaults, model = is_one_sided_kind(kind), tables.DEFAULT_LEVELS[kind], np.zeros(300, np.uint8)
    counts = tables.count_decisions(histogram, tables.FIRST[kind], tables.NEXT[kind], tables.FLIP_NEXT[kind], one_sided)
    fitted = tables.fit_levels(counts, defaults, one_sided, tables.COST)
    levels = tables.levels_of(defaults, fitted[0], fitted[2])
    frequencies = frequencies_for(levels, grid, kind, half_escapes)
    return Fitted(
        packed=model[: parameters.pack_model(*fitted, one_sided, is_short, model)].tobytes(),
        levels=levels,
        frequencies=frequencies,
        payload_bits=tables.payload_bits(histogram, frequencies, tables.COST_OF_FREQUENCY),
    )
