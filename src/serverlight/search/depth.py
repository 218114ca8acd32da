"""Times of all cuts from the pieces between them, and a few cuts measured whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["anchors_of", "before_cuts", "behind_cuts", "between", "shift_to"]


def anchors_of(count: int) -> tuple[int, ...]:
    """Which of so many cuts are measured whole: the first, one in the middle, and the last.

    >>> anchors_of(9), anchors_of(1)
    ((0, 4, 8), (0,))
    """
    return tuple(sorted({0, (count - 1) // 2, count - 1}))


def before_cuts(pieces: Sequence[float]) -> list[float]:
    """What lies before each cut, in the order of depth, where ``pieces`` lie between them.

    >>> before_cuts([1.0, 2.0])
    [0.0, 1.0, 3.0]
    """
    return [0.0, *np.cumsum(pieces).tolist()]


def behind_cuts(pieces: Sequence[float]) -> list[float]:
    """What lies behind each cut.

    >>> behind_cuts([1.0, 2.0])
    [3.0, 2.0, 0.0]
    """
    return before_cuts(pieces[::-1])[::-1]


def shift_to(sums: Sequence[float], whole: Mapping[int, float]) -> list[float]:
    """Sums of pieces, moved so that they agree with what was measured whole at some depths; in between by proportion.

    What a whole takes beside its pieces, such as checks and copies at its ends, is in none of them.

    >>> shift_to([0.0, 1.0, 2.0, 3.0, 4.0], {0: 0.5, 4: 5.5})
    [0.5, 1.75, 3.0, 4.25, 5.5]
    """
    shifts = {depth: whole[depth] - sums[depth] for depth in whole}
    least = min(whole.values()) / 2  # a shift is never the reason why a time is none
    return [max(total + between(shifts, depth), least) for depth, total in enumerate(sums)]


def between(known: Mapping[int, float], depth: int) -> float:
    """The value at a depth, by proportion between those at known depths; beyond them that of the nearest.

    >>> between({0: 1.0, 10: 2.0}, 5), between({0: 1.0, 10: 2.0}, 12)
    (1.5, 2.0)
    """
    depths = sorted(known)
    return float(np.interp(depth, depths, [known[place] for place in depths])) if depths else 0.0
