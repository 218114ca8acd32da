"""What devices, links and strangers do to a true server, and what is left of it afterwards."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
import torch

from serverlight.codec import Codec, CodecConfig
from serverlight.errors import (
    AddressInUse,
    ChecksumMismatch,
    ConfigError,
    ConnectTimeout,
    DeadlineExceeded,
    FrameError,
    FrameTooLarge,
    InputMismatch,
    MessageTooLarge,
    PeerUnavailable,
    ProtocolError,
    RemoteError,
    TransportError,
)
from serverlight.link import LinkConfig, LinkProxy
from serverlight.models import LoadedModel
from serverlight.partition import Partition
from serverlight.plan import Plan
from serverlight.runtime import Client, Server, ServerConfig, connect, grpc_transport
from serverlight.runtime.grpc_transport import GrpcTransport, check_health
from serverlight.runtime.messages import Failure, Frame, Image, InferReply, InferRequest, Payload, RawTensor
from serverlight.runtime.tensors import from_raw, to_raw
from serverlight.runtime.worker import Worker

Pair = tuple[LoadedModel, Partition]
FEATURE = torch.rand(1, 8, 16, 16)
FRAME = Codec(CodecConfig(profile="slicer", sparsity=0.5)).encode(FEATURE)


@pytest.fixture(scope="module")
def server(residual: Pair) -> Iterator[Server]:
    config = ServerConfig(max_batch=4, max_message_bytes=1 << 20)
    with Server(residual[0], ["stem", "body"], parts=residual[1], config=config) as server:
        yield server


@pytest.fixture
def plan_at(residual: Pair) -> Callable[[str], Plan]:
    return lambda cut: Plan(model=residual[0].name, revision=residual[0].revision, cut=cut)


@pytest.fixture
def client_at(residual: Pair, plan_at: Callable[[str], Plan]) -> Callable[..., Client]:
    def client_at(address: str, **fields: Any) -> Client:
        return connect(address, plan=plan_at("stem"), model=residual[1], **fields)

    return client_at


@pytest.fixture
def bystander(server: Server, client_at: Callable[..., Client]) -> Iterator[Client]:
    """Another client, which must notice nothing of what happens in a test."""
    with client_at(server.address) as client:
        before = client.infer(torch.ones(1, 3, 16, 16))["logits"]
        yield client
        assert torch.equal(client.infer(torch.ones(1, 3, 16, 16))["logits"], before)


# -- payloads ---------------------------------------------------------------------------------------

TERABYTE_FRAME = b"SL\x01\x00\x00\x02" + b"\xff\xff\xff\xff\x0f" * 2
"""Profile fp16, float32, rank 2, both dimensions 2^32 - 1 (docs/wire-format.md, section 2)."""

ALTERED_FRAME = bytearray(FRAME)
ALTERED_FRAME[len(FRAME) // 2] ^= 1


def frame(feature: torch.Tensor) -> Frame:
    return Frame(data=Codec(CodecConfig(profile="slicer", sparsity=0.5)).encode(feature))


@pytest.mark.parametrize(
    ("payloads", "kind", "complaint"),
    [
        ((Frame(data=bytes(ALTERED_FRAME)),), ChecksumMismatch, ""),
        ((Frame(data=FRAME[:-1]),), FrameError, ""),
        ((Frame(data=FRAME[:5]),), FrameError, ""),
        ((Frame(data=b""),), FrameError, ""),
        ((Frame(data=TERABYTE_FRAME),), FrameTooLarge, ""),
        ((frame(torch.rand(5, 8, 16, 16)),), FrameTooLarge, ""),
        ((frame(torch.rand(1, 8, 16)),), InputMismatch, "stem: expected float32"),
        ((frame(torch.rand(1, 8, 16, 15)),), InputMismatch, "(1, 8, 16, 15)"),
        ((frame(torch.rand(0, 8, 16, 16)),), InputMismatch, "(0, 8, 16, 16)"),
        ((frame(FEATURE.half()),), InputMismatch, "float16"),
        ((to_raw(FEATURE.double()),), InputMismatch, "float64"),
        ((to_raw(FEATURE.long()),), InputMismatch, "int64"),
        ((to_raw(torch.rand(5, 8, 16, 16)),), InputMismatch, "(5, 8, 16, 16)"),
        ((RawTensor(dtype="float32", shape=(2**20, 2**20), data=b""),), ProtocolError, "4398046511104 bytes"),
        ((RawTensor(dtype="complex64", shape=(1,), data=bytes(8)),), ProtocolError, "complex64"),
        ((), ProtocolError, "takes 1 payloads, 0 came"),
        ((Frame(data=FRAME), Frame(data=FRAME)), ProtocolError, "2 came"),
        ((Image(data=b"\x89PNG"),), ProtocolError, "takes no images"),
    ],
)
def test_bad_payload_is_its_own_requests_error(
    server: Server,
    plan_at: Callable[[str], Plan],
    open_stream: Any,
    bystander: Client,
    payloads: tuple[Payload, ...],
    kind: type[Exception],
    complaint: str,
) -> None:
    """A payload that is damaged, lies, or does not fit fails its request by name; its stream and all others go on."""
    stream = open_stream(GrpcTransport(server.address))
    stream.greet(plan_at("stem"))
    answer = stream.ask(InferRequest(request_id=1, payloads=payloads))
    assert answer.request_id == 1
    assert isinstance(answer.error, kind)
    assert complaint in str(answer.error)
    good = stream.ask(InferRequest(request_id=2, payloads=(Frame(data=FRAME),)))
    assert isinstance(good, InferReply)


def test_raw_feature_is_as_good_as_a_frame(server: Server, plan_at: Callable[[str], Plan], open_stream: Any) -> None:
    """A feature may also come uncompressed."""
    stream = open_stream(GrpcTransport(server.address))
    stream.greet(plan_at("stem"))
    assert isinstance(stream.ask(InferRequest(request_id=1, payloads=(to_raw(FEATURE),))), InferReply)


def test_tensors_of_one_request_must_agree(server: Server, plan_at: Callable[[str], Plan], open_stream: Any) -> None:
    """Two tensors of one cut with unlike batches are refused, and an image among tensors is."""
    stream = open_stream(GrpcTransport(server.address))
    stream.greet(plan_at("body"))
    answer = stream.ask(InferRequest(request_id=1, payloads=(to_raw(FEATURE), to_raw(FEATURE.expand(2, -1, -1, -1)))))
    assert isinstance(answer.error, InputMismatch)
    answer = stream.ask(InferRequest(request_id=2, payloads=(to_raw(FEATURE), Image(data=b""))))
    assert isinstance(answer.error, ProtocolError)


def test_bool_that_is_none_is_refused() -> None:
    """Bytes of a bool tensor other than 0 and 1 never reach torch, which gives them no meaning."""
    assert from_raw(RawTensor(dtype="bool", shape=(2,), data=b"\x00\x01")).tolist() == [False, True]
    with pytest.raises(InputMismatch, match="0 or 1"):
        from_raw(RawTensor(dtype="bool", shape=(2,), data=b"\x00\x02"))


def test_failing_tail_is_a_remote_error(masked: Pair, caplog: Any) -> None:
    """A token id outside of the vocabulary breaks the tail: one error without internals, and the server lives on."""
    plan = Plan(model=masked[0].name, revision=masked[0].revision, cut="input")
    good = {"input_ids": torch.zeros(1, 6, dtype=torch.int64), "attention_mask": torch.ones(1, 6, dtype=torch.int64)}
    bad = {**good, "input_ids": torch.full((1, 6), 999)}
    with (
        Server(masked[0], ["input"], parts=masked[1]) as server,
        connect(server.address, plan=plan, model=masked[1]) as client,
    ):
        with pytest.raises(RemoteError) as caught:
            client.infer(bad)
        assert "index" not in str(caught.value)
        assert "index out of range" in caplog.text
        client.infer(good)


# -- the socket -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "garbage", [b"\x00" * 1000, os.urandom(4096), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\n"]
)
def test_garbage_on_the_port_hurts_nobody(
    server: Server, client_at: Callable[..., Client], bystander: Client, garbage: bytes
) -> None:
    """While a stranger talks nonsense to the port, old and new clients are served."""
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=20) as stranger:
        stranger.sendall(garbage)
        with client_at(server.address) as newcomer:
            newcomer.infer(torch.rand(1, 3, 16, 16))


@pytest.mark.parametrize("data", [b"garbage", b"\xff" * 64, b""])
def test_garbage_in_a_stream_ends_that_stream(server: Server, open_stream: Any, bystander: Client, data: bytes) -> None:
    """A gRPC message that is none of ours gets a ProtocolError, and the stream is over."""
    stream = open_stream(GrpcTransport(server.address))
    stream.transport._outbox.put(data)
    refusal = stream.inbox.next()
    assert refusal.request_id == 0
    assert isinstance(refusal.error, ProtocolError)
    assert isinstance(stream.inbox.next(), PeerUnavailable)


def test_silent_stream_is_ended(make_core: Any, serve: Any, open_stream: Any) -> None:
    """A stream without a Hello does not stay open."""
    stream = open_stream(GrpcTransport(f"127.0.0.1:{serve(make_core(hello_timeout_s=0.05)).port}"))
    refusal = stream.inbox.next()
    assert isinstance(refusal.error, ProtocolError)
    assert "no Hello" in str(refusal.error)


def test_message_over_the_limit(
    residual: Pair, server: Server, client_at: Any, open_stream: Any, bystander: Client, plan_at: Any
) -> None:
    """A client refuses to send what the server would not read; one that sends it anyway loses its stream."""
    large = to_raw(torch.zeros(300, 1024))
    with client_at(server.address) as client:
        with pytest.raises(
            MessageTooLarge, match="at most 131072"
        ):  # 4 samples of 8 x 16 x 16 at the cut, and some more
            client.infer_image(bytes(1 << 20))
        client.infer(torch.rand(1, 3, 16, 16))
    with pytest.raises(MessageTooLarge):
        open_stream(GrpcTransport(server.address, max_message_bytes=1000)).say(
            InferRequest(request_id=1, payloads=(large,))
        )
    rude = open_stream(GrpcTransport(server.address))
    rude.greet(plan_at("stem"))
    rude.say(InferRequest(request_id=1, payloads=(large,)))
    assert isinstance(rude.inbox.next(), MessageTooLarge)


def test_message_without_a_meaning_is_not_read(
    residual: Pair, server: Server, open_stream: Any, plan_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is larger than anything that the cut takes, or a Hello, ends its stream before it is parsed; the largest batch,
    uncompressed, is taken.
    """
    read, parse = list[int](), grpc_transport.decode_client
    monkeypatch.setattr(grpc_transport, "decode_client", lambda data: read.append(len(data)) or parse(data))
    stream = open_stream(GrpcTransport(server.address))
    stream.greet(plan_at("stem"))
    stream.say(InferRequest(request_id=1, payloads=(to_raw(torch.zeros(4, 8, 16, 16)),)))
    assert isinstance(stream.inbox.next(), InferReply)
    stream.say(InferRequest(request_id=2, payloads=(to_raw(torch.zeros(16, 8, 16, 16)),)))
    refusal = stream.inbox.next()
    assert isinstance(refusal, Failure)
    assert isinstance(refusal.error, MessageTooLarge)
    early = open_stream(GrpcTransport(server.address))
    early.say(InferRequest(request_id=1, payloads=(to_raw(torch.zeros(16, 8, 16, 16)),)))
    assert isinstance(early.inbox.next().error, MessageTooLarge)
    assert max(read) < 4 * 8 * 16 * 16 * 4 + 1000


def test_reply_over_the_limit_is_that_requests_error(residual: Pair) -> None:
    """An answer that would not fit through is replaced by an error; the stream goes on."""
    plan = Plan(
        model=residual[0].name,
        revision=residual[0].revision,
        cut="forward:mean",
        codec=CodecConfig(profile="slicer", sparsity=0.99),
    )
    config = ServerConfig(max_message_bytes=1500)
    with (
        Server(residual[0], ["forward:mean"], parts=residual[1], config=config) as server,
        connect(server.address, plan=plan, model=residual[1]) as client,
    ):
        client.infer(torch.rand(1, 3, 16, 16))
        with pytest.raises(MessageTooLarge):
            client.infer(torch.rand(64, 3, 16, 16))
        client.infer(torch.rand(1, 3, 16, 16))


def test_port_in_use(residual: Pair, server: Server, bystander: Client) -> None:
    """A second server on the same port is refused, and the first one stays whole."""
    second = Server(residual[0], ["stem"], parts=residual[1], port=int(server.address.split(":")[1]))
    with pytest.raises(AddressInUse, match="choose another port"):
        second.start()


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1"])
def test_host_that_is_not_ours(residual: Pair, host: str) -> None:
    """An address that this machine does not have is a wrong setting."""
    with pytest.raises(ConfigError, match="host"):
        Server(residual[0], ["stem"], parts=residual[1], host=host).start()


# -- nobody there -----------------------------------------------------------------------------------


def test_server_that_is_down(client_at: Callable[..., Client]) -> None:
    """Nobody at the address: PeerUnavailable at once, not after the timeout."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        started_s = time.monotonic()
        with pytest.raises(PeerUnavailable, match="is the server up"):
            client_at(f"127.0.0.1:{unused.getsockname()[1]}", timeout_s=30.0)
        assert time.monotonic() - started_s < 10


def test_server_that_says_nothing(client_at: Callable[..., Client]) -> None:
    """A port that accepts and stays silent: ConnectTimeout after the time that was given."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        started_s = time.monotonic()
        with pytest.raises(ConnectTimeout):
            client_at(f"127.0.0.1:{silent.getsockname()[1]}", timeout_s=0.2)
        assert 0.2 <= time.monotonic() - started_s < 10


def test_server_that_is_somebody_elses(client_at: Callable[..., Client]) -> None:
    """A gRPC server without our service says so."""
    other = grpc.server(ThreadPoolExecutor(1))
    port = other.add_insecure_port("127.0.0.1:0")
    other.start()
    try:
        with pytest.raises(ProtocolError, match="is this a serverlight server"):
            client_at(f"127.0.0.1:{port}")
    finally:
        other.stop(0).wait()


def test_link_that_breaks(server: Server, client_at: Callable[..., Client]) -> None:
    """When the link is cut the client gets PeerUnavailable, again and again, and closes without a hitch."""
    with LinkProxy(server.address, LinkConfig()) as proxy, client_at(proxy.address) as client:
        client.infer(torch.rand(1, 3, 16, 16))
        proxy.cut()
        for _ in range(3):
            with pytest.raises(PeerUnavailable):
                client.infer(torch.rand(1, 3, 16, 16))
        proxy.restore()
        with client_at(proxy.address) as again:
            again.infer(torch.rand(1, 3, 16, 16))


def test_closed_client_says_so(server: Server, client_at: Callable[..., Client]) -> None:
    """A client that was closed raises, and can be closed again."""
    client = client_at(server.address)
    client.close()
    client.close()
    with pytest.raises(PeerUnavailable, match="client is closed"):
        client.infer(torch.rand(1, 3, 16, 16))


def test_slow_link_misses_the_deadline(server: Server, client_at: Callable[..., Client]) -> None:
    """A reply that does not come in time is DeadlineExceeded; the client stays usable."""
    with LinkProxy(server.address, LinkConfig()) as proxy, client_at(proxy.address) as client:
        proxy.set_link(LinkConfig(delay_ms=300))
        with pytest.raises(DeadlineExceeded, match="50 ms"):
            client.infer(torch.rand(1, 3, 16, 16), deadline_ms=50)
        proxy.set_link(LinkConfig())
        client.infer(torch.rand(1, 3, 16, 16))


# -- ending -----------------------------------------------------------------------------------------


class HeldServer:
    """A server whose tail waits until the test lets it run."""

    def __init__(self, residual: Pair, monkeypatch: Any, **limits: Any) -> None:
        self.has_begun, self.may_run = threading.Event(), threading.Event()
        run = Worker.run

        def held(worker: Worker, *args: Any, **kwargs: Any) -> InferReply:
            self.has_begun.set()
            assert self.may_run.wait(20)
            return run(worker, *args, **kwargs)

        monkeypatch.setattr(Worker, "run", held)
        self.server = Server(residual[0], ["stem"], parts=residual[1], config=ServerConfig(**limits)).start()


def in_background(action: Callable[[], Any]) -> tuple[threading.Thread, list[Any]]:
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(action())
        except TransportError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, results


def test_drain_while_a_request_runs(
    residual: Pair, client_at: Callable[..., Client], monkeypatch: Any, until: Any
) -> None:
    """Health says NOT_SERVING first, the running request is answered, idle clients are told, the port is free again."""
    held = HeldServer(residual, monkeypatch)
    address = held.server.address
    assert check_health(address)
    with client_at(address) as busy, client_at(address) as idle:
        asking, answers = in_background(lambda: busy.infer(torch.ones(1, 3, 16, 16)))
        assert held.has_begun.wait(20)
        draining, given_up = in_background(held.server.drain)
        until(lambda: not check_health(address))
        with pytest.raises(PeerUnavailable, match="shutting down"):
            idle.infer(torch.ones(1, 3, 16, 16))
        with pytest.raises(PeerUnavailable, match="shutting down"):
            client_at(address)
        assert not answers
        held.may_run.set()
        asking.join(20)
        draining.join(20)
        assert "logits" in answers[0]
        assert given_up == [0]
        with pytest.raises(PeerUnavailable):
            busy.infer(torch.ones(1, 3, 16, 16))
    with pytest.raises(PeerUnavailable):
        check_health(address)
    with Server(residual[0], ["stem"], parts=residual[1], port=int(address.split(":")[1])):
        assert check_health(address)


def test_drain_gives_up_on_time(residual: Pair, client_at: Callable[..., Client], monkeypatch: Any, until: Any) -> None:
    """A server that may not take longer leaves what waits with an error, and says how many."""
    held = HeldServer(residual, monkeypatch)
    with client_at(held.server.address) as first, client_at(held.server.address) as second:
        running, first_answer = in_background(lambda: first.infer(torch.ones(1, 3, 16, 16)))
        assert held.has_begun.wait(20)
        waiting, second_answer = in_background(lambda: second.infer(torch.ones(1, 3, 16, 16)))
        until(lambda: held.server.core.num_waiting == 1)
        draining, given_up = in_background(lambda: held.server.drain(0.0))
        waiting.join(20)
        assert isinstance(second_answer[0], PeerUnavailable)
        running.join(20)
        assert isinstance(first_answer[0], PeerUnavailable)
        held.may_run.set()
        draining.join(20)
        assert given_up == [2]


CHILD = """
import sys, torch, serverlight
from torch import nn
from serverlight.models import LoadedModel
torch.set_num_threads(1)
torch.manual_seed(0)
model = LoadedModel.of("child", nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.zeros(2, 4))
server = serverlight.Server(model, ["1"]).start()
print(server.address, model.revision, flush=True)
server.serve_until_stopped()
print("stopped", flush=True)
"""


@pytest.fixture
def child() -> Iterator[tuple[subprocess.Popen[str], str, Client]]:
    """A server process, and a client of it."""
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    model = LoadedModel.of("child", module, torch.zeros(2, 4))
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address, revision = process.stdout.readline().split()
            assert revision == model.revision
            plan = Plan(model="child", revision=revision, cut="1", codec=CodecConfig(profile="slicer", sparsity=0.0))
            with connect(address, plan=plan, model=model) as client:
                yield process, address, client
        finally:
            process.kill()


def test_server_killed_in_the_middle_of_a_request(child: Any, until: Any) -> None:
    """A server process that is killed with a request under way: PeerUnavailable at once, not at the deadline."""
    process, _, client = child
    client.infer(torch.rand(1, 4))
    os.kill(process.pid, signal.SIGSTOP)  # so that the request cannot be answered before the kill
    asking, answers = in_background(lambda: client.infer(torch.rand(1, 4)))
    until(lambda: client.num_waiting == 1)
    killed_s = time.monotonic()
    process.kill()
    asking.join(20)
    assert isinstance(answers[0], PeerUnavailable)
    assert time.monotonic() - killed_s < 10  # seen: 2 ms; the machine may be busy
    with pytest.raises(PeerUnavailable):
        client.infer(torch.rand(1, 4))


def test_sigterm_drains_the_process(child: Any) -> None:
    """SIGTERM ends a server process in good order."""
    process, _, client = child
    client.infer(torch.rand(1, 4))
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert process.stdout.read() == "stopped\n"
    with pytest.raises(PeerUnavailable):
        client.infer(torch.rand(1, 4))
