from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverlight.errors import ConfigError, QuotaExceeded, ServerBusy
from serverlight.runtime.quotas import Bucket, Quota, Quotas
from serverlight.runtime.sessions import SessionTable

amounts = st.floats(0.1, 50)
pauses_s = st.floats(0, 10)


@given(rate=st.floats(0.1, 100), capacity=st.floats(1, 100), events=st.lists(st.tuples(pauses_s, amounts), max_size=60))
def test_no_more_than_the_rate_in_the_long_run(rate: float, capacity: float, events: list[tuple[float, float]]) -> None:
    """Between any two moments no more passes than the rate gives in that time, one capacity, and what went into debt."""
    bucket, now_s, passed = Bucket(rate_per_s=rate, capacity=capacity), 0.0, list[tuple[float, float]]()
    for pause_s, amount in events:
        now_s += pause_s
        if bucket.wait_s(amount, now_s) == 0:
            bucket.take(amount, now_s)
            passed.append((now_s, amount))
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            elapsed_s = passed[last][0] - passed[first][0]
            # What is larger than the capacity passes alone; the others of the span keep to the rate.
            excess = max(0.0, passed[last][1] - capacity)
            taken = sum(amount for _, amount in passed[first : last + 1])
            assert taken <= (capacity + rate * elapsed_s + excess) * (1 + 1e-6)


@given(
    rate=st.floats(0.01, 1e6),
    burst_s=st.floats(0.01, 100),
    sizes=st.lists(st.integers(0, 10**7), min_size=1, max_size=30),
    start_s=st.floats(0, 1e6),
)
def test_who_comes_back_when_told_is_let_in(rate: float, burst_s: float, sizes: list[int], start_s: float) -> None:
    """The time that a refusal names is enough, however large the request."""
    quotas = Quotas(lambda name: Quota(bytes_per_s=rate, burst_s=burst_s))
    now_s = start_s
    for size in sizes:
        try:
            quotas.charge("client", size, now_s)
        except QuotaExceeded as refused:
            now_s += refused.retry_after_ms / 1e3 + now_s * 1e-15
            quotas.charge("client", size, now_s)


def test_refusal_counts_nothing() -> None:
    """A client that asks too early does not put off the moment at which it is let in, by either measure."""
    quotas = Quotas(lambda name: Quota(requests_per_s=1, bytes_per_s=100, burst_s=1))
    quotas.charge("client", 100, 0.0)
    for tick in range(1, 10):
        with pytest.raises(QuotaExceeded) as caught:
            quotas.charge("client", 100, tick / 10)
        assert caught.value.retry_after_ms == pytest.approx(1000 - 100 * tick, abs=1)
    quotas.charge("client", 100, 1.0)


def test_the_longer_wait_is_named() -> None:
    """Where both measures are used up, the refusal names the one that takes longer."""
    quotas = Quotas(lambda name: Quota(requests_per_s=10, bytes_per_s=10, burst_s=0.1))
    quotas.charge("client", 50, 0.0)
    with pytest.raises(QuotaExceeded) as caught:
        quotas.charge("client", 1, 0.0)
    assert (caught.value.quota, caught.value.retry_after_ms) == ("bytes_per_s", 5000)


def test_clients_do_not_share() -> None:
    """What one client uses is its own; without a name, or without a quota, nothing is counted."""
    quotas = Quotas(lambda name: Quota(requests_per_s=1, burst_s=1) if name != "free" else Quota())
    quotas.charge("a", 1, 0.0)
    quotas.charge("b", 1, 0.0)
    for _ in range(100):
        quotas.charge("free", 1 << 40, 0.0)
        quotas.charge(None, 1 << 40, 0.0)
    with pytest.raises(QuotaExceeded):
        quotas.charge("a", 1, 0.0)


def test_a_new_quota_counts_at_once() -> None:
    """A client whose quota was raised need not wait for what the old one would have asked."""
    figures = {"client": Quota(requests_per_s=1e-3, burst_s=1)}
    quotas = Quotas(lambda name: figures[name])
    quotas.charge("client", 1, 0.0)
    figures["client"] = Quota(requests_per_s=10)
    quotas.charge("client", 1, 0.0)


def test_a_clock_that_stands_still_gives_nothing() -> None:
    """Neither does one that goes back, and afterwards all is as before."""
    bucket = Bucket(rate_per_s=1, capacity=1)
    bucket.take(1, 5.0)
    assert [bucket.wait_s(1, now_s) for now_s in (5.0, 3.0, 5.0, 5.5, 6.0)] == [1.0, 1.0, 1.0, 0.5, 0.0]


@pytest.mark.parametrize("field", ["max_sessions", "max_kv_bytes", "requests_per_s", "bytes_per_s", "burst_s"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, True, "5"])
def test_bad_quota_is_named(field: str, value: object) -> None:
    """A figure that cannot be is refused by its name."""
    with pytest.raises(ConfigError) as caught:
        Quota(**{field: value})  # type: ignore[arg-type]
    assert caught.value.field == field


def test_sessions_of_one_client() -> None:
    """A client has its own number of sessions, whatever connections they came by; the room of all is another limit."""
    quotas = Quotas(lambda name: Quota(max_sessions=2) if name == "small" else Quota())
    table = SessionTable(max_sessions=4, max_kv_bytes=1000, idle_s=60, quotas=quotas)
    for owner in "ab":
        table.add(owner, 0.0, 5, client="small")
    with pytest.raises(QuotaExceeded, match="max_sessions"):
        table.add("c", 0.0, 5, client="small")
    for owner in "de":
        table.add(owner, 0.0, 5, client="large")
    with pytest.raises(ServerBusy) as caught:
        table.add("f", 0.0, 5, client="large")
    assert type(caught.value) is ServerBusy
    table.remove("a")
    table.add("c", 0.0, 5, client="small")


def test_memory_of_one_client() -> None:
    """A client's sessions share its bytes; a refusal reserves nothing, and other clients have theirs."""
    quotas = Quotas(lambda name: Quota(max_kv_bytes=500) if name == "small" else Quota())
    table = SessionTable(max_sessions=9, max_kv_bytes=1000, idle_s=60, quotas=quotas)
    for owner, client in ("a", "small"), ("b", "small"), ("c", None):
        table.add(owner, 0.0, 5, client=client)
    table.reserve("a", 300, 5)
    with pytest.raises(QuotaExceeded, match="max_kv_bytes"):
        table.reserve("b", 201, 5)
    table.reserve("b", 200, 5)
    table.reserve("c", 500, 5)
    table.reserve("a", 100, 5)
    table.reserve("b", 400, 5)
    assert table.kv_bytes == 1000
