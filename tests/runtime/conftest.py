"""A server core without a model, listeners that remember, and sockets to try them on."""

from __future__ import annotations

import asyncio
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from serverlight.codec.config import CodecConfig
from serverlight.errors import TransportError
from serverlight.models import LoadedModel
from serverlight.partition import Partition, partition
from serverlight.plan import Plan
from serverlight.runtime.catalogue import Catalogue, Engine
from serverlight.runtime.core import ServerConfig, ServerCore
from serverlight.runtime.grpc_transport import GrpcServer, GrpcTransport
from serverlight.runtime.messages import (
    ClientMessage,
    Frame,
    Hello,
    InferReply,
    InferRequest,
    RawTensor,
    ServerMessage,
    Timing,
)
from serverlight.runtime.quotas import Quotas
from serverlight.runtime.scheduler import Answer, Job
from serverlight.runtime.security import Security
from serverlight.runtime.transport import InProcessTransport, Transport

PLAN = Plan(model="echo", revision="1", cut="middle", codec=CodecConfig(profile="slicer", sparsity=0.5))
WAIT_S = 20.0
"""No test waits for less than this before it calls something lost: the machine may be busy."""


class EchoRunner:
    """Answers with the first payload; can be held, and can fail on demand."""

    def __init__(self) -> None:
        self.may_run = threading.Event()
        self.may_run.set()
        self.has_begun = threading.Semaphore(0)
        self.fail_on: dict[bytes, Exception] = {}
        self.seen: list[bytes] = []

    def prepare(self, job: Job) -> None:
        """Nothing is to be read before its turn."""

    def run(self, jobs: Sequence[Job], *, is_shared: bool) -> Iterator[tuple[Job, Answer]]:
        for job in jobs:
            try:
                yield job, self.answer(job)
            except Exception as error:
                yield job, error

    def answer(self, job: Job) -> InferReply:
        cut, request, queue_ms = job.cut, job.request, (time.monotonic() - job.arrived_s) * 1e3
        assert isinstance(request, InferRequest)
        data = request.payloads[0].data
        self.seen.append(data)
        self.has_begun.release()
        assert self.may_run.wait(WAIT_S)
        if data in self.fail_on:
            raise self.fail_on[data]
        output = RawTensor(dtype="uint8", shape=(len(data),), data=data, name=cut)
        timing = Timing(queue_ms=queue_ms, decode_ms=1.0, tail_ms=2.0, cpu_ms=3.0, process_cpu_ms=4.0)
        return InferReply(request_id=request.request_id, outputs=(output,), timing=timing)


class Inbox:
    """A listener that keeps what it hears."""

    def __init__(self) -> None:
        self._heard: queue.SimpleQueue[tuple[ServerMessage, int] | TransportError] = queue.SimpleQueue()

    def on_message(self, message: ServerMessage, num_bytes: int) -> None:
        self._heard.put((message, num_bytes))

    def on_closed(self, error: TransportError) -> None:
        self._heard.put(error)

    def next(self) -> Any:
        """The next message, or the error that closed the stream."""
        heard = self._heard.get(timeout=WAIT_S)
        return heard[0] if isinstance(heard, tuple) else heard

    @property
    def is_empty(self) -> bool:
        """Whether nothing has come that was not taken."""
        return self._heard.empty()

    def next_with_bytes(self) -> tuple[ServerMessage, int]:
        heard = self._heard.get(timeout=WAIT_S)
        assert isinstance(heard, tuple), heard
        return heard


class Stream:
    """One client's stream, message by message."""

    def __init__(self, transport: Transport) -> None:
        self.transport, self.inbox = transport, Inbox()
        transport.open(self.inbox)

    def say(self, message: ClientMessage) -> int:
        return self.transport.send(message)

    def ask(self, message: ClientMessage) -> Any:
        self.say(message)
        return self.inbox.next()

    def greet(self, plan: Plan = PLAN) -> Any:
        return self.ask(Hello(plan_json=plan.to_json()))

    def say_infer(self, request_id: int, data: bytes = b"x", **fields: Any) -> int:
        return self.say(InferRequest(request_id=request_id, payloads=(Frame(data=data),), **fields))

    def infer(self, request_id: int, data: bytes = b"x", **fields: Any) -> Any:
        """Asks and returns the reply."""
        self.say_infer(request_id, data, **fields)
        return self.inbox.next()


class GrpcThread:
    """A GrpcServer on an event loop of its own."""

    def __init__(self, core: ServerCore, security: Security | None = None) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        config = core.config
        self.server = self.run(self._make(core, config, security or Security()))
        self.port = self.run(self.server.start("127.0.0.1", 0))

    async def _make(self, core: ServerCore, config: ServerConfig, security: Security) -> GrpcServer:
        return GrpcServer(
            core,
            max_message_bytes=config.max_message_bytes,
            max_in_flight=config.max_in_flight,
            hello_timeout_s=config.hello_timeout_s,
            security=security,
            tokens=security.read_tokens(),
        )

    def run(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(WAIT_S)

    def num_tasks(self) -> int:
        """What the loop has under way."""
        return len(asyncio.all_tasks(self._loop))

    def close(self) -> None:
        self.run(self.server.stop(0))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(WAIT_S)
        self._loop.close()


@pytest.fixture
def until() -> Callable[[Callable[[], bool]], None]:
    """Waits for something that another thread is about to do."""

    def until(condition: Callable[[], bool]) -> None:
        give_up_s = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < give_up_s, "waited in vain"
            time.sleep(0.0005)

    return until


@pytest.fixture
def plan() -> Plan:
    """What the server of these tests serves."""
    return PLAN


@pytest.fixture
def runner() -> EchoRunner:
    return EchoRunner()


@pytest.fixture
def make_core(runner: EchoRunner) -> Iterator[Callable[..., ServerCore]]:
    cores = []

    def make(*, codec: CodecConfig | None = None, quotas: Quotas | None = None, **limits: Any) -> ServerCore:
        config = ServerConfig(**limits)
        engine = Engine(plans={PLAN.cut: PLAN}, runner=runner, codec=codec)
        core = ServerCore(Catalogue.of(engine), config=config, quotas=quotas).start()
        cores.append(core)
        return core

    yield make
    runner.may_run.set()
    for core in cores:
        core.stop()


@pytest.fixture
def serve() -> Iterator[Callable[..., GrpcThread]]:
    """Puts a core on a socket."""
    threads = []

    def serve(core: ServerCore, security: Security | None = None) -> GrpcThread:
        threads.append(GrpcThread(core, security))
        return threads[-1]

    yield serve
    for thread in threads:
        thread.close()


@pytest.fixture
def open_stream() -> Iterator[Callable[[Transport], Stream]]:
    streams = []

    def open_stream(transport: Transport) -> Stream:
        streams.append(Stream(transport))
        return streams[-1]

    yield open_stream
    for stream in streams:
        stream.transport.close()


@pytest.fixture(params=["in-process", "grpc"])
def connect_to(
    request: pytest.FixtureRequest,
    serve: Callable[[ServerCore], GrpcThread],
    open_stream: Callable[[Transport], Stream],
) -> Callable[[ServerCore], Stream]:
    """Opens a stream to a core over each transport in turn; one socket serves all streams to the same core."""
    sockets: dict[int, GrpcThread] = {}

    def connect_to(core: ServerCore) -> Stream:
        if request.param == "in-process":
            return open_stream(InProcessTransport(core))
        if id(core) not in sockets:
            sockets[id(core)] = serve(core)
        return open_stream(GrpcTransport(f"127.0.0.1:{sockets[id(core)].port}"))

    return connect_to


# -- true models ------------------------------------------------------------------------------------


class ResidualNet(nn.Module):
    """Two convolutions with a skip around the second, and a head with two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.top = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        stem = torch.relu(self.stem(x))
        body = torch.tanh(self.body(stem))
        pooled = (stem + body).mean((2, 3))
        return {"logits": self.top(pooled), "pooled": pooled}


class MaskedNet(nn.Module):
    """Token ids and a mask that both sides need."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.mix = nn.Linear(8, 8)
        self.top = nn.Linear(8, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        mixed = torch.nn.functional.gelu(self.mix(self.embed(input_ids)))
        kept = mixed * attention_mask.unsqueeze(-1)
        pooled = kept.sum(1) / attention_mask.sum(1, keepdim=True)
        return self.top(pooled), pooled.argmax(-1)


def loaded(name: str, make: Callable[[], nn.Module], example: Any) -> tuple[LoadedModel, Partition]:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = make()
    model = LoadedModel.of(name, module, example)
    return model, partition(model.module, model.example_inputs)


@pytest.fixture(scope="session")
def residual() -> tuple[LoadedModel, Partition]:
    """A small random CNN and its partition."""
    return loaded("residual", ResidualNet, torch.zeros(2, 3, 16, 16))


@pytest.fixture(scope="session")
def masked() -> tuple[LoadedModel, Partition]:
    """A small random text encoder and its partition."""
    example = {"input_ids": torch.zeros(2, 6, dtype=torch.int64), "attention_mask": torch.ones(2, 6, dtype=torch.int64)}
    return loaded("masked", MaskedNet, example)


# -- language models --------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The folder of a tiny Llama of random weights: 4 layers, 128 bytes of keys and values for a token in each."""
    transformers = pytest.importorskip("transformers")
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformers.LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="module")
def head(request: pytest.FixtureRequest, tiny_llama: str) -> Any:
    """The device's part of the tiny Llama, up to the ``CUT`` of the test's module."""
    from serverlight.generation import LoadedDecoder

    return LoadedDecoder.head(tiny_llama, request.module.CUT, dtype=torch.float32)


@pytest.fixture(scope="module")
def tail(request: pytest.FixtureRequest, tiny_llama: str) -> Any:
    """The server's part, from there on."""
    from serverlight.generation import LoadedDecoder

    return LoadedDecoder.tail(tiny_llama, request.module.CUT, dtype=torch.float32)


SERVE = """
import sys, torch
torch.set_num_threads(1)
from serverlight.generation import LoadedDecoder
from serverlight.runtime.server import Server
folder, *cuts = sys.argv[1:]
with Server(LoadedDecoder.tail(folder, cuts[0], dtype=torch.float32), cuts) as server:
    print(server.address, flush=True)
    sys.stdin.read()
"""


class ServerProcess:
    """A server of a language model in a process of its own, ready when made."""

    def __init__(self, folder: str, *cuts: str) -> None:
        command = [sys.executable, "-c", SERVE, folder, *cuts]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start_process() -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers from a folder, the first cut and others; none outlives the test."""
    started: list[ServerProcess] = []

    def start(folder: str, *cuts: str) -> ServerProcess:
        started.append(ServerProcess(folder, *cuts))
        return started[-1]

    yield start
    for server in started:
        if server.process.returncode is None:
            server.kill()
