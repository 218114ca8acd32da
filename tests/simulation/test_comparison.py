"""Plans for kinds of devices, servers for a cap, and systems side by side."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from serverlight.errors import ConfigError
from serverlight.frontier import Choice, Frontier
from serverlight.link import LinkConfig
from serverlight.plan import Plan

pytest.importorskip("numba", reason="the event loop is compiled")

from made_up_profiles import make_profile, ms
from serverlight.simulation import Arrivals, Crossing, Fleet, Group, ServerModel, compare, simulate
from serverlight.simulation.plans import (
    alone_ms,
    best_crossing,
    busy_ms,
    cut_crossings,
    frontier_crossings,
    full_server,
)
from serverlight.simulation.sizing import servers_for

PROFILE = make_profile(
    {"input": ms(2.0, 10.0), "early": ms(2.0, 6.0), "late": ms(1.0, 1.0), "output": ms(0.0)}, head=ms(3.0)
)
SERVER = ServerModel(profile=PROFILE)
LINK = LinkConfig.parse("1mbit,10ms")


def group(devices: int = 100, **more: Any) -> Group:
    return Group(**{
        "name": "all", "devices": devices, "device": PROFILE, "link": LINK, "crossing": Crossing(cut="late"), "rate_per_s": 1.0,
        **more,
    })  # fmt: skip


def test_alone_is_what_one_device_measures() -> None:
    """What plans are compared by is what the simulation gives a device that is alone, in both ways to ship."""
    for crossing in (*cut_crossings(PROFILE, bits=4.0), full_server(PROFILE, input_bytes=2000)):
        own = group(1, crossing=crossing, rate_per_s=None)
        figures = simulate(Fleet(groups=(own,), server=SERVER, duration_s=20.0))
        assert alone_ms(own, SERVER) == pytest.approx(figures.latency.p50, rel=0.005)


def test_the_plan_that_asks_least_of_a_server_is_taken() -> None:
    """A kind takes the deepest cut that its cap and its memory allow, and the quickest where none does."""
    found = cut_crossings(PROFILE, bits=2.0)
    slow = dataclasses.replace(
        PROFILE, cuts=tuple(dataclasses.replace(cut, head=ms(20.0 * i)) for i, cut in enumerate(PROFILE.cuts))
    )
    big = dataclasses.replace(
        PROFILE, cuts=tuple(dataclasses.replace(cut, head_weight_bytes=i << 20) for i, cut in enumerate(PROFILE.cuts))
    )
    assert best_crossing(group(), found, SERVER).crossing.cut == "late"
    assert best_crossing(group(device=slow), found, SERVER, cap_ms=90.0).crossing.cut == "early"
    assert best_crossing(group(device=slow), found, SERVER, cap_ms=1.0).crossing.cut == "early"
    assert best_crossing(group(device=big), found, SERVER, memory_bytes=1 << 20).crossing.cut == "early"
    with pytest.raises(ConfigError, match="memory_mib"):
        best_crossing(group(device=big), found, SERVER, memory_bytes=100.0)


def test_a_frontier_is_read() -> None:
    """Cuts and bytes of a search are those of its choices; what a device does alone crosses nothing."""
    plan = Plan(model="made-up", revision="0", cut="early")
    split = Choice(
        way="split", plan=plan, head_ms=1.0, server_ms=1.0, server_busy_ms=1.0, uplink_bytes=500, downlink_bytes=70,
        device_memory_bytes=0, loss_pp=0.1,
    )  # fmt: skip
    alone = dataclasses.replace(split, way="all-device", plan=None, uplink_bytes=0, downlink_bytes=0)
    first, second = frontier_crossings(Frontier(choices=(split, alone)))
    assert (first.cut, first.request_bytes, first.reply_bytes) == ("early", 500, 70)
    assert second.way == "all-device"
    assert busy_ms(group(crossing=second), SERVER) == 0.0


def test_one_server_less_is_too_few() -> None:
    """The number that is counted keeps the cap, and a tenth less does not."""
    fleet = Fleet(groups=(group(2000, crossing=full_server(PROFILE)),), server=SERVER, duration_s=30.0)
    cap_ms = 150.0
    count = servers_for(fleet, cap_ms)
    assert count is not None
    assert simulate(dataclasses.replace(fleet, servers=count)).latency.p95 <= 1.1 * cap_ms
    assert not simulate(dataclasses.replace(fleet, servers=round(0.9 * count))).latency.p95 <= cap_ms


def test_a_cap_below_the_links_delay_cannot_be_kept() -> None:
    """No number of servers makes a link faster."""
    assert servers_for(Fleet(groups=(group(20),), server=SERVER, duration_s=10.0), 5.0) is None


def test_systems_stand_side_by_side() -> None:
    """A cut needs fewer servers than the whole model, costs in proportion, and each row says what it was counted for."""
    fleet = Fleet(groups=(group(1000),), server=SERVER, duration_s=20.0)
    raw = full_server(PROFILE)
    heard = list[tuple[str, int, int]]()
    whole, cut = compare(
        fleet, {"full-server": lambda _: [raw], "slicer": lambda own: cut_crossings(own.device, bits=2.0)},
        p95_ms=200.0, price_per_hour=3.6, on_server=lambda *done: heard.append(done),
    )  # fmt: skip
    assert whole.servers > 2 * cut.servers
    for row in (whole, cut):
        assert row.keeps_cap
        assert row.figures.latency.p95 <= 220.0
        assert row.cost_per_million == pytest.approx(row.servers * 1e-3 / row.figures.requests_per_s * 1e6)
        assert row.to_dict()["figures"]["items"] == row.figures.items
    assert (whole.cuts, cut.cuts) == ({"all": "input"}, {"all": "late"})
    assert cut.figures.uplink_bytes_per_item < whole.figures.uplink_bytes_per_item
    assert heard[-1] == ("slicer", cut.servers, cut.servers)
    (row,) = compare(fleet, {"slicer": lambda own: cut_crossings(own.device, bits=2.0)}, p95_ms=20.0)
    assert not row.keeps_cap
    assert row.p95_cap_ms is not None
    assert row.p95_cap_ms > 20.0


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: group(-1), "devices"),
        (lambda: group(rate_per_s=0.0), "rate_per_s"),
        (lambda: group(prompt_tokens=()), "prompt_tokens"),
        (lambda: group(new_tokens=0), "new_tokens"),
        (lambda: group(think_ms=math.inf), "think_ms"),
        (lambda: group(crossing=Crossing(cut="nowhere")), "cut"),
        (lambda: Crossing(cut="late", request_bytes=-1), "request_bytes"),
        (lambda: ServerModel(profile=PROFILE, max_batch=0), "max_batch"),
        (lambda: ServerModel(profile=PROFILE, message_share=2.0), "message_share"),
        (lambda: ServerModel(profile=PROFILE, spread=-0.1), "spread"),
        (lambda: ServerModel(profile=PROFILE, max_delay_ms=-1.0), "max_delay_ms"),
        (lambda: Fleet(groups=(), server=SERVER), "devices"),
        (lambda: Fleet(groups=(group(),), server=SERVER, servers=0), "servers"),
        (lambda: Fleet(groups=(group(),), server=SERVER, duration_s=math.inf), "duration_s"),
        (lambda: Fleet(groups=(group(),), server=SERVER, duration_s=1.0, warmup_s=1.0), "warmup_s"),
        (lambda: Arrivals(process="tides"), "process"),  # type: ignore[arg-type]
        (lambda: Arrivals(depth=2.0), "depth"),
        (lambda: Arrivals(burst_s=0.0), "burst_s"),
        (lambda: compare(Fleet(groups=(group(),), server=SERVER), {}), "p95_ms"),
        (lambda: cut_crossings(make_profile({"input": ms(1.0)}), bits=2.0), "cuts"),
        (
            lambda: simulate(Fleet(groups=(group(),), server=ServerModel(profile=dataclasses.replace(PROFILE, revision="1")))),
            "revision",
        ),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(make: Any, field: str) -> None:
    """The error names the field."""
    with pytest.raises(ConfigError, match=field):
        make()
