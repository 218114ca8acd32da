"""Spans of OpenTelemetry for what a server answers; the only file that imports it, and not before it is used.

A client whose caller has a span sends its context along (W3C's ``traceparent``, a header of the stream's call), and the
server's spans are then children of that one.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import re
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from serverlight.errors import ConfigError, MissingDependency
from serverlight.runtime.observe import OK, Answered, Event, Greeted, Refused, SessionOpened, StreamClosed

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import TracerProvider

__all__ = ["HEADER", "Spans", "caller", "context_of_caller", "exported", "read_header"]

HEADER = "traceparent"

caller: contextvars.ContextVar[str] = contextvars.ContextVar("caller", default="")
"""The context of whoever makes the call that this task answers; empty where it did not say."""

_FORM = re.compile("00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_PARTS = "queue", "decode", "tail", "sample"

_SLACK_S = 1e-3
"""Two clocks are read for an answer's time."""


# -- what crosses -----------------------------------------------------------------------------------


def context_of_caller() -> str:
    """The header for a span that is current on this thread; empty where there is none."""
    if "opentelemetry.trace" not in sys.modules:  # then there is none, and it costs nothing to know
        return ""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    carrier = dict[str, str]()
    TraceContextTextMapPropagator().inject(carrier)
    return carrier.get(HEADER, "")


def read_header(value: object) -> str:
    """What a stranger sent in the header, if it is one that may be kept.

    >>> read_header("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")[:10], read_header("x" * 100)
    ('00-0af7651', '')
    """
    return value if isinstance(value, str) and _FORM.fullmatch(value) else ""


# -- what the server makes of it --------------------------------------------------------------------


class Spans:
    """Makes spans of a recorder's events: one for each request, and within it one for each part of the server's time.

    The parts of a prompt that runs in pieces lie one behind the other, though others ran between them; their lengths are
    true. A request of a stream without a caller is a trace of its own.

    Args:
        provider: where spans go; by default the process' own.
    """

    def __init__(self, provider: TracerProvider | None = None) -> None:
        try:
            from opentelemetry import trace
        except ImportError:
            raise MissingDependency("opentelemetry", "otel") from None
        self._trace = trace
        self._tracer = trace.get_tracer("serverlight", tracer_provider=provider)
        self._served: dict[object, dict[str, str]] = {}  # by stream

    def take(self, event: Event) -> None:
        """A sink of :class:`~serverlight.runtime.observe.Recorder`."""
        match event:
            case Greeted():
                self._served[event.stream] = {"serverlight.model": event.model, "serverlight.cut": event.cut}
            case SessionOpened() if event.stream in self._served:
                self._served[event.stream]["serverlight.cut"] = event.cut
            case StreamClosed():
                self._served.pop(event.stream, None)
            case Answered():
                self._answered(event)
            case Refused() if event.request_id:
                self._make("request", event, event.at_s, event.at_s, {})

    def _answered(self, event: Answered) -> None:
        facts: dict[str, Any] = {
            "serverlight.up_bytes": event.up_bytes,
            "serverlight.down_bytes": event.down_bytes,
            "serverlight.frame_bytes": event.frame_bytes,
        }
        parts_ms = dict[str, float]()
        # An answer that is given again has the times of the first, which are not this request's.
        if (timing := event.timing) is not None and timing.total_ms / 1e3 <= event.at_s - event.arrived_s + _SLACK_S:
            parts_ms = {part: getattr(timing, f"{part}_ms") for part in _PARTS}
            facts |= {f"serverlight.{part}_ms": length_ms for part, length_ms in parts_ms.items()}
            facts["serverlight.batch_size"] = timing.batch_size
        self._make(event.kind, event, event.arrived_s, event.at_s, facts, parts_ms)

    def _make(
        self,
        kind: str,
        event: Answered | Refused,
        start_s: float,
        end_s: float,
        facts: dict[str, Any],
        parts_ms: dict[str, float] | None = None,
    ) -> None:
        trace, epoch_s = self._trace, _epoch_s()
        facts |= self._served.get(event.stream, {}) | {"serverlight.request_id": event.request_id}
        facts["serverlight.stream"] = getattr(event.stream, "number", 0)
        span = self._tracer.start_span(
            f"serverlight {kind}",
            context=_context(getattr(event.stream, "caller", "")),
            kind=trace.SpanKind.SERVER,
            attributes=facts,
            start_time=_ns(epoch_s + start_s),
        )
        if event.code != OK:
            span.set_attribute("error.type", event.code)
            span.set_status(trace.Status(trace.StatusCode.ERROR))
        within = trace.set_span_in_context(span)
        for part, length_ms in (parts_ms or {}).items():
            child = self._tracer.start_span(part, context=within, start_time=_ns(epoch_s + start_s))
            start_s += length_ms / 1e3
            child.end(_ns(epoch_s + start_s))
        span.end(_ns(epoch_s + end_s))


def _context(header: str) -> Context:
    from opentelemetry.context import Context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract({HEADER: header}, context=Context())


def _epoch_s() -> float:
    """When the monotonic clock was 0; of some tries the one that was interrupted least."""
    tries = ((time.monotonic(), time.time(), time.monotonic()) for _ in range(3))
    before_s, now_s, _ = min(tries, key=lambda read: read[2] - read[0])
    return now_s - before_s


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)


# -- where spans go ---------------------------------------------------------------------------------


@contextlib.contextmanager
def exported() -> Iterator[Spans]:
    """Spans that leave by OTLP over HTTP, as the standard variables (``OTEL_EXPORTER_OTLP_ENDPOINT``, ...) say, unless the
    process has a provider of its own already; what waits is sent at the end.

    Raises:
        ConfigError: the variables ask for another protocol.
        MissingDependency: the SDK or the exporter is not there.
    """
    spans = Spans()
    from opentelemetry import trace

    if not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        yield spans
        return
    provider = _provider()
    try:
        yield Spans(provider)
    finally:
        provider.shutdown()


def _provider() -> Any:
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
    if protocol not in (None, "http/protobuf"):
        raise ConfigError(
            "trace", f"spans leave by http/protobuf, OTEL_EXPORTER_OTLP_PROTOCOL says {protocol!r}; unset it"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError:
        raise MissingDependency("opentelemetry-sdk and opentelemetry-exporter-otlp-proto-http", "otel") from None
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    resource = Resource.create({} if named else {"service.name": "serverlight"})
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
