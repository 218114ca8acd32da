"""``serverlight link``."""

from __future__ import annotations

import contextlib
import queue
import sys
import threading
import time
from collections.abc import Iterator
from typing import Annotated

import typer

from serverlight.apps.relays import DurationOption, EventLog, EventsOption, event_log, signals_end
from serverlight.apps.terminal import check_writable, format_bytes
from serverlight.errors import ServerlightError
from serverlight.link.config import LinkConfig
from serverlight.link.models import LinkModel, Scaled
from serverlight.link.player import LinkPlayer, put_on
from serverlight.link.proxy import LinkProxy
from serverlight.link.spec import parse_link_model
from serverlight.link.trace import LinkPiece

__all__ = ["link"]

MODEL_HELP = (
    "`10mbit,20ms` (rate, one-way delay, and jitter as a third); `rayleigh:bandwidth=5mhz,snr=15db,block=100ms,delay=20ms` "
    "(fading, drawn anew for each block); `ge:good=50mbit,bad=500kbit,good_for=9s,bad_for=1s,delay=20ms` (two states with mean "
    "stays; `bad=cut`); or a `.csv` file with the header `time_s,rate_bits_per_s,delay_ms` and a line for each change, rate 0 "
    "for a cut."
)
LIVE_S = 0.5
"""How often the live line is written anew."""


def link(
    target: Annotated[str, typer.Argument(metavar="HOST:PORT", help="The server that clients are to reach.")],
    model: Annotated[str, typer.Option(metavar="LINK", help=MODEL_HELP)] = "10mbit,20ms",
    host: Annotated[str, typer.Option(help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where clients connect instead; 0 picks a free one.")] = 0,
    scale: Annotated[float, typer.Option(help="Multiplies all rates.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same course of the link.")] = 0,
    control: Annotated[
        bool,
        typer.Option("--control", help="Read standard input: each line a link, `cut` or `restore`; its end stops."),
    ] = False,
    duration: DurationOption = None,
    json: EventsOption = None,
) -> None:
    """Stand between clients and a server, and be a slow link that changes.

    Both directions have the rate and the delay, and all connections share them. TCP ends on both sides, so no packet is lost.
    In a terminal a line shows the rate and the bytes so far.

    Example: `serverlight link 127.0.0.1:50051 --port 6000 --model ge:good=50mbit,bad=500kbit,good_for=9s,bad_for=3s`
    """
    check_writable("json", json)
    course: LinkModel = Scaled(model=parse_link_model(model), factor=scale)
    heard: queue.SimpleQueue[LinkPiece | None] = queue.SimpleQueue()
    proxy = LinkProxy(target, LinkConfig(), host=host, port=port, seed=seed)
    with event_log(json) as log, signals_end(heard), proxy:
        log.say({"event": "listening", "address": proxy.address, "to": target}, f"relaying {proxy.address} to {target}")
        player = LinkPlayer(proxy, course.sample(seed), on_change=heard.put)
        with player, _live_line(proxy):
            if control:
                threading.Thread(target=_obey, args=(proxy, player, heard), daemon=True).start()
            _tell(heard, log, None if duration is None else time.monotonic() + duration)
        counts = {"bytes_up": proxy.bytes_up, "bytes_down": proxy.bytes_down}
        log.say({"event": "stopped", **counts}, f"stopped; {_bytes_of(proxy)}")


def _tell(heard: queue.SimpleQueue[LinkPiece | None], log: EventLog, until_s: float | None) -> None:
    """Tells how the link changes until somebody or the clock says stop."""
    while True:
        try:
            piece = heard.get(timeout=None if until_s is None else max(0.0, until_s - time.monotonic()))
        except queue.Empty:
            return
        if piece is None:
            return
        told = "cut" if piece.link is None else str(piece.link)
        log.say({"event": "link", "at_s": round(piece.start_s, 3), "link": told}, f"{piece.start_s:8.2f} s  {told}")


def _obey(proxy: LinkProxy, player: LinkPlayer, heard: queue.SimpleQueue[LinkPiece | None]) -> None:
    """Lets whoever writes to standard input change the link; the first line ends the model's own course."""
    started_s, last = time.monotonic(), proxy.link
    for line in sys.stdin:
        word = line.strip()
        try:
            wanted = None if word == "cut" else last if word == "restore" else LinkConfig.parse(word)
        except ServerlightError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            continue
        player.stop()
        last = wanted or proxy.link or last
        put_on(proxy, wanted)
        heard.put(LinkPiece(start_s=time.monotonic() - started_s, link=wanted))
    heard.put(None)


@contextlib.contextmanager
def _live_line(proxy: LinkProxy) -> Iterator[None]:
    """A line on standard error that is always new, where that is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    over = threading.Event()

    def show() -> None:
        while not over.wait(LIVE_S):
            print(f"\r\x1b[K{proxy.link or 'cut'}  {_bytes_of(proxy)}", end="", file=sys.stderr, flush=True)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _bytes_of(proxy: LinkProxy) -> str:
    return f"{format_bytes(proxy.bytes_up)} bytes up, {format_bytes(proxy.bytes_down)} down"
