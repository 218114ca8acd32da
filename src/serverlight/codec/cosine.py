"""The cosine transform of feature maps: each plane as sums of waves, whose numbers are coded as tokens have theirs.

The linear bottlenecks of many networks make maps that are smooth: a few low frequencies of a plane hold most of it, and which ones
is alike from plane to plane. So a plane's coefficients are a row, and a frequency of all planes a channel. No context of planes
sees as much. What a reader computes is exact in integers but for the last roundings (docs/wire-format.md, section 6.10); what a
writer computes is its own business.
"""

# Shapes: P = planes (all dimensions but the last two), H = rows and W = columns of a plane.

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from serverlight.codec.backends import Float32
from serverlight.codec.layout import Grid, Layout, grid_of, natural_layout
from serverlight.codec.wire import Header
from serverlight.errors import InconsistentFrame

__all__ = ["MAX_SIDE", "coded_as", "coefficients", "suits", "values_of", "waves"]

Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MAX_SIDE = 256
"""Up to this side every sum of a reader fits 63 bits, whatever a frame holds."""

WAVE_BITS, PASS_BITS = 16, 12
"""Waves are in 65536ths; after the first of two passes so many bits of the sums are rounded away: 1024ths of a step stay."""

EXACT_IN_DOUBLE = float(1 << 53)
BLOCK_ELEMENTS = 1 << 17
"""About as many elements are turned at a time, in memory that stays in the caches."""


def suits(values: Float32, shape: tuple[int, ...]) -> bool:
    """Whether a writer that is asked to turns a tensor: maps with negative elements, no side of which is longer than the longest.

    Rectified maps are not smooth: most of their elements are zero, and no frequency is.
    """
    is_small = natural_layout(shape) is Layout.PLANES and max(shape[-2:]) <= MAX_SIDE
    return is_small and bool((values < 0).any())


def coefficients(values: Float32, shape: tuple[int, ...]) -> Float32 | None:
    """What the codec is to encode for flat, finite ``values`` of a tensor of that shape: flat, of shape (P, H W).

    ``None`` if one of them is too large for a float32.
    """
    grid = grid_of(shape, Layout.PLANES)
    down, along = (_inverse(side) for side in (grid.rows, grid.columns))
    turned = np.empty(grid.num_elements, np.float32)
    with np.errstate(over="ignore"):
        for cube, part in _blocks(grid, values, turned):
            part[...] = down.T @ (cube.astype(np.float64) @ along)
    return turned if np.isfinite(turned).all() else None


def values_of(units: Float32, step: float, shape: tuple[int, ...]) -> Float64:
    """Values of a frame before they are held within its dtype (section 6.10), flat.

    Args:
        units: the coefficients in 64ths of the step: whole numbers in float32, flat, of shape (P, H W).
        step: the frame's step.
        shape: of the tensor.
    """
    grid = grid_of(shape, Layout.PLANES)
    down, along = waves(grid.rows), waves(grid.columns)
    values = np.empty(grid.num_elements)
    for cube, part in _blocks(grid, units, values):
        if _fits_double(cube, down, along):
            sums = cube.astype(np.float64) @ along.astype(np.float64)
            passed = np.floor((sums + 2.0 ** (PASS_BITS - 1)) * 2.0**-PASS_BITS)
            part[...] = down.T.astype(np.float64) @ passed
        else:
            whole = (cube.astype(np.int64) @ along + (1 << PASS_BITS - 1)) >> PASS_BITS
            part[...] = down.T @ whole
    values *= step * 2.0 ** (PASS_BITS - 2 * WAVE_BITS - 6)
    return values


def coded_as(header: Header) -> Header:
    """What the sections of a frame are to be read as: tokens of float32.

    Raises:
        InconsistentFrame: its tensor has no planes, or they have a side of none or too many elements.
    """
    sides = header.shape[-2:]
    if len(sides) < 2 or not all(1 <= side <= MAX_SIDE for side in sides):
        raise InconsistentFrame(
            f"a cosine transform of shape {header.shape}; it has planes with sides of 1 to {MAX_SIDE}"
        )
    return dataclasses.replace(header, dtype="float32", shape=seen_as(header.shape))


def seen_as(shape: tuple[int, ...]) -> tuple[int, int]:
    """The shape of the coefficients: (P, H W)."""
    return math.prod(shape[:-2]), math.prod(shape[-2:])


@functools.lru_cache(maxsize=64)
def waves(side: int) -> Ints:
    """What one unit of each frequency adds to the places along a side, in 65536ths: shape (frequencies, places)."""
    frequency, place = np.mgrid[:side, :side]
    lengths = np.sqrt(np.where(frequency > 0, 2, 1) / side)
    cosines = np.cos(np.pi / (2 * side) * ((2 * place + 1) * frequency % (4 * side)))
    entries: Ints = np.rint(lengths * cosines * 2.0**WAVE_BITS).astype(np.int64)
    entries.setflags(write=False)
    return entries


@functools.lru_cache(maxsize=64)
def _inverse(side: int) -> Float64:
    """From places to frequencies of the waves as they are, rounded, so that this does no harm: shape (places, frequencies)."""
    inverse: Float64 = np.linalg.inv(waves(side) * 2.0**-WAVE_BITS)
    return inverse


def _blocks(
    grid: Grid, source: npt.NDArray[np.floating], into: npt.NDArray[np.floating]
) -> Iterator[tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]]:
    """Runs of planes of two flat arrays, as cubes."""
    cubes = [array.reshape(grid.planes, grid.rows, grid.columns) for array in (source, into)]
    run = max(1, BLOCK_ELEMENTS // (grid.rows * grid.columns))
    for first in range(0, grid.planes, run):
        yield cubes[0][first : first + run], cubes[1][first : first + run]


def _fits_double(cube: npt.NDArray[np.floating], down: Ints, along: Ints) -> bool:
    """Whether no partial sum of either pass is rounded, in whatever order it is made."""
    first = float(np.abs(cube).max(initial=0)) * float(np.abs(along).sum(axis=0).max())
    second = (first * 2.0**-PASS_BITS + 1) * float(np.abs(down).sum(axis=0).max())
    return max(first + 2.0**PASS_BITS, second) < EXACT_IN_DOUBLE
