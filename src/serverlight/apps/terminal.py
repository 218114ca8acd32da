"""What the commands print: tables and progress for people, JSON for machines."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from serverlight.errors import ConfigError

__all__ = [
    "STDOUT",
    "check_writable",
    "format_bytes",
    "format_times",
    "print_lines",
    "print_table",
    "progress_bar",
    "write_json",
]

STDOUT = "-"
"""A path that stands for standard output."""

PIPE_WIDTH = 150
"""Columns where the output is no terminal: wide enough for every table."""


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1, title: str = "") -> None:
    """Prints a table; the first ``left`` columns hold words, the others figures."""
    table = Table(box=SIMPLE_HEAD, title=title or None, title_justify="left", pad_edge=False)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    _console().print(table)


def print_lines(*lines: str) -> None:
    """Prints plain text, wrapped at words."""
    for line in lines:
        _console().print(line, highlight=False, markup=False)


@contextmanager
def progress_bar(what: str, total: int) -> Iterator[tuple[Progress, Any]]:
    """A bar on standard error, gone when done; yields it and its task."""
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        yield bar, bar.add_task(what, total=total)


def write_json(path: str, data: Mapping[str, Any], *, indent: int | None = 2) -> None:
    """Writes JSON to a file, or to standard output for ``-``."""
    text = json.dumps(data, indent=indent)
    if path == STDOUT:
        print(text)
    else:
        pathlib.Path(path).write_text(text + "\n")


def check_writable(field: str, path: str | None) -> None:
    """Raises :class:`ConfigError` at once for a path that could not be written to after minutes of work."""
    if path not in (None, STDOUT) and not pathlib.Path(path).resolve().parent.is_dir():
        raise ConfigError(field, f"no folder for {path!r}; create it first")


def format_bytes(count: float) -> str:
    """Bytes with thousands apart.

    >>> format_bytes(12345.6)
    '12,346'
    """
    return f"{count:,.0f}"


def format_times(ratio: float, better: str, worse: str) -> str:
    """A ratio in words, whichever way it falls.

    >>> format_times(4.0, "fewer", "more"), format_times(0.5, "fewer", "more")
    ('4.0x fewer', '2.0x more')
    """
    return f"{ratio:.1f}x {better}" if ratio >= 1 else f"{1 / max(ratio, 1e-9):.1f}x {worse}"


def _console() -> Console:
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH)
