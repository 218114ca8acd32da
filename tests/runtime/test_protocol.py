"""The protocol's promises, over each transport: the true connection code, with a runner that only echoes."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest

from serverlight.codec.config import CodecConfig
from serverlight.errors import (
    ChecksumMismatch,
    ConfigError,
    DeadlineExceeded,
    PeerUnavailable,
    PlanMismatch,
    ProtocolError,
    RemoteError,
    ServerBusy,
)
from serverlight.plan import Plan
from serverlight.runtime.conversion import encode_client, encode_server
from serverlight.runtime.messages import Failure, Frame, Hello, InferReply, InferRequest, RawTensor, Welcome
from serverlight.runtime.transport import wire_bytes


def test_hello_then_requests(make_core: Any, connect_to: Any, plan: Plan) -> None:
    """A client that says Hello is welcomed with the limits, and its requests are answered."""
    stream = connect_to(make_core(max_batch=7, max_in_flight=3, max_message_bytes=1 << 20))
    assert stream.greet() == Welcome(max_message_bytes=1 << 20, max_batch=7, max_in_flight=3, cuts=(plan.cut,))
    for request_id in (1, 2, 5):
        reply = stream.infer(request_id, b"abc")
        assert isinstance(reply, InferReply)
        assert (reply.request_id, reply.outputs[0].data, reply.outputs[0].name) == (request_id, b"abc", plan.cut)


def test_bytes_are_those_of_the_messages(make_core: Any, connect_to: Any) -> None:
    """Sizes that are reported are the serialised message's, framing included, both ways."""
    stream = connect_to(make_core())
    stream.greet()
    message = InferRequest(request_id=1, payloads=(Frame(data=bytes(50_000)),))
    assert stream.say(message) == wire_bytes(len(encode_client(message)))
    reply, num_bytes = stream.inbox.next_with_bytes()
    assert num_bytes == wire_bytes(len(encode_server(reply)))


def test_wrong_version_is_refused(make_core: Any, connect_to: Any, plan: Plan) -> None:
    """A client of another protocol version learns both versions, and the stream ends."""
    stream = connect_to(make_core())
    refusal = stream.ask(Hello(plan_json=plan.to_json(), protocol_version=99))
    assert isinstance(refusal, Failure)
    assert refusal.request_id == 0
    assert isinstance(refusal.error, ProtocolError)
    assert "version 99" in str(refusal.error)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"model": "another"}, "model"),
        ({"revision": "2"}, "revision"),
        ({"cut": "elsewhere"}, "cut"),
        ({"cut": "elsewhere", "revision": "2"}, "revision"),
    ],
)
def test_plan_mismatch_names_the_field(
    make_core: Any, connect_to: Any, plan: Plan, change: dict[str, str], field: str
) -> None:
    """A plan that the server does not serve is refused by the name of the first field, in the client's words."""
    refusal = connect_to(make_core()).greet(dataclasses.replace(plan, **change))
    assert isinstance(refusal.error, PlanMismatch)
    assert refusal.error.field == field
    assert refusal.error.ours == change[field]
    assert refusal.error.theirs == getattr(plan, field)


def test_codec_may_differ(make_core: Any, connect_to: Any, plan: Plan) -> None:
    """A device may choose its own codec settings, unless the server insists."""
    other = dataclasses.replace(plan, codec=CodecConfig(profile="slicer", sparsity=0.9))
    assert isinstance(connect_to(make_core()).greet(other), Welcome)


@pytest.mark.parametrize("field", ["sparsity", "num_groups", "checksum"])
def test_codec_must_agree_if_the_server_says_so(make_core: Any, connect_to: Any, plan: Plan, field: str) -> None:
    """With codec settings of its own the server refuses others, naming the setting."""
    insisting = make_core(codec=plan.codec)
    assert isinstance(connect_to(insisting).greet(), Welcome)
    changed = dataclasses.replace(plan.codec, **{field: {"sparsity": 0.1, "num_groups": 3, "checksum": False}[field]})
    refusal = connect_to(insisting).greet(dataclasses.replace(plan, codec=changed))
    assert isinstance(refusal.error, PlanMismatch)
    assert refusal.error.field == f"codec.{field}"


@pytest.mark.parametrize(
    ("plan_json", "kind"),
    [
        ("", ConfigError),
        ("[]", ConfigError),
        ('{"model": "m"}', ConfigError),
        ("[" * 50_000, ProtocolError),
        ('{"model":"m","revision":"r","cut":"c","codec":{"sparsity":"much"}}', (ConfigError, ProtocolError)),
    ],
)
def test_nonsense_plan_is_refused(make_core: Any, connect_to: Any, plan_json: str, kind: Any) -> None:
    """Whatever stands in the plan, the client gets an error and the server lives on."""
    core = make_core()
    refusal = connect_to(core).ask(Hello(plan_json=plan_json))
    assert refusal.request_id == 0
    assert isinstance(refusal.error, kind)
    assert isinstance(connect_to(core).greet(), Welcome)


def test_request_before_hello_ends_the_stream(make_core: Any, connect_to: Any, runner: Any) -> None:
    """Nothing is run for a client that has not agreed on a plan."""
    refusal = connect_to(make_core()).infer(1)
    assert refusal.request_id == 0
    assert isinstance(refusal.error, ProtocolError)
    assert runner.seen == []


def test_second_hello_ends_the_stream(make_core: Any, connect_to: Any) -> None:
    """One stream has one plan."""
    stream = connect_to(make_core())
    stream.greet()
    assert isinstance(stream.greet().error, ProtocolError)


@pytest.mark.parametrize("request_id", [1, 2])
def test_ids_must_rise(make_core: Any, connect_to: Any, request_id: int) -> None:
    """An id that was used, or is below one that was, ends the stream: its reply could not be told apart."""
    stream = connect_to(make_core())
    stream.greet()
    stream.infer(2)
    refusal = stream.infer(request_id)
    assert refusal.request_id == 0
    assert isinstance(refusal.error, ProtocolError)


def test_one_requests_error_spares_the_rest(make_core: Any, connect_to: Any, runner: Any) -> None:
    """A request that fails is answered with its own error; the stream and other clients go on."""
    core = make_core()
    stream, other = connect_to(core), connect_to(core)
    stream.greet()
    other.greet()
    runner.fail_on[b"bad"] = ChecksumMismatch("altered")
    answer = stream.infer(1, b"bad")
    assert (answer.request_id, type(answer.error)) == (1, ChecksumMismatch)
    assert stream.infer(2, b"good").outputs[0].data == b"good"
    assert other.infer(1, b"good").outputs[0].data == b"good"


def test_unknown_failure_tells_nothing(make_core: Any, connect_to: Any, runner: Any, caplog: Any) -> None:
    """An exception from inside becomes RemoteError without its text; the log has the traceback."""
    stream = connect_to(make_core())
    stream.greet()
    runner.fail_on[b"bad"] = KeyError("/etc/secret")
    answer = stream.infer(1, b"bad")
    assert type(answer.error) is RemoteError
    assert "secret" not in str(answer.error)
    assert "secret" in caplog.text
    assert isinstance(stream.infer(2), InferReply)


def test_reply_that_cannot_be_written_is_a_remote_error(
    make_core: Any, connect_to: Any, runner: Any, monkeypatch: Any, caplog: Any
) -> None:
    """When the answer itself cannot be serialised the client is told, and the compute thread lives on."""
    stream = connect_to(make_core())
    stream.greet()
    answer = runner.answer
    bad = RawTensor(dtype="uint8", shape=(-1,), data=b"")
    monkeypatch.setattr(runner, "answer", lambda job: dataclasses.replace(answer(job), outputs=(bad,)))
    failure = stream.infer(1)
    assert (failure.request_id, type(failure.error)) == (1, RemoteError)
    assert "reply to request 1" in caplog.text
    monkeypatch.undo()
    assert isinstance(stream.infer(2), InferReply)


def test_full_queue_is_busy_at_once(make_core: Any, connect_to: Any, runner: Any, until: Any) -> None:
    """With one request running and the queue full, the next is refused before any work."""
    core = make_core(max_waiting=1)
    first, second, third = (connect_to(core) for _ in range(3))
    for stream in (first, second, third):
        stream.greet()
    runner.may_run.clear()
    first.say_infer(1, b"running")
    assert runner.has_begun.acquire(timeout=20)
    second.say_infer(1, b"waiting")
    until(lambda: core.num_waiting == 1)
    refusal = third.infer(1, b"refused")
    assert isinstance(refusal.error, ServerBusy)
    assert refusal.error.retry_after_ms >= 1
    runner.may_run.set()
    assert isinstance(first.inbox.next(), InferReply)
    assert isinstance(second.inbox.next(), InferReply)
    assert runner.seen == [b"running", b"waiting"]
    assert isinstance(third.infer(2), InferReply)


def test_expired_request_is_not_run(make_core: Any, connect_to: Any, runner: Any, until: Any) -> None:
    """A request whose time is over when its turn comes costs the server nothing."""
    core = make_core()
    stream = connect_to(core)
    stream.greet()
    runner.may_run.clear()
    stream.say_infer(1, b"running")
    assert runner.has_begun.acquire(timeout=20)
    stream.say_infer(2, b"late", deadline_ms=1)
    until(lambda: core.num_waiting == 1)
    threading.Event().wait(0.002)
    runner.may_run.set()
    assert isinstance(stream.inbox.next(), InferReply)
    answer = stream.inbox.next()
    assert isinstance(answer.error, DeadlineExceeded)
    assert runner.seen == [b"running"]


def test_requests_of_a_gone_client_are_dropped(make_core: Any, connect_to: Any, runner: Any, until: Any) -> None:
    """What a client left behind does not keep others waiting."""
    core = make_core()
    staying, leaving = connect_to(core), connect_to(core)
    staying.greet()
    leaving.greet()
    runner.may_run.clear()
    staying.say_infer(1, b"running")
    assert runner.has_begun.acquire(timeout=20)
    leaving.say_infer(1, b"orphan")
    until(lambda: core.num_waiting == 1)
    leaving.transport.close()
    until(lambda: core.num_waiting == 0)
    runner.may_run.set()
    assert isinstance(staying.inbox.next(), InferReply)
    assert isinstance(staying.infer(2, b"next"), InferReply)
    assert runner.seen == [b"running", b"next"]


def test_too_many_streams_are_refused(make_core: Any, connect_to: Any, until: Any) -> None:
    """A stream over the limit is told to come back later; when one leaves there is room again."""
    core = make_core(max_streams=1, hello_timeout_s=1000)
    first = connect_to(core)
    assert isinstance(first.greet(), Welcome)
    refused = connect_to(core)
    assert isinstance(refused.inbox.next().error, ServerBusy)
    assert isinstance(refused.inbox.next(), PeerUnavailable)  # the server ended the stream without waiting for Hello
    first.transport.close()
    until(lambda: core.num_streams == 0)
    assert isinstance(connect_to(core).greet(), Welcome)


def test_drain_finishes_what_was_accepted(make_core: Any, connect_to: Any, runner: Any, until: Any) -> None:
    """While it drains the server answers what it has accepted and refuses what is new."""
    core = make_core()
    stream = connect_to(core)
    stream.greet()
    runner.may_run.clear()
    stream.say_infer(1, b"running")
    assert runner.has_begun.acquire(timeout=20)
    stream.say_infer(2, b"waiting")
    until(lambda: core.num_waiting == 1)
    given_up: list[int] = []
    draining = threading.Thread(target=lambda: given_up.append(core.drain(20.0)))
    draining.start()
    until(lambda: core.is_draining)
    refusal = stream.infer(3, b"new")
    assert isinstance(refusal.error, PeerUnavailable)
    assert isinstance(connect_to(core).greet().error, PeerUnavailable)
    runner.may_run.set()
    draining.join(20)
    assert given_up == [0]
    assert [stream.inbox.next().request_id, stream.inbox.next().request_id] == [1, 2]


def test_drain_gives_up_in_the_end(make_core: Any, connect_to: Any, runner: Any, until: Any) -> None:
    """When the time to drain is over, requests that wait are told so, and counted."""
    core = make_core()
    stream = connect_to(core)
    stream.greet()
    runner.may_run.clear()
    stream.say_infer(1, b"running")
    assert runner.has_begun.acquire(timeout=20)
    stream.say_infer(2, b"waiting")
    until(lambda: core.num_waiting == 1)
    assert core.drain(0.0) == 2
    answer = stream.inbox.next()
    assert (answer.request_id, type(answer.error)) == (2, PeerUnavailable)
    runner.may_run.set()
    assert isinstance(stream.inbox.next(), InferReply)


def test_flood_is_held_back(make_core: Any, connect_to: Any, runner: Any) -> None:
    """Everything that one client sends at once is answered in the end, whatever the limits on reading ahead are."""
    stream = connect_to(make_core(max_in_flight=2, max_waiting=1000))
    stream.greet()
    for request_id in range(1, 201):
        stream.say_infer(request_id, b"%d" % request_id)
    assert [stream.inbox.next().request_id for _ in range(200)] == list(range(1, 201))
