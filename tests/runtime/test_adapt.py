"""Which choice the next step takes: pure decisions, and simulated links; no clock, no sockets."""

from __future__ import annotations

import itertools
import logging
import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverlight.errors import ConfigError
from serverlight.frontier import Choice, Frontier
from serverlight.link.estimate import LinkBelief
from serverlight.plan import Plan
from serverlight.runtime.adapt import Adapter, Change, Estimates, Observation, Rules, Standing, decide

DEADLINE_MS, STEP_S, TRIP_MS = 150.0, 0.25, 20.0


def choice(
    busy_ms: float = 5.0, head_ms: float = 20.0, up: int = 1000, loss: float = 0.0, cut: str = "a", **more: Any
) -> Choice:
    way = more.pop("way", "split")
    plan = None if way == "all-device" else Plan(model="m", revision="r", cut=cut)
    fields = {"downlink_bytes": 50, "device_memory_bytes": 0, **more}
    return Choice(
        way=way, plan=plan, head_ms=head_ms, server_ms=busy_ms, server_busy_ms=busy_ms, uplink_bytes=up, loss_pp=loss, **fields
    )  # fmt: skip


KNOBS = tuple(
    choice(up=up, loss=loss) for up, loss in ((32_000, 0), (12_000, 0.1), (6_000, 0.4), (3_000, 1), (1_500, 3))
)
FRONTIER = Frontier(
    choices=(*KNOBS, choice(busy_ms=15.0, head_ms=2.0, up=2_400, loss=0.5, cut="input", way="full-server"))
)
RULES = Rules(deadline_ms=DEADLINE_MS)


# -- single decisions -------------------------------------------------------------------------------


def settle(index: int, estimates: Estimates, choices: tuple[Choice, ...], rules: Rules = RULES, **more: Any) -> int:
    """Where decisions lead while nothing changes."""
    standing = Standing(index=index)
    for _ in range(200):
        standing, _ = decide(standing, estimates, choices, rules, **more)
    return standing.index


@given(st.floats(4.3, 8), st.floats(0.7, 2), st.integers(0, 5), st.floats(20, 400))
@settings(max_examples=80, deadline=None)
def test_never_leaves_a_deadline_that_can_be_kept(rate: float, trip: float, index: int, deadline_ms: float) -> None:
    """With a link that is known, one decision is enough to keep a deadline that any choice keeps; in the end it is the best."""
    estimates, rules = Estimates(link=LinkBelief.certain(10**rate, 10**trip)), Rules(deadline_ms=deadline_ms)
    chances = [estimates.chance(each, deadline_ms) for each in FRONTIER.choices]
    if max(chances) >= rules.stay:
        standing, _ = decide(Standing(index=index), estimates, FRONTIER.choices, rules)
        assert chances[standing.index] >= rules.stay
    sure = [i for i, chance in enumerate(chances) if chance >= rules.enter]
    if sure:
        assert settle(index, estimates, FRONTIER.choices, rules) <= max(sure[0], index)


@given(
    st.lists(st.tuples(st.floats(0, 9), st.integers(0, 5000)), min_size=1, max_size=6),
    st.integers(0, 4000),
    st.floats(0, 6),
)
def test_caps_are_never_broken(fields: list[tuple[float, int]], memory: int, loss: float) -> None:
    """A choice over a cap of memory or loss is not taken, whatever the link; where all are over, that is said at the start."""
    choices = tuple(
        choice(loss=loss_pp, device_memory_bytes=held, up=100 + i) for i, (loss_pp, held) in enumerate(fields)
    )
    rules = Rules(deadline_ms=DEADLINE_MS, device_memory_bytes=memory, max_loss_pp=loss)
    if not any(rules.allow(each) for each in choices):
        with pytest.raises(ConfigError, match="no choice keeps the caps"):
            Adapter(Frontier(choices=choices), rules)
        return
    adapter = Adapter(Frontier(choices=choices), rules)
    for way in (500.0, 10.0, 10.0, 10.0, 400.0):
        assert rules.allow(adapter.choose())
        adapter.observe(Observation(elapsed_s=STEP_S, head_ms=20.0, num_bytes=1000, way_ms=way, server_ms=5.0))


def test_better_waits_and_worse_does_not() -> None:
    """Down at once, up after some patience: a single good moment is no reason to move."""
    good, bad = (Estimates(link=LinkBelief.certain(rate, TRIP_MS)) for rate in (50e6, 0.5e6))
    standing, reason = decide(Standing(index=0), bad, KNOBS, RULES)
    assert (standing.index, reason and reason.split(":")[0]) == (3, "deadline")
    for _ in range(RULES.patience - 1):
        standing, reason = decide(standing, good, KNOBS, RULES)
        assert (standing.index, reason) == (3, None)
    standing, reason = decide(standing, good, KNOBS, RULES)
    assert (standing.index, reason and reason.split(":")[0]) == (0, "better")


def test_a_move_that_fails_makes_the_next_wait_longer() -> None:
    """A better choice that was left at once has to look sure for twice as long."""
    good, bad = (Estimates(link=LinkBelief.certain(rate, TRIP_MS)) for rate in (50e6, 0.5e6))
    standing = Standing(index=3)
    waits = []
    for _ in range(4):
        waits.append(0)
        while standing.index != 0:
            standing, _ = decide(standing, good, KNOBS, RULES)
            waits[-1] += 1
        standing, _ = decide(standing, bad, KNOBS, RULES)
    assert waits == [3, 6, 12, 12]


def test_cut_moves_only_where_that_pays() -> None:
    """Another cut has a price; settings of the same cut have none. Few steps left make a price too high."""
    choices = (
        choice(up=30_000, cut="a"),
        choice(up=1_000, busy_ms=12.0, cut="b"),
        choice(up=20_000, loss=1.0, cut="a"),
    )
    bad = Estimates(link=LinkBelief.certain(0.5e6, TRIP_MS))
    standing, _ = decide(Standing(index=0), bad, choices, RULES, price_ms=lambda _: 5_000.0)
    assert standing.index == 1  # a hundred steps in time are worth it
    short = Rules(deadline_ms=DEADLINE_MS, horizon=10)
    standing, _ = decide(Standing(index=0), bad, choices, short, price_ms=lambda _: 5_000.0)
    assert choices[standing.index].plan == choices[0].plan
    good = Estimates(link=LinkBelief.certain(50e6, TRIP_MS))
    assert settle(1, good, choices, price_ms=lambda _: 500.0) == 0  # saves 7 ms of the server a step
    assert settle(1, good, choices, price_ms=lambda _: 800.0) == 1


def test_all_on_the_device_needs_no_link() -> None:
    """Where nothing gets through in time, the device does it alone, if it can."""
    choices = (*KNOBS, choice(way="all-device", head_ms=140.0, up=0, busy_ms=0.0))
    none = Estimates(link=LinkBelief.certain(2e4, 500.0))
    assert settle(0, none, choices) == 5
    slower = Estimates(link=LinkBelief.certain(2e4, 500.0), head_factor=1.2)
    assert slower.chance(choices[5], DEADLINE_MS) == 0.0


def test_where_nothing_keeps_the_deadline_the_fastest_is_taken() -> None:
    """Late is late, but less late is better; choices that differ little are left alone."""
    slow = Estimates(link=LinkBelief.certain(3e4, 100.0))
    assert settle(0, slow, KNOBS) == 4
    alike = (choice(up=1_600), choice(up=1_500))
    assert settle(0, slow, alike) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"deadline_ms": 0},
        {"deadline_ms": math.inf},
        {"deadline_ms": 9, "enter": 0.5},
        {"deadline_ms": 9, "stay": 0},
        {"deadline_ms": 9, "patience": 0},
        {"deadline_ms": 9, "horizon": 0},
    ],
)
def test_rules_are_checked(fields: dict[str, float]) -> None:
    """A rule that makes no sense is refused."""
    with pytest.raises(ConfigError):
        Rules(**fields)  # type: ignore[arg-type]


# -- simulated links --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Outcome:
    """Of one simulation."""

    hits: float
    """Share of the steps in time, of those in which any choice would have been."""

    loss_pp: float
    changes: list[Change]
    fixed: list[float]
    """The share of each choice by itself."""


def simulate(rate_at: Callable[[float], float], *, steps: int = 800, seed: int = 0, bursts: float = 0.02) -> Outcome:
    """Noise on every message, and some that are held up."""
    chance, changes = random.Random(seed), list[Change]()
    adapter = Adapter(FRONTIER, RULES, on_change=changes.append)
    kept, losses, fixed = [], [], []
    for step in range(steps):
        held_ms = abs(chance.gauss(0, 1.5)) + (chance.expovariate(1 / 80) if chance.random() < bursts else 0.0)
        rate = rate_at(step * STEP_S)
        times = [each.latency_ms(rate, TRIP_MS) + held_ms for each in FRONTIER.choices]
        chosen = adapter.choose(elapsed_s=STEP_S / 2)
        took_ms = times[FRONTIER.choices.index(chosen)]
        adapter.observe(
            Observation(
                elapsed_s=STEP_S / 2,
                head_ms=chosen.head_ms,
                num_bytes=chosen.uplink_bytes,
                way_ms=took_ms - chosen.head_ms - chosen.server_ms,
                server_ms=chosen.server_ms,
            )
        )
        if min(times) <= DEADLINE_MS:
            kept.append(took_ms <= DEADLINE_MS)
            losses.append(chosen.loss_pp)
            fixed.append([time_ms <= DEADLINE_MS for time_ms in times])
    shares = [sum(column) / len(fixed) for column in zip(*fixed, strict=True)]
    return Outcome(hits=sum(kept) / len(kept), loss_pp=sum(losses) / len(losses), changes=changes, fixed=shares)


def swing(period_s: float) -> Callable[[float], float]:
    return lambda now_s: 0.5e6 * 100 ** ((1 + math.cos(2 * math.pi * now_s / period_s)) / 2)


LINKS: dict[str, Callable[[float], float]] = {
    "swings in a minute": swing(60.0),
    "swings in 20 s": swing(20.0),
    "jumps every 10 s": lambda now_s: 50e6 if int(now_s / 10) % 2 == 0 else 0.5e6,
}


@pytest.mark.parametrize("link", LINKS)
def test_keeps_the_deadline_on_a_link_that_moves(link: str) -> None:
    """In 95 % of the steps in which any choice would have; with better answers than what keeps it by itself."""
    for seed in range(2):
        outcome = simulate(LINKS[link], seed=seed)
        assert outcome.hits >= 0.95
        keep = [each for share, each in zip(outcome.fixed, FRONTIER.choices, strict=True) if share >= 0.95]
        assert keep
        for each in keep:
            assert outcome.loss_pp < each.loss_pp or link == "jumps every 10 s"
        assert outcome.loss_pp < 0.6


@pytest.mark.parametrize(("rate", "best"), [(50e6, 0), (2e6, 1), (0.5e6, 3)])
def test_a_steady_link_is_found_and_left_alone(rate: float, best: int) -> None:
    """Noise and bursts make no flapping: the choice is the best one nearly always, and changes are few."""
    outcome = simulate(lambda _: rate, seed=1)
    assert outcome.hits >= 0.97
    assert outcome.loss_pp <= FRONTIER.choices[best].loss_pp + 0.15
    assert len(outcome.changes) <= 800 / 20


@given(st.integers(0, 10**6), st.floats(0, 0.3))
@settings(max_examples=8, deadline=None)
def test_changes_are_bounded(seed: int, bursts: float) -> None:
    """Whatever the noise: between two moves to a better choice lie at least as many steps as patience asks for."""
    rates = random.Random(seed)
    outcome = simulate(lambda _: 10 ** rates.uniform(5, 8), steps=150, seed=seed, bursts=bursts)
    ups = [change.step for change in outcome.changes if change.reason.startswith(("better", "probe"))]
    assert all(after - before >= RULES.patience for before, after in itertools.pairwise(ups))


def test_same_messages_same_choices() -> None:
    """There is no chance and no clock in it."""
    assert simulate(LINKS["swings in 20 s"], steps=200) == simulate(LINKS["swings in 20 s"], steps=200)


def test_changes_are_told(caplog: pytest.LogCaptureFixture) -> None:
    """Each change has its step, both choices and the reason with figures, for the caller and in the log."""
    with caplog.at_level(logging.INFO, logger="serverlight.adapt"):
        outcome = simulate(LINKS["jumps every 10 s"], steps=100, bursts=0.0)
    first, *others = outcome.changes
    assert (first.step, first.from_choice) == (1, None)
    assert first.reason.startswith("start")
    assert {change.reason.split(":")[0] for change in others} <= {"deadline", "better", "probe"}
    assert all(one.to_choice == other.from_choice for one, other in itertools.pairwise(outcome.changes))
    assert all("Mbit/s" in change.reason for change in others)
    assert len(caplog.records) == len(outcome.changes)


def test_slow_device_and_busy_server_are_noticed() -> None:
    """A device that takes twice as long, and a queue at the server, leave less time for the link."""
    adapter = Adapter(Frontier(choices=KNOBS), RULES)
    for _ in range(6):
        chosen = adapter.choose()
        adapter.observe(
            Observation(elapsed_s=STEP_S, head_ms=40.0, num_bytes=chosen.uplink_bytes, way_ms=30.0, server_ms=25.0)
        )
    assert adapter.estimates.head_factor == 2.0
    assert adapter.estimates.server_extra_ms == 20.0
    adapter.stand_at(KNOBS[4], "memory")
    assert adapter.choice == KNOBS[4]
