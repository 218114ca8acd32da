"""Early exits: when a sequence moves and which way is cheaper, as pure decisions and estimates."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from serverlight.errors import ConfigError
from serverlight.runtime.exits import Caps, Decision, decide
from serverlight.runtime.pace import MoveCost, Observed, Pace, Rates, cheaper, recompute_cost, ship_cost


def decided(caps: Caps, *, layer: int = 8, served: Any = (0, 2, 5, 8), step: Any = None) -> Decision | None:
    return decide(caps, layer=layer, served=served, memory_bytes=lambda at: 100 * at, step_ms=step)


@pytest.mark.parametrize(
    ("caps", "expected"),
    [
        (Caps(device_memory_bytes=800), None),
        (Caps(device_memory_bytes=799), 5),
        (Caps(device_memory_bytes=499), 2),
        (Caps(device_memory_bytes=0), 0),
        (Caps(device_memory_bytes=799, on_limit="server"), 0),
        (Caps(device_memory_bytes=799, on_limit="stop"), "stop"),
        (Caps(step_deadline_ms=80.0), None),
        (Caps(step_deadline_ms=79.0), 5),
        (Caps(step_deadline_ms=21.0), 2),
        (Caps(step_deadline_ms=0.5, on_limit="server"), 0),
        (Caps(step_deadline_ms=79.0, on_limit="stop"), "stop"),
        (Caps(device_memory_bytes=800, step_deadline_ms=79.0), 5),
    ],
)
def test_decisions(caps: Caps, expected: Any) -> None:
    """The deepest served cut that keeps the cap; cut 0; or none at all."""
    decision = decided(caps, step=lambda at: 10.0 * at)
    if expected is None:
        assert decision is None
    else:
        assert decision is not None
        assert decision.layer == (None if expected == "stop" else expected)


def test_decisions_without_a_way_out() -> None:
    """Memory that no cut keeps stops; lateness that none mends goes to the shallowest, and there goes on."""
    assert decided(Caps(device_memory_bytes=150), served=[2, 8]) == Decision(reason="memory", layer=None)
    late = Caps(step_deadline_ms=1.0)
    assert decided(late, step=lambda _: 9.0) == Decision(reason="deadline", layer=0)
    assert decided(late, layer=0, step=lambda _: 9.0) is None
    assert decided(late, step=None) is None


@pytest.mark.parametrize(
    "fields",
    [
        {"device_memory_bytes": -1},
        {"device_memory_bytes": 1.5},
        {"step_deadline_ms": 0.0},
        {"step_deadline_ms": math.nan},
        {"on_limit": "deeper"},
        {"way": "by post"},
    ],
)
def test_caps_are_checked(fields: dict[str, Any]) -> None:
    """A cap that makes no sense is refused by name."""
    with pytest.raises(ConfigError) as caught:
        Caps(**fields)
    assert caught.value.field in fields


RATES = Rates(bytes_per_ms=100.0, rtt_ms=20.0, head_ms=0.5, tail_ms=0.1)


def test_cheaper_way() -> None:
    """Few bytes of keys and values are shipped; many, over a slow link, are recomputed; equals go by bytes."""
    recompute = recompute_cost(100, 50.0, layer=2, num_layers=10, rates=RATES)
    assert recompute == MoveCost(num_bytes=5000, time_ms=20.0 + 100 * 2 * 0.5)
    assert ship_cost(1000, RATES) == MoveCost(num_bytes=1000, time_ms=30.0)
    assert cheaper(ship_cost(1000, RATES), recompute) == "shipped"
    assert cheaper(ship_cost(1_000_000, RATES), recompute) == "recomputed"
    assert cheaper(ship_cost(10_000, RATES), recompute) == "recomputed"
    fast = dataclasses.replace(RATES, bytes_per_ms=math.inf)
    assert cheaper(ship_cost(1_000_000, fast), recompute_cost(100, 50.0, 2, 10, fast)) == "shipped"


def test_link_is_seen_through_its_messages() -> None:
    """Before the first message everything is fast; then rate and round trip are those of the link's estimate."""
    pace = Pace(num_layers=12)
    assert (pace.rates().bytes_per_ms, pace.rates().rtt_ms) == (math.inf, 0.0)
    for size in (200_000, *[1500] * 8):
        wait_ms = 5.0 + 42.0 + size / 1000
        step = dataclasses.replace(observed(wait_ms + 8.0), last_bytes=size, wait_ms=wait_ms)
        pace.observe(step)
    assert pace.rates().bytes_per_ms == pytest.approx(1000, rel=0.3)
    assert pace.rates().rtt_ms == pytest.approx(42, rel=0.1)


def observed(total_ms: float, num_tokens: int = 1) -> Observed:
    return Observed(
        layer=4, num_tokens=num_tokens, head_ms=8.0, total_ms=total_ms, last_tokens=num_tokens, last_bytes=1000,
        wait_ms=10.0, server_ms=5.0, tail_ms=4.0,
    )  # fmt: skip


def test_one_slow_step_does_not_count() -> None:
    """The time of a step is the median of five; a move makes it unknown; a shallower cut trades head for tail."""
    pace = Pace(num_layers=12)
    pace.observe(observed(500.0, num_tokens=40))
    for total_ms in (20.0, 20.0, 900.0, 20.0):
        pace.observe(observed(total_ms))
        assert pace.step_ms(4, 4) is None
    pace.observe(observed(20.0))
    assert pace.step_ms(4, 4) == 20.0
    assert pace.step_ms(4, 2) == 20.0 - 2 * 2.0 + 2 * 0.5
    rates = pace.rates()
    assert (rates.head_ms, rates.tail_ms) == (8.0 / (40 * 4), 4.0 / (40 * 8))
    pace.moved()
    assert pace.step_ms(4, 4) is None
