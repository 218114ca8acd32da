"""The cheapest setting of a codec that keeps the quality, found with few runs of the model's tail."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from serverlight.codec.rivals import Family, Rival
from serverlight.evaluation.rates import Probe, RateRow, Scale, Sketch

__all__ = ["Walk", "jpeg_rows"]

NOISY = 3
"""Settings below the border that are measured as well, since the figure does not fall evenly there."""

HOPELESS, HOPELESS_AT_A_LOOK = 3.0, 2.0
"""A setting with so many times the squared error of one that is no longer is not judged: divergence follows the error. The
second is for a look only."""

NEAR = 8.0
"""The grid is refined where the divergence is within this factor of the one looked for."""

QUALITIES = (1, 2, 3, 4, 6, 8, 11, 15, *range(20, 96, 5), 98)
"""Of JPEG files."""

Point = tuple[int, ...]
"""A setting: an index into each axis of a family."""


class Walk:
    """The settings of one codec on one task, tried coarse to fine.

    First every second value of each axis is tried on a few messages; what has far more error than another of no more bytes
    does not get to the tail. Around the settings that no other beats in both bits and divergence the missing neighbours follow,
    ``rounds`` times. The front that is left is what :meth:`cheapest` looks through. Of a codec with one knob every setting stays,
    since a few messages cannot tell which of two neighbours harms more.
    """

    def __init__(
        self,
        scale: Scale,
        family: Family,
        *,
        rounds: int = 2,
        near_kl: float | None = None,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        """Probes the grid.

        Args:
            scale: measures.
            family: the codec.
            rounds: how often the grid is refined.
            near_kl: divergence that matters; with it, only the part of the front around it is refined.
            note: told what is being measured, here and later.
        """
        self.family = family
        self._scale, self._note, self._near_kl = scale, note, near_kl
        self._measured: dict[str, RateRow] = {}
        self._sketches: dict[Point, Sketch] = {}
        self._probes: dict[Point, Probe] = {}
        self._hopeless = HOPELESS if rounds else HOPELESS_AT_A_LOOK
        self._visit(_coarse(family))
        for _ in range(rounds):
            near = [point for point in _front(self._probes) if self._matters(self._probes[point])]
            self._visit(other for point in near for other in _neighbours(family, point))
        self._sketches.clear()  # they hold the messages
        self._points = _front(self._probes) if len(family.axes) > 1 else _by_bits(self._probes)
        for setting in family.pinned:
            self._measure(family.make(**setting))

    @property
    def rows(self) -> tuple[RateRow, ...]:
        """Every setting that was measured in full, by ascending bits."""
        return tuple(sorted(self._measured.values(), key=lambda row: row.bits_per_element))

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The settings that are looked through, by ascending bits."""
        return tuple(self._probes[point] for point in self._points)

    def cheapest(self, is_good: Callable[[RateRow], bool], expected_kl: float | None = None) -> RateRow | None:
        """The setting with the fewest bits that is good, measured in full; none where no setting is.

        The border is looked for on the front, from the setting on whose divergence is ``expected_kl``. Some settings below it are
        measured as well, since quality does not fall evenly there.
        """
        start = len(self._points) // 2 if expected_kl is None else self._place_of(expected_kl)
        _find_border(len(self._points), lambda i: is_good(self._measure_at(i)), start)
        return self.best(is_good)

    def cheapest_near(self, is_good: Callable[[RateRow], bool], kl: float) -> RateRow | None:
        """As :meth:`cheapest`, after a look at the settings of about that divergence only, and at ever cheaper ones while any is
        good.
        """
        _go_down(min(self._place_of(kl) + 2, len(self._points)), lambda i: is_good(self._measure_at(i)))
        return self.best(is_good)

    def best(self, is_good: Callable[[RateRow], bool]) -> RateRow | None:
        """The setting with the fewest bits that is good, of those measured so far."""
        return min(filter(is_good, self.rows), key=lambda row: row.bits_per_element, default=None)

    def _place_of(self, kl: float) -> int:
        """The place on the front of the first setting whose divergence is not above ``kl``, or the last place."""
        bias = self._bias()
        for place, probe in enumerate(self.probes):
            row = self._measured.get(_key(probe.config))
            if (row.kl if row else bias * probe.kl) <= kl:
                return place
        return len(self._points) - 1

    def _measure_at(self, place: int) -> RateRow:
        return self._measure(self._at(self._points[place]))

    def _at(self, point: Point) -> Rival:
        return self.family.at(dict(zip(self.family.axes, point, strict=True)))

    def _measure(self, rival: Rival) -> RateRow:
        key = _key(rival.config)
        if key not in self._measured:
            self._note(f"{self.family.name}: {_describe(rival.config, self.family)}")
            self._measured[key] = self._scale.measure(rival, self.family.name)
        return self._measured[key]

    def _visit(self, points: Iterable[Point]) -> None:
        for point in points:
            if point not in self._sketches:
                rival = self._at(point)
                self._note(f"{self.family.name}: {_describe(rival.config, self.family)} (a few messages)")
                self._sketches[point] = self._scale.sketch(rival)
        for point in _hopeful(self._sketches, self._hopeless):
            if point not in self._probes:
                self._probes[point] = self._scale.probe(self._sketches[point], self.family.name)

    def _matters(self, probe: Probe) -> bool:
        return self._near_kl is None or 1 / NEAR <= probe.kl / self._near_kl <= NEAR

    def _bias(self) -> float:
        """How many times the divergence of a probe that of all messages is, as far as known."""
        probed = {_key(probe.config): probe.kl for probe in self._probes.values() if probe.kl > 0}
        ratios = [row.kl / probed[key] for key, row in self._measured.items() if key in probed and row.kl > 0]
        return statistics.median(ratios) if ratios else 1.0


def jpeg_rows(
    scale: Scale, is_good: Callable[[RateRow], bool], note: Callable[[str], None] = lambda text: None
) -> tuple[RateRow, ...]:
    """The inputs as JPEG at the qualities around the border of what is good, ascending; none where they are no images."""
    rows: dict[int, RateRow] = {}

    def passes(place: int) -> bool:
        if place not in rows:
            note(f"jpeg: quality {QUALITIES[place]}")
            row = scale.measure_jpeg(QUALITIES[place])
            if row is None:
                return True
            rows[place] = row
        return is_good(rows[place])

    start = len(QUALITIES) // 2
    passes(start)
    if rows:
        _find_border(len(QUALITIES), passes, start)
    return tuple(rows[place] for place in sorted(rows))


def _key(config: Mapping[str, Any]) -> str:
    return repr(sorted(config.items()))


def _coarse(family: Family) -> Iterator[Point]:
    """Every second value of each axis, the ends included; all values of axes with four or fewer."""
    choices = []
    for values in family.axes.values():
        last = len(values) - 1
        choices.append(range(len(values)) if last < 4 else sorted({*range(0, last, 2), last}))
    yield from itertools.product(*choices)


def _neighbours(family: Family, point: Point) -> Iterator[Point]:
    for axis, values in enumerate(family.axes.values()):
        for index in (point[axis] - 1, point[axis] + 1):
            if 0 <= index < len(values):
                yield (*point[:axis], index, *point[axis + 1 :])


def _by_bits(probes: Mapping[Point, Probe]) -> list[Point]:
    return sorted(probes, key=lambda point: probes[point].bits_per_element)


def _front(probes: Mapping[Point, Probe]) -> list[Point]:
    """The settings that no other beats in both bits and divergence, by ascending bits."""
    best, least = [], math.inf
    for point in sorted(probes, key=lambda point: (probes[point].bits_per_element, probes[point].kl)):
        if probes[point].kl < least:
            best.append(point)
            least = probes[point].kl
    return best


def _hopeful(sketches: Mapping[Point, Sketch], hopeless: float) -> Sequence[Point]:
    """The settings whose error is not many times that of another with no more bits."""
    found, least = [], math.inf
    for point, sketch in sorted(sketches.items(), key=lambda pair: (pair[1].bits_per_element, pair[1].rel_mse)):
        least = min(least, sketch.rel_mse)
        if sketch.rel_mse <= hopeless * least:
            found.append(point)
    return found


def _find_border(count: int, passes: Callable[[int], bool], start: int) -> None:
    """Asks until there is an index that passes and none of the ``NOISY`` before it does; there may be none that passes."""
    low, high, at, stride = -1, count, start, 1
    while high - low > 1:
        if passes(at):
            high = at
        else:
            low = at
        if low < 0:
            at = max(high - stride, 0)
        elif high == count:
            at = min(low + stride, count - 1)
        else:
            at = (low + high) // 2
        stride *= 2
    _go_down(high, passes)


def _go_down(high: int, passes: Callable[[int], bool]) -> None:
    """Asks about the ``NOISY`` indices below one, and below the lowest that passes, until none of them does."""
    while lower := [i for i in range(max(0, high - NOISY), high) if passes(i)]:
        high = lower[0]


def _describe(config: Mapping[str, Any], family: Family) -> str:
    return ", ".join(f"{axis} {config[axis]}" for axis in family.axes) or "its one setting"
