"""Which sessions there are and what memory they hold: a plain state machine; the clock is an argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from serverlight.errors import QuotaExceeded, ServerBusy
from serverlight.runtime.messages import MoveCut, Step
from serverlight.runtime.quotas import Quotas

__all__ = ["Session", "SessionTable"]


class Session(Protocol):
    """One sequence of a language model; only the compute thread runs it."""

    def least_bytes(self, message: Step | MoveCut) -> int:
        """What the sequence will hold at least when the message has run; 0 where it is not to be refused. Any thread."""

    def give_up(self, message: Step | MoveCut) -> None:
        """What was begun of this message and is not finished never was; of another one it stays."""


@dataclass(kw_only=True, slots=True)
class _Entry:
    used_s: float
    client: str | None
    kv_bytes: int = 0


class SessionTable:
    """Counts sessions and their memory, by owner, and for the quotas by client.

    >>> table = SessionTable(max_sessions=2, max_kv_bytes=1000, idle_s=60)
    >>> table.add("a", now_s=0, retry_after_ms=5)
    >>> table.reserve("a", 600, retry_after_ms=5)
    >>> table.kv_bytes, table.idle(now_s=61)
    (600, ['a'])
    """

    def __init__(self, *, max_sessions: int, max_kv_bytes: int, idle_s: float, quotas: Quotas | None = None) -> None:
        self._max_sessions, self._max_kv_bytes, self._idle_s = max_sessions, max_kv_bytes, idle_s
        self._quotas = quotas or Quotas()
        self._entries: dict[Any, _Entry] = {}

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def kv_bytes(self) -> int:
        """Bytes reserved by all sessions."""
        return sum(entry.kv_bytes for entry in self._entries.values())

    def add(self, owner: object, now_s: float, retry_after_ms: int, client: str | None = None) -> None:
        """A new session; raises :class:`ServerBusy` where there are too many, of this client or at all."""
        quota = self._quotas.of(client).max_sessions
        if quota is not None and len(self._of(client)) >= quota:
            raise QuotaExceeded("max_sessions", retry_after_ms)
        if len(self._entries) >= self._max_sessions:
            raise ServerBusy(retry_after_ms)
        self._entries[owner] = _Entry(used_s=now_s, client=client)

    def touch(self, owner: object, now_s: float) -> None:
        """A step came."""
        if entry := self._entries.get(owner):
            entry.used_s = now_s

    def reserve(self, owner: object, num_bytes: int, retry_after_ms: int) -> None:
        """The session will hold so many bytes in all; raises :class:`ServerBusy` where they are not to be had.

        For an owner that is gone nothing is counted: what it holds is about to be freed.
        """
        self.check(owner, num_bytes, retry_after_ms)
        if entry := self._entries.get(owner):
            entry.kv_bytes = num_bytes

    def check(self, owner: object, num_bytes: int, retry_after_ms: int) -> None:
        """Raises :class:`ServerBusy` where :meth:`reserve` would; reserves nothing."""
        if (entry := self._entries.get(owner)) is None:
            return
        added = num_bytes - entry.kv_bytes
        quota = self._quotas.of(entry.client).max_kv_bytes
        if quota is not None and sum(other.kv_bytes for other in self._of(entry.client)) + added > quota:
            raise QuotaExceeded("max_kv_bytes", retry_after_ms)
        if self.kv_bytes + added > self._max_kv_bytes:
            raise ServerBusy(retry_after_ms)

    def _of(self, client: str | None) -> list[_Entry]:
        return [entry for entry in self._entries.values() if entry.client == client]

    def remove(self, owner: object) -> None:
        """The session is over; nothing happens where there is none."""
        self._entries.pop(owner, None)

    def idle(self, now_s: float) -> list[Any]:
        """Owners whose sessions had no step for too long."""
        return [owner for owner, entry in self._entries.items() if now_s - entry.used_s > self._idle_s]
