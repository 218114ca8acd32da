from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverlight.errors import ServerBusy
from serverlight.runtime.messages import InferRequest
from serverlight.runtime.scheduler import Job, Scheduler


def job(
    owner: object = None,
    request_id: int = 1,
    deadline_ms: int | None = None,
    arrived_s: float = 0.0,
    client: str | None = None,
    weight: int = 1,
) -> Job:
    request = InferRequest(request_id=request_id, payloads=(), deadline_ms=deadline_ms)
    return Job(
        owner=owner,
        client=client,
        weight=weight,
        cut="middle",
        request=request,
        reply=lambda message: None,
        arrived_s=arrived_s,
    )


def test_one_client_is_served_in_order() -> None:
    """The requests of one client leave in the order in which they came."""
    scheduler = Scheduler(max_waiting=3)
    jobs = [job(request_id=i) for i in (1, 2, 3)]
    for each in jobs:
        scheduler.admit(each)
    assert [scheduler.take() for _ in range(4)] == [*jobs, None]


def test_a_flood_waits_behind_itself() -> None:
    """A client that came after another's many requests is next, or the one after it."""
    scheduler = Scheduler(max_waiting=20)
    for request_id in range(10):
        scheduler.admit(job(owner="flood", request_id=request_id))
    late = job(owner="late")
    scheduler.admit(late)
    assert late in (scheduler.take(), scheduler.take())


@given(st.lists(st.integers(0, 3) | st.none(), max_size=60))
def test_turns_are_equal_and_nothing_is_lost(events: list[int | None]) -> None:
    """Every request leaves once, in its client's order; no client is overtaken twice by the same other one."""
    scheduler = Scheduler(max_waiting=100)
    waiting: dict[object, list[Job]] = {client: [] for client in range(4)}
    served_since = {client: list[object]() for client in waiting}  # it began to wait, or was served
    for event in [*events, *[None] * len(events)]:
        if event is not None:
            if not waiting[event]:
                served_since[event] = []
            waiting[event].append(job(owner=event))
            scheduler.admit(waiting[event][-1])
        elif (taken := scheduler.take()) is None:
            assert not any(waiting.values())
        else:
            assert waiting[taken.owner].pop(0) is taken
            for client, served in served_since.items():
                assert not (waiting[client] and taken.owner in served)
                served.append(taken.owner)
            served_since[taken.owner] = []
    assert not scheduler.num_waiting
    assert not any(waiting.values())


def test_connections_of_one_client_have_one_turn() -> None:
    """However many connections a client opens, another with a single one is served as often."""
    scheduler = Scheduler(max_waiting=20)
    for connection in range(5):
        scheduler.admit(job(owner=connection, client="many"))
    for request_id in range(3):
        scheduler.admit(job(owner="only", client="single", request_id=request_id))
    taken = [scheduler.take() for _ in range(6)]
    assert [each.client for each in taken if each] == ["many", "single"] * 3


@given(weights=st.lists(st.integers(1, 5), min_size=1, max_size=5), rounds=st.integers(1, 4))
def test_weights_share_the_thread(weights: list[int], rounds: int) -> None:
    """Of clients that always have more, each gets its weight in every round, one after the other."""
    scheduler = Scheduler(max_waiting=1000)
    for _ in range(max(weights) * rounds):
        for name, weight in enumerate(weights):
            scheduler.admit(job(client=str(name), weight=weight))
    taken = [scheduler.take() for _ in range(sum(weights) * rounds)]
    one_round = [str(name) for name, weight in enumerate(weights) for _ in range(weight)]
    assert [each.client for each in taken if each] == one_round * rounds


def test_weight_is_not_saved_up() -> None:
    """A client that had less to send than its weight has no more in its next turn than in any other."""
    scheduler = Scheduler(max_waiting=100)
    scheduler.admit(job(client="heavy", weight=3))
    scheduler.admit(job(client="light"))
    assert scheduler.take()
    for _ in range(6):
        scheduler.admit(job(client="heavy", weight=3))
        scheduler.admit(job(client="light"))
    taken = [scheduler.take() for _ in range(9)]
    assert [each.client for each in taken if each] == ["light", *["heavy"] * 3, "light", *["heavy"] * 3, "light"]


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=80), st.integers(1, 12))
def test_full_queue_is_shared(events: list[tuple[int, bool]], max_waiting: int) -> None:
    """A full queue refuses whoever has most: nobody is refused, or loses a request, who has less than another by two."""
    scheduler = Scheduler(max_waiting=max_waiting)
    waiting: dict[str, list[Job]] = {f"client {i}": [] for i in range(6)}
    for number, takes in events:
        if takes and (taken := scheduler.take()):
            assert taken.client is not None
            assert waiting[taken.client].pop(0) is taken
        new = job(owner=object(), client=f"client {number}")
        mine, most = waiting[f"client {number}"], max(map(len, waiting.values()))
        try:
            given_up = scheduler.admit(new)
        except ServerBusy:
            assert scheduler.num_waiting == max_waiting
            assert len(mine) + 1 >= most
            continue
        if given_up is not None:
            assert given_up.client is not None
            loser = waiting[given_up.client]
            assert len(loser) == most
            assert loser.pop() is given_up
            assert len(mine) + 1 <= len(loser)
        mine.append(new)
        assert scheduler.num_waiting == sum(map(len, waiting.values())) <= max_waiting


def test_a_place_is_not_taken_back_and_forth() -> None:
    """Two clients that both want more than there is share it, and then both are refused."""
    scheduler = Scheduler(max_waiting=4)
    for _ in range(4):
        scheduler.admit(job(client="first"))
    assert [scheduler.admit(job(client="second")) is not None for _ in range(2)] == [True, True]
    for client in ("first", "second"):
        with pytest.raises(ServerBusy):
            scheduler.admit(job(client=client))


def test_a_gone_connection_leaves_its_clients_others() -> None:
    """Of a client with two connections only the requests of the one that is gone are dropped, and the order stays."""
    scheduler, gone, here = Scheduler(max_waiting=9), object(), object()
    jobs = [job(owner=owner, client="one") for owner in (gone, here, gone, here)]
    for each in jobs:
        scheduler.admit(each)
    assert scheduler.forget(gone) == 2
    assert [scheduler.take() for _ in range(3)] == [jobs[1], jobs[3], None]


def test_full_queue_says_when_to_come_back() -> None:
    """What is over the limit is refused at once, with a time that follows from how long requests take."""
    scheduler = Scheduler(max_waiting=2)
    scheduler.took(0.1, [job()], now_s=0.0)
    scheduler.admit(job())
    scheduler.admit(job())
    with pytest.raises(ServerBusy) as caught:
        scheduler.admit(job())
    assert caught.value.retry_after_ms == 100  # half of two requests of 100 ms each
    assert scheduler.take() is not None
    scheduler.admit(job())


def test_retry_time_is_never_zero() -> None:
    """A client that obeys does not come back in a busy loop."""
    assert Scheduler(max_waiting=1).retry_after_ms == 1


def test_mean_follows_the_newest_requests() -> None:
    """The estimate moves towards what requests take now, by a fifth each time."""
    scheduler = Scheduler(max_waiting=10)
    for _ in range(10):
        scheduler.admit(job())
    scheduler.took(1.0, [job()], now_s=0.0)
    assert scheduler.retry_after_ms == 5000
    scheduler.took(2.0, [job()], now_s=0.0)
    assert scheduler.retry_after_ms == 6000


def test_a_gone_client_takes_its_requests_with_it() -> None:
    """Only the requests of the connection that went away are dropped."""
    scheduler, gone, here = Scheduler(max_waiting=3), object(), object()
    kept = job(owner=here)
    for each in (job(owner=gone), kept, job(owner=gone)):
        scheduler.admit(each)
    assert scheduler.forget(gone) == 2
    assert [scheduler.take(), scheduler.take()] == [kept, None]


@pytest.mark.parametrize(("deadline_ms", "now_s", "expired"), [(None, 1e9, False), (50, 1.05, False), (50, 1.06, True)])
def test_deadline_counts_from_arrival(deadline_ms: int | None, now_s: float, expired: bool) -> None:
    """A request is worth running until its deadline, counted from when it was read."""
    assert job(deadline_ms=deadline_ms, arrived_s=1.0).is_expired(now_s) is expired


@given(
    waiting=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 3)), max_size=20),
    limit=st.integers(1, 8),
)
def test_a_shared_batch_has_no_more_of_a_client_than_its_weight(waiting: list[tuple[str, int]], limit: int) -> None:
    """No client fills a batch that others wait for; nothing is lost, and each one's order stays."""
    scheduler = Scheduler(max_waiting=100)
    weights = dict(waiting)
    left: dict[str, list[Job]] = {}
    for number, (client, _) in enumerate(waiting):
        scheduler.admit(each := job(object(), number, client=client, weight=weights[client]))
        left.setdefault(client, []).append(each)
    while batch := scheduler.take_batch(limit, is_shared=True):
        num_of = Counter(each.client for each in batch)
        assert all(count <= weights[client] for client, count in num_of.items() if client)
        assert len(batch) == min(limit, sum(min(len(jobs), weights[client]) for client, jobs in left.items()))
        for each in batch:
            assert each.client
            assert left[each.client].pop(0) is each
    assert not any(left.values())


def test_shared_while_others_are_about() -> None:
    """The thread is shared when somebody else waits, or sent something within the last second and is not gone."""
    scheduler = Scheduler(max_waiting=10)
    assert not scheduler.is_shared(0.0)
    scheduler.admit(job("a", arrived_s=0.0))
    scheduler.admit(job("a", 2, arrived_s=0.1))
    assert not scheduler.is_shared(0.1)
    scheduler.admit(job("b", arrived_s=0.5))
    while scheduler.take():
        pass
    assert scheduler.is_shared(1.0)
    assert not scheduler.is_shared(1.4)
    scheduler.admit(job("a", 3, arrived_s=1.4))
    assert scheduler.is_shared(1.4)
    scheduler.forget("b")
    assert not scheduler.is_shared(1.4)


def test_a_flood_has_its_share_of_the_thread() -> None:
    """While another is about, whoever has many requests waiting runs for a share of the time, even where the thread is idle
    else; with one request at a time nobody is limited, nor is who is alone.
    """
    scheduler = Scheduler(max_waiting=10_000)
    for number in range(5_000):
        scheduler.admit(job("flood", number))
    now_s, served_s, run_s = 0.0, Counter[object](), 0.002
    while now_s < 10:
        if round(now_s * 1e3) % 20 < 2 and not any(each == "good" for each in scheduler._queues):
            scheduler.admit(job("good", arrived_s=now_s))
        if rest_s := scheduler.rest_s(now_s):
            now_s += min(rest_s, 0.001)
            continue
        batch = scheduler.take_batch(64, is_shared=scheduler.is_shared(now_s), now_s=now_s)
        assert batch
        now_s += run_s
        scheduler.took(run_s, batch, now_s=now_s)
        for each in batch:
            served_s[each.owner] += run_s / len(batch)
    assert 0.4 < served_s["flood"] / now_s < 0.55  # two of equal weight
    scheduler.forget("good")
    scheduler.admit(job("flood", 5_001, arrived_s=now_s))
    assert scheduler.rest_s(now_s) == 0
    assert len(scheduler.take_batch(64, is_shared=scheduler.is_shared(now_s), now_s=now_s)) == 64


@given(
    events=st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 4), st.floats(0, 0.2)), max_size=40),
    limit=st.integers(1, 8),
)
def test_limits_lose_nothing_and_end(events: list[tuple[str, int, float]], limit: int) -> None:
    """Whatever comes when, there is always somebody to run once the rest is over, and all that came is run."""
    scheduler, now_s, num_sent, num_run = Scheduler(max_waiting=1000), 0.0, 0, 0
    arrivals = list(events)
    while arrivals or scheduler.num_waiting:
        if arrivals:
            client, count, gap_s = arrivals.pop()
            now_s += gap_s
            for _ in range(count):
                num_sent += 1
                scheduler.admit(job(object(), num_sent, client=client, arrived_s=now_s))
        now_s += scheduler.rest_s(now_s) + 1e-9
        batch = scheduler.take_batch(limit, is_shared=scheduler.is_shared(now_s), now_s=now_s)
        assert batch
        num_run += len(batch)
        now_s += 0.03
        scheduler.took(0.03, batch, now_s=now_s)
    assert num_run == num_sent
