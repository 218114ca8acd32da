"""The three stages one by one, against their definition in the plainest words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverlight.codec import Codec, CodecConfig, decode, inspect
from serverlight.codec.allocate import REFERENCE_BITS, integer_guard
from serverlight.codec.backends.slicer import (
    filter_top_k,
    group_sizes,
    kept_positions,
    reference_codes,
    split_by_magnitude,
)
from serverlight.errors import ConfigError

values = st.lists(st.integers(-6, 6).map(float), min_size=1, max_size=60).map(lambda v: np.array(v, np.float32))


def kept_by_sorting(x: Any, num_kept: int, asymmetry: float) -> list[int]:
    def score(i: int) -> float:
        return float(x[i]) if x[i] >= 0 else float(np.float32(asymmetry) * -x[i])

    nonzero = [i for i in range(len(x)) if x[i] != 0]
    return sorted(sorted(nonzero, key=lambda i: (-score(i), i))[:num_kept])


@given(x=values, sparsity=st.floats(0, 0.99), asymmetry=st.sampled_from([0.25, 0.5, 1.0, 2.0]))
def test_filter_keeps_the_best_scores(x: Any, sparsity: float, asymmetry: float) -> None:
    """The filter keeps exactly the K best scores, ties by lowest index: what a full sort would keep."""
    num_kept = CodecConfig(sparsity=sparsity).num_kept(len(x))
    assert filter_top_k(x, num_kept, asymmetry).tolist() == kept_by_sorting(x, num_kept, asymmetry)


def test_asymmetry_weighs_negative_elements() -> None:
    """Lambda below one lets a negative element go before a smaller positive one, and above one the other way round."""
    x = np.array([1.0, -1.5], np.float32)
    assert filter_top_k(x, 1, 0.5).tolist() == [0]
    assert filter_top_k(x, 1, 1.0).tolist() == [1]


@given(x=values, sparsity=st.floats(0, 0.99), asymmetry=st.sampled_from([0.1, 0.25, 0.5, 1.0, 2.0, 30.0]))
def test_budgets_by_sign(x: Any, sparsity: float, asymmetry: float) -> None:
    """Mode `budget` keeps exactly K, in the ratio n+ : lambda n- as far as it can, and of each sign what a sort would."""
    config = CodecConfig(sparsity=sparsity, asymmetry=asymmetry, asymmetry_mode="budget")
    kept = kept_positions(x, config)
    num_kept, num_positive, num_negative = (int(n) for n in (len(kept), (x > 0).sum(), (x < 0).sum()))
    assert num_kept == min(config.num_kept(len(x)), num_positive + num_negative)
    if num_kept == 0:
        return
    wanted = num_kept * num_positive / (num_positive + asymmetry * num_negative)
    from_positive = int((x[kept] > 0).sum())
    assert max(num_kept - num_negative, min(wanted, num_positive)) == pytest.approx(from_positive, abs=0.501)
    expected = kept_by_sorting(x.clip(0), from_positive, 1) + kept_by_sorting((-x).clip(0), num_kept - from_positive, 1)
    assert kept.tolist() == sorted(expected)


@pytest.mark.parametrize(
    ("counts", "asymmetry", "kept"),
    [
        ((60, 40), 1.0, (30, 20)),  # in proportion
        ((60, 40), 0.5, (38, 12)),  # 60 : 20 is 37.5 : 12.5, and a half goes to the positive side
        ((10, 90), 0.1, (10, 40)),  # 26.3 would be wanted of ten
        ((90, 10), 9.0, (40, 10)),  # 25 would be wanted of ten
        ((100, 0), 5.0, (50, 0)),
        ((0, 30), 0.001, (0, 30)),
        ((50, 50), 0.7, (29, 21)),  # 29.41
    ],
)
def test_budgets_are_split_exactly(counts: tuple[int, int], asymmetry: float, kept: tuple[int, int]) -> None:
    """Of 100 elements 50 are kept at most; what a side has no elements for goes to the other."""
    config = CodecConfig(sparsity=0.5, asymmetry=asymmetry, asymmetry_mode="budget")
    assert config.num_kept_by_sign(*counts, 100) == kept


@given(
    num_positive=st.integers(0, 2**28),
    num_negative=st.integers(0, 2**28),
    sparsity=st.floats(0, 0.999),
    asymmetry=st.floats(1e-300, 1e300),
)
def test_budgets_of_any_size_sum_to_k(num_positive: int, num_negative: int, sparsity: float, asymmetry: float) -> None:
    """No size and no lambda makes the split miss K or ask for more than there is."""
    config = CodecConfig(sparsity=sparsity, asymmetry=asymmetry, asymmetry_mode="budget")
    total = num_positive + num_negative
    positive, negative = config.num_kept_by_sign(num_positive, num_negative, total)
    assert positive + negative == config.num_kept(total)
    assert 0 <= positive <= num_positive
    assert 0 <= negative <= num_negative


def test_filter_keeps_no_zero_even_when_scores_vanish() -> None:
    """A product with lambda that rounds to zero does not let a true zero in."""
    x = np.array([0.0, -1e-45, 0.0], np.float32)
    assert filter_top_k(x, 1, 0.1).tolist() == [1]


@pytest.mark.parametrize(
    ("sparsity", "n", "kept"), [(0.7, 10, 3), (0.9, 4096, 410), (0.29, 100, 71), (0, 5, 5), (0.99, 1, 1)]
)
def test_number_kept_is_exact(sparsity: float, n: int, kept: int) -> None:
    """K is the ceiling of the exact decimal product, where floats would be one off."""
    assert CodecConfig(sparsity=sparsity).num_kept(n) == kept


@given(num_kept=st.integers(0, 1000), num_groups=st.integers(1, 256))
def test_groups_are_equal(num_kept: int, num_groups: int) -> None:
    """Group sizes sum to K, differ by one at most, and no group is empty."""
    sizes = group_sizes(num_kept, num_groups)
    assert sizes.sum() == num_kept
    assert len(sizes) == min(num_groups, num_kept)
    assert num_kept == 0 or 0 < sizes.max() - sizes.min() + 1 <= 2


@given(x=values, num_groups=st.integers(1, 8))
def test_groups_ascend_in_magnitude(x: Any, num_groups: int) -> None:
    """No member of a group is larger than a member of the next."""
    magnitudes = np.abs(x[x != 0])
    labels, sizes = split_by_magnitude(magnitudes, num_groups)
    assert np.bincount(labels, minlength=len(sizes)).tolist() == sizes.tolist()
    for group in range(len(sizes) - 1):
        assert magnitudes[labels == group].max() <= magnitudes[labels == group + 1].min()


def test_codes_span_the_range() -> None:
    """The lowest magnitude has code 0, the highest the largest code, a single value code 0."""
    low, high = np.full(3, 1, np.float32), np.full(3, 2, np.float32)
    codes = reference_codes(np.array([1, 1.5, 2], np.float32), low, high)
    assert codes.tolist() == [0, 2 ** (REFERENCE_BITS - 1), 2**REFERENCE_BITS - 1]
    assert reference_codes(low, low, low).tolist() == [0, 0, 0]


@given(codes=st.lists(st.integers(0, 2**REFERENCE_BITS - 1), min_size=1, max_size=50), delta=st.floats(1e-4, 1))
def test_guard_takes_the_least_width(codes: list[int], delta: float) -> None:
    """The guard's width keeps the budget, and one bit fewer would not: the paper's formula, term by term."""

    def error(width: int) -> int:
        shift = REFERENCE_BITS - width
        return sum(abs(q - (q >> shift << shift)) for q in codes)

    errors = np.array([[error(width) for width in range(REFERENCE_BITS + 1)]])
    width = int(integer_guard(errors, np.array([len(codes)]), delta)[0])
    budget = delta * len(codes) * 2**REFERENCE_BITS
    assert error(width) <= budget
    assert width == 0 or error(width - 1) > budget


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), delta=st.floats(1e-3, 0.3), num_groups=st.integers(1, 8))
def test_error_keeps_within_the_budget(seed: int, delta: float, num_groups: int) -> None:
    """The mean error of a frame stays within the budget times the tensor's largest magnitude.

    A code at width Q is off by less than 2^-Q of the range, and the guard holds the mean of the dropped bits below delta; the
    reconstruction point in the middle of a cell is off by no more than half a cell, which is at most the mean dropped
    share plus half a reference step, so delta + 2^-12 + half a cell of a flat group bounds the mean.
    """
    x = np.random.default_rng(seed).standard_normal(500).astype(np.float32)
    y = decode(
        Codec(CodecConfig(profile="slicer", sparsity=0, num_groups=num_groups, distortion=delta)).encode(x), "numpy"
    )
    assert np.abs(x - y).mean() <= 2 * (delta + 2.0**-REFERENCE_BITS) * np.abs(x).max()


def test_smaller_budget_costs_more_bits_and_errs_less() -> None:
    """Distortion is a knob that works."""
    x = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    errors, sizes = [], []
    for delta in (0.3, 0.1, 0.03, 0.01, 0.003):
        frame = Codec(CodecConfig(profile="slicer", sparsity=0.5, distortion=delta)).encode(x)
        kept = decode(frame, "numpy") != 0
        errors.append(float(np.abs(x - decode(frame, "numpy"))[kept].mean()))
        sizes.append(inspect(frame).num_bytes)
    assert errors == sorted(errors, reverse=True)
    assert sizes == sorted(sizes)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("profile", "zip"),
        ("sparsity", 1.0),
        ("sparsity", -0.1),
        ("sparsity", float("nan")),
        ("sparsity", True),
        ("asymmetry", 0.0),
        ("asymmetry", float("inf")),
        ("asymmetry_mode", "sign"),
        ("num_groups", 0),
        ("num_groups", 257),
        ("num_groups", 2.0),
        ("distortion", 0),
        ("distortion", "small"),
        ("checksum", 1),
    ],
)
def test_settings_are_checked_at_birth(field: str, value: Any) -> None:
    """A setting out of range is refused by the name of its field."""
    with pytest.raises(ConfigError) as caught:
        CodecConfig(**{field: value})
    assert caught.value.field == field
    assert field in str(caught.value)


def test_config_survives_json() -> None:
    """Settings go through plain data and back; an unknown one is named."""
    config = CodecConfig(profile="slicer", sparsity=0.3, num_groups=5)
    assert CodecConfig.from_dict(config.to_dict()) == config
    with pytest.raises(ConfigError, match="sparsty"):
        CodecConfig.from_dict({"sparsty": 0.5})


def test_cheapest_position_coding_wins() -> None:
    """With `auto` the frame is no longer than with any coding forced."""
    rng = np.random.default_rng(0)
    for density in (0.02, 0.1, 0.3, 0.5, 0.8, 1.0):
        x = rng.standard_normal((16, 64)).astype(np.float32)
        sizes = {
            wanted: len(Codec(CodecConfig(profile="slicer", sparsity=1 - density, positions=wanted)).encode(x))
            for wanted in ("auto", "bitmap", "csr", "rice")
        }
        assert sizes["auto"] == min(sizes.values())
