"""What a server tells of itself: sums that are true, metrics by Prometheus' conventions, and health that notices a crash."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

pytest.importorskip("prometheus_client")
from prometheus_client.parser import text_string_to_metric_families

from serverlight.codec import Codec, CodecConfig
from serverlight.errors import PeerUnavailable, RemoteError, ServerBusy
from serverlight.models import LoadedModel
from serverlight.partition import Partition
from serverlight.plan import Plan
from serverlight.runtime import Server, ServerConfig, connect
from serverlight.runtime import health as health_module
from serverlight.runtime.core import ServerCore
from serverlight.runtime.grpc_transport import check_health
from serverlight.runtime.health import Health, watch_over
from serverlight.runtime.messages import Failure, MoveCut, Step, StepReply, Timing
from serverlight.runtime.metrics import Metrics
from serverlight.runtime.observe import (
    Recorder,
    SessionClosed,
    SessionOpened,
    StreamClosed,
    StreamOpened,
)
from serverlight.runtime.scheduler import Job
from serverlight.runtime.tally import Tally
from serverlight.runtime.transport import InProcessTransport

Pair = tuple[LoadedModel, Partition]
CODEC = CodecConfig(profile="slicer", sparsity=0.6, num_groups=4)
TIMING = Timing(queue_ms=1.0, decode_ms=2.0, tail_ms=4.0, cpu_ms=3.0, process_cpu_ms=9.0, sample_ms=1.0, batch_size=2)


@dataclass(frozen=True)
class FakeStream:
    number: int = 1
    caller: str = ""


@dataclass
class Watched:
    """A tally, and how to feed it as a core would."""

    tally: Tally
    recorder: Recorder
    stream: FakeStream = dataclasses.field(default_factory=FakeStream)

    def open(self, cut: str = "layers.4") -> None:
        self.recorder.stream_opened(self.stream)
        self.recorder.greeted(self.stream, Plan(model="m", revision="1", cut=cut))
        self.recorder.session_opened(self.stream, cut)

    def answer(self, request: Step | MoveCut, message: Any) -> None:
        job = Job(owner=self.stream, cut="layers.4", request=request, reply=lambda _: None, arrived_s=0.0)
        self.recorder.answered(job, message)

    def step(self, step: int, *frames: bytes) -> None:
        self.answer(Step(step=step, frames=frames), StepReply(step=step, token_id=5, timing=TIMING))


@pytest.fixture
def watched() -> Watched:
    tally = Tally()
    return Watched(tally, Recorder(tally.take))


@pytest.fixture
def frame() -> bytes:
    return bytes(Codec(CodecConfig(profile="fp16")).encode(torch.zeros(1, 3, 8)))


# -- metrics ----------------------------------------------------------------------------------------


@pytest.fixture
def server(residual: Pair) -> Iterator[Server]:
    with Server(residual[0], ["stem", "body"], parts=residual[1]) as server:
        yield server


def samples_of(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    body, content_type = metrics.render("text/plain")
    assert content_type.startswith("text/plain")
    families = text_string_to_metric_families(body.decode())
    return {(s.name, frozenset(s.labels.items())): s.value for family in families for s in family.samples}


def test_metrics_tell_what_clients_saw(residual: Pair, server: Server) -> None:
    """After requests over a real socket the metrics have their number, bytes, elements and times, by model, cut and kind."""
    tally = Tally()
    server.core.observer = recorder = Recorder(tally.take)
    plan = Plan(model=residual[0].name, revision=residual[0].revision, cut="body", codec=CODEC)
    with connect(server.address, plan=plan, model=residual[1]) as client:
        results = [client.infer_detailed(torch.randn(2, 3, 16, 16)) for _ in range(5)]
        with recorder.settled():
            samples = samples_of(Metrics(tally, {"streams": ("now", lambda: server.core.num_streams)}, {"model": "m"}))
    series = {("model", "residual"), ("cut", "body"), ("kind", "infer")}

    def of(name: str, *labels: tuple[str, str]) -> float:
        return samples[name, frozenset(series | set(labels))]

    assert of("serverlight_requests_total", ("code", "ok")) == 5
    assert of("serverlight_frame_bytes_total") == sum(result.frame_bytes for result in results)
    assert of("serverlight_elements_total") == 5 * 2 * 2 * 8 * 16 * 16  # the skip crosses beside the body
    assert of("serverlight_bits_per_element_count") == 5
    assert of("serverlight_payload_bytes_total", ("direction", "down")) == 5 * 2 * (5 + 8) * 4
    assert of("serverlight_frames_total", ("direction", "up")) == 10
    assert of("serverlight_queue_seconds_bucket", ("le", "+Inf")) == 5
    assert of("serverlight_batch_size_sum") == 5
    tail_s = sum(result.server.tail_ms for result in results) / 1e3
    assert of("serverlight_server_seconds_total", ("part", "tail")) == pytest.approx(tail_s, rel=1e-3)
    assert samples["serverlight_streams", frozenset()] == 1


def test_errors_are_counted_by_class(make_core: Callable[..., ServerCore], runner: Any, open_stream: Any) -> None:
    """What a model raises, what is refused on arrival and what ends a stream are told apart, each under its class."""
    core, tally = make_core(max_waiting=1), Tally()
    core.observer = recorder = Recorder(tally.take)
    runner.fail_on[b"bad"] = RuntimeError("planted")
    stream = open_stream(InProcessTransport(core))
    stream.greet()
    assert isinstance(stream.infer(1, b"bad").error, RemoteError)
    runner.may_run.clear()
    runner.has_begun.acquire()
    stream.say_infer(2)
    assert runner.has_begun.acquire(timeout=20)
    stream.say_infer(3)
    assert isinstance(stream.infer(4).error, ServerBusy)
    stream.say_infer(1)  # ids must rise
    runner.may_run.set()
    with recorder.settled():
        pass
    assert tally.errors == {
        ("request", "RemoteError"): 1, ("request", "ServerBusy"): 1, ("stream", "ProtocolError"): 1,
    }  # fmt: skip


def test_labels_are_bounded(watched: Watched, frame: bytes) -> None:
    """However many streams and sessions there are, the metrics have no more lines."""
    sizes = []
    for number in range(1, 40):
        watched.stream = FakeStream(number)
        watched.open()
        watched.step(1, frame)
        with watched.recorder.settled():
            body, _ = Metrics(watched.tally, {}, {}).render("")
            sizes.append(body.count(b"\n"))
    assert len(set(sizes)) == 1


# -- sums -------------------------------------------------------------------------------------------


def settle(watched: Watched) -> Any:
    with watched.recorder.settled():
        return next(iter(watched.tally.work.values()))


def test_requests_of_a_batch_share_its_tail(watched: Watched, frame: bytes) -> None:
    """Two requests whose tail ran once, for 4 ms, took the server 4 ms for it, not 8; each was decoded by itself."""
    watched.open()
    watched.step(1, frame)
    watched.step(2, frame)
    work = settle(watched)
    assert work.seconds == pytest.approx({"decode": 0.004, "tail": 0.004, "sample": 0.002})
    assert work.runs == 1
    assert work.tokens == 2
    assert (work.elements, work.frame_bytes) == (48, 2 * len(frame))


def test_step_that_comes_again_counts_once(watched: Watched, frame: bytes) -> None:
    """The answer to a repeated step is the old one: neither its time nor what a client then claims to send is added."""
    watched.open()
    watched.step(1, frame)
    watched.step(1, b"SL" + bytes([1, 0, 0, 2]) + b"\xff\xff\xff\xff\x0f" * 2)
    work = settle(watched)
    assert work.requests == {"ok": 2}
    assert (work.elements, work.tokens) == (24, 1)
    assert sum(work.queue.counts) == 1


def test_failed_request_adds_no_elements(watched: Watched) -> None:
    """A frame that was refused is counted by its bytes, never by what its header claims."""
    watched.open()
    watched.answer(Step(step=1, frames=(b"SL nonsense",)), Failure(request_id=1, error=RemoteError("no")))
    work = settle(watched)
    assert work.requests == {"RemoteError": 1}
    assert (work.up_bytes, work.elements) == (11, 0)


def test_moved_cut_shows_where_it_is_now(watched: Watched, frame: bytes) -> None:
    """Layers handed over one after the other are one exit, and the device is at the new cut from then on."""
    watched.open()
    watched.step(1, frame)
    for step, layer in ((2, 3), (3, 2)):
        move = MoveCut(step=step, layer=layer, keys=frame, values=frame)
        watched.answer(move, StepReply(step=step, token_id=None, timing=TIMING))
    watched.step(4, frame)
    settle(watched)
    assert watched.tally.exits == {"shipped": 1, "recomputed": 0}
    assert {series.cut for series in watched.tally.work if series.kind == "step"} == {"layers.4", "layers.2"}
    assert watched.tally.devices[watched.stream].cut == "layers.2"


def test_every_session_ends_once(watched: Watched) -> None:
    """Closed, forgotten or gone with its stream: a session is counted out once, and no device is left."""
    tally, stream = watched.tally, watched.stream
    for event in (
        StreamOpened(stream), SessionOpened(stream, "layers.4"), SessionClosed(stream, False), SessionClosed(stream, False),
        SessionOpened(stream, "layers.2"), SessionClosed(stream, True), SessionOpened(stream, "layers.2"), StreamClosed(stream),
        SessionClosed(stream, False),
    ):  # fmt: skip
        tally.take(event)
    assert tally.sessions_ended == {"closed": 1, "expired": 1, "with_stream": 1}
    assert tally.sessions_opened.total() == 3
    assert not tally.devices


def test_recorder_forgets_rather_than_grows(watched: Watched, frame: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody looks, answers beyond a limit are counted as lost, and the end of a stream is noted all the same."""
    monkeypatch.setattr("serverlight.runtime.observe._MAX_EVENTS", 5)
    watched.open()
    for step in range(1, 10):
        watched.step(step, frame)
    watched.recorder.stream_closed(watched.stream)
    settle(watched)
    assert watched.recorder.num_lost == 7
    assert not watched.tally.devices


# -- health -----------------------------------------------------------------------------------------


def test_crash_is_told_to_all(
    residual: Pair, until: Callable[[Callable[[], bool]], None], caplog: pytest.LogCaptureFixture
) -> None:
    """When the compute thread dies, what waits fails at once, health says so over gRPC and in the log, and the server can
    still be stopped.
    """
    plan = Plan(model=residual[0].name, revision=residual[0].revision, cut="body", codec=CODEC)
    with (
        Server(residual[0], ["body"], parts=residual[1]) as server,
        connect(server.address, plan=plan, model=residual[1]) as client,
    ):
        client.infer(torch.zeros(1, 3, 16, 16))
        assert server.is_ready
        assert check_health(server.address)
        kill_compute_thread(server.core)
        with pytest.raises((RemoteError, PeerUnavailable)):
            client.infer(torch.zeros(1, 3, 16, 16))
        with pytest.raises(PeerUnavailable):
            client.infer(torch.zeros(1, 3, 16, 16))
        until(lambda: server.health is Health.CRASHED)
        assert not server.is_ready
        until(lambda: not check_health(server.address))
    assert "the compute thread has crashed" in caplog.text
    assert "planted" in caplog.text


def kill_compute_thread(core: ServerCore) -> None:
    """The next thing that it does outside of a model raises what nobody expects there."""

    def crash(*_: object, **__: object) -> None:
        raise MemoryError("planted")

    core._deliver = crash  # type: ignore[method-assign]


def test_stall_is_noticed_and_over_when_work_gets_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server with work and no answer for too long is not healthy, until the next answer."""
    monkeypatch.setattr(health_module, "LOOK_S", 0.0)
    core = FakeCore()
    seen: list[Health] = []

    async def watch() -> None:
        until = asyncio.Event()

        async def on_change(health: Health) -> None:
            seen.append(health)
            if health is Health.STALLED:
                core.num_answered += 1
                core.is_busy = False
            else:
                until.set()

        await watch_over(core, stall_s=0.01, on_change=on_change, until=until)

    asyncio.run(watch())
    assert seen == [Health.STALLED, Health.OK]


@dataclass
class FakeCore:
    has_crashed: bool = False
    is_busy: bool = True
    num_answered: int = 3


def test_stalled_model_makes_the_server_unhealthy(residual: Pair, until: Callable[[Callable[[], bool]], None]) -> None:
    """While a request takes longer than ``stall_s`` the server says that it is not healthy, and afterwards that it is."""
    config = ServerConfig(stall_s=0.05)
    plan = Plan(model=residual[0].name, revision=residual[0].revision, cut="body", codec=CODEC)
    may_run = threading.Event()
    with (
        Server(residual[0], ["body"], parts=residual[1], config=config) as server,
        connect(server.address, plan=plan, model=residual[1]) as client,
    ):
        take_on = server.core._deliver
        server.core._deliver = lambda *args: (may_run.wait(20), take_on(*args))[1]  # type: ignore[method-assign]
        asking = threading.Thread(target=client.infer, args=(torch.zeros(1, 3, 16, 16),))
        asking.start()
        until(lambda: server.health is Health.STALLED)
        assert not check_health(server.address)
        may_run.set()
        asking.join()
        until(lambda: server.health is Health.OK)
        until(lambda: check_health(server.address))
