"""Faults within messages, on a server and on a client, without a model."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from serverlight.errors import ConfigError, PeerUnavailable
from serverlight.faults import FaultPlan, Strike
from serverlight.plan import Plan
from serverlight.runtime.injection import EXIT_CRASHED, InjectingServer, InjectingTransport, corrupt
from serverlight.runtime.messages import (
    CloseSession,
    Frame,
    Hello,
    Image,
    InferReply,
    InferRequest,
    MoveCut,
    Ping,
    Pong,
    RawTensor,
    Step,
    Welcome,
)
from serverlight.runtime.transport import InProcessTransport

DATA = bytes(64)


def injecting(core: Any, *faults: str, told: list[Strike] | None = None) -> InjectingServer:
    return InjectingServer(core, FaultPlan.parse(faults, seed=2), on_strike=([] if told is None else told).append)


def set_bits(data: bytes) -> int:
    return sum(byte.bit_count() for byte in data)


@pytest.mark.parametrize(
    "message",
    [
        InferRequest(request_id=1, payloads=(Frame(data=DATA), Frame(data=DATA))),
        InferRequest(request_id=1, payloads=(RawTensor(dtype="uint8", shape=(64,), data=DATA),)),
        InferRequest(request_id=1, payloads=(Image(data=DATA),)),
        Step(step=1, frames=(DATA, DATA)),
        MoveCut(step=2, layer=1, keys=DATA, values=DATA),
    ],
)
def test_corrupt_alters_one_bit_of_what_is_carried(message: Any) -> None:
    """One bit of one payload is another; number, kind and sizes are as they were."""
    altered = corrupt(message, FaultPlan((), seed=1).roll(0))
    assert type(altered) is type(message)
    assert altered.request_id == message.request_id
    carried = getattr(altered, "frames", None) or [p.data for p in getattr(altered, "payloads", ())]
    carried = carried or [altered.keys, altered.values]
    assert sum(map(set_bits, carried)) == 1
    assert all(len(data) == len(DATA) for data in carried)


@pytest.mark.parametrize("message", [Ping(), CloseSession(), Step(step=1, frames=())])
def test_corrupt_leaves_the_rest(message: Any) -> None:
    """What carries no data stays as it is."""
    assert corrupt(message, FaultPlan((), seed=1).roll(0)) == message


def test_corrupt_frame_fails_its_request_only(make_core: Any, open_stream: Any) -> None:
    """The stream lives on: the server sees other bytes, and answers."""
    told: list[Strike] = []
    stream = open_stream(InProcessTransport(injecting(make_core(), "corrupt:1", told=told)))
    assert isinstance(stream.greet(), Welcome)
    for request_id in (1, 2):
        reply = stream.infer(request_id, DATA)
        assert isinstance(reply, InferReply)
        assert set_bits(reply.outputs[0].data) == 1
    assert [(strike.kind, strike.direction) for strike in told] == [("corrupt", "up")] * 3


def test_kill_ends_the_stream_with_a_reason(make_core: Any, open_stream: Any, until: Any) -> None:
    """The client is told, and the server forgets the stream."""
    core = make_core()
    stream = open_stream(InProcessTransport(injecting(core, "kill:1")))
    assert "injected" in str(stream.greet().error)
    assert isinstance(stream.inbox.next(), PeerUnavailable)
    until(lambda: core.num_streams == 0)


def test_drop_swallows_messages_or_replies(make_core: Any, open_stream: Any, runner: Any, plan: Plan) -> None:
    """Up, nothing reaches the server; down, it works, and nobody hears of it."""
    deaf = open_stream(InProcessTransport(injecting(make_core(), "drop:1:up")))
    deaf.say_infer(1)
    core = make_core()
    mute = open_stream(InProcessTransport(injecting(core, "drop:1:down")))
    mute.say(Hello(plan_json=plan.to_json()))
    mute.say_infer(1, b"heard")
    assert runner.has_begun.acquire(timeout=20)
    assert runner.seen == [b"heard"]
    assert deaf.inbox.is_empty
    assert mute.inbox.is_empty


def test_stall_keeps_order(make_core: Any, open_stream: Any, runner: Any) -> None:
    """What is held back is read later, in the order in which it came."""
    stream = open_stream(InProcessTransport(injecting(make_core(), "stall:0.5:20ms")))
    assert isinstance(stream.greet(), Welcome)
    names = [b"%d" % i for i in range(12)]
    for i, name in enumerate(names, start=1):
        stream.say_infer(i, name)
    assert [stream.inbox.next().request_id for _ in names] == list(range(1, 13))
    assert runner.seen == names


def test_moments_strike_each_stream_once(make_core: Any, open_stream: Any, until: Any) -> None:
    """A moment strikes with the first message after it; a stream that comes later is spared."""
    told: list[Strike] = []
    server = injecting(make_core(), "corrupt:@50ms", told=told)
    stream = open_stream(InProcessTransport(server))
    stream.greet()
    until(lambda: isinstance(stream.ask(Ping()), Pong) and bool(told))
    later = open_stream(InProcessTransport(server))
    later.greet()
    for request_id in (1, 2, 3):
        assert set_bits(stream.infer(request_id, DATA).outputs[0].data) == 0
        assert set_bits(later.infer(request_id, DATA).outputs[0].data) == 0
    assert [strike.connection for strike in told] == [0]


def test_client_side(make_core: Any, open_stream: Any) -> None:
    """A client's transport can have the faults as well."""
    core = make_core()
    plan = FaultPlan.parse(["corrupt:1"], seed=3)
    told: list[Strike] = []
    stream = open_stream(InjectingTransport(InProcessTransport(core), plan, on_strike=told.append))
    assert isinstance(stream.greet(), Welcome)
    assert set_bits(stream.infer(1, DATA).outputs[0].data) == 1
    assert isinstance(stream.ask(Ping()), Pong)
    killed = InjectingTransport(InProcessTransport(core), FaultPlan.parse(["kill:1"]), on_strike=told.append)
    assert isinstance(open_stream(killed).greet(), PeerUnavailable | Welcome)


CRASH = """
from serverlight.faults import FaultPlan
from serverlight.runtime.injection import InjectingServer
from serverlight.runtime.messages import Ping
class Nobody:
    def connect(self, reply, client):
        return self
InjectingServer(Nobody(), FaultPlan.parse(["crash:1"])).connect(print).receive(Ping())
"""


def test_crash_ends_the_process() -> None:
    """A crash is no exception that somebody could catch, and no farewell."""
    done = subprocess.run([sys.executable, "-c", CRASH], capture_output=True, check=False)
    assert done.returncode == EXIT_CRASHED


@pytest.mark.parametrize("make", [InjectingServer, InjectingTransport])
@pytest.mark.parametrize(
    ("fault", "remedy"), [("slow:0.1:64kbit:1s", "serverlight chaos"), ("corrupt:0.1:down", "leave `:down` away")]
)
def test_what_does_not_strike_messages(make: Callable[..., Any], fault: str, remedy: str) -> None:
    """What cannot be done here is refused, and what can be done is said."""
    with pytest.raises(ConfigError, match=remedy):
        make(None, FaultPlan.parse([fault]))
