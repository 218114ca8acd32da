"""What spans promise: one for each request, a child of the caller's, with the times that the client was told."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("opentelemetry.sdk")
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serverlight.codec import CodecConfig
from serverlight.errors import ConfigError, FrameTooShort
from serverlight.models import LoadedModel
from serverlight.partition import Partition
from serverlight.plan import Plan
from serverlight.runtime import Server, ServerConfig, connect
from serverlight.runtime.grpc_transport import GrpcTransport
from serverlight.runtime.messages import Failure, Frame, InferRequest
from serverlight.runtime.observe import Recorder
from serverlight.runtime.tracing import Spans, context_of_caller, exported, read_header
from serverlight.runtime.transport import InProcessTransport

CUT = "layers.2"
PARTS = ["queue", "decode", "tail", "sample"]
MS = 1e6


class Collected:
    """What a server's spans tell, and a tracer for its client."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._provider = TracerProvider()
        self._provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.recorder = Recorder(Spans(self._provider).take)
        self.tracer = self._provider.get_tracer("client")

    def finished(self, name: str) -> list[ReadableSpan]:
        """All of a name, in the order of their ends."""
        with self.recorder.settled():
            return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def parts_of(self, span: ReadableSpan) -> list[ReadableSpan]:
        """The spans within one."""
        return [one for name in PARTS for one in self.finished(name) if one.parent.span_id == span.context.span_id]


@pytest.fixture
def collected() -> Collected:
    return Collected()


@pytest.fixture
def server(residual: tuple[LoadedModel, Partition], collected: Collected) -> Iterator[Server]:
    with Server(residual[0], ["stem", "body"], parts=residual[1], config=ServerConfig(max_waiting=1)) as server:
        server.core.observer = collected.recorder
        yield server


def plan_of(model: Any, cut: str, **codec: Any) -> Plan:
    return Plan(model=model.name, revision=model.revision, cut=cut, codec=CodecConfig(**codec))


def test_requests_are_children_of_the_caller(residual: Any, server: Server, collected: Collected) -> None:
    """Over a socket, a request made within a span of the client's is a child of it, within its time, and as long as the
    client was told; its parts lie one behind the other and make up the whole.
    """
    with collected.tracer.start_as_current_span("click") as click:
        with connect(server.address, plan=plan_of(residual[0], "body"), model=residual[1]) as client:
            results = [client.infer_detailed(torch.randn(2, 3, 16, 16)) for _ in range(3)]
        click_context = click.get_span_context()
    caller = collected.finished("click")[0]
    spans = collected.finished("serverlight infer")
    assert len(spans) == 3
    for number, (span, result) in enumerate(zip(spans, results, strict=True), start=1):
        assert span.context.trace_id == click_context.trace_id
        assert span.parent.span_id == click_context.span_id
        assert span.parent.is_remote
        assert span.kind is trace.SpanKind.SERVER
        assert caller.start_time <= span.start_time + MS
        assert span.end_time <= caller.end_time + MS
        assert -0.01 <= (span.end_time - span.start_time) / MS - result.server.total_ms < result.wait_ms
        facts = span.attributes
        assert (facts["serverlight.model"], facts["serverlight.cut"]) == ("residual", "body")
        assert facts["serverlight.request_id"] == number
        assert facts["serverlight.tail_ms"] == pytest.approx(result.server.tail_ms)
        assert facts["serverlight.frame_bytes"] == result.frame_bytes
        parts = collected.parts_of(span)
        assert [part.name for part in parts] == PARTS
        lengths_ms = [(part.end_time - part.start_time) / MS for part in parts]
        timing = result.server
        told_ms = [timing.queue_ms, timing.decode_ms, timing.tail_ms, timing.sample_ms]
        assert lengths_ms == pytest.approx(told_ms, abs=0.01)
        assert parts[0].start_time == span.start_time
        assert all(one.end_time == other.start_time for one, other in itertools.pairwise(parts))
        assert parts[-1].end_time <= span.end_time + MS


def test_every_step_of_a_text_is_in_the_callers_trace(
    head: Any, tail: Any, tiny_llama: str, collected: Collected
) -> None:
    """A text is many requests of one stream, and all are in the trace of whoever asked for it."""
    pytest.importorskip("transformers")
    from serverlight.runtime.decoder_client import DecoderClient

    with Server(tail, [CUT]) as server:
        server.core.observer = collected.recorder
        client = DecoderClient([server.address], plan=plan_of(head, CUT, profile="fp16"), head=head)
        with collected.tracer.start_as_current_span("write") as write:
            made = client.generate([1, 17, 40], max_new_tokens=5)
    spans = collected.finished("serverlight step")
    assert len(spans) == len(made.token_ids) == 5
    assert {span.parent.span_id for span in spans} == {write.get_span_context().span_id}
    assert [span.attributes["serverlight.request_id"] for span in spans] == [1, 2, 3, 4, 5]
    assert {span.attributes["serverlight.cut"] for span in spans} == {CUT}


def test_without_a_caller_each_request_is_a_trace(residual: Any, server: Server, collected: Collected) -> None:
    """A client that knows nothing of spans is traced all the same."""
    with connect(server.address, plan=plan_of(residual[0], "stem"), model=residual[1]) as client:
        for _ in range(2):
            client.infer(torch.randn(1, 3, 16, 16))
    spans = collected.finished("serverlight infer")
    assert [span.parent for span in spans] == [None, None]
    assert len({span.context.trace_id for span in spans}) == 2


def test_failures_are_told(residual: Any, server: Server, collected: Collected, open_stream: Any) -> None:
    """A request that failed has a span with the error's name, and no parts, since nobody knows them."""
    stream = open_stream(GrpcTransport(server.address))
    stream.greet(plan_of(residual[0], "stem"))
    failed = stream.ask(InferRequest(request_id=7, payloads=(Frame(data=b""),)))
    assert isinstance(failed.error, FrameTooShort)
    [span] = collected.finished("serverlight infer")
    assert span.attributes["error.type"] == "FrameTooShort"
    assert span.status.status_code is trace.StatusCode.ERROR
    assert collected.parts_of(span) == []


def test_refusals_are_told(make_core: Any, open_stream: Any, runner: Any, collected: Collected) -> None:
    """A request that was refused on its arrival has a span of no length."""
    core = make_core(max_waiting=1)
    core.observer = collected.recorder
    stream = open_stream(InProcessTransport(core))
    stream.greet()
    runner.may_run.clear()
    stream.say_infer(1)
    assert runner.has_begun.acquire(timeout=20)
    stream.say_infer(2)
    stream.say_infer(3)
    assert isinstance(stream.inbox.next(), Failure)
    runner.may_run.set()
    [span] = collected.finished("serverlight request")
    assert span.attributes["error.type"] == "ServerBusy"
    assert span.attributes["serverlight.request_id"] == 3
    assert span.start_time == span.end_time


@pytest.mark.parametrize(
    "header",
    [
        None, "", "x" * 4000, "00-" + "0" * 32 + "-" + "0" * 16 + "-01\n", "00-" + "Z" * 32 + "-" + "0" * 16 + "-01", b"00-",
        "ff" * 30,
    ],
)  # fmt: skip
def test_stranger_s_header_is_not_kept(header: Any) -> None:
    """What is no trace context is as good as none."""
    assert read_header(header) == ""


def test_header_is_the_current_span_s(collected: Collected) -> None:
    """The client sends the context of the span that is current, and nothing where there is none."""
    assert context_of_caller() == ""
    with collected.tracer.start_as_current_span("click") as click:
        sent = read_header(context_of_caller())
    assert f"{click.get_span_context().trace_id:032x}" in sent
    assert f"{click.get_span_context().span_id:016x}" in sent


def test_other_protocols_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans leave by one protocol, and a server that is asked for another does not start."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigError, match="http/protobuf"), exported():
        pass


OFF = """
import sys, torch
from serverlight.models import LoadedModel
from serverlight.plan import Plan
from serverlight.runtime import Server, connect

model = LoadedModel.of("net", torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()), torch.zeros(2, 4))
with Server(model, ["0"]) as server:
    plan = Plan(model=model.name, revision=model.revision, cut="0")
    with connect(server.address, plan=plan, model=model) as client:
        client.infer(torch.zeros(1, 4))
print([name for name in sys.modules if name.startswith("opentelemetry")])
"""


def test_nothing_is_imported_when_off() -> None:
    """Neither a server nor a client that nobody traces imports OpenTelemetry."""
    done = subprocess.run([sys.executable, "-c", OFF], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
