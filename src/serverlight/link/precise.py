"""An event loop whose timers are good to a tenth of a millisecond."""

from __future__ import annotations

import asyncio
import select
import selectors
import sys
from typing import Any

__all__ = ["new_precise_loop"]

_MAX_FD = 1024
"""What ``select`` takes."""


def new_precise_loop() -> asyncio.AbstractEventLoop:
    """A loop for a thread of its own; its timers are as late as the system's, where asyncio's on Linux may be by 1 ms."""
    return asyncio.SelectorEventLoop(_PreciseSelector()) if sys.platform == "linux" else asyncio.new_event_loop()


if sys.platform == "linux":

    class _PreciseSelector(selectors.EpollSelector):
        """``epoll_wait`` counts in milliseconds, rounded up; ``select`` counts in microseconds, and can wait for an epoll."""

        def select(self, timeout: float | None = None) -> Any:
            if timeout is not None and timeout > 0 and self.fileno() < _MAX_FD:
                select.select([self.fileno()], [], [], timeout)
                timeout = 0
            return super().select(timeout)
