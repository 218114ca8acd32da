"""Tests of serverlight.search.steady: what is measured again, and which of the results counts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from serverlight.search.steady import CoreWatch, Steady, loop_ms


def steady_on(looks: Iterator[float], *, patience_s: float = 20.0) -> Steady[int]:
    """Its watch sees these times of the loop; between two looks at the clock a second goes by."""
    seconds = itertools.count(step=1.0)
    return Steady(CoreWatch(lambda: next(looks), patience_s=patience_s), clock=lambda: next(seconds))


def test_a_quiet_core_has_nothing_taken_again() -> None:
    """Small differences are no disturbance."""
    steady, numbers = steady_on(itertools.cycle([1.0, 1.05, 1.09])), itertools.count()
    for _ in range(5):
        steady.take(lambda: next(numbers))
    assert steady.settle() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("slow", [0, 1, 2])
def test_what_was_slow_is_taken_again(slow: int) -> None:
    """Also the first, of which nobody could know at the time; slow on one side is slow."""
    looks = [1.0] * 6
    looks[2 * slow + slow % 2] = 1.5
    steady, numbers = steady_on(itertools.chain(looks, itertools.repeat(1.0))), itertools.count()
    for _ in range(3):
        steady.take(lambda: next(numbers))
    expected = [0, 1, 2]
    expected[slow] = 3
    assert steady.settle() == expected


def test_patience_ends() -> None:
    """The least disturbed counts, though it was disturbed."""
    looks = itertools.chain([1.0, 1.0, 3.0, 3.0, 2.0, 2.0, 4.0, 4.0], itertools.repeat(4.0))
    steady, numbers = steady_on(looks, patience_s=2.0), itertools.count()
    steady.take(lambda: next(numbers))
    steady.take(lambda: next(numbers))
    assert steady.settle() == [0, 2]
    assert next(numbers) == 4  # two more were tried, a second each


def test_a_row_has_what_another_left_of_the_patience() -> None:
    """A profile is not to take minutes more, however many rows it has."""
    watch = CoreWatch(iter([1.0, 1.0, *[2.0] * 20]).__next__, patience_s=1.0)
    clock = itertools.count(step=1.0).__next__
    for number, tries in enumerate((2, 1)):
        count = itertools.count()
        steady = Steady[int](watch, clock=clock)
        if number == 0:
            Steady[int](watch, clock=clock).take(lambda: 0)  # shows what the core can do
        steady.take(lambda count=count: next(count))
        steady.settle()
        assert next(count) == tries


def test_the_loop_takes_time() -> None:
    """On a real core it is a few tenths of a millisecond or more."""
    assert 0.01 < loop_ms() < 1000
