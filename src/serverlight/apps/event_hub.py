"""Hands events to readers that may be slow: each has a short queue, and who lets it fill up is dropped."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator

__all__ = ["Hub", "Reader", "TooManyReaders"]


class TooManyReaders(Exception):
    """There is no room for another one."""


class Reader:
    """One reader's queue; made by :meth:`Hub.joined`."""

    def __init__(self, max_waiting: int, task: asyncio.Task[object] | None) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue(max_waiting)
        self._task = task

    def put(self, event: bytes) -> bool:
        """Queues an event, or, where the queue is full, cancels the task that reads and returns ``False``."""
        try:
            self._queue.put_nowait(event)
        except asyncio.QueueFull:
            if self._task is not None:
                self._task.cancel()
            return False
        return True

    def end(self) -> None:
        """No further event will come."""
        with contextlib.suppress(asyncio.QueueFull):
            self._queue.put_nowait(None)

    async def get(self) -> bytes | None:
        """The next event, or ``None`` after the last."""
        return await self._queue.get()


class Hub:
    """All readers of one event loop; only :meth:`publish` may be called from another thread.

    Args:
        max_readers: further ones are refused.
        max_waiting: events that one may leave unread.
    """

    def __init__(self, *, max_readers: int = 16, max_waiting: int = 8) -> None:
        self._max_readers, self._max_waiting = max_readers, max_waiting
        self._readers: set[Reader] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self.num_dropped = 0
        """Readers that were too slow."""

    @property
    def num_readers(self) -> int:
        """Readers now."""
        return len(self._readers)

    def run_on(self, loop: asyncio.AbstractEventLoop) -> None:
        """The loop that readers live on; what is published before is lost."""
        self._loop = loop

    @contextlib.contextmanager
    def joined(self) -> Iterator[Reader]:
        """A reader for the task that runs; raises :class:`TooManyReaders`."""
        if len(self._readers) >= self._max_readers:
            raise TooManyReaders
        reader = Reader(self._max_waiting, asyncio.current_task())
        self._readers.add(reader)
        try:
            yield reader
        finally:
            self._readers.discard(reader)

    def publish(self, event: bytes) -> None:
        """Hands an event to all; from any thread, and never waits."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
                self._loop.call_soon_threadsafe(self._spread, event)

    def close(self) -> None:
        """Ends all readers once they have what is queued."""
        for reader in self._readers:
            reader.end()

    def _spread(self, event: bytes) -> None:
        for reader in tuple(self._readers):
            if not reader.put(event):
                self._readers.discard(reader)
                self.num_dropped += 1
