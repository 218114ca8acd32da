"""Event loops: which one runs, and how other threads hand something to it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

try:
    import uvloop
except ImportError:  # not on Windows
    uvloop = None  # type: ignore[assignment, unused-ignore]

__all__ = ["Mailbox", "run_on_loop"]

T = TypeVar("T")


def run_on_loop(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine to its end on a new event loop: uvloop's where there is one, which carries half as many messages again."""
    return asyncio.run(work) if uvloop is None else uvloop.run(work)


class Mailbox:
    """Calls that other threads leave for the event loop; it is woken once for all that come before it looks.

    To wake a loop is a system call and makes it compete for the interpreter, so that a batch's replies one by one would cost
    the compute thread more than to make them.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop, self._is_woken = loop, False
        self._calls = deque[tuple[Callable[..., None], tuple[Any, ...]]]()

    def put(self, call: Callable[..., None], *arguments: Any) -> None:
        """Has it called on the loop, in the order in which calls were put; nothing happens where the loop is closed."""
        self._calls.append((call, arguments))
        if not self._is_woken:
            self._is_woken = True
            with contextlib.suppress(RuntimeError):  # nobody is there to hear it
                self._loop.call_soon_threadsafe(self._open)

    def _open(self) -> None:
        self._is_woken = False  # first, so that what comes from now on is not overlooked
        try:
            while self._calls:
                call, arguments = self._calls.popleft()
                call(*arguments)
        except BaseException:
            self._loop.call_soon(self._open)  # the others are not to suffer
            raise
