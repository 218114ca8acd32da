"""Who is about, and how much of the compute thread each may have: a plain state machine; the clock is an argument."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

__all__ = ["Shares"]

_ACTIVE_S = 1.0
"""A client whose last request is no older shares the compute thread with the others."""

_LEAST_SHARE = 0.2
"""Share of the thread that a client may always have, however many others there are."""

_BURST_S = 0.01
"""Time on the thread that a client may take at once, after a rest."""

_SLACK_S = 1e-6
"""Nobody rests for less: times are floats."""


@dataclass(kw_only=True, slots=True)
class _Client:
    weight: int
    last_s: float
    """When it last sent something."""

    filled_s: float
    left_s: float = _BURST_S
    """Time on the thread that it may take yet; below zero it has taken too much."""


class Shares:
    """Each client that is about earns time on the thread, by its weight, and pays for what it takes.

    >>> shares = Shares()
    >>> for client in "ab":
    ...     shares.sent(client, weight=1, now_s=0.0)
    >>> shares.took("a", 0.06, now_s=0.06)
    >>> round(shares.rest_s("a", now_s=0.06), 3), shares.rest_s("b", now_s=0.06)  # half of the time pays for 50 ms too much
    (0.1, 0.0)
    """

    def __init__(self) -> None:
        self._clients: dict[object, _Client] = {}
        self._weights = 0  # of all of them, which each request asks for

    def sent(self, client: object, *, weight: int, now_s: float) -> None:
        """A request came."""
        known = self._clients.get(client)
        if known is None:
            known = self._clients[client] = _Client(weight=0, last_s=now_s, filled_s=now_s)
        self._weights += weight - known.weight
        known.weight, known.last_s = weight, now_s

    def took(self, client: object, seconds: float, *, now_s: float) -> None:
        """The thread worked for it; one that is not about any more owes nothing."""
        if (known := self._clients.get(client)) is not None:
            self._fill(known, now_s)
            known.left_s -= seconds

    def forget(self, client: object) -> None:
        """It is gone."""
        if (known := self._clients.pop(client, None)) is not None:
            self._weights -= known.weight

    def about(self, now_s: float, waiting: Collection[object]) -> int:
        """How many have sent something lately, or have something waiting. Others, if they owe nothing, are forgotten."""
        late = [
            client
            for client, known in self._clients.items()
            if now_s - known.last_s > _ACTIVE_S and client not in waiting
        ]
        num_about = len(self._clients) - len(late)
        for client in late:
            self._fill(self._clients[client], now_s)
            if self._clients[client].left_s >= 0:
                self.forget(client)
        return num_about

    def rest_s(self, client: object, *, now_s: float) -> float:
        """How long until it has paid for what it took; 0 for not at all."""
        if (known := self._clients.get(client)) is None:
            return 0.0
        self._fill(known, now_s)
        return -known.left_s / self._share(known) if known.left_s < -_SLACK_S else 0.0

    def _fill(self, client: _Client, now_s: float) -> None:
        earned_s = self._share(client) * max(0.0, now_s - client.filled_s)
        client.left_s, client.filled_s = min(_BURST_S, client.left_s + earned_s), now_s

    def _share(self, client: _Client) -> float:
        return max(_LEAST_SHARE, client.weight / self._weights)
