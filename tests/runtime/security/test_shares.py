"""What each client gets of a server, and what it may not take from the others."""

from __future__ import annotations

import pathlib
from typing import Any

import pytest

from serverlight.errors import InputMismatch, QuotaExceeded, ServerBusy
from serverlight.runtime import grpc_transport
from serverlight.runtime.messages import Failure, InferReply, Ping, Pong, Welcome
from serverlight.runtime.quotas import Quota, Quotas
from serverlight.runtime.security import Security
from serverlight.runtime.transport import InProcessTransport

WAIT_S = 20.0


def test_request_over_quota_is_refused_at_once(make_core: Any, runner: Any, open_stream: Any) -> None:
    """A client that is over its quota is told which and when to come back; others, and its stream, go on."""
    core = make_core(
        quotas=Quotas(lambda name: Quota(requests_per_s=1e-3, burst_s=2000) if name == "greedy" else Quota())
    )
    greedy, other = (open_stream(InProcessTransport(core, client=name)) for name in ("greedy", "other"))
    for stream in (greedy, other):
        stream.greet()
    assert [type(greedy.infer(i)) for i in (1, 2)] == [InferReply] * 2
    refused = greedy.infer(3)
    assert isinstance(refused.error, QuotaExceeded)
    assert isinstance(refused.error, ServerBusy)
    assert refused.error.quota == "requests_per_s"
    assert 900_000 < refused.error.retry_after_ms <= 1_000_000
    assert [type(other.infer(i)) for i in range(1, 6)] == [InferReply] * 5
    again = open_stream(InProcessTransport(core, client="greedy"))
    again.greet()
    assert isinstance(again.infer(1).error, QuotaExceeded)
    assert len(runner.seen) == 7


def test_bytes_over_quota_are_refused(make_core: Any, open_stream: Any) -> None:
    """Bytes count as well; one request larger than a burst passes, and is paid off before the next."""
    core = make_core(quotas=Quotas(lambda name: Quota(bytes_per_s=1e-3, burst_s=1000)))
    stream = open_stream(InProcessTransport(core, client="greedy"))
    stream.greet()
    assert isinstance(stream.infer(1, bytes(1000)), InferReply)
    assert stream.infer(2, b"x").error.quota == "bytes_per_s"


def test_streams_over_quota_are_refused(make_core: Any, open_stream: Any, until: Any) -> None:
    """A client may not take all streams; one that closes makes room for its next, and others notice nothing."""
    core = make_core(quotas=Quotas(lambda name: Quota(max_streams=1)))
    first = open_stream(InProcessTransport(core, client="one"))
    first.greet()
    assert open_stream(InProcessTransport(core, client="one")).inbox.next().error.quota == "max_streams"
    assert isinstance(open_stream(InProcessTransport(core, client="another")).greet(), Welcome)
    assert isinstance(first.infer(1), InferReply)
    first.transport.close()
    assert isinstance(open_stream(InProcessTransport(core, client="one")).greet(), Welcome)


def test_idle_talk_is_read_at_a_steady_rate(
    make_core: Any, serve: Any, dial: Any, runner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a stream that keeps the server busy for nothing the rest lies unread; other streams are read as ever."""
    monkeypatch.setattr(grpc_transport, "_TALK_PER_S", 1e-3)
    monkeypatch.setattr(grpc_transport, "_TALK_AT_ONCE", 3.0)
    runner.fail_on[b"bad"] = InputMismatch("does not fit")
    thread = serve(make_core())
    chatty, refused, other = dial(thread), dial(thread), dial(thread)
    for stream in (chatty, refused, other):
        stream.greet()
    for i in range(1, 4):
        assert isinstance(chatty.ask(Ping()), Pong)
        assert isinstance(refused.infer(i, b"bad"), Failure)
    chatty.say_infer(1, b"behind pings")
    refused.say_infer(4, b"bad")  # was waited for already when the last refusal was written, or is not read
    refused.say_infer(5, b"behind refusals")
    for i in range(1, 20):
        assert isinstance(other.infer(i), InferReply)
    assert {b"behind pings", b"behind refusals"} & set(runner.seen) == set()


def test_quota_comes_from_the_file_and_changes_with_it(
    make_core: Any, serve: Any, dial: Any, token: str, tokens: pathlib.Path
) -> None:
    """A client's section has its quotas; a new figure counts from the next stream on."""
    security = Security(tokens=str(tokens))
    server = security.read_tokens()
    assert server is not None
    assert server.quota_of("phone") == Quota()
    tokens.write_text(tokens.read_text() + "requests_per_s = 5\n")
    server.refresh()
    assert server.quota_of("phone") == Quota(requests_per_s=5)


def test_many_connections_have_one_turn(make_core: Any, runner: Any, open_stream: Any, until: Any) -> None:
    """A client with five connections is served no more often than one with a single connection."""
    core = make_core()
    held = open_stream(InProcessTransport(core))
    held.greet()
    runner.may_run.clear()
    held.say_infer(1, b"held")
    assert runner.has_begun.acquire(timeout=WAIT_S)
    for i in range(5):
        stream = open_stream(InProcessTransport(core, client="many"))
        stream.greet()
        stream.say_infer(1, b"many%d" % i)
    single = open_stream(InProcessTransport(core, client="single"))
    single.greet()
    for i in range(1, 4):
        single.say_infer(i, b"single%d" % i)
    runner.may_run.set()
    until(lambda: len(runner.seen) == 9)
    assert [data[:4] for data in runner.seen[1:7]] == [b"many", b"sing"] * 3


def test_weight_comes_with_the_client(make_core: Any, runner: Any, open_stream: Any, until: Any) -> None:
    """A client with twice the weight gets two requests through for each one of another's."""
    core = make_core(quotas=Quotas(lambda name: Quota(weight=2) if name == "heavy" else Quota()))
    streams = {name: open_stream(InProcessTransport(core, client=name)) for name in ("held", "heavy", "light")}
    for stream in streams.values():
        stream.greet()
    runner.may_run.clear()
    streams["held"].say_infer(1)
    assert runner.has_begun.acquire(timeout=WAIT_S)
    for name in ("heavy", "light"):
        for i in range(1, 5):
            streams[name].say_infer(i, name.encode())
    runner.may_run.set()
    until(lambda: len(runner.seen) == 9)
    assert runner.seen[1:7] == [b"heavy", b"heavy", b"light"] * 2


def test_flood_does_not_keep_others_out(make_core: Any, runner: Any, open_stream: Any) -> None:
    """When all places are taken by one client, another is still taken, in place of the flood's newest request."""
    core = make_core(max_waiting=4)
    flood = open_stream(InProcessTransport(core, client="flood"))
    flood.greet()
    runner.may_run.clear()
    flood.say_infer(1)
    assert runner.has_begun.acquire(timeout=WAIT_S)
    for i in range(2, 6):
        flood.say_infer(i, b"flood")
    other = open_stream(InProcessTransport(core, client="other"))
    other.greet()
    other.say_infer(1, b"other")
    refused = flood.inbox.next()
    assert (refused.request_id, type(refused.error)) == (5, ServerBusy)
    runner.may_run.set()
    assert isinstance(other.inbox.next(), InferReply)
