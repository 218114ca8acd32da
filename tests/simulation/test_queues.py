"""The event loop against queues that have a closed form."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverlight.link import LinkConfig
from serverlight.runtime.server_config import ServerConfig
from serverlight.search.profile import Profile

pytest.importorskip("numba", reason="the event loop is compiled")

from made_up_profiles import make_profile, ms
from serverlight.simulation import Arrivals, Crossing, Fleet, Group, ServerModel, simulate

EVERYBODY = 1 << 13
BATCHES = ms(4.0, 1.0)


def fleet(profile: Profile, devices: int = 1, rate_per_s: float | None = None, **more: Any) -> Fleet:
    """Devices of one kind at the cut ``c``, on a server without limits unless it is told some."""
    own = {field.name for field in dataclasses.fields(Group)}
    of_server = {field.name for field in dataclasses.fields(ServerModel)}
    of_group = {name: more.pop(name) for name in list(more) if name in own}
    limits = {name: more.pop(name) for name in list(more) if name in of_server}
    crossing = of_group.pop("crossing", Crossing(cut="c"))
    group = Group(name="all", devices=devices, device=profile, rate_per_s=rate_per_s, crossing=crossing, **of_group)
    server = ServerModel(profile=profile, **{"max_waiting": EVERYBODY, "max_delay_ms": 0.0, **limits})
    return Fleet(groups=(group,), server=server, **more)


@pytest.mark.parametrize("load", [0.3, 0.7, 0.9])
def test_one_at_a_time_waits_as_in_an_m_d_1(load: float) -> None:
    """Random arrivals at a server that takes one at a time wait ``load / (2 (1 - load))`` services in the mean."""
    run = fleet(make_profile({"c": ms(10.0)}), 50, load * 100 / 50, max_batch=1, duration_s=4_000.0, warmup_s=100.0)
    figures = simulate(run)
    wait_ms = 10.0 * load / (2 * (1 - load))
    assert figures.wait_ms == pytest.approx(wait_ms, rel=0.05)
    assert figures.latency.mean == pytest.approx(10.0 + wait_ms, rel=0.03)
    assert figures.utilisation == pytest.approx(load, rel=0.01)
    assert figures.mean_batch == 1.0


def test_full_batches_carry_what_one_at_a_time_cannot() -> None:
    """A server of full batches answers as many as its curve allows, however many are asked."""
    run = fleet(make_profile({"c": BATCHES}), 500, None, max_batch=50, duration_s=20.0, warmup_s=2.0)
    figures = simulate(run)
    assert figures.mean_batch == 50.0
    assert figures.items_per_s == pytest.approx(50 / 0.054, rel=0.01)
    assert figures.utilisation == pytest.approx(1.0, rel=1e-6)
    assert figures.latency.p50 == pytest.approx(540.0, rel=0.01)


def test_one_device_alone_takes_the_sum_of_the_parts() -> None:
    """Head, encoding, link, messages, decoding, tail: nobody waits for anybody."""
    profile = make_profile(
        {"c": ms(3.0, 2.0)}, head=ms(7.0), encode=ms(1.0), decode=ms(0.5), latency=ms(4.0), server=ms(1.5)
    )
    link = LinkConfig.parse("8mbit,20ms")
    crossing = Crossing(cut="c", request_bytes=5000, reply_bytes=1000)
    figures = simulate(fleet(profile, link=link, crossing=crossing, duration_s=60.0, max_delay_ms=15.0))
    assert figures.latency.p50 == pytest.approx(7 + 1 + 5 + 40 + 4 + 0.5 + 5 + 1, rel=0.003)
    assert figures.latency.p99 == pytest.approx(figures.latency.p50, rel=0.01)
    assert figures.items_per_s == pytest.approx(1e3 / 63.5, rel=0.02)
    assert figures.uplink_bytes_per_item == pytest.approx(5000, rel=0.01)


def test_times_spread_above_the_lower_quartile() -> None:
    """What a profile tells is the lower quartile; above it times have an exponential's tail."""
    figures = simulate(fleet(make_profile({"c": ms(10.0)}), spread=0.2, duration_s=200.0), trace=10_000)
    took_ms = (figures.trace[:, 5] - figures.trace[:, 4]) * 1e3
    assert np.quantile(took_ms, 0.25) == pytest.approx(10.0, rel=0.01)
    assert took_ms.mean() == pytest.approx(10 * (1 + 0.2 * (1 - math.log(4 / 3))), rel=0.01)
    assert took_ms.std() == pytest.approx(2.0, rel=0.05)


def test_one_text_takes_its_prompt_and_its_steps() -> None:
    """A prompt in pieces of 64, then steps whose context grows."""
    profile = make_profile({"c": ms(1.0, 0.5, per_context_ms=0.01)}, kind="language-model")
    run = fleet(profile, prompt_tokens=(100,), new_tokens=11, duration_s=10.0)
    trace = simulate(run, trace=11).trace
    first = (1 + 32 + 0) + (1 + 18 + 36 * 64 * 0.01)
    steps = [1.5 + 0.01 * (100 + number) for number in range(10)]
    assert np.diff(trace[:, 5], prepend=0.0) * 1e3 == pytest.approx([first, *steps])


def test_rows_of_a_sweep_join_at_their_cuts() -> None:
    """Two cuts in a batch take what lies between for the one, and the rest for both."""
    profile = make_profile({"a": ms(10.0, 4.0), "c": ms(2.0, 1.0)}, kind="language-model")
    run = fleet(profile, prompt_tokens=(1,), new_tokens=1000, duration_s=20.0, warmup_s=2.0, max_delay_ms=15.0)
    groups = tuple(dataclasses.replace(run.groups[0], name=cut, crossing=Crossing(cut=cut)) for cut in ("a", "c"))
    figures = simulate(dataclasses.replace(run, groups=groups))
    assert figures.mean_batch == pytest.approx(2.0, rel=0.02)
    assert figures.latency.p50 == pytest.approx((14.0 - 3.0) + 4.0, rel=0.01)


def test_a_window_brings_those_that_come_again_into_one_batch() -> None:
    """Without a wait closed loops fall into two groups that take turns; with one they share a batch, as on the real server."""
    profile = make_profile({"c": ms(12.0)}, latency=ms(4.0))
    link = LinkConfig.parse("1ms,2ms")
    apart = simulate(fleet(profile, 8, duration_s=30.0, warmup_s=5.0, link=link))
    together = simulate(fleet(profile, 8, duration_s=30.0, warmup_s=5.0, link=link, max_delay_ms=15.0))
    assert apart.mean_batch < 5
    assert together.mean_batch > 7
    assert together.items_per_s > 1.1 * apart.items_per_s


def test_full_places_lose_or_delay() -> None:
    """A full server loses an open loop's requests and tells a closed loop to come again; lost ones count as endless."""
    profile = make_profile({"c": ms(100.0)})
    lossy = simulate(fleet(profile, 100, 1.0, max_batch=1, max_waiting=2, duration_s=60.0))
    assert lossy.lost == lossy.refused > 0
    assert lossy.asked == lossy.answered + lossy.lost
    assert lossy.latency.p95 == math.inf
    insistent = simulate(fleet(profile, 10, max_batch=1, max_waiting=2, duration_s=60.0))
    assert insistent.refused > 0
    assert insistent.lost == 0
    assert insistent.items_per_s == pytest.approx(10.0, rel=0.05)


def test_sessions_are_limited() -> None:
    """No more sequences than a server takes run at a time; the others come again, and all end."""
    profile = make_profile({"c": ms(1.0, 1.0)}, kind="language-model")
    figures = simulate(
        fleet(profile, 50, 0.4, max_sessions=2, prompt_tokens=(10,), new_tokens=20, duration_s=100.0), trace=100_000
    )
    assert figures.refused > 0
    assert figures.lost == 0
    assert figures.answered * 20 == len(figures.trace)


@settings(deadline=None, max_examples=25)
@given(
    devices=st.integers(1, 40), rate=st.one_of(st.none(), st.floats(0.05, 5.0)), batch=st.integers(1, 64),
    delay=st.sampled_from([0.0, 15.0]), waiting=st.sampled_from([1, 8, EVERYBODY]), tokens=st.integers(0, 5),
    each=st.floats(0.1, 20.0), seed=st.integers(0, 99),
)  # fmt: skip
def test_nothing_is_lost_and_littles_law_holds(
    devices: int, rate: float | None, batch: int, delay: float, waiting: int, tokens: int, each: float, seed: int
) -> None:
    """What is asked is answered or refused; requests in the system are arrivals times the time they spend there."""
    profile = make_profile({"c": ms(2.0, each)}, latency=ms(1.0), kind="language-model" if tokens else "single-shot")
    run = fleet(
        profile, devices, rate, max_batch=batch, max_delay_ms=delay, max_waiting=waiting, new_tokens=max(1, tokens),
        prompt_tokens=(3, 200), duration_s=10.0, seed=seed,
    )  # fmt: skip
    figures = simulate(run, trace=100_000)
    trace = figures.trace
    assert figures.asked == figures.answered + figures.lost
    assert figures.lost <= figures.refused
    assert len(trace) == figures.answered * max(1, tokens)
    due, arrived, begun, done = trace[:, 2:].T
    assert (due <= arrived + 1e-9).all()
    assert (arrived <= begun + 1e-9).all()
    assert (begun <= done).all()
    if len(trace):
        moments = np.sort(np.concatenate([due, done]))
        middles = (moments[:-1] + moments[1:]) / 2
        inside = np.searchsorted(np.sort(due), middles) - np.searchsorted(np.sort(done), middles)
        total_s = moments[-1] - moments[0]
        mean_inside = (inside * np.diff(moments)).sum() / total_s
        assert mean_inside == pytest.approx(len(trace) / total_s * (done - due).mean(), rel=1e-6, abs=1e-9)


def test_the_same_seed_is_the_same_run() -> None:
    """Every figure repeats with the seed, and another seed is another run."""
    run = fleet(make_profile({"c": BATCHES}), 30, 2.0, duration_s=30.0, servers=3, link=LinkConfig.parse("1ms,5ms"))
    assert simulate(run).to_dict() == simulate(run).to_dict()
    assert simulate(run).to_dict() != simulate(dataclasses.replace(run, seed=1)).to_dict()


@pytest.mark.parametrize("process", ["poisson", "diurnal", "bursts"])
def test_arrivals_keep_their_mean(process: Any) -> None:
    """However the rate moves, as many requests come as the devices' rate says."""
    arrivals = Arrivals(process=process, burst_every_s=60.0)
    run = fleet(make_profile({"c": ms(0.01)}), 200, 0.5, duration_s=1000.0, arrivals=arrivals)
    assert simulate(run).asked == pytest.approx(100_000, rel=0.02)


def test_bursts_come_in_bursts() -> None:
    """Requests in a second vary more than a Poisson process lets them."""
    run = fleet(make_profile({"c": ms(0.01)}), 200, 0.5, duration_s=1000.0)
    for process, most in (("poisson", 1.3), ("bursts", math.inf)):
        arrivals = Arrivals(process=process, burst_every_s=60.0)  # type: ignore[arg-type]
        due = simulate(dataclasses.replace(run, arrivals=arrivals), trace=200_000).trace[:, 2]
        counts = np.bincount(due.astype(int), minlength=1000)
        assert counts.var() / counts.mean() < most
    assert counts.var() / counts.mean() > 5


def test_devices_are_dealt_out() -> None:
    """Servers get a share of every kind, and all devices are somewhere."""
    group = fleet(make_profile({"c": BATCHES}), 1).groups[0]
    groups = tuple(dataclasses.replace(group, name=str(count), devices=count) for count in (7, 0, 5, 1))
    run = dataclasses.replace(fleet(group.device, 1), groups=groups, servers=4)
    shares = np.array([run.shares(server) for server in range(4)])
    assert shares.sum(axis=0).tolist() == [7, 0, 5, 1]
    assert set(shares.sum(axis=1)) == {3, 4}


def test_a_device_that_does_it_all_asks_nobody() -> None:
    """It takes the whole model's time, sends nothing, and the server rests."""
    figures = simulate(
        fleet(
            make_profile({"c": ms(5.0)}, head=ms(3.0)), 10, 0.1, crossing=Crossing(way="all-device"), duration_s=100.0
        )
    )
    assert figures.latency.p95 == pytest.approx(8.0, rel=0.01)
    assert (figures.uplink_bytes_per_item, figures.utilisation) == (0.0, 0.0)


def test_limits_are_those_of_the_server() -> None:
    """What is simulated without further words is a server without further words."""
    config, model = ServerConfig(), ServerModel(profile=make_profile({"c": BATCHES}))
    assert model.max_batch == config.max_batch_requests
    assert model.max_delay_ms == config.max_batch_delay_ms
    assert (model.max_waiting, model.max_sessions) == (config.max_waiting, config.max_sessions)
