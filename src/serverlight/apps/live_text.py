"""An answer as it is written: plain text for pipes, for people a line below it that says what it takes."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

__all__ = ["Writer", "writer"]


class Writer(Protocol):
    """Where an answer is shown."""

    def write(self, piece: str, status: str) -> None:
        """Adds text; the status takes the place of the one before."""


@contextmanager
def writer(*, quiet: bool) -> Iterator[Writer]:
    """Shows text on standard output, with a live line where that is a terminal; ``quiet`` shows nothing."""
    if quiet:
        yield _Nothing()
    elif not sys.stdout.isatty():
        yield _Plain()
        print(flush=True)
    else:
        console = Console(highlight=False, markup=False)
        with Live(console=console, refresh_per_second=12, transient=True) as live:
            shown = _Shown(live, console)
            yield shown
            shown.close()


class _Nothing:
    def write(self, piece: str, status: str) -> None:
        """Shows nothing."""


class _Plain:
    def write(self, piece: str, status: str) -> None:
        """Writes the text at once."""
        print(piece, end="", flush=True)


class _Shown:
    """Whole lines stand above the live part, so that a long answer scrolls as any other output does."""

    def __init__(self, live: Live, console: Console) -> None:
        self._live, self._console, self._line = live, console, ""

    def write(self, piece: str, status: str) -> None:
        """Adds text, and renews the line below."""
        *whole, self._line = (self._line + piece).split("\n")
        for line in whole:
            self._console.print(line)
        while len(self._line) >= self._console.width:
            at = self._line.rfind(" ", 1, self._console.width)
            at = at if at > 0 else self._console.width
            self._console.print(self._line[:at])
            self._line = self._line[at:].removeprefix(" ")
        self._live.update(Group(Text(self._line), Text(status, style="dim")))

    def close(self) -> None:
        """What is not a whole line yet becomes one."""
        self._live.update("")
        self._console.print(self._line)
