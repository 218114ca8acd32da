"""From a few samples to all of them: curves that never fall, and intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest

from serverlight.search.surrogate import Look, LossCurve, Surrogate, conformal, isotonic, tame_mean

KL = np.geomspace(1e-4, 1.0, 12)


def loss_of(kl: np.ndarray) -> np.ndarray:
    return 60 * -np.expm1(-((kl / 0.3) ** 0.6))


def curve(kl: np.ndarray = KL, loss: np.ndarray | None = None) -> LossCurve:
    loss = loss_of(kl) if loss is None else loss
    return LossCurve.fit(kl, loss, np.full(len(kl), 1000.0), num_knots=len(kl))


def looks(rng: np.random.Generator, count: int = 12, cut: str = "a") -> list[Look]:
    return [
        Look(cut=cut, kl=kl * rng.uniform(0.6, 1.5), rel_mse=kl * rng.uniform(0.5, 2), bits_per_element=1 / (kl + 0.1))
        for kl in np.geomspace(1e-4, 1.0, count)
    ]


@pytest.mark.parametrize("seed", range(5))
def test_curve_never_falls(seed: int) -> None:
    """However noisy the points, more divergence never predicts less loss, and none predicts none."""
    noisy = np.clip(loss_of(KL) + np.random.default_rng(seed).normal(0, 5, len(KL)), 0, 100)
    predicted = curve(loss=noisy)(np.concatenate([[0.0], np.geomspace(1e-6, 50, 300)]))
    assert (np.diff(predicted) >= 0).all()
    assert predicted[0] == 0
    assert predicted[-1] <= 100


def test_curve_goes_through_points_that_rise() -> None:
    """What was measured in full is what is predicted there."""
    assert curve()(KL) == pytest.approx(loss_of(KL))


def test_curve_follows_its_law_between_points() -> None:
    """Three points of a saturating power law are enough to tell what lies between them."""
    few = np.array([0.003, 0.05, 0.5])
    between = np.geomspace(0.003, 0.5, 50)
    assert np.abs(curve(few)(between) - loss_of(between)).max() < 2.5


def test_points_that_are_no_knots_only_bend_the_law() -> None:
    """A doubtful point far from what is known of full runs does not pull the curve off them."""
    kl, loss = np.append(KL, 0.01), np.append(loss_of(KL), 90.0)
    bent = LossCurve.fit(kl, loss, np.append(np.full(len(KL), 1000.0), 1.0), num_knots=len(KL))
    assert bent(KL) == pytest.approx(loss_of(KL))


@pytest.mark.parametrize("seed", range(5))
def test_more_error_never_predicts_less_loss(seed: int) -> None:
    """The surrogate rises with the divergence and with the error on the few samples, even fitted to noise that falls."""
    rng = np.random.default_rng(seed)
    some = looks(rng)
    kl = rng.permutation(KL)
    model = Surrogate.fit(some, kl=kl, bits=np.ones(len(some)), curve=curve())
    for low, high in zip(np.geomspace(1e-5, 1, 20), np.geomspace(2e-5, 2, 20), strict=True):
        at = Look(cut="a", kl=low, rel_mse=0.1, bits_per_element=1)
        assert model.loss_pp(at) <= model.loss_pp(Look(cut="a", kl=high, rel_mse=0.1, bits_per_element=1)) + 1e-12
        assert model.loss_pp(at) <= model.loss_pp(Look(cut="a", kl=low, rel_mse=high + 1, bits_per_element=1)) + 1e-12


def test_factor_between_few_and_all_samples_is_learned() -> None:
    """Where the few samples see half of the divergence and 2 % fewer bits, predictions put it right."""
    some = looks(np.random.default_rng(0))
    kl, bits = (np.array([factor * value for value in values]) for factor, values in (
        (2.0, [look.kl for look in some]), (1.02, [look.bits_per_element for look in some])))  # fmt: skip
    model = Surrogate.fit(some, kl=kl, bits=bits, curve=curve())
    assert np.median([abs(model.kl(look) / true - 1) for look, true in zip(some, kl, strict=True)]) < 0.1
    assert [model.bits_per_element(look) for look in some] == pytest.approx(bits)


def test_cut_without_full_runs_is_taken_as_seen() -> None:
    """A cut that nothing is known of keeps what the few samples say."""
    model = Surrogate.fit(looks(np.random.default_rng(0)), kl=KL, bits=np.ones(len(KL)), curve=curve())
    other = Look(cut="b", kl=0.1, rel_mse=0.1, bits_per_element=2.5)
    assert (model.kl(other), model.bits_per_element(other)) == (0.1, 2.5)


def test_conformal_reach_covers() -> None:
    """At least 95 % of further scores of the same kind stay within it, on average."""
    rng = np.random.default_rng(0)
    for count in (6, 12, 40):
        errors = [np.abs(rng.normal(size=(2, max(count, 200)))) for _ in range(300)]
        covered = np.mean([np.mean(more <= conformal(some[:count])) for some, more in errors])
        assert 0.93 <= covered <= 0.99, count


def test_isotonic_pools_by_weight() -> None:
    """Neighbours that fall are replaced by their weighed mean."""
    assert isotonic(np.array([4.0, 1.0, 5.0]), np.array([1.0, 2.0, 1.0])).tolist() == [2.0, 2.0, 5.0]


def test_tame_mean_hangs_on_no_single_answer() -> None:
    """One answer of ten with a thousand times the divergence moves it far less than the mean; NaN is no answer."""
    values = np.array([[0.01] * 10, [0.01] * 9 + [10.0]])
    assert tame_mean(values[0]) == pytest.approx(0.01)
    assert tame_mean(values[1]) < 0.06 < values[1].mean()
    assert tame_mean(np.array([0.01, np.nan])) == pytest.approx(0.01)
