"""Plans for unlike devices that share one server."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from made_up import plain_table, vision_profile
from serverlight.errors import ConfigError, Infeasible
from serverlight.link import LinkConfig
from serverlight.search.constraints import Constraints, Objective, Workload
from serverlight.search.fleet import Member, _steps, plan_fleet

SERVER, TABLE = vision_profile(4.0), plain_table(vision_profile())
LATENCY = Objective(server_ms=0.0, latency_ms=1.0)


def members(seed: int, count: int) -> list[Member]:
    rng = random.Random(seed)
    return [
        Member(
            name=str(i),
            device=vision_profile(rng.choice([0.2, 0.5, 1.0])),
            link=LinkConfig(rate_bits_per_s=rng.choice([5e5, 2e6, 2e7]), delay_ms=rng.choice([2.0, 20.0])),
            constraints=Constraints(max_quality_loss=rng.choice([1.0, 3.0])),
            requests_per_s=rng.choice([1.0, 5.0, 20.0]),
        )
        for i in range(count)
    ]


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), count=st.integers(1, 3), budget=st.floats(0.02, 0.9))
def test_fleet_is_as_near_to_the_best_as_it_says(seed: int, count: int, budget: float) -> None:
    """Beside all combinations: the budget holds, the bound is below the best, and the gap is not larger than it says."""
    fleet = members(seed, count)
    wait = budget / (2 * (1 - budget))
    options = [_steps(member, SERVER, TABLE, Workload(), LATENCY, wait) for member in fleet]
    within = [
        sum(step.value for step in combination)
        for combination in itertools.product(*options)
        if sum(step.load for step in combination) <= budget
    ]
    try:
        found = plan_fleet(fleet, server=SERVER, table=TABLE, budget=budget)
    except Infeasible:
        assert not within
        return
    best = min(within)
    assert found.server_load <= budget + 1e-9
    assert found.lower_bound <= best * (1 + 1e-9)
    assert best <= found.objective * (1 + 1e-9)
    assert 1 - best / found.objective <= found.gap + 1e-9


def test_more_of_the_server_never_harms_the_first_choice() -> None:
    """Whom the server has room for gets it; with hardly any, devices compute more themselves."""
    fleet = members(1, 6)
    rich = plan_fleet(fleet, server=SERVER, table=TABLE, budget=0.9)
    poor = plan_fleet(fleet, server=SERVER, table=TABLE, budget=0.05)
    assert poor.server_load <= 0.05 < rich.server_load
    assert sum(p.head_ms for p in poor.predictions) > sum(p.head_ms for p in rich.predictions)


def test_many_that_are_alike_count_as_many() -> None:
    """Ten devices of one member take ten times as much of the server."""
    one, ten = (
        plan_fleet(
            [
                Member(
                    name="a",
                    device=vision_profile(0.1),
                    link=LinkConfig.parse("50mbit,1ms"),
                    requests_per_s=2.0,
                    count=n,
                )
            ],
            server=SERVER,
            table=TABLE,
            budget=0.8,
        )
        for n in (1, 10)
    )
    assert ten.server_load == pytest.approx(10 * one.server_load)


def test_fleet_without_room_is_infeasible() -> None:
    """A budget that not even the least plans keep, a member that keeps no cap, and a budget that is none are told apart."""
    weak = Member(
        name="weak",
        device=vision_profile(0.5),
        link=LinkConfig.parse("50mbit,1ms"),
        constraints=Constraints(device_memory_mib=1.5),
        requests_per_s=100.0,
    )
    with pytest.raises(Infeasible, match=r"^budget: .* allowed is 0\.5"):
        plan_fleet([weak], server=SERVER, table=TABLE, budget=0.5)
    hopeless = Member(name="hopeless", device=weak.device, link=weak.link, constraints=Constraints(latency_ms=0.1))
    with pytest.raises(Infeasible, match="hopeless"):
        plan_fleet([hopeless], server=SERVER, table=TABLE)
    with pytest.raises(ConfigError, match="budget"):
        plan_fleet([weak], server=SERVER, table=TABLE, budget=1.5)
