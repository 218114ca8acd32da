"""When faults strike: the plan, without a clock or a socket."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverlight.errors import ConfigError
from serverlight.faults import DIRECTIONS, Fault, FaultPlan, Strike, flip_bit
from serverlight.link import LinkConfig

CHANCES = st.sampled_from(["kill:0.3", "stall:0.2:500ms", "drop:0.1:up", "corrupt:0.4", "slow:0.2:64kbit:2s"])
MOMENTS = st.sampled_from(["kill:@3s", "kill:/1s", "stall:/700ms:1s", "drop:@250us:down", "corrupt:@1min"])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("kill:0.001", Fault(kind="kill", chance=0.001)),
        ("kill:@90s", Fault(kind="kill", at_s=90.0)),
        ("crash:/2min", Fault(kind="crash", every_s=120.0)),
        ("stall:1:500ms", Fault(kind="stall", chance=1.0, for_s=0.5)),
        ("drop:0.5:down", Fault(kind="drop", chance=0.5, direction="down")),
        (
            "slow:@1s:64kbit,20ms:5s",
            Fault(kind="slow", at_s=1.0, link=LinkConfig(rate_bits_per_s=64e3, delay_ms=20), for_s=5.0),
        ),
    ],
)
def test_parse(text: str, fault: Fault) -> None:
    """A fault is written as kind, when and what more it needs."""
    assert Fault.parse(text) == fault


@pytest.mark.parametrize(
    "text",
    [
        "", "kill", "kill:", "kill:often", "kill:2", "kill:-1", "kill:nan", "kill:@soon", "kill:/0s", "kill:0.1:5s", "stall:0.1",
        "stall:0.1:0s", "slow:0.1:5s", "slow:0.1:64kbit", "explode:1", "drop:0.1:left", "kill:0.1:up:down:up",
    ],
)  # fmt: skip
def test_rejects_nonsense(text: str) -> None:
    """What cannot be read is refused, and what to write instead is shown."""
    with pytest.raises(ConfigError, match=r"kill:0\.001|10mbit,20ms"):
        Fault.parse(text)


@given(st.lists(CHANCES, min_size=1, max_size=4), st.integers(), st.integers(0, 99), st.sampled_from(DIRECTIONS))
def test_same_seed_same_faults(texts: list[str], seed: int, connection: int, direction: str) -> None:
    """The faults of one direction of a connection depend on seed, connection and direction alone, not on what others ask."""
    first, second = FaultPlan.parse(texts, seed=seed), FaultPlan.parse(texts, seed=seed)
    other = second.roll(connection + 1, direction)
    roll, again = first.roll(connection, direction), second.roll(connection, direction)
    for _ in range(50):
        other.next()
        assert roll.next() == again.next()
    assert roll.flip(b"some bytes") == again.flip(b"some bytes")


def test_unlike_seeds_and_connections() -> None:
    """Another seed, connection or direction has another chance."""
    histories = [
        tuple(roll.next() is None for _ in range(64))
        for seed in (0, 1)
        for connection in (0, 1)
        for direction in DIRECTIONS
        for roll in [FaultPlan.parse(["kill:0.5"], seed=seed).roll(connection, direction)]
    ]
    assert len(set(histories)) == len(histories)


def test_chance_is_what_was_asked_for() -> None:
    """0 never strikes, 1 always, and 0.25 a quarter of the time; of two that strike at once the first counts."""
    for text, low, high in [("kill:0", 0, 0), ("kill:1", 4000, 4000), ("kill:0.25", 850, 1150)]:
        roll = FaultPlan.parse([text]).roll(0, "up")
        assert low <= sum(roll.next() is not None for _ in range(4000)) <= high
    struck = FaultPlan.parse(["drop:1", "kill:1"]).roll(0, "up").next()
    assert struck is not None
    assert struck.kind == "drop"
    assert FaultPlan.parse(["drop:1:up"]).roll(0, "down").next() is None


@given(st.lists(MOMENTS, max_size=4), st.floats(0, 100))
def test_moments_go_on(texts: list[str], after_s: float) -> None:
    """The next moment is later than the last, none is left out, and a moment on the hour strikes once."""
    plan = FaultPlan.parse(texts)
    once = sum(fault.at_s is not None and fault.at_s > after_s for fault in plan.faults)
    heard = 0
    for _ in range(30):
        if (moment := plan.next_moment(after_s)) is None:
            break
        later_s, faults = moment
        assert later_s > after_s
        assert faults
        for fault in faults:
            turns = later_s / (fault.every_s or later_s)
            assert turns == pytest.approx(round(turns))
        heard += sum(fault.at_s is not None for fault in faults)
        after_s = later_s
    assert heard <= once
    if all(fault.every_s is None for fault in plan.faults):
        assert heard == once


def test_periods_strike_each_time() -> None:
    """Every 0.1 s is ten times in a second, whatever floating-point numbers do."""
    plan, now_s, times = FaultPlan.parse(["kill:/100ms"]), 0.0, list[float]()
    while (moment := plan.next_moment(now_s)) is not None and moment[0] < 1.05:
        now_s = moment[0]
        times.append(now_s)
    assert times == pytest.approx([0.1 * i for i in range(1, 11)])


@given(st.binary(min_size=1, max_size=50), st.integers())
def test_flip_alters_one_bit(data: bytes, seed: int) -> None:
    """Exactly one bit is another."""
    altered = flip_bit(data, random.Random(seed))
    assert len(altered) == len(data)
    assert sum((a ^ b).bit_count() for a, b in zip(data, altered, strict=True)) == 1


def test_strike_is_a_line() -> None:
    """A person reads what happened, when, and to whom."""
    strike = Strike(at_s=12.3456, kind="stall", connection=4, for_s=0.5)
    assert str(strike) == "   12.35 s  connection 4: stall for 0.5 s"
    assert strike.as_dict()["at_s"] == 12.346
