"""Servers that die, hang, or are only busy, and how soon a device knows."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")

from serverlight.codec import CodecConfig  # noqa: E402
from serverlight.errors import ConfigError, DeadlineExceeded, PeerUnavailable  # noqa: E402
from serverlight.generation import DecoderLoopback, LoadedDecoder  # noqa: E402
from serverlight.plan import Plan  # noqa: E402
from serverlight.runtime.conversion import decode_client, decode_server, encode_client, encode_server  # noqa: E402
from serverlight.runtime.core import ServerConfig  # noqa: E402
from serverlight.runtime.decoder_client import DecoderClient  # noqa: E402
from serverlight.runtime.grpc_transport import GrpcTransport  # noqa: E402
from serverlight.runtime.heartbeat import Heartbeat  # noqa: E402
from serverlight.runtime.messages import (  # noqa: E402
    CloseSession,
    OpenSession,
    Ping,
    Pong,
    Step,
    StepReply,
    Timing,
)
from serverlight.runtime.server import Server  # noqa: E402
from serverlight.runtime.stream import ClientStream  # noqa: E402
from serverlight.sampling import Sampling  # noqa: E402

CUT = "layers.1"
PROMPT = [1, 17, 40, 9, 33, 71, 5]
QUICK = Heartbeat(interval_s=0.1, max_missed=3)


@pytest.fixture(scope="module")
def plan(head: LoadedDecoder) -> Plan:
    return Plan(model=head.name, revision=head.revision, cut=CUT, codec=CodecConfig(profile="fp16"))


@pytest.fixture
def victim(start_process: Any, tiny_llama: str) -> Any:
    return start_process(tiny_llama, CUT)


def test_killed_server_is_noticed_at_once(victim: Any, open_stream: Any, plan: Plan) -> None:
    """From SIGKILL to the client's error a second at most goes by."""
    stream = open_stream(GrpcTransport(victim.address))
    stream.greet(plan)
    killed_s = time.monotonic()
    victim.process.kill()
    assert isinstance(stream.inbox.next(), PeerUnavailable)
    elapsed_s = time.monotonic() - killed_s
    print(f"noticed after {elapsed_s * 1e3:.1f} ms")
    assert elapsed_s < 1.0


def test_hanging_server_is_left(victim: Any, tail: LoadedDecoder, head: LoadedDecoder, plan: Plan) -> None:
    """A server that is stopped, and so neither answers nor breaks the stream, is left for another; no token changes."""
    expected = DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=20)
    heard: list[int] = []

    def hear(token: int) -> None:
        heard.append(token)
        if len(heard) == 5:
            victim.process.send_signal(signal.SIGSTOP)

    with Server(tail, [CUT]) as server:
        client = DecoderClient(
            [victim.address, server.address], plan=plan, head=head, step_timeout_s=1e5, heartbeat=QUICK
        )
        made = client.generate(PROMPT, max_new_tokens=20, on_token=hear)
    assert made.token_ids == expected == tuple(heard)
    assert made.num_recoveries >= 1


@pytest.mark.parametrize("max_in_flight", [1, 3])
def test_busy_server_answers_pings(
    make_core: Any, runner: Any, connect_to: Any, until: Callable[[Callable[[], bool]], None], max_in_flight: int
) -> None:
    """A server that computes, with as many requests under way as it takes, still says that it lives."""
    core = make_core(max_in_flight=max_in_flight)
    stream = connect_to(core)
    stream.greet()
    runner.may_run.clear()
    for request_id in range(1, max_in_flight + 1):
        stream.say_infer(request_id)
    assert runner.has_begun.acquire(timeout=20)
    for _ in range(3):
        assert stream.ask(Ping()) == Pong()
    runner.may_run.set()
    assert [stream.inbox.next().request_id for _ in range(max_in_flight)] == list(range(1, max_in_flight + 1))


class Scripted:
    """A transport that answers pings, until it is told not to, and the step when enough pings came."""

    def __init__(self, *, pongs: bool, reply_after: int) -> None:
        self.pongs, self.reply_after, self.num_pings = pongs, reply_after, 0

    def open(self, listener: Any) -> None:
        self.listener = listener

    def send(self, message: Any) -> int:
        if isinstance(message, Ping):
            self.num_pings += 1
            if self.pongs:
                self.listener.on_message(Pong(), 20)
            if self.num_pings == self.reply_after:
                self.listener.on_message(REPLY, 30)
        return 20

    def close(self) -> None:
        pass


REPLY = StepReply(step=1, token_id=3, timing=Timing(queue_ms=0, decode_ms=0, tail_ms=0, cpu_ms=0, process_cpu_ms=0))


def wait(transport: Scripted, timeout_s: float) -> Any:
    stream = ClientStream(transport)
    transport.open(stream)
    future: Future[Any]
    future, _ = stream.post(Step(step=1, frames=(b"x",)))
    return stream.wait_for(future, timeout_s, Heartbeat(interval_s=0.01, max_missed=2))


def test_long_step_of_a_living_server() -> None:
    """As long as pongs come, a step may take many times the patience with a silent server."""
    assert wait(Scripted(pongs=True, reply_after=10), 1e5) == (REPLY, 30)


def test_silence_and_lateness_differ() -> None:
    """Without a pong the server is lost; with pongs but no reply in time the deadline is over."""
    with pytest.raises(PeerUnavailable, match="silent"):
        wait(Scripted(pongs=False, reply_after=1000), 1e5)
    with pytest.raises(DeadlineExceeded, match="alive"):
        wait(Scripted(pongs=True, reply_after=10**9), 0.1)


def test_patience_grows_with_what_lies_in_the_way() -> None:
    """A ping behind a large message on a slow link is waited for; settings without sense are refused."""
    assert Heartbeat().patience_s(0) == 6.0
    assert Heartbeat().patience_s(10**6) > 100
    for wrong in ({"interval_s": 0.0}, {"interval_s": float("nan")}, {"max_missed": 0}):
        with pytest.raises(ConfigError):
            Heartbeat(**wrong)


def test_pings_return() -> None:
    """What is encoded is decoded the same."""
    assert decode_client(encode_client(Ping())) == Ping()
    assert decode_server(encode_server(Pong())) == Pong()


def test_nobody_to_begin_with(head: LoadedDecoder, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no server listens at any address, the first step fails without trying again, and names them all."""
    with socket.socket() as first, socket.socket() as second:
        for taken in (first, second):
            taken.bind(("127.0.0.1", 0))  # bound and not listening: refused
        addresses = [f"127.0.0.1:{taken.getsockname()[1]}" for taken in (first, second)]

        def fail(_: float) -> None:
            pytest.fail("waited to try again")

        monkeypatch.setattr("serverlight.runtime.sequence.time.sleep", fail)
        with pytest.raises(PeerUnavailable) as caught:
            DecoderClient(addresses, plan=plan, head=head).generate(PROMPT, max_new_tokens=3)
    assert all(address in str(caught.value) for address in addresses)


def test_second_address_to_begin_with(tail: LoadedDecoder, head: LoadedDecoder, plan: Plan) -> None:
    """Where only another of the addresses has a server, the sequence begins there, and that is no recovery."""
    with socket.socket() as taken, Server(tail, [CUT]) as server:
        taken.bind(("127.0.0.1", 0))
        addresses = [f"127.0.0.1:{taken.getsockname()[1]}", server.address]
        made = DecoderClient(addresses, plan=plan, head=head).generate(PROMPT, max_new_tokens=3)
    assert len(made.token_ids) == 3
    assert made.num_recoveries == 0


def test_prompt_of_many_chunks(
    tail: LoadedDecoder, head: LoadedDecoder, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt of more chunks than the server takes ahead is sent as it takes them: no step waits behind the limit."""
    waiting: list[int] = []
    post = ClientStream.post

    def count(stream: ClientStream, step: Any) -> Any:
        result = post(stream, step)
        waiting.append(stream.num_waiting)
        return result

    monkeypatch.setattr(ClientStream, "post", count)
    expected = DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=4, chunk_tokens=1)
    with Server(tail, [CUT], config=ServerConfig(max_in_flight=2)) as server:
        client = DecoderClient([server.address], plan=plan, head=head)
        assert client.generate(PROMPT, max_new_tokens=4, chunk_tokens=1).token_ids == expected
    assert len(waiting) == len(PROMPT) + 3
    assert max(waiting) <= 2


def test_sessions_one_after_the_other(tail: LoadedDecoder, open_stream: Any, plan: Plan) -> None:
    """Messages without an answer take no place of those that have one: a stream may open sessions for ever."""
    with Server(tail, [CUT], config=ServerConfig(max_in_flight=2)) as server:
        stream = open_stream(GrpcTransport(server.address))
        stream.greet(plan)
        for _ in range(5):
            stream.say(OpenSession(sampling=Sampling()))
            stream.say(CloseSession())
        stream.say(OpenSession(sampling=Sampling()))
        assert stream.ask(Ping()) == Pong()
        assert stream.ask(Step(step=1, frames=(b"junk",))).request_id == 1
