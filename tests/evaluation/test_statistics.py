"""Tests of serverlight.evaluation.statistics."""

from __future__ import annotations

import numpy as np
import pytest

from serverlight.errors import ConfigError
from serverlight.evaluation import paired_difference


def answers(wins: int, losses: int, both: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of right and wrong answers with the given counts."""
    ours = np.repeat([True, False, True, False], [wins, losses, both, neither])
    theirs = np.repeat([False, True, True, False], [wins, losses, both, neither])
    return ours, theirs


def test_hand_computed_interval() -> None:
    """5 wins and 15 losses among 100: centre -10/102, margin z sqrt((21 - 100/102) / 102^2) by hand."""
    difference = paired_difference(*answers(5, 15, 70, 10))
    assert difference.value == pytest.approx(-0.10)
    assert difference.low == pytest.approx(-0.0980392 - 0.0859792, abs=1e-5)
    assert difference.high == pytest.approx(-0.0980392 + 0.0859792, abs=1e-5)


def test_equal_answers_still_leave_doubt() -> None:
    """Where the two never differ the difference is 0, and its interval has a width that shrinks with the sample."""
    wide, narrow = (paired_difference(*answers(0, 0, num, 0)) for num in (20, 2000))
    assert wide.value == narrow.value == 0
    assert wide.high == -wide.low > 10 * narrow.high > 0


def test_swapping_the_two_mirrors_the_interval() -> None:
    """The difference the other way round is the same with the other sign."""
    ours, theirs = answers(3, 9, 40, 8)
    forth, back = paired_difference(ours, theirs), paired_difference(theirs, ours)
    assert (forth.value, forth.low, forth.high) == pytest.approx((-back.value, -back.high, -back.low))


def test_interval_covers_the_truth() -> None:
    """Of intervals over 300 paired answers, 95 % hold the true difference, give or take 1.5 %."""
    rng = np.random.default_rng(0)
    truth, held, rounds = -0.02, 0, 2000
    for counts in rng.multinomial(300, [0.01, 0.03, 0.9, 0.06], size=rounds):
        difference = paired_difference(*answers(*counts))
        held += difference.low <= truth <= difference.high
    assert 0.935 <= held / rounds <= 0.985


def test_more_answers_tell_more() -> None:
    """Whether a point is lost is open for a hundred answers that never differ, and settled for a thousand."""
    few, many = (paired_difference(*answers(0, 0, num, 0)) for num in (100, 1000))
    assert few.within(0.01) is None
    assert many.within(0.01) is True
    assert paired_difference(*answers(0, 90, 10, 0)).within(0.01) is False


def test_never_leaves_the_possible() -> None:
    """A difference lies between -1 and 1, and so does its interval."""
    difference = paired_difference(*answers(0, 5, 0, 0))
    assert difference.low == -1.0
    assert difference.value == -1.0


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([True], [True, False])])
def test_rejects_unpaired_samples(ours: list, theirs: list) -> None:
    """Nothing to compare, or rows of unlike length."""
    with pytest.raises(ConfigError, match="equally long"):
        paired_difference(np.array(ours, bool), np.array(theirs, bool))
