"""From measured times to a curve: non-negative least squares of relative errors."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from serverlight.errors import ConfigError
from serverlight.search.profile import Curve

__all__ = ["BATCH_TERMS", "SIZE_TERMS", "STEP_TERMS", "Point", "fit_curve"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """How much there was to do."""

    rows: float = 1.0
    """Sequences, or samples."""

    tokens: float = 1.0
    """Of each of them."""

    context: float = 0.0
    """Tokens before these."""


STEP_TERMS = ("fixed_ms", "per_token_ms", "together_ms", "per_row_ms", "per_past_ms", "per_context_ms")
"""Of language models."""

SIZE_TERMS = ("fixed_ms", "per_token_ms")
"""Of work that grows with a size alone."""

BATCH_TERMS = ("fixed_ms", "per_token_ms", "together_ms")
"""Of single-shot models, where a sample is a token."""

_WORTH = 1e-4
"""A further term must make the squared error smaller by this share: one that changes nothing stays zero."""


def fit_curve(
    measured: Sequence[tuple[Point, float]], terms: Sequence[str] = STEP_TERMS, *, piece_tokens: int = 0
) -> Curve:
    """The curve with the least squares of the relative errors, none of its coefficients below zero.

    The terms are few, so all sets of them are tried: the best among those whose plain solution has no negative coefficient is
    the answer.

    Args:
        measured: What was done, and the milliseconds that it took, each above zero.
        terms: The curve's fields that may be other than zero.
        piece_tokens: As :attr:`Curve.piece_tokens`, which is known beforehand.

    Raises:
        ConfigError: nothing was measured, or a time is not positive.

    >>> curve = fit_curve([(Point(rows=n), 2.0 + 0.5 * n) for n in (1, 2, 4, 8)], SIZE_TERMS)
    >>> round(curve.fixed_ms, 6), round(curve.per_token_ms, 6), round(curve.residual, 6)
    (2.0, 0.5, 0.0)
    """
    if not measured or any(not ms > 0 for _, ms in measured):
        raise ConfigError("measured", "a curve needs measurements, each of a time above zero; measure again")
    units = [Curve(**{**_NOTHING, term: 1.0}, piece_tokens=piece_tokens) for term in terms]
    matrix = np.array([[_ms(unit, point) / ms for unit in units] for point, ms in measured])
    found = {**_NOTHING, **dict(zip(terms, _solve(matrix).tolist(), strict=True))}
    curve = Curve(**found, piece_tokens=piece_tokens)
    errors = [abs(_ms(curve, point) / ms - 1) for point, ms in measured]
    return dataclasses.replace(curve, residual=statistics.median(errors))


_NOTHING = {"fixed_ms": 0.0, "per_token_ms": 0.0}


def _ms(curve: Curve, point: Point) -> float:
    return curve.ms(rows=point.rows, tokens=point.tokens, context=point.context)


def _solve(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Non-negative coefficients with which the columns sum to ones as nearly as can be."""
    count = matrix.shape[1]
    best, least = np.zeros(count), float(matrix.shape[0])
    for size in range(1, count + 1):
        for chosen in itertools.combinations(range(count), size):
            columns = matrix[:, chosen]
            solution = np.linalg.lstsq(columns, np.ones(len(columns)), rcond=None)[0]
            error = float(np.sum((columns @ solution - 1) ** 2))
            if (solution >= 0).all() and error < least * (1 - _WORTH):
                best, least = np.zeros(count), error
                best[list(chosen)] = solution
    return best
