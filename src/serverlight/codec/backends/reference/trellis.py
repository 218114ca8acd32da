"""Profile ``serverlight`` in NumPy: the cheapest path of numbers along a trellis (docs/wire-format.md, sections 6.9 and 7)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from serverlight.codec import activity, tables
from serverlight.codec.activity import Spreads
from serverlight.codec.backends import Float32
from serverlight.codec.backends.reference.symbols import LARGEST_SEEN, Symbols, fit_levels
from serverlight.codec.coded import SHIFT_UNIT
from serverlight.codec.layout import Grid
from serverlight.codec.tables import LARGE, TRELLIS, Ints
from serverlight.codec.trellis import MOVES, TRADE, quantiser_of

__all__ = ["path_of"]

NUM_STATES = len(MOVES)
OUT_OF_REACH = 1 << 60
PASSES = 2


def path_of(values: Float32, quantised: Ints, step: np.float32, grid: Grid, spreads: Spreads) -> Ints:
    """Numbers whose squared error and bits are cheapest together, shape (n,).

    Bits are first counted by the default levels and the activity of ``quantised``, then by what suits the path found with these.
    """
    scaled = values * (np.float32(1) / step) * np.float32(SHIFT_UNIT)
    targets = np.rint(scaled).astype(np.int64).reshape(grid.rows, grid.columns)
    levels, numbers = tables.DEFAULT_LEVELS[TRELLIS], quantised
    for index in range(PASSES):
        start = activity.nearest_activity(int(np.abs(numbers).sum()), len(numbers))
        if index:
            offsets, _, corrections = fit_levels(Symbols.of(numbers, grid, TRELLIS, start, spreads), TRELLIS)
            levels = tables.levels_of(tables.DEFAULT_LEVELS[TRELLIS], offsets, corrections)
        numbers = Survivors.follow(targets, costs_of(levels), start, spreads).reshape(-1)
    return numbers


def costs_of(levels: Ints) -> Ints:
    """Prices of nibbles by context, in 256ths of a bit: shape (32, 16)."""
    costs = np.empty((len(levels), 16), np.int64)
    for context, own in enumerate(levels):
        tables.nibble_costs(own, tables.COST, costs[context])
    return costs


@dataclass(frozen=True, slots=True)
class Candidates:
    """One number for each channel: a place to go from a state. D = channels."""

    numbers: Ints
    errors: Ints
    """Squared, in 64ths of the step."""

    exists: np.ndarray[tuple[int, ...], np.dtype[np.bool_]]
    """Whether there is such a candidate."""

    @classmethod
    def near(cls, targets: Ints, quantiser: int) -> list[Candidates]:
        """The nearest number, the next larger and smaller ones in magnitude, and zero beside a two."""
        magnitudes, signs = np.abs(targets), np.where(targets < 0, -1, 1)
        nearest = (magnitudes + SHIFT_UNIT * (1 + quantiser)) // (2 * SHIFT_UNIT)
        return [
            cls._of(candidate, magnitudes, signs, quantiser)
            for candidate in (nearest + 1, nearest, nearest - 1, np.where(nearest == 2, 0, -1))
        ]

    @classmethod
    def _of(cls, candidate: Ints, magnitudes: Ints, signs: Ints, quantiser: int) -> Candidates:
        distance = magnitudes - SHIFT_UNIT * (2 * candidate - quantiser * (candidate > 0))
        return cls(signs * candidate, distance**2, candidate >= 0)


@dataclass(frozen=True, slots=True)
class Survivors:
    """The cheapest path to each state in each channel, by what the next step must know of it: all of shape (4, D)."""

    total: Ints
    busy: Ints
    lean: Ints
    contexts: Ints
    flips: Ints
    """For the next number, be it the first or the second of a pair."""

    number: Ints
    """The last one."""

    before: Ints
    """The state that it was taken in."""

    @classmethod
    def follow(cls, targets: Ints, costs: Ints, start: int, spreads: Spreads) -> Ints:
        """Numbers of the cheapest paths, of the same shape as ``targets``, which are in 64ths of the step."""
        rows, columns = targets.shape
        borders = activity.thresholds_for(int(activity.ACTIVITY[start]))
        survivors, steps = cls._at_start(columns, start, spreads), []
        for row in range(rows):
            if row % 2 == 0:
                survivors = survivors._with_contexts(borders)
            following = survivors._after(targets[row], costs)
            if row % 2:
                following = following._learned(survivors, row // 2, has_spreads=len(spreads) > 0)
            steps.append(following)
            survivors = following
        state, numbers = survivors.total.argmin(axis=0), np.empty_like(targets)
        for row in range(rows - 1, -1, -1):
            numbers[row] = np.take_along_axis(steps[row].number, state[None], axis=0)[0]
            state = np.take_along_axis(steps[row].before, state[None], axis=0)[0]
        return numbers

    @classmethod
    def _at_start(cls, columns: int, start: int, spreads: Spreads) -> Survivors:
        starts = activity.starts_for(start, spreads) if len(spreads) else np.full(columns, activity.ACTIVITY[start])
        total = np.full((NUM_STATES, columns), OUT_OF_REACH)
        total[0] = 0
        nothing = np.zeros_like(total)
        return cls(total, np.tile(starts, (NUM_STATES, 1)), nothing, nothing, nothing, nothing, nothing)

    def _with_contexts(self, borders: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> Survivors:
        """Contexts and flips of the first of a pair (section 6.4)."""
        classes = (self.busy[..., None] >= borders).sum(axis=-1)
        leaning = 8 * np.abs(self.lean) >= 3 * self.busy + 24
        return dataclasses.replace(self, contexts=2 * classes + leaning, flips=np.where(self.lean < 0, -1, 1))

    def _after(self, targets: Ints, costs: Ints) -> Survivors:
        """Takes each state's candidates in turn; the first of equally cheap paths stays."""
        shape = self.total.shape
        found = {name: np.zeros(shape, np.int64) for name in ("busy", "lean", "contexts", "flips", "number", "before")}
        total = np.full(shape, 2 * OUT_OF_REACH)
        for state in range(NUM_STATES):
            contexts, flips, quantiser = self.contexts[state], self.flips[state], quantiser_of(state)
            for candidate in Candidates.near(targets, quantiser):
                classes = np.sign(candidate.numbers * flips) + 1
                bits = costs[16 * quantiser + contexts, nibbles_of(candidate.numbers * flips)]
                price = self.total[state] + candidate.errors + TRADE * bits
                for parity in range(2):
                    into = MOVES[state, parity]
                    better = candidate.exists & (candidate.numbers & 1 == parity) & (price < total[into])
                    total[into] = np.where(better, price, total[into])
                    step = {
                        "busy": self.busy[state],
                        "lean": self.lean[state],
                        "contexts": tables.NEXT[tables.TOKENS][contexts, classes],
                        "flips": flips * tables.FLIP_NEXT[tables.TOKENS][contexts, classes],
                        "number": candidate.numbers,
                        "before": state,
                    }
                    for name, value in step.items():
                        found[name][into] = np.where(better, value, found[name][into])
        return Survivors(total=total, **found)

    def _learned(self, first: Survivors, pair: int, *, has_spreads: bool) -> Survivors:
        """Takes note of a pair: its first number is that of ``first`` in the state before."""
        shift = activity.forgetting(pair, has_spreads)
        a, b = (
            np.clip(numbers, -LARGEST_SEEN, LARGEST_SEEN)
            for numbers in (np.take_along_axis(first.number, self.before, axis=0), self.number)
        )
        busy = self.busy + ((64 * (np.abs(a) + np.abs(b)) - self.busy) >> shift)
        return dataclasses.replace(self, busy=busy, lean=self.lean + ((64 * (a + b) - self.lean) >> shift))


def nibbles_of(numbers: Ints) -> Ints:
    """Nibbles of signed numbers; 15 for those too large."""
    magnitudes = np.abs(numbers)
    return np.where(magnitudes > 7, LARGE, 2 * magnitudes - (numbers > 0))
