"""Tests of serverlight.runtime.window: when a batch waits, and for whom."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverlight.runtime.window import Window

DELAY_S = 0.01


def steady(*gaps_s: float, batch_s: float = 0.1) -> Window:
    """A window that has seen clients ``0, 1, ...`` come so soon after each answer; all were answered at 10."""
    window = Window(max_delay_s=DELAY_S)
    window.took(batch_s)
    for client, gap_s in enumerate(gaps_s):
        window.arrived(client, 1.0)
        window.answered(client, 1.0)
        window.arrived(client, 1.0 + gap_s)
        window.answered(client, 10.0)
    return window


def test_one_client_never_waits() -> None:
    """There is nobody to wait for."""
    window = steady(0.001)
    window.arrived(0, 10.001)
    assert window.closes_s(oldest_s=10.001, now_s=10.001) == 10.001


def test_waits_until_all_have_come() -> None:
    """The batch closes with the last one that is awaited, not with the window."""
    window = steady(0.001, 0.002, 0.003)
    window.arrived(0, 10.001)
    assert window.closes_s(oldest_s=10.001, now_s=10.001) > 10.003
    window.arrived(1, 10.002)
    window.arrived(2, 10.003)
    assert window.closes_s(oldest_s=10.001, now_s=10.003) == 10.003


def test_slow_devices_are_not_waited_for() -> None:
    """One that usually needs longer than the window, or is twice as late as usual, holds nobody up."""
    window = steady(0.001, 0.05, 0.002)
    window.arrived(0, 10.001)
    assert window.closes_s(oldest_s=10.001, now_s=10.001) == pytest.approx(10.004)
    assert window.closes_s(oldest_s=10.001, now_s=10.0041) == 10.0041


@pytest.mark.parametrize(
    ("gaps_s", "is_awaited"),
    [
        ((0.002,), True),
        ((0.002, 30.0), True),  # a user who has read the answer
        ((0.002, 30.0, 0.002, 30.0), True),
        ((0.002, *[0.5] * 5), False),  # a device that has become slow
        ((0.002, *[0.5] * 9, *[0.002] * 30), True),  # and is quick again
        ((*[30.0] * 2,), False),
    ],
)
def test_one_pause_says_nothing_of_the_next_gap(gaps_s: tuple[float, ...], is_awaited: bool) -> None:
    """But several in a row do. Client 0 always comes at once."""
    window = Window(max_delay_s=DELAY_S)
    window.took(0.1)
    window.arrived(0, 0.0)
    window.arrived(1, 0.0)
    for number, gap_s in enumerate(gaps_s):
        window.answered(1, 100.0 * number)
        window.arrived(1, 100.0 * number + gap_s)
    window.answered(0, 1000.0)
    window.answered(1, 1000.0)
    window.arrived(0, 1000.001)
    closes_s = window.closes_s(oldest_s=1000.001, now_s=1000.001)
    assert (closes_s > 1000.003) == is_awaited


def test_a_cheap_batch_is_not_waited_for() -> None:
    """No wait is longer than the batch that it would save."""
    window = steady(0.001, 0.005, batch_s=0.002)
    window.arrived(0, 10.001)
    assert window.closes_s(oldest_s=10.001, now_s=10.001) == 10.001


def test_two_groups_become_one() -> None:
    """Those that came while a batch ran wait a little for those that it answered, and not for who needs longer than that."""
    window = steady(0.001, 0.002, 0.02, batch_s=0.1)
    window.took(0.1, now_s=10.0)
    window.arrived(3, 9.95)  # while it ran
    assert window.closes_s(oldest_s=9.95, now_s=10.0) == pytest.approx(10.004)
    window.arrived(0, 10.001)
    window.arrived(1, 10.002)
    assert window.closes_s(oldest_s=9.95, now_s=10.002) == 10.002


def test_who_is_gone_is_not_waited_for() -> None:
    """A client that left."""
    window = steady(0.001, 0.002)
    window.arrived(0, 10.001)
    window.forget(1)
    assert window.closes_s(oldest_s=10.001, now_s=10.001) == 10.001


@given(
    st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["arrived", "answered", "forget"]), st.floats(0, 0.02))),
    st.floats(0, 0.05),
    st.floats(0, 0.03),
    st.floats(4.9, 5.1),
)
def test_wait_is_bounded(events: list[tuple[int, str, float]], batch_s: float, waited_s: float, ended_s: float) -> None:
    """Whatever came before, nobody waits longer than the delay or than a batch takes, or after a batch than a tenth of its
    time; and nobody waits for the past.
    """
    window, now_s = Window(max_delay_s=DELAY_S), 5.0
    window.took(batch_s, now_s=ended_s)
    for client, what, seconds in events:
        now_s += seconds
        if what == "forget":
            window.forget(client)
        else:
            getattr(window, what)(client, now_s)
    closes_s = window.closes_s(oldest_s=now_s - waited_s, now_s=now_s)
    bound_s = max(now_s - waited_s + min(DELAY_S, batch_s), ended_s + min(DELAY_S, 0.1 * batch_s))
    assert now_s <= closes_s <= max(now_s, bound_s)
