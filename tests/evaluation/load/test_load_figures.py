from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverlight.apps.load_tables import load_sections
from serverlight.evaluation.load.claims import load_checks
from serverlight.evaluation.load.figures import (
    IN_PROCESS,
    OURS,
    SERIAL,
    LoadRow,
    Sample,
    Turn,
    arrivals,
    correct_for_omission,
    load_row,
    mean_batch,
    percentile,
)

latencies = st.lists(st.floats(min_value=0.01, max_value=1e4), min_size=1, max_size=60)


def sample(due_s: float, done_s: float, **fields: object) -> Sample:
    defaults = {"client": 0, "uplink_bytes": 10, "batch_size": 1, "process_cpu_ms": 1e3 * done_s}
    return Sample(due_s=due_s, done_s=done_s, **{**defaults, **fields})  # type: ignore[arg-type]


def row_of(*turns: Turn, **fields: object) -> LoadRow:
    return load_row(turns, **{"workload": "lm", "system": OURS, "clients": 2, "cuts": ("a",), **fields})  # type: ignore[arg-type]


# -- the schedule of an open loop --------------------------------------------------------------------


@given(rate=st.floats(0.1, 500), seed=st.integers(0, 2**32))
def test_arrivals_rise_within_their_time(rate: float, seed: int) -> None:
    """Requests are due one after the other before the end, and the same seed gives the same times."""
    times = arrivals(rate, 2.0, seed)
    assert all(0 < before < after < 2.0 for before, after in itertools.pairwise(times))
    assert times == arrivals(rate, 2.0, seed)
    assert times[:3] == arrivals(rate, 9.0, seed)[: len(times[:3])]


def test_arrivals_are_poisson() -> None:
    """Their number is that of the rate, and the gaps between them are as scattered as they are long."""
    times = np.asarray(arrivals(100.0, 200.0, seed=5))
    assert abs(len(times) - 20_000) < 5 * math.sqrt(20_000)
    gaps = np.diff(times)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)


def test_devices_do_not_send_at_once() -> None:
    """Unlike seeds give unlike times."""
    assert not set(arrivals(50.0, 5.0, seed=1)) & set(arrivals(50.0, 5.0, seed=2))


# -- coordinated omission ----------------------------------------------------------------------------


@given(measured=latencies, interval=st.floats(0.5, 1e4))
def test_correction_adds_what_was_not_sent(measured: list[float], interval: float) -> None:
    """Every latency stays; one of L adds those of the requests due meanwhile, an interval apart, none shorter than that."""
    corrected = correct_for_omission(measured, interval)
    assert corrected[: len(measured)].tolist() == measured
    assert len(corrected) - len(measured) == sum(max(0, int(latency // interval) - 1) for latency in measured)
    added = corrected[len(measured) :]
    assert np.all(added >= interval * (1 - 1e-9))
    assert np.all(added < max(measured))


@given(measured=latencies)
def test_nothing_to_correct_where_nothing_stalls(measured: list[float]) -> None:
    """A device that is never held up by as much as two intervals has sent all that was due."""
    assert correct_for_omission(measured, 0.51 * max(measured)).tolist() == measured


@given(stall_s=st.integers(2, 50))
def test_stall_counts_as_if_requests_had_been_due_at_their_times(stall_s: int) -> None:
    """A closed loop of one request a second with one stall, corrected, has the latencies of the open loop."""
    closed_ms = [1.0] * 100 + [1e3 * stall_s]
    open_ms = [1.0] * 100 + [1e3 * (stall_s - late) for late in range(stall_s)]
    corrected = correct_for_omission(closed_ms, 1e3)
    assert sorted(corrected.tolist()) == sorted(open_ms)
    assert percentile(corrected, 99) >= percentile(closed_ms, 99)


@given(values=latencies, percent=st.floats(0.1, 100))
def test_percentile_is_a_value_that_was_measured(values: list[float], percent: float) -> None:
    """At least so many percent do not exceed it, and fewer do not exceed any smaller value."""
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= percent / 100 * len(values) - 1e-6
    assert sum(value < found for value in values) < percent / 100 * len(values) + 1e-6


@given(sizes=st.lists(st.integers(1, 64), min_size=1, max_size=20))
def test_mean_batch_is_requests_over_batches(sizes: list[int]) -> None:
    """Each request tells the size of its batch, so a batch of n is told n times and counts once."""
    told = [size for size in sizes for _ in range(size)]
    assert mean_batch(told) == pytest.approx(sum(sizes) / len(sizes))


# -- rows --------------------------------------------------------------------------------------------


def test_row_counts_what_came_in_time() -> None:
    """Throughput, bytes and CPU time are those of the answers within the turns, all turns together."""
    first = Turn(begin_s=1.0, end_s=3.0, samples=[sample(at, at + 0.5) for at in (0.0, 0.5, 1.0, 2.0, 2.6)])
    second = Turn(begin_s=11.0, end_s=12.0, samples=[sample(11.0, 11.5, uplink_bytes=30)])
    row = row_of(first, second)
    assert (row.items, row.seconds, row.throughput_per_s) == (4, 3.0, 4 / 3)
    assert row.uplink_bytes_per_item == 15
    assert row.server_cpu_s_per_item == pytest.approx(1.5 / 2)  # from 1.0 to 2.5 s, in which two more came
    assert row.device_0_s_per_item == pytest.approx(0.5)


def test_first_tokens_stand_apart() -> None:
    """The wait for a prompt is no token's latency."""
    turn = Turn(begin_s=0.0, end_s=9.0, samples=[sample(0.0, 5.0, is_first=True), sample(5.0, 5.1), sample(5.1, 5.2)])
    row = row_of(turn)
    assert row.first_token_ms_p50 == pytest.approx(5e3)
    assert row.measured_ms_p99 == pytest.approx(100)
    assert row.items == 3


def test_open_loop_counts_late_and_missing_answers() -> None:
    """In an open loop a request counts by when it was due, also where its answer came late or not at all."""
    turn = Turn(begin_s=0.0, end_s=1.0, samples=[sample(0.2, 0.3), sample(0.9, 4.0)], unanswered_ms=[5e3])
    row = row_of(turn, rate_per_s=3.0)
    assert row.items == 1
    assert (row.latency_ms_p50, row.latency_ms_p99) == (pytest.approx(3100), 5e3)
    assert row.latency_ms_p99 == row.measured_ms_p99
    assert row.unanswered == 1


def test_time_of_the_device_belongs_to_its_interval() -> None:
    """A device that works for a second between requests omits none while an answer takes as long."""
    turn = Turn(begin_s=0.0, end_s=9.0, samples=[*(sample(at, at + 0.01) for at in range(5)), sample(5.0, 6.0)])
    thinking, eager = row_of(turn, device_ms=1e3, thinks=True), row_of(turn, device_ms=1e3)
    assert thinking.latency_ms_p95 == thinking.measured_ms_p95 == pytest.approx(1e3)
    assert thinking.latency_ms_p50 == pytest.approx(10)
    assert eager.latency_ms_p50 > 400
    assert thinking.device_0_s_per_item == eager.device_0_s_per_item


def test_turn_without_answers_has_a_row() -> None:
    """A server that answers nothing in time makes no figure fail."""
    row = row_of(Turn(begin_s=0.0, end_s=1.0))
    assert (row.items, row.throughput_per_s, row.latency_ms_p99, row.mean_batch) == (0, 0.0, 0.0, 0.0)
    assert row.device_0_s_per_item is None


def test_turns_that_were_too_short_are_told() -> None:
    """Less than an answer a device in each turn tells no rate; the table says so."""
    turn = Turn(begin_s=0.0, end_s=1.0, samples=[sample(0.1, 0.2), sample(0.1, 0.3)])
    short, long = (dataclasses.replace(row_of(turn, turn), clients=clients) for clients in (3, 2))
    assert (short.is_short, long.is_short) == (True, False)
    assert "a longer --duration" in load_sections([short], [])[0].note
    assert "a longer --duration" not in load_sections([long], [])[0].note


def test_checks_compare_equal_numbers_of_devices() -> None:
    """What is claimed is a ratio of our row to a rival's with as many devices; a rival without one is not judged."""
    ours = row_of(Turn(begin_s=0.0, end_s=1.0, samples=[sample(0.1, 0.1 + 0.1 * at) for at in range(8)]))
    ours = dataclasses.replace(ours, turns_per_s=())
    rivals = [
        dataclasses.replace(ours, system=SERIAL, throughput_per_s=2.0, server_cpu_s_per_item=0.5),
        dataclasses.replace(ours, system=IN_PROCESS, throughput_per_s=10.0),
        dataclasses.replace(ours, system=IN_PROCESS, throughput_per_s=1.0, clients=64),
    ]
    checks = load_checks([ours, *rivals])
    cpu_ratios = [pytest.approx(value) for value in (5.0, 1.0)]
    assert [(check.value, check.holds) for check in checks] == [
        (4.0, True),
        (cpu_ratios[0], None),
        (0.8, False),
        (cpu_ratios[1], None),
    ]


def test_checks_compare_round_by_round() -> None:
    """A machine that is twice as fast in one round makes neither of two better than the other; one odd round decides nothing."""
    ours = row_of(Turn(begin_s=0.0, end_s=1.0, samples=[sample(0.1, 0.1 + 0.1 * at) for at in range(8)]))
    ours = dataclasses.replace(ours, turns_per_s=(95.0, 190.0, 20.0), throughput_per_s=101.7)
    bound = dataclasses.replace(ours, system=IN_PROCESS, turns_per_s=(100.0, 200.0, 200.0), throughput_per_s=166.7)
    assert load_checks([ours, bound])[0].value == pytest.approx(0.95)
