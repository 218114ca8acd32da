"""Tests of serverlight.evaluation.bounds against known values for known distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from serverlight.errors import ConfigError
from serverlight.evaluation import bounds
from serverlight.evaluation.bounds import RateDistortion, ecsq, rate_distortion, rel_mse

RNG = np.random.default_rng(0)
GAUSSIAN = RNG.normal(size=1 << 16)
LAPLACIAN = RNG.laplace(size=1 << 16)


@pytest.fixture(scope="module")
def curves() -> dict[str, RateDistortion]:
    return {
        "gaussian ecsq": ecsq(GAUSSIAN),
        "laplacian ecsq": ecsq(LAPLACIAN),
        "gaussian": rate_distortion(GAUSSIAN),
        "laplacian": rate_distortion(LAPLACIAN),
    }


def bits_at_db(curve: RateDistortion, db: float) -> float:
    return curve.bits_at(10 ** (-db / 10))


@pytest.mark.parametrize(
    ("name", "bits", "db"),
    [
        # Noll and Zelinski 1978, as tabulated by Jayant and Noll 1984 for the optimum entropy-coded quantiser.
        ("gaussian ecsq", 1, 4.64),
        ("gaussian ecsq", 2, 10.55),
        ("gaussian ecsq", 3, 16.56),
        ("laplacian ecsq", 1, 5.76),
        ("laplacian ecsq", 2, 11.31),
        ("laplacian ecsq", 3, 17.20),
        # Shannon: half a bit for each halving of the error, 6.02 dB a bit.
        ("gaussian", 0.5, 3.01),
        ("gaussian", 1, 6.02),
        ("gaussian", 3, 18.06),
        ("laplacian", 1, 6.62),
        ("laplacian", 2, 12.66),
        ("laplacian", 3, 18.68),
    ],
)
def test_known_values(curves: dict[str, RateDistortion], name: str, bits: float, db: float) -> None:
    """Both curves agree with the literature within two hundredths of a bit."""
    assert bits_at_db(curves[name], db) == pytest.approx(bits, abs=0.02)


def test_order_of_the_bounds(curves: dict[str, RateDistortion]) -> None:
    """Shannon's bound is below the quantiser by a quarter of a bit at fine, by less at coarse, and never above it."""
    for name in ("gaussian", "laplacian"):
        gaps = [curves[f"{name} ecsq"].bits_at(d) - curves[name].bits_at(d) for d in (0.7, 0.3, 0.1, 0.01)]
        assert 0 < gaps[0] < gaps[1] < gaps[2] < 0.27
        assert gaps[-1] == pytest.approx(0.5 * math.log2(math.pi * math.e / 6), abs=0.02)


def test_one_sided_feature() -> None:
    """Elements that are zero cost what it takes to say so, and no more."""
    x = np.maximum(GAUSSIAN, 0)
    fine = 2e-5
    # Half of the elements are zero, which takes one bit to tell; the others cost a Gaussian's bits less the known sign.
    expected = 1 + 0.5 * (0.5 * math.log2(2 * math.pi * math.e / 12 / fine) - 1)
    assert ecsq(x).bits_at(fine) == pytest.approx(expected, abs=0.05)
    assert rate_distortion(x).bits_at(0.05) < ecsq(x).bits_at(0.05)


def test_scale_does_not_matter() -> None:
    """Errors are relative: a tensor a thousand times as large has the same curve."""
    assert ecsq(1000 * LAPLACIAN[:4096]).bits == pytest.approx(ecsq(LAPLACIAN[:4096]).bits)


def test_far_outliers_need_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """One element a million times the others does not make a table of a million cells."""
    monkeypatch.setattr(bounds, "MAX_CELLS", 1000)
    x = np.concatenate([LAPLACIAN[:1000], [1e6]])
    assert 0 < ecsq(x).bits_at(1e-6) < 1


def test_ends_of_a_curve() -> None:
    """Nothing is sent for an error as large as the signal; beyond the finest point nothing is claimed."""
    curve = RateDistortion(np.array([0.01, 1.0]), np.array([3.0, 0.0]))
    assert curve.bits_at(1.5) == curve.bits_at(1.0) == 0
    assert curve.bits_at(0.1) == pytest.approx(1.5)
    assert math.isnan(curve.bits_at(0.001))
    assert math.isnan(curve.bits_at(math.nan))


def test_curves_are_convex(curves: dict[str, RateDistortion]) -> None:
    """Every curve falls, ever more gently."""
    for curve in curves.values():
        slopes = np.diff(curve.bits) / np.diff(curve.distortion)
        assert (slopes < 0).all()
        assert (np.diff(slopes) > -1e-9).all()


@pytest.mark.parametrize("function", [ecsq, rate_distortion])
@pytest.mark.parametrize("elements", [np.zeros(5), np.zeros(0)], ids=["zeros", "none"])
def test_nothing_to_code(function, elements: np.ndarray) -> None:
    """A tensor without signal has no curve; the error says so."""
    with pytest.raises(ConfigError, match="none, or all zero"):
        function(elements)


def test_rel_mse() -> None:
    """The error is relative to all messages together, and zero messages lost by nobody count as exact."""
    one, two = np.float32([3, 4]), np.float32([[0], [5]])
    assert rel_mse([one, two], [one, two]) == 0
    assert rel_mse([one, two], [one, np.float32([[0], [0]])]) == pytest.approx(0.5)
    assert rel_mse([np.zeros(2, np.float32)], [np.zeros(2, np.float32)]) == 0
    assert rel_mse([np.zeros(2, np.float32)], [np.ones(2, np.float32)]) == math.inf
