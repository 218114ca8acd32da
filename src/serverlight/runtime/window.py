"""How long a batch waits for requests that are about to come: a plain state machine; the clock is an argument."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Window"]

_NEWEST_SHARE = 0.25
"""Weight of the newest value in a running mean."""

_LATE = 2.0
"""One that is later than so many times its usual gap is not coming soon, and nobody waits for it."""

_LITTLE = 0.1
"""A wait of such a share of a batch's time is worth it for whoever may join: all but the smallest part of a batch is paid anew for
each batch, however full."""

_LEAST_GAP_S = 5e-4
"""Gaps below it are as good as none, and vary by as much."""

_PAUSE = 8.0
"""A gap of over so many times the usual one is a pause. One alone says nothing of the next gap, two in a row do."""


@dataclass(kw_only=True, slots=True)
class _Pace:
    gap_s: float | None = None
    answered_s: float | None = None
    has_paused: bool = False
    """Whether the newest gap was a pause."""

    def note(self, gap_s: float) -> None:
        """Learns from a gap."""
        if self.gap_s is None:
            self.gap_s = gap_s
            return
        is_pause = gap_s > _PAUSE * max(self.gap_s, _LEAST_GAP_S)
        if self.has_paused or not is_pause:
            self.gap_s += _NEWEST_SHARE * (gap_s - self.gap_s)
        self.has_paused = is_pause


class Window:
    """Learns how soon each client comes again after an answer, and says until when it is worth waiting for them.

    Without a wait, clients that answer at once fall into two groups that take turns, each in half a batch: while one
    group's batch runs, the other's requests arrive. A wait is bounded by ``max_delay_s``, and by what a batch takes: one
    that is cheaper than the wait is not worth it. Those that came while a batch ran have waited already; after it they wait
    for a tenth of its time at the most, which is enough for two such groups to become one. A client that is alone is never
    kept waiting, nor is anyone for one whose device needs longer than that.

    >>> window = Window(max_delay_s=0.005)
    >>> window.took(0.1)
    >>> for client in "ab":
    ...     window.arrived(client, now_s=1.0)
    ...     window.answered(client, now_s=1.0)
    ...     window.arrived(client, now_s=1.002)
    ...     window.answered(client, now_s=1.1)
    >>> window.arrived("a", now_s=1.101)
    >>> window.closes_s(oldest_s=1.101, now_s=1.101) > 1.101, window.closes_s(oldest_s=1.101, now_s=1.107)
    (True, 1.107)
    """

    def __init__(self, *, max_delay_s: float) -> None:
        self._max_delay_s = max_delay_s
        self._paces: dict[object, _Pace] = {}
        self._batch_s, self._free_s = 0.0, 0.0

    def arrived(self, client: object, now_s: float) -> None:
        """A request came."""
        pace = self._paces.setdefault(client, _Pace())
        if pace.answered_s is not None:
            pace.note(now_s - pace.answered_s)
            pace.answered_s = None

    def answered(self, client: object, now_s: float) -> None:
        """A request has its answer; the client may send the next."""
        if (pace := self._paces.get(client)) is not None:
            pace.answered_s = now_s

    def forget(self, client: object) -> None:
        """The client is gone."""
        self._paces.pop(client, None)

    def took(self, seconds: float, *, now_s: float = 0.0) -> None:
        """Notes how long a batch ran that has just ended."""
        self._free_s = now_s
        self._batch_s = seconds if not self._batch_s else self._batch_s + _NEWEST_SHARE * (seconds - self._batch_s)

    def closes_s(self, *, oldest_s: float, now_s: float) -> float:
        """Until when the request that came at ``oldest_s`` is to wait for others, by the same clock; ``now_s`` for no more."""
        since_arrival_s = oldest_s + min(self._max_delay_s, self._batch_s)
        since_batch_s = self._free_s + min(self._max_delay_s, _LITTLE * self._batch_s)
        last_s = max(since_arrival_s, since_batch_s)
        if last_s <= now_s:
            return now_s
        awaited = (self._awaited(pace, now_s, last_s) for pace in self._paces.values())
        return max((until_s for until_s in awaited if until_s is not None), default=now_s)

    @staticmethod
    def _awaited(pace: _Pace, now_s: float, last_s: float) -> float | None:
        """Until when this client is waited for, if at all."""
        if pace.answered_s is None or pace.gap_s is None:
            return None
        gap_s = max(pace.gap_s, _LEAST_GAP_S)
        late_s = pace.answered_s + _LATE * gap_s
        return min(late_s, last_s) if pace.answered_s + gap_s <= last_s and late_s > now_s else None
