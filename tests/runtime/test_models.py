"""Several models on one server, over real sockets: together, on demand, within a budget of memory."""

from __future__ import annotations

import gc
import pathlib
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from serverlight.codec import CodecConfig
from serverlight.errors import ModelLoading, PlanMismatch, RemoteError, ServerBusy
from serverlight.loopback import Loopback
from serverlight.models import LoadedModel, load_model
from serverlight.partition import Partition, partition
from serverlight.plan import Plan
from serverlight.runtime.assemble import make_engine
from serverlight.runtime.catalogue import Catalogue, Engine, Offer
from serverlight.runtime.client import Client
from serverlight.runtime.connecting import connect
from serverlight.runtime.core import ServerCore
from serverlight.runtime.credentials import Credentials
from serverlight.runtime.grpc_transport import GrpcTransport
from serverlight.runtime.messages import Failure, InferReply, Timing, Welcome
from serverlight.runtime.observe import Recorder
from serverlight.runtime.scheduler import Answer, Job
from serverlight.runtime.security import Security
from serverlight.runtime.server import Server
from serverlight.runtime.tally import Tally
from serverlight.runtime.tokens import add_client
from serverlight.runtime.transport import InProcessTransport

CUT = "layers.2"
CODEC = CodecConfig(sparsity=0.5)
Pair = tuple[LoadedModel, Partition]
TIMING = Timing(queue_ms=0.0, decode_ms=0.0, tail_ms=0.0, cpu_ms=0.0, process_cpu_ms=0.0)
PROMPT = [1, 60, 17, 5]


def plan_of(model: LoadedModel, cut: str) -> Plan:
    return Plan(model=model.name, revision=model.revision, cut=cut, codec=CODEC)


def images(batch: int = 1) -> torch.Tensor:
    return torch.linspace(-1, 1, batch * 3 * 256).view(batch, 3, 16, 16)


class Shelf:
    """Offers that count how often they are loaded, and can be made to wait or to fail."""

    def __init__(self, **engines: Callable[[], Engine]) -> None:
        self.num_loads = dict.fromkeys(engines, 0)
        self.may_load = threading.Event()
        self.may_load.set()
        self.begun = threading.Semaphore(0)
        self._make = engines

    def offers(self) -> list[Offer]:
        return [Offer(name=name, load=lambda name=name: self._load(name)) for name in self._make]  # type: ignore[misc]

    def _load(self, name: str) -> Engine:
        self.num_loads[name] += 1
        self.begun.release()
        assert self.may_load.wait(20)
        return self._make[name]()


@pytest.fixture
def shelf(residual: Pair, masked: Pair) -> Shelf:
    """A small CNN and a small text encoder."""
    return Shelf(
        residual=lambda: make_engine(residual[0], ["stem", "body"], parts=residual[1]),
        masked=lambda: make_engine(masked[0], ["mix"], parts=masked[1]),
    )


@pytest.fixture
def serve_models() -> Iterator[Callable[..., Server]]:
    servers = []

    def serve(catalogue: Catalogue, **more: Any) -> Server:
        servers.append(Server(catalogue, **more).start())
        return servers[-1]

    yield serve
    for server in servers:
        server.drain()


@pytest.fixture
def greet(open_stream: Any) -> Callable[..., Any]:
    """Says Hello over a socket; returns the stream and what came."""

    def greet(server: Server, plan: Plan, **more: Any) -> Any:
        stream = open_stream(GrpcTransport(server.address, credentials=Credentials(**more)))
        return stream, stream.greet(plan)

    return greet


def ask(server: Server, pair: Pair, cut: str, inputs: Any) -> Any:
    with connect(server.address, plan=plan_of(pair[0], cut), model=pair[1]) as client:
        return client.infer(inputs)


# -- together ---------------------------------------------------------------------------------------


def test_three_models_at_once(tiny_llama: str, serve_models: Any) -> None:
    """Clients of two language models and of images, all at once, get from one server what one process computes."""
    pytest.importorskip("transformers")
    from serverlight.generation import DecoderLoopback, LoadedDecoder
    from serverlight.runtime.decoder_client import DecoderClient

    vision = load_model("demo-vision")
    parts = partition(vision.module, vision.example_inputs)
    cuts = {"demo-lm": "layers.6", tiny_llama: CUT}
    tails = {name: LoadedDecoder.tail(name, cut, dtype=torch.float32) for name, cut in cuts.items()}
    heads = {name: LoadedDecoder.head(name, cut, dtype=torch.float32) for name, cut in cuts.items()}
    plans = {name: Plan(model=name, revision=tails[name].revision, cut=cut, codec=CODEC) for name, cut in cuts.items()}
    loads = {name: (lambda tail=tail, cut=cuts[name]: make_engine(tail, [cut])) for name, tail in tails.items()}
    loads["demo-vision"] = lambda: make_engine(vision, ["layer2"], parts=parts)
    catalogue = Catalogue([Offer(name=name, load=load) for name, load in loads.items()])
    catalogue.load_all()
    server = serve_models(catalogue)

    def write(name: str) -> tuple[int, ...]:
        client = DecoderClient([server.address], plan=plans[name], head=heads[name])
        return client.generate(PROMPT, max_new_tokens=12).token_ids

    def look(_: str) -> list[torch.Tensor]:
        with connect(server.address, plan=plan_of(vision, "layer2"), model=parts) as client:
            return [client.infer(vision.example_inputs) for _ in range(12)]

    jobs = [*[(write, name) for name in cuts for _ in range(2)], (look, "demo-vision")]
    with ThreadPoolExecutor(len(jobs)) as pool:
        answers = [future.result() for future in [pool.submit(job, name) for job, name in jobs]]  # type: ignore[operator]
    for (_, name), tokens in zip(jobs[:-1], answers[:-1], strict=True):
        alone = DecoderLoopback(plans[name], heads[name], tails[name])
        assert tokens == alone.generate(PROMPT, max_new_tokens=12), name
    expected = Loopback(plan_of(vision, "layer2"), parts).infer(vision.example_inputs)
    for output in answers[-1]:
        assert torch.equal(output, expected)


class Holding:
    """A runner that notes what runs together, and can be held."""

    def __init__(self, log: list[tuple[str, int]], name: str, may_run: threading.Event) -> None:
        self._log, self._name, self._may_run = log, name, may_run
        self.is_running = threading.Event()

    def prepare(self, job: Job) -> None:
        """Nothing is to be read."""

    def run(self, jobs: Sequence[Job], *, is_shared: bool) -> Iterator[tuple[Job, Answer]]:
        self._log.append((self._name, len(jobs)))
        self.is_running.set()
        assert self._may_run.wait(20)
        for job in jobs:
            if self._name == "bad":
                raise ValueError("this model is broken")
            yield job, InferReply(request_id=job.request.request_id, outputs=(), timing=TIMING)


def test_batches_do_not_mix_models(plan: Plan, open_stream: Any, until: Any) -> None:
    """Requests of one model that wait together run together, those of another between them, and one's failure is its own."""
    log, may_run = list[tuple[str, int]](), threading.Event()
    plans = {name: Plan(model=name, revision="1", cut=plan.cut) for name in ("good", "bad")}
    engines = [Engine(plans={plan.cut: p}, runner=Holding(log, name, may_run)) for name, p in plans.items()]  # type: ignore[arg-type]
    catalogue = Catalogue([Offer(name=engine.model, load=lambda engine=engine: engine) for engine in engines])  # type: ignore[misc]
    catalogue.load_all()
    core = ServerCore(catalogue).start()
    streams = {name: [open_stream(InProcessTransport(core)) for _ in range(3)] for name in plans}
    for name, own in streams.items():
        for stream in own:
            assert isinstance(stream.greet(plans[name]), Welcome)
    streams["good"][0].say_infer(1)
    until(lambda: log == [("good", 1)])
    for number in (1, 2):
        for own in streams.values():
            own[number].say_infer(1)
    until(lambda: core.num_waiting == 4)
    may_run.set()
    for stream in streams["good"]:
        assert isinstance(stream.inbox.next(), InferReply)
    for stream in streams["bad"][1:]:
        assert isinstance(stream.inbox.next().error, RemoteError)
    core.stop()
    assert sorted(log[1:]) == [("bad", 2), ("good", 2)]


def test_figures_of_both_models(shelf: Shelf, residual: Pair, masked: Pair, serve_models: Any) -> None:
    """Sums are kept by model, under the server's own name for it, whatever the client calls its folder."""
    catalogue, tally = Catalogue(shelf.offers()), Tally()
    catalogue.load_all()
    server = Server(catalogue)
    recorder = server.core.observer = Recorder(tally.take)
    recorder.start()
    with server:
        ask(server, residual, "stem", images())
        elsewhere = Plan(model="/elsewhere/masked", revision=masked[0].revision, cut="mix", codec=CODEC)
        inputs = {"input_ids": torch.ones(1, 6, dtype=torch.int64), "attention_mask": torch.ones(1, 6).long()}
        with Client(GrpcTransport(server.address), plan=elsewhere, model=masked[1]) as client:
            client.infer(inputs)
        with recorder.settled():
            assert {(series.model, series.cut) for series in tally.work} == {("residual", "stem"), ("masked", "mix")}
    recorder.stop()
    assert set(server.core.engines.head_shares) == {("residual", "stem"), ("residual", "body"), ("masked", "mix")}


# -- on demand --------------------------------------------------------------------------------------


def test_loaded_when_a_client_asks(shelf: Shelf, residual: Pair, serve_models: Any) -> None:
    """A client of a model that is not loaded comes back by itself until it is; the others stay as they are."""
    server = serve_models(Catalogue(shelf.offers()))
    assert server.core.plans == ()
    expected = Loopback(plan_of(residual[0], "body"), residual[1]).infer(images())
    assert torch.equal(ask(server, residual, "body", images())["logits"], expected["logits"])
    ask(server, residual, "stem", images())
    assert shelf.num_loads == {"residual": 1, "masked": 0}


def test_others_go_on_while_one_is_loaded(
    shelf: Shelf, residual: Pair, masked: Pair, serve_models: Any, greet: Any, until: Any
) -> None:
    """While a model is loaded, who asks for it is told at once to come back, and requests of another are answered."""
    server = serve_models(Catalogue(shelf.offers()))
    ask(server, residual, "stem", images())
    assert shelf.begun.acquire(timeout=20)
    shelf.may_load.clear()
    plan = plan_of(masked[0], "mix")
    for _ in range(2):
        _, told = greet(server, plan)
        assert isinstance(told.error, ModelLoading)
        assert told.error.retry_after_ms > 0
    assert shelf.begun.acquire(timeout=20)
    ask(server, residual, "stem", images())
    shelf.may_load.set()
    until(lambda: isinstance(greet(server, plan)[1], Welcome))
    assert shelf.num_loads == {"residual": 1, "masked": 1}


def test_clients_race_for_a_model(shelf: Shelf, residual: Pair, serve_models: Any) -> None:
    """Clients that ask for the same model at the same moment are all served, and it is loaded once."""
    server = serve_models(Catalogue(shelf.offers()))
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: ask(server, residual, "stem", images()), range(4)))
    expected = Loopback(plan_of(residual[0], "stem"), residual[1]).infer(images())
    for answer in answers:
        torch.testing.assert_close(answer["logits"], expected["logits"], rtol=1e-5, atol=1e-6)
    assert shelf.num_loads["residual"] == 1


def test_loading_disturbs_nobody(
    tiny_llama: str, head: Any, tail: Any, residual: Pair, serve_models: Any, greet: Any, capsys: Any
) -> None:
    """While models are read, traced and tried on the loading thread, texts and the log of the server go on as ever."""
    from serverlight.generation import DecoderLoopback, LoadedDecoder
    from serverlight.runtime.decoder_client import DecoderClient

    def trace() -> Engine:
        module = residual[0].module
        return make_engine(residual[0], ["stem"], parts=partition(module, residual[0].example_inputs))

    text = Offer(name="demo-lm", load=lambda: make_engine(LoadedDecoder.tail("demo-lm", "layers.6"), ["layers.6"]))
    own = Offer(name=tiny_llama, load=lambda: make_engine(tail, [CUT]))
    server = serve_models(Catalogue([own, text, Offer(name="residual", load=trace)]))
    plan = Plan(model=tiny_llama, revision=tail.revision, cut=CUT, codec=CODEC)
    expected = DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=16)
    client, num_texts = DecoderClient([server.address], plan=plan, head=head), 0
    for name in ("demo-lm", "residual"):
        answer = greet(server, Plan(model=name, revision="?", cut="stem"))[1]
        while isinstance(answer.error, ModelLoading):
            assert client.generate(PROMPT, max_new_tokens=16).token_ids == expected
            num_texts += 1
            print("still here", file=sys.stderr)
            answer = greet(server, Plan(model=name, revision="?", cut="stem"))[1]
        assert isinstance(answer.error, PlanMismatch), answer
    assert num_texts >= 2
    assert capsys.readouterr().err.count("still here") == num_texts


def test_language_model_on_demand(tiny_llama: str, head: Any, tail: Any, serve_models: Any) -> None:
    """A device that writes waits for its model as it waits for a busy server, and its text is the same."""
    from serverlight.generation import DecoderLoopback
    from serverlight.runtime.decoder_client import DecoderClient

    server = serve_models(Catalogue([Offer(name=tiny_llama, load=lambda: make_engine(tail, [CUT]))]))
    plan = Plan(model=tiny_llama, revision=tail.revision, cut=CUT, codec=CODEC)
    tokens = DecoderClient([server.address], plan=plan, head=head).generate(PROMPT, max_new_tokens=8).token_ids
    assert tokens == DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=8)


def test_model_that_cannot_be_loaded(residual: Pair, serve_models: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Its client learns that it cannot be loaded, and no more; the log has the reason, and the server lives on."""

    def fail() -> Engine:
        raise SystemExit("secret: no such folder /srv/models/broken")

    good = Offer(name="residual", load=lambda: make_engine(residual[0], ["stem"], parts=residual[1]))
    server = serve_models(Catalogue([Offer(name="residual-2", load=fail), good]))
    plan = Plan(model="residual-2", revision="1", cut="stem", codec=CODEC)
    with pytest.raises(RemoteError, match="could not load 'residual-2'") as told:
        connect(server.address, plan=plan, model=residual[1])
    assert "secret" not in str(told.value)
    assert "/srv/models/broken" in caplog.text
    ask(server, residual, "stem", images())
    assert server.is_ready


def test_client_may_stop_waiting(shelf: Shelf, residual: Pair, serve_models: Any) -> None:
    """A client waits for a model as long as it says, and no longer."""
    shelf.may_load.clear()
    server = serve_models(Catalogue(shelf.offers()))
    with pytest.raises(ModelLoading):
        connect(server.address, plan=plan_of(residual[0], "stem"), model=residual[1], load_timeout_s=0.0)
    shelf.may_load.set()


# -- memory -----------------------------------------------------------------------------------------


def bytes_of(pair: Pair) -> int:
    return sum(tensor.nbytes for tensor in [*pair[0].module.parameters(), *pair[0].module.buffers()])


def test_dropped_model_gives_its_memory_back(masked: Pair, serve_models: Any, until: Any) -> None:
    """Where a second model has no room, the unused first one goes, and nothing of it is left; it can come back."""
    made = list[weakref.ref[torch.nn.Module]]()
    state: dict[str, Any] = {}

    def load() -> Engine:
        module = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)).eval()
        module.load_state_dict(state) if state else state.update(module.state_dict())
        model = LoadedModel.of("dense", module, torch.zeros(2, 8))
        made.append(weakref.ref(module))
        return make_engine(model, ["1"])

    dense = load()
    plan, num_bytes = dense.plans["1"], dense.num_bytes
    state = {name: tensor.clone() for name, tensor in state.items()}
    twin = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.ReLU(), torch.nn.Linear(64, 4)).eval()
    twin.load_state_dict(state)
    parts = partition(twin, torch.zeros(2, 8))
    other = Offer(name="masked", load=lambda: make_engine(masked[0], ["mix"], parts=masked[1]))
    most = max(num_bytes, bytes_of(masked))
    catalogue = Catalogue([Offer(name="dense", load=load), other], memory_bytes=most, keep_s=0.0)
    server = serve_models(catalogue)
    with connect(server.address, plan=plan, model=parts) as client:
        client.infer(torch.zeros(1, 8))
    until(lambda: server.core.num_streams == 0)
    del dense
    inputs = {"input_ids": torch.ones(1, 6, dtype=torch.int64), "attention_mask": torch.ones(1, 6).long()}
    ask(server, masked, "mix", inputs)
    assert [engine.model for engine in catalogue.engines] == ["masked"]
    gc.collect()
    assert [module() for module in made] == [None, None]
    until(lambda: server.core.num_streams == 0)
    with connect(server.address, plan=plan, model=parts) as client:
        client.infer(torch.zeros(1, 8))
    assert [engine.model for engine in catalogue.engines] == ["dense"]


def test_model_in_use_is_not_dropped(
    shelf: Shelf, residual: Pair, masked: Pair, serve_models: Any, greet: Any, until: Any
) -> None:
    """As long as a client is connected its model stays, however long it is silent; who finds no room is told when to come back."""
    most = max(bytes_of(residual), bytes_of(masked))
    catalogue = Catalogue(shelf.offers(), memory_bytes=most, keep_s=0.0)
    server = serve_models(catalogue)
    with connect(server.address, plan=plan_of(residual[0], "stem"), model=residual[1]) as client:
        client.infer(images())
        seen = set[type[Exception]]()

        def is_told() -> bool:
            _, told = greet(server, plan_of(masked[0], "mix"))
            assert isinstance(told, Failure)
            seen.add(type(told.error))
            return ServerBusy in seen

        until(is_told)
        assert seen <= {ServerBusy, ModelLoading}
        client.infer(images())
        assert [engine.model for engine in catalogue.engines] == ["residual"]
    until(lambda: isinstance(greet(server, plan_of(masked[0], "mix"))[1], Welcome))
    assert [engine.model for engine in catalogue.engines] == ["masked"]


# -- unknown models ---------------------------------------------------------------------------------


def test_unknown_model(shelf: Shelf, serve_models: Any, greet: Any, tmp_path: pathlib.Path) -> None:
    """A client of another model learns which there are; not where the server wants to know who it is."""
    catalogue = Catalogue(shelf.offers())
    plan = Plan(model="another", revision="1", cut="stem")
    _, told = greet(serve_models(catalogue), plan)
    assert isinstance(told.error, PlanMismatch)
    assert (told.error.field, told.error.ours, told.error.theirs) == ("model", "another", "residual, masked")
    file = str(tmp_path / "tokens.toml")
    token = add_client(file, "phone")
    guarded = serve_models(Catalogue(shelf.offers()), security=Security(tokens=file))
    _, untold = greet(guarded, plan, token=token)
    assert isinstance(untold.error, PlanMismatch)
    assert untold.error.field == "model"
    assert not {"residual", "masked"} & set(str(untold.error).replace(",", " ").split())
