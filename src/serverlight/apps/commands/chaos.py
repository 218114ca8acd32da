"""``serverlight chaos``."""

from __future__ import annotations

import queue
import time
from collections import Counter
from typing import Annotated

import typer

from serverlight.apps.relays import DurationOption, EventLog, EventsOption, event_log, signals_end
from serverlight.apps.terminal import check_writable
from serverlight.chaos import ChaosRelay
from serverlight.errors import ConfigError
from serverlight.faults import FaultPlan, Strike
from serverlight.link import LinkConfig

__all__ = ["chaos"]

FAULT_HELP = (
    "A fault as KIND:WHEN or KIND:WHEN:MORE; may be repeated. Kinds: `kill`, `stall:WHEN:TIME`, `drop` (one direction, as "
    "half-open connections do), `slow:WHEN:LINK:TIME`, `corrupt` (a bit). WHEN is a chance for each piece of up to 4096 "
    "bytes (`0.001`), `@90s` (once, all connections) or `/30s` (every 30 s). `:up` or `:down` at the end names the direction."
)


def chaos(
    to: Annotated[str, typer.Option("--to", metavar="HOST:PORT", help="The server that clients are to reach.")],
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="Where clients connect instead; port 0 picks a free one.")
    ] = "127.0.0.1:0",
    fault: Annotated[list[str] | None, typer.Option("--fault", metavar="FAULT", help=FAULT_HELP)] = None,
    link: Annotated[
        str, typer.Option(metavar="LINK", help="What the way is like otherwise: rate, one-way delay, jitter.")
    ] = "0ms",
    seed: Annotated[int, typer.Option(help="The same seed gives the same faults for the same pieces.")] = 0,
    duration: DurationOption = None,
    json: EventsOption = None,
) -> None:
    """Stand between clients and a server, and let things go wrong.

    Each fault is told in a line: when, which connection, what. Nothing is decoded: an altered bit may end a connection, fail
    a request, or, without TLS, change a token. Faults within messages are for `serverlight serve --inject`.

    Example: `serverlight chaos --listen 127.0.0.1:6000 --to 127.0.0.1:50051 --fault kill:0.001 --fault stall:0.01:500ms`
    """
    check_writable("json", json)
    host, port = _read_address(listen)
    plan = FaultPlan.parse(fault or (), seed=seed)
    heard: queue.SimpleQueue[Strike | None] = queue.SimpleQueue()
    relay = ChaosRelay(to, plan, link=LinkConfig.parse(link), host=host, port=port, on_strike=heard.put)
    with event_log(json) as log, signals_end(heard), relay:
        log.say({"event": "listening", "address": relay.address, "to": to}, f"relaying {relay.address} to {to}")
        counts = _follow(heard, log, None if duration is None else time.monotonic() + duration)
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())) or "none"
        log.say({"event": "stopped", "faults": dict(counts)}, f"stopped; faults: {told}")


def _follow(heard: queue.SimpleQueue[Strike | None], log: EventLog, until_s: float | None) -> Counter[str]:
    """Tells faults until somebody or the clock says stop."""
    counts = Counter[str]()
    while True:
        try:
            strike = heard.get(timeout=None if until_s is None else max(0.0, until_s - time.monotonic()))
        except queue.Empty:
            return counts
        if strike is None:
            return counts
        counts[strike.kind] += 1
        log.say({"event": "fault", **strike.as_dict()}, str(strike))


def _read_address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError("listen", f"must be HOST:PORT, got {text!r}")
    return host, int(port)
