"""Frequencies of symbols: whatever levels a frame has, each context's sum to 4096, or slots would lie outside of its table."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from serverlight.codec import tables
from serverlight.codec.backends.cpu.model import frequencies_of

SCALE, ESCAPE = 4096, 255


def levels_of(kind: int, some: list[int]) -> NDArray[np.int64]:
    """Levels of a kind, which come again and again."""
    return np.resize(np.array(some, np.int64), (tables.NUM_CONTEXTS[kind], tables.NUM_DECISIONS))


def check(kind: int, levels: NDArray[np.int64], *, half_escapes: bool) -> NDArray[np.int64]:
    """Both makers of tables give the same, and all slots are somebody's."""
    found = np.asarray(frequencies_of(levels, kind, True, half_escapes))
    is_one_sided = kind == tables.ONE_SIDED_PLANES
    plain = tables.build_tables(
        levels,
        tables.FIRST[kind],
        tables.NEXT[kind],
        tables.FLIP_NEXT[kind],
        is_one_sided,
        True,
        half_escapes,
        tables.PROBABILITY,
    )
    assert np.array_equal(found, plain)
    assert found.min() >= 0
    assert (found[:, ESCAPE] >= 1).all()
    assert (found.sum(axis=1) == SCALE).all()
    return found


@settings(deadline=None)  # the first call compiles
@given(
    kind=st.integers(0, 4),
    some=st.lists(st.sampled_from([-32, -7, 0, 32]) | st.integers(-32, 32), min_size=1, max_size=160),
    half_escapes=st.booleans(),
)
def test_all_slots_are_taken(kind: int, some: list[int], half_escapes: bool) -> None:
    """Levels at their limits, and any between them."""
    check(kind, levels_of(kind, some), half_escapes=half_escapes)


@pytest.mark.parametrize("kind", range(5))
def test_escapes_that_have_nearly_all(kind: int) -> None:
    """Where all numbers are large, symbols that have one each leave the escape less than its share."""
    found = check(kind, levels_of(kind, [32, -7, 32, 32, 32]), half_escapes=True)
    assert found[:, ESCAPE].max() > 3800
