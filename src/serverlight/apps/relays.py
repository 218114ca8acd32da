"""What the commands that stand between clients and a server have in common."""

from __future__ import annotations

import contextlib
import json as json_text
import pathlib
import queue
import signal
import sys
from collections.abc import Iterator
from typing import IO, Annotated, Any

import typer

from serverlight.apps.terminal import STDOUT

__all__ = ["DurationOption", "EventLog", "EventsOption", "event_log", "signals_end"]

DurationOption = Annotated[
    float | None, typer.Option("--for", metavar="SECONDS", min=0, help="Stop after so long; else on Ctrl-C.")
]

EventsOption = Annotated[
    str | None,
    typer.Option(
        "--json", metavar="PATH", help="Write events as JSON, one a line; `-` for standard output instead of text."
    ),
]


class EventLog:
    """Text for people on standard output, JSON lines for machines."""

    def __init__(self, events: IO[str] | None, *, quiet: bool) -> None:
        self._events, self._is_quiet = events, quiet

    def say(self, event: dict[str, Any], text: str) -> None:
        """One event, at once."""
        if self._events is not None:
            print(json_text.dumps(event), file=self._events, flush=True)
        if not self._is_quiet:
            print(text, flush=True)


@contextlib.contextmanager
def event_log(path: str | None) -> Iterator[EventLog]:
    """A log whose events go to a file, or in place of the text to standard output."""
    if path is None:
        yield EventLog(None, quiet=False)
    elif path == STDOUT:
        yield EventLog(sys.stdout, quiet=True)
    else:
        with pathlib.Path(path).open("w") as file:
            yield EventLog(file, quiet=False)


@contextlib.contextmanager
def signals_end(heard: queue.SimpleQueue[Any]) -> Iterator[None]:
    """SIGTERM and SIGINT end the queue with ``None``."""

    def stop(_signum: int, _frame: object) -> None:
        heard.put(None)

    previous = {signum: signal.signal(signum, stop) for signum in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for signum, handler in previous.items():
            signal.signal(signum, handler)
