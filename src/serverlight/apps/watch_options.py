"""How a server is watched: the options of ``serverlight serve``, and what they start."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serverlight import __version__
from serverlight.errors import MissingDependency

if TYPE_CHECKING:
    from serverlight.runtime.observe import Recorder
    from serverlight.runtime.server import Server
    from serverlight.runtime.tally import Tally

__all__ = ["WatchOptions"]

Facts = dict[str, Any]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """How the server is watched."""

    http: Annotated[
        int | None,
        typer.Option(
            metavar="PORT", min=0, max=65535,
            help="Also answer HTTP: a dashboard at `/`, Prometheus at `/metrics`, `/healthz`, `/readyz`.",
        ),
    ] = None  # fmt: skip
    http_host: Annotated[
        str, typer.Option(help="Address for HTTP; whoever reaches it sees all figures, and no model or text.")
    ] = "127.0.0.1"
    log_json: Annotated[
        bool, typer.Option("--log-json", help="Write the log as lines of JSON on standard error, with sessions.")
    ] = False

    trace: Annotated[
        bool,
        typer.Option("--trace", help="Send a span of each request by OTLP, where OTEL_EXPORTER_OTLP_ENDPOINT says."),
    ] = False

    def say(self, text: str) -> None:
        """A line on standard error, as the log has them."""
        if self.log_json:
            _log.info(text)
        else:
            print(text, file=sys.stderr)

    @contextlib.contextmanager
    def watching(self, server: Server, facts: Facts) -> Iterator[str | None]:
        """Watches a server that has not been started yet; yields the dashboard's URL, if there is one.

        ``facts`` are what the server says of itself when it is ready. Raises :class:`AddressInUse`, and
        :class:`MissingDependency` where there is no web server, prometheus_client or OpenTelemetry.
        """
        from serverlight.runtime.observe import Recorder
        from serverlight.runtime.tally import Tally

        with contextlib.ExitStack() as stack:
            tally, sinks, url = Tally(), list[Callable[[Any], None]](), None
            if self.log_json:
                from serverlight.apps.json_logs import SessionLog, log_as_json

                log_as_json()
                sinks.append(SessionLog(tally).take)
            if self.trace:
                from serverlight.runtime.tracing import exported

                sinks.append(stack.enter_context(exported()).take)
            dashboard = _Dashboard(server, tally, facts) if self.http is not None else None
            recorder = Recorder(*sinks, tally.take, on_tick=dashboard.tick if dashboard else None)
            if dashboard is not None and self.http is not None:
                url = stack.enter_context(dashboard.listening(self.http_host, self.http, recorder))
            if dashboard or sinks:
                server.core.observer = recorder
                recorder.start()
                stack.callback(recorder.stop)
            yield url


class _Dashboard:
    """Puts the figures of a server where HTTP finds them."""

    def __init__(self, server: Server, tally: Tally, facts: Facts) -> None:
        for package in ("prometheus_client", "starlette", "uvicorn"):
            if importlib.util.find_spec(package) is None:
                raise MissingDependency(package, "watch")
        from serverlight.apps.event_hub import Hub
        from serverlight.apps.figures import Figures

        self._server, self._tally, self._hub = server, tally, Hub()
        self._figures = Figures(tally, self._gauges, server.core.engines.head_shares)
        limits = server.core.config
        self._facts = {
            **facts,
            "version": __version__,
            "max_waiting": limits.max_waiting,
            "max_kv_bytes": limits.max_kv_bytes,
            "has_shares": bool(server.core.engines.head_shares) or facts.get("num_models", 1) > 1,
        }

    def tick(self, now_s: float) -> None:
        """Publishes the figures of a second; on the recorder's thread."""
        from serverlight.apps.watch_http import event

        self._hub.publish(event("tick", self._figures.tick(now_s)))

    @contextlib.contextmanager
    def listening(self, host: str, port: int, recorder: Recorder) -> Iterator[str]:
        """Answers HTTP; yields the URL."""
        from serverlight.apps.watch_http import HttpThread, Watched, event
        from serverlight.runtime.metrics import Metrics

        info = {name: str(self._facts[name]) for name in ("version", "model", "revision")}
        metrics = Metrics(self._tally, _gauges(self._server, self._tally, recorder), info)

        def render(accept: str) -> tuple[bytes, str]:
            with recorder.settled():
                return metrics.render(accept)

        def start() -> bytes:
            with recorder.settled():
                return event("start", {"facts": self._facts, "points": list(self._figures.points)})

        watched = Watched(
            metrics=render, health=lambda: str(self._server.health), is_ready=lambda: self._server.is_ready, start=start
        )
        with HttpThread(host, port, watched, self._hub) as http:
            yield http.url

    def _gauges(self) -> Any:
        from serverlight.apps.figures import Gauges

        server, core = self._server, self._server.core
        status = str(server.health)
        if status == "ok" and not server.is_ready:
            status = "draining" if core.is_draining else "starting"
        return Gauges(status=status, queue=core.num_waiting, streams=core.num_streams, kv_bytes=core.kv_bytes)


def _gauges(server: Server, tally: Tally, recorder: Recorder) -> dict[str, tuple[str, Callable[[], float]]]:
    core, limits = server.core, server.core.config
    return {
        "healthy": ("Whether the compute thread lives and gets on.", lambda: server.health == "ok"),
        "ready": ("Whether new requests are taken.", lambda: server.is_ready),
        "queue_length": ("Requests that wait.", lambda: core.num_waiting),
        "queue_limit": ("The most that may wait.", lambda: limits.max_waiting),
        "streams": ("Clients that are connected.", lambda: core.num_streams),
        "sessions": ("Sequences that are open.", lambda: sum(d.has_session for d in tally.devices.values())),
        "sessions_limit": ("The most that may be open.", lambda: limits.max_sessions),
        "kv_bytes": ("Keys and values that sequences have reserved.", lambda: core.kv_bytes),
        "kv_limit_bytes": ("The most that they may reserve.", lambda: limits.max_kv_bytes),
        "models": ("Models that are loaded.", lambda: len(core.engines.catalogue.engines)),
        "weights_bytes": ("Weights of the models that are loaded.", lambda: core.engines.catalogue.num_bytes),
        "events_lost_total": (
            "Answers that these figures lack, since too many came at once.",
            lambda: recorder.num_lost,
        ),
    }
