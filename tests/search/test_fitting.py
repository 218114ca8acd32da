"""From measured times to a curve."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverlight.errors import ConfigError
from serverlight.search.fitting import BATCH_TERMS, SIZE_TERMS, STEP_TERMS, Point, fit_curve
from serverlight.search.profile import Curve

POINTS = [
    Point(rows=rows, tokens=tokens, context=context)
    for rows, tokens in [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (1, 4), (1, 64), (1, 128)]
    for context in (0, 16, 256)
]
AMOUNTS = st.floats(0.01, 10.0)


def ms(curve: Curve, point: Point) -> float:
    return curve.ms(rows=point.rows, tokens=point.tokens, context=point.context)


@settings(deadline=None, max_examples=30)
@given(fixed=AMOUNTS, token=AMOUNTS, context=AMOUNTS, row=AMOUNTS, past=AMOUNTS, together=AMOUNTS)
def test_recovers_a_curve(fixed: float, token: float, context: float, row: float, past: float, together: float) -> None:
    """Times that lie on a curve give its predictions back, for what was measured and for what was not."""
    true = Curve(
        fixed_ms=fixed, per_token_ms=token, per_context_ms=context / 1e3, per_row_ms=row, per_past_ms=past / 1e3,
        together_ms=together,
    )  # fmt: skip
    found = fit_curve([(point, ms(true, point)) for point in POINTS], STEP_TERMS)
    assert found.residual < 0.01
    for point in (Point(), Point(rows=12, context=100), Point(tokens=32, context=128)):
        assert ms(found, point) == pytest.approx(ms(true, point), rel=0.03)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.floats(0.0, 0.3))
def test_never_gives_negative_times(seed: int, noise: float) -> None:
    """However the measurements scatter, no coefficient is below zero, and the curve is no worse than the best constant."""
    rng = np.random.default_rng(seed)
    measured = [(point, float(np.exp(noise * rng.normal()))) for point in POINTS]
    found = fit_curve(measured, STEP_TERMS)
    assert all(value >= 0 for value in dataclasses.astuple(found))
    constant = fit_curve(measured, ("fixed_ms",))
    errors = [sum((ms(curve, point) / took - 1) ** 2 for point, took in measured) for curve in (found, constant)]
    assert errors[0] <= errors[1] * (1 + 1e-9)


def test_small_times_count_as_much_as_large_ones() -> None:
    """Errors are relative: a large batch off by a tenth does not spoil what is said of one sample."""
    measured = [(Point(rows=rows), 1.0 + rows) for rows in (1, 2, 4, 8)] + [(Point(rows=64), 65.0 * 1.1)]
    assert fit_curve(measured, BATCH_TERMS).ms() == pytest.approx(2.0, rel=0.05)


def test_knows_of_pieces() -> None:
    """Where prompts run in pieces, what a piece costs is told from what a token costs."""
    true = Curve(fixed_ms=3.0, per_token_ms=0.1, together_ms=1.0, piece_tokens=64)
    measured = [(point, ms(true, point)) for point in POINTS]
    assert fit_curve(measured, STEP_TERMS, piece_tokens=64).ms(tokens=200) == pytest.approx(
        true.ms(tokens=200), rel=0.01
    )
    assert fit_curve(measured, STEP_TERMS).residual > 0.01


def test_terms_that_are_not_asked_for_stay_zero() -> None:
    """A curve over sizes knows no batches."""
    found = fit_curve([(Point(rows=size), 0.1 + 0.2 * size) for size in (1, 10, 100)], SIZE_TERMS)
    assert (found.per_row_ms, found.together_ms, found.per_past_ms) == (0, 0, 0)
    assert found.per_token_ms == pytest.approx(0.2)


@pytest.mark.parametrize("measured", [[], [(Point(), 0.0)], [(Point(), float("nan"))]])
def test_refuses_what_is_no_time(measured: list[tuple[Point, float]]) -> None:
    """Nothing is fitted to nothing, or to times that no clock gives."""
    with pytest.raises(ConfigError, match="measured"):
        fit_curve(measured)
