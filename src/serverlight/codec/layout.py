"""How profile ``serverlight`` sees a tensor: planes, tokens or a flat run; and how large ones are cut into segments.

Section numbers refer to docs/wire-format.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

__all__ = ["Grid", "Layout", "first_unit", "grid_of", "natural_layout", "num_segments_of", "segment_bounds"]

SEGMENT_ELEMENTS = 1 << 16
"""Aimed size of a segment: large enough that its lanes cost nothing, small enough that threads and GPU blocks find work."""

MAX_LANES = 8

LEAST_SPREAD = 128
"""Contexts of tokens cost some bits a frame, which spreads earn from about so many elements on."""


PLANES = 2
"""The number of :attr:`Layout.PLANES`, for functions that are compiled too."""


class Layout(IntEnum):
    """The layouts by their number on the wire."""

    FLAT = 0
    """No neighbours: pairs of successive elements."""

    TOKENS = 1
    """Rows are tokens, columns channels: pairs of successive tokens in one channel; context is the channel's past."""

    PLANES = 2
    """Feature maps: pairs along a row; context is the neighbourhood."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A tensor as ``planes`` x ``rows`` x ``columns``; see section 6.2 for what each layout makes of a shape."""

    layout: Layout
    planes: int
    rows: int
    columns: int

    @property
    def units(self) -> int:
        """What segments are cut along: planes, channels, or pairs of elements."""
        if self.layout is Layout.PLANES:
            return self.planes
        return self.columns if self.layout is Layout.TOKENS else (self.columns + 1) // 2

    @property
    def num_elements(self) -> int:
        """Elements of the tensor."""
        return self.planes * self.rows * self.columns


def natural_layout(shape: tuple[int, ...], *, has_spreads: bool = False) -> Layout:
    """What a writer takes a tensor for unless told otherwise (section 7).

    >>> natural_layout((1, 64, 56, 56)), natural_layout((1, 197, 768)), natural_layout((1, 4096))
    (<Layout.PLANES: 2>, <Layout.TOKENS: 1>, <Layout.FLAT: 0>)
    """
    if has_spreads and math.prod(shape) >= LEAST_SPREAD:
        return Layout.TOKENS
    if len(shape) >= 4 and shape[-1] > 1 and shape[-2] > 1:
        return Layout.PLANES
    return Layout.TOKENS if len(shape) >= 2 and math.prod(shape[:-1]) > 1 else Layout.FLAT


def grid_of(shape: tuple[int, ...], layout: Layout) -> Grid:
    """The tensor as a grid (section 6.2); shapes with fewer dimensions than the layout needs gain leading ones.

    >>> grid_of((2, 64, 7, 9), Layout.PLANES)
    Grid(layout=<Layout.PLANES: 2>, planes=128, rows=7, columns=9)
    """
    if layout is Layout.FLAT:
        return Grid(layout=layout, planes=1, rows=1, columns=math.prod(shape))
    padded = (1, 1, *shape)
    if layout is Layout.TOKENS:
        return Grid(layout=layout, planes=1, rows=math.prod(padded[:-1]), columns=padded[-1])
    return Grid(layout=layout, planes=math.prod(padded[:-2]), rows=padded[-2], columns=padded[-1])


def segment_bounds(grid: Grid) -> list[int]:
    """Where segments start and end, in units: ``len(result) - 1`` segments (section 6.3).

    >>> segment_bounds(grid_of((1, 64, 56, 56), Layout.PLANES)), segment_bounds(grid_of((512, 300), Layout.TOKENS))
    ([0, 16, 32, 48, 64], [0, 150, 300])
    """
    count = num_segments_of(grid.layout, grid.units, grid.num_elements)
    return [first_unit(grid.layout, grid.units, i, count) for i in range(count + 1)]


def num_segments_of(layout: int, units: int, num_elements: int) -> int:
    """How many segments there are."""
    if layout == PLANES:
        return max(1, min(-(-num_elements // SEGMENT_ELEMENTS), -(-units // MAX_LANES)))
    return max(1, min(num_elements // SEGMENT_ELEMENTS, units // MAX_LANES))


def first_unit(layout: int, units: int, segment: int, count: int) -> int:
    """Where one of ``count`` segments starts: planes go by blocks of as many as there can be lanes, so that no lane is idle."""
    if layout == PLANES:
        return min(units, MAX_LANES * (-(-units // MAX_LANES) * segment // count))
    return units * segment // count
