"""Profile ``serverlight`` in plain Python: pairs, their contexts and their symbols (docs/wire-format.md, sections 6.3 and 6.4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from serverlight.codec import activity, tables
from serverlight.codec.coded import is_one_sided_kind
from serverlight.codec.layout import Grid, Layout
from serverlight.codec.tables import LARGE, Ints
from serverlight.codec.trellis import MOVES

__all__ = ["Contexts", "Place", "Symbols", "fit_levels", "nibble_of", "number_of", "places"]

LARGEST_SEEN = 255


@dataclass(frozen=True, slots=True)
class Place:
    """Where a pair lies, and which lane codes it."""

    first: int
    second: int
    """Flat indices; the second is -1 in an odd last column, row or element."""

    lane: int
    group: int
    """Position of the pair in its channel's or row's sequence: the pair's column number or token pair number."""


def places(grid: Grid, lanes: int, first_unit: int, last_unit: int) -> Iterator[Place]:
    """Pairs of a segment in coding order (section 6.3)."""
    if grid.layout is Layout.FLAT:
        for pair in range(first_unit, last_unit):
            second = 2 * pair + 1 if 2 * pair + 1 < grid.columns else -1
            yield Place(2 * pair, second, (pair - first_unit) % lanes, pair)
    elif grid.layout is Layout.TOKENS:
        for row in range(0, grid.rows, 2):
            for channel in range(first_unit, last_unit):
                index = row * grid.columns + channel
                second = index + grid.columns if row + 1 < grid.rows else -1
                yield Place(index, second, (channel - first_unit) % lanes, row // 2)
    else:
        for block in range(first_unit, last_unit, lanes):
            for row in range(grid.rows):
                for column in range(0, grid.columns, 2):
                    for plane in range(block, min(block + lanes, last_unit)):
                        index = (plane * grid.rows + row) * grid.columns + column
                        yield Place(index, index + 1 if column + 1 < grid.columns else -1, plane - block, column // 2)


class Contexts:
    """Context and flip of each pair, from what was coded before it."""

    def __init__(self, high: Ints, grid: Grid, kind: int, start: int, spreads: activity.Spreads) -> None:
        self._high, self._grid, self._kind = high, grid, kind
        even = int(activity.ACTIVITY[start])
        self._has_spreads = len(spreads) > 0
        starts = activity.starts_for(start, spreads) if self._has_spreads else np.full(grid.columns, even)
        self._borders = activity.thresholds_for(even)
        self._busy = dict(enumerate(starts.tolist())) if grid.layout is Layout.TOKENS else {}
        self._lean: dict[int, int] = {}
        self._state: dict[int, int] = {}

    def at(self, place: Place) -> tuple[int, int]:
        """The pair's row of the tables (its context, but along a trellis) and flip; what is before it must be in ``high``."""
        if self._grid.layout is Layout.FLAT:
            return 0, 1
        if self._grid.layout is Layout.TOKENS:
            channel = place.first % self._grid.columns
            busy, lean = self._busy[channel], self._lean.get(channel, 0)
            leaning = 8 * abs(lean) >= 3 * busy + 24
            context = 2 * int((busy >= self._borders).sum()) + leaning
            return 16 * self._state.get(channel, 0) + context, 1 if lean >= 0 else -1
        return tables.neighbour_context(self._kind, *self._neighbour_classes(place))

    def learn(self, place: Place) -> None:
        """Takes note of a pair that is known now."""
        if self._grid.layout is not Layout.TOKENS or place.second < 0:
            return
        channel, shift = place.first % self._grid.columns, activity.forgetting(place.group, self._has_spreads)
        first, second = (max(-LARGEST_SEEN, min(LARGEST_SEEN, int(self._high[i]))) for i in (place.first, place.second))
        busy, lean = self._busy[channel], self._lean.get(channel, 0)
        if self._kind == tables.TRELLIS:
            for index in (place.first, place.second):
                self._state[channel] = int(MOVES[self._state.get(channel, 0), self._high[index] & 1])
        self._busy[channel] = busy + (((abs(first) + abs(second)) * 64 - busy) >> shift)
        self._lean[channel] = lean + (((first + second) * 64 - lean) >> shift)

    def _neighbour_classes(self, place: Place) -> tuple[int, int, int]:
        columns = self._grid.columns
        row, column = divmod(place.first % (self._grid.rows * columns), columns)
        left = self._class(place.first - 1) if column else 0
        up = self._class(place.first - columns) if row else 0
        up_right = (self._class(place.first - columns + 1) if place.second >= 0 else up) if row else 0
        return left, up, up_right

    def _class(self, index: int) -> int:
        number = int(self._high[index])
        return min(number, 2) if is_one_sided_kind(self._kind) else (number > 0) - (number < 0)


def nibble_of(number: int, flip: int, one_sided: bool) -> int:
    """The nibble of a number; 15 if it is too large for one."""
    if one_sided:
        return min(number, LARGE)
    magnitude = abs(number)
    return LARGE if magnitude > 7 else (2 * magnitude - 1 if number * flip > 0 else 2 * magnitude)


def number_of(nibble: int, flip: int, one_sided: bool) -> int:
    """The inverse of :func:`nibble_of` for nibbles below 15."""
    if one_sided:
        return nibble
    return flip * ((nibble + 1) >> 1 if nibble & 1 else -(nibble >> 1))


@dataclass(frozen=True, slots=True)
class Symbols:
    """Context row and symbol of every pair, by the flat index of its first element."""

    rows: dict[int, int]
    symbols: dict[int, int]
    num_rows: int

    @classmethod
    def of(cls, high: Ints, grid: Grid, kind: int, start: int, spreads: activity.Spreads) -> Symbols:
        """Goes through the whole tensor; the order of lanes does not change a pair's context."""
        contexts, one_sided = Contexts(high, grid, kind, start, spreads), is_one_sided_kind(kind)
        result = cls({}, {}, tables.NUM_ROWS[kind])
        for place in places(grid, 1, 0, grid.units):
            row, flip = contexts.at(place)
            first = nibble_of(int(high[place.first]), flip, one_sided)
            second = nibble_of(int(high[place.second]), flip, one_sided) if place.second >= 0 else 0
            result.rows[place.first] = row + (result.num_rows if place.second < 0 else 0)
            result.symbols[place.first] = 16 * first + second
            contexts.learn(place)
        return result

    def histogram(self) -> Ints:
        """How often each symbol was seen in each row: shape (2 R, 256)."""
        counts = np.zeros((2 * self.num_rows, 256), np.int64)
        np.add.at(counts, (list(self.rows.values()), list(self.symbols.values())), 1)
        return counts


def fit_levels(symbols: Symbols, kind: int) -> tuple[Ints, Ints, Ints]:
    """What suits the symbols best: see :func:`serverlight.codec.tables.fit_levels`."""
    transitions = tables.FIRST[kind], tables.NEXT[kind], tables.FLIP_NEXT[kind]
    one_sided = is_one_sided_kind(kind)
    counts = tables.count_decisions(symbols.histogram(), *transitions, one_sided)
    return tables.fit_levels(counts, tables.DEFAULT_LEVELS[kind], one_sided, tables.COST)
