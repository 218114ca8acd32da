"""Generators that run one after the other in one thread, for callers on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from serverlight.errors import ServerBusy

__all__ = ["Turn", "Turns"]

_T = TypeVar("_T")

_RETRY_AFTER_MS = 1000


class Turns:
    """Who may run and who waits: one generator at a time, and no more than ``max_waiting`` behind it."""

    def __init__(self, max_waiting: int) -> None:
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="serverlight-device")
        """Runs them all; the event loop computes nothing."""
        self.running = asyncio.Lock()
        """Held by whose turn it is."""
        self.num_open = 0
        """Those that run or wait."""
        self._max_waiting = max_waiting

    def open(self, generator: Generator[_T, None, None]) -> Turn[_T]:
        """Queues up; raises :class:`ServerBusy` where too many wait already."""
        if self.num_open > self._max_waiting:
            raise ServerBusy(_RETRY_AFTER_MS)
        self.num_open += 1
        return Turn(self, generator)

    def stop(self) -> None:
        """Ends the thread, when nothing runs any more."""
        self.thread.shutdown(wait=False)


class Turn(Generic[_T]):
    """One generator's; to be closed."""

    def __init__(self, turns: Turns, generator: Generator[_T, None, None]) -> None:
        self._turns, self._generator = turns, generator
        self._is_running = self._is_closed = False

    async def next(self) -> _T | None:
        """What the generator yields next, the first time when its turn has come; ``None`` at its end."""
        if not self._is_running:
            await self._turns.running.acquire()
            self._is_running = True
        return await asyncio.get_running_loop().run_in_executor(self._turns.thread, next, self._generator, None)

    def close(self) -> None:
        """Lets the next one run. The generator is closed as soon as the thread is free, before it does anything else."""
        if self._is_closed:
            return
        self._is_closed = True
        self._turns.num_open -= 1
        self._turns.thread.submit(self._generator.close)
        if self._is_running:
            self._turns.running.release()
