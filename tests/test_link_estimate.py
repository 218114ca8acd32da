"""What a filter knows of a link after some messages; all of it from given sizes and times."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverlight.link.estimate import LinkBelief

STEP_S = 0.25
TRIP_MS = 20.0


def way_ms(num_bytes: int, rate: float, trip_ms: float = TRIP_MS) -> float:
    return trip_ms + num_bytes * 8e3 / rate


def after(belief: LinkBelief, rate: float, sizes: list[int], *, noise_ms: float = 1.0, seed: int = 0) -> LinkBelief:
    chance = random.Random(seed)
    for size in sizes:
        belief = belief.later(STEP_S).seen(size, way_ms(size, rate) + abs(chance.gauss(0, noise_ms)))
    return belief


@pytest.mark.parametrize("rate", [0.2e6, 1e6, 8e6, 40e6])
def test_finds_rate_and_trip(rate: float) -> None:
    """Messages of unlike sizes tell rate and round trip apart."""
    size = int(rate / 8 * 0.1)  # a tenth of a second
    belief = after(LinkBelief(), rate, [size, size // 8] * 8)
    assert belief.rate_bits_per_s() == pytest.approx(rate, rel=0.25)
    assert belief.trip_ms() == pytest.approx(TRIP_MS, rel=0.2)
    assert belief.chance(size, 300.0) > 0.95
    assert belief.chance(10 * size, 300.0) < 0.05


def test_small_messages_leave_a_fast_link_open() -> None:
    """What small messages cannot show stays open: no rate below what they had, and no certainty above."""
    belief = after(LinkBelief(), 50e6, [300] * 30)
    assert belief.trip_ms() == pytest.approx(TRIP_MS, rel=0.3)
    assert belief.rate_bits_per_s(0.05) > 300 * 8e3 / 25
    assert belief.rate_bits_per_s(0.95) > 50 * belief.rate_bits_per_s(0.05)
    assert 0.5 < belief.chance(2_000, 60.0) < 0.95


def test_one_burst_is_no_slow_link() -> None:
    """A message that is held up for a while hardly moves the rate; the next one mends the rest."""
    before = after(LinkBelief(), 20e6, [20_000, 2_000] * 10)
    held = before.later(STEP_S).seen(20_000, way_ms(20_000, 20e6) + 60.0)
    assert held.rate_bits_per_s() > 0.7 * before.rate_bits_per_s()
    again = after(held, 20e6, [20_000])
    assert again.chance(20_000, 45.0) > 0.9


@pytest.mark.parametrize("rate", [0.5e6, 2e6])
def test_a_drop_is_seen_at_once(rate: float) -> None:
    """A large message that takes many times its time leaves no doubt; two that take longer neither."""
    before = after(LinkBelief(), 50e6, [30_000] * 12)
    assert before.chance(30_000, 100.0) > 0.95
    dropped = after(before, rate, [30_000])
    if rate == 2e6:
        dropped = after(dropped, rate, [30_000])
    assert dropped.chance(30_000, 100.0) < 0.1
    assert dropped.rate_bits_per_s() == pytest.approx(rate, rel=0.3)


def test_a_rise_is_seen_step_by_step() -> None:
    """Small messages that suddenly take no time lift the chance of larger ones."""
    slow = after(LinkBelief(), 0.5e6, [1_500, 4_000] * 8)
    assert slow.chance(12_000, 100.0) < 0.1
    assert after(slow, 50e6, [4_000] * 4).chance(12_000, 100.0) > 0.9


def test_knowledge_fades() -> None:
    """After a long silence much is possible again; the most likely link stays about where it was."""
    known = after(LinkBelief(), 2e6, [2_000, 20_000] * 8)
    width = known.rate_bits_per_s(0.9) / known.rate_bits_per_s(0.1)
    later = known.later(5.0)
    assert later.rate_bits_per_s(0.9) / later.rate_bits_per_s(0.1) > 2 * width
    assert later.rate_bits_per_s() == pytest.approx(known.rate_bits_per_s(), rel=0.3)


def test_sizes_that_never_change_do_not_argue_for_a_fast_link() -> None:
    """A steady link that was known stays so through many messages of one size."""
    known = after(LinkBelief(), 2e6, [1_500, 12_000] * 6)
    steady = after(known, 2e6, [12_000] * 40)
    assert steady.chance(32_000, 120.0) < 0.5


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 10**8), st.floats(0, 1e6)), max_size=15))
@settings(max_examples=60, deadline=None)
def test_stays_a_distribution(messages: list[tuple[float, int, float]]) -> None:
    """Whatever comes: chances lie between 0 and 1, fall with the size, and rise with the time."""
    belief = LinkBelief()
    for elapsed_s, num_bytes, way in messages:
        belief = belief.later(elapsed_s).seen(num_bytes, way)
    chances = [belief.chance(size, 100.0) for size in (0, 1_000, 100_000)]
    assert 1 + 1e-9 >= chances[0] >= chances[1] >= chances[2] >= 0
    assert belief.chance(1_000, 50.0) <= chances[1] + 1e-12
    assert np.isfinite([belief.rate_bits_per_s(), belief.trip_ms()]).all()


def test_certain() -> None:
    """A link that is known is known."""
    belief = LinkBelief.certain(1e6, 40.0)
    assert belief.rate_bits_per_s() == pytest.approx(1e6, rel=0.15)
    assert belief.trip_ms() == pytest.approx(40.0, rel=0.1)
