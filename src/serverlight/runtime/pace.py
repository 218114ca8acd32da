"""How fast device, link and server are, as far as a sequence has shown it, and what moving its cut would cost."""

from __future__ import annotations

import math
import statistics
from collections import deque
from dataclasses import dataclass

from serverlight.link.estimate import LinkBelief

__all__ = ["MoveCost", "Pace", "Rates", "cheaper", "recompute_cost", "ship_cost"]

WINDOW = 5
"""Steps whose median is the time of a step: one slow step is no reason to move."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Speeds of a sequence's way."""

    bytes_per_ms: float
    """The uplink; infinite before anything was sent."""

    rtt_ms: float
    """What a message of no size takes there and back."""

    head_ms: float
    """The device, for one token in one layer, many tokens at a time."""

    tail_ms: float
    """The server, likewise."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveCost:
    """An estimate."""

    num_bytes: int
    """Bytes up."""

    time_ms: float
    """Until the sequence can go on."""


def ship_cost(kv_bytes: int, rates: Rates) -> MoveCost:
    """Keys and values that take ``kv_bytes`` as frames; putting them in place takes the server no time to speak of."""
    return MoveCost(num_bytes=kv_bytes, time_ms=rates.rtt_ms + kv_bytes / rates.bytes_per_ms)


def recompute_cost(num_tokens: int, token_bytes: float, layer: int, num_layers: int, rates: Rates) -> MoveCost:
    """Hidden states of all tokens at the new cut, ``token_bytes`` each.

    Device, link and server work at the same time, so the slowest counts.
    """
    num_bytes = math.ceil(num_tokens * token_bytes)
    head_ms = num_tokens * max(1, layer) * rates.head_ms
    tail_ms = num_tokens * max(1, num_layers - layer) * rates.tail_ms
    return MoveCost(num_bytes=num_bytes, time_ms=rates.rtt_ms + max(head_ms, tail_ms, num_bytes / rates.bytes_per_ms))


def cheaper(ship: MoveCost, recompute: MoveCost) -> str:
    """``shipped`` or ``recomputed``: what takes less time; within a tenth of it, what takes fewer bytes.

    >>> cheaper(MoveCost(num_bytes=10, time_ms=5.0), MoveCost(num_bytes=1, time_ms=9.0))
    'shipped'
    """
    slower, faster = max(ship.time_ms, recompute.time_ms), min(ship.time_ms, recompute.time_ms)
    if slower <= 1.1 * faster:
        return "shipped" if ship.num_bytes < recompute.num_bytes else "recomputed"
    return "shipped" if ship.time_ms < recompute.time_ms else "recomputed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """One wait for the server: a token's step, or the end of a prompt."""

    layer: int
    """Layers on the device."""

    num_tokens: int
    """Tokens that the head ran, in all pieces."""

    head_ms: float
    """Running the head, in all pieces."""

    total_ms: float
    """Head, encoding, and waiting."""

    last_tokens: int
    """Tokens of the last message."""

    last_bytes: int
    """Bytes of the last message, 0 where none was sent."""

    wait_ms: float
    """From sending it until its answer."""

    server_ms: float
    """Of that at the server: in the queue and at work."""

    tail_ms: float
    """Of that in the tail."""

    @property
    def way_ms(self) -> float:
        """The wait less the server's own time."""
        return max(0.0, self.wait_ms - self.server_ms)


class Pace:
    """Collects what steps took.

    >>> Pace(num_layers=8).step_ms(4, 4) is None
    True
    """

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._steps: deque[Observed] = deque(maxlen=WINDOW)
        self.link = LinkBelief()
        self._has_sent = False
        self._head_ms = self._tail_ms = math.inf

    def observe(self, step: Observed) -> None:
        """Takes note of a step."""
        # Tokens that go together are cheaper, and moves are made of many: the best rates seen are theirs.
        self._head_ms = min(self._head_ms, step.head_ms / (step.num_tokens * max(1, step.layer)))
        behind = max(1, self._num_layers - step.layer)
        self._tail_ms = min(self._tail_ms, step.tail_ms / (step.last_tokens * behind))
        self.link = self.link.later(step.total_ms / 1e3)
        if step.last_bytes:
            self.link = self.link.seen(step.last_bytes, step.way_ms)
            self._has_sent = True
        if step.num_tokens == 1:
            self._steps.append(step)

    def moved(self) -> None:
        """The cut is elsewhere: the time of a step has to be learned again."""
        self._steps.clear()

    def step_ms(self, layer: int, at: int) -> float | None:
        """Median time of a step, cut at ``layer``, as it would be cut at ``at``; ``None`` while there are too few."""
        if len(self._steps) < WINDOW:
            return None
        per_head = statistics.median(step.head_ms for step in self._steps) / max(1, layer)
        per_tail = statistics.median(step.tail_ms for step in self._steps) / max(1, self._num_layers - layer)
        total = statistics.median(step.total_ms for step in self._steps)
        return total + (layer - at) * (per_tail - per_head)

    def rates(self) -> Rates:
        """What is known so far; before the first step everything is taken to be fast."""
        bytes_per_ms, rtt_ms = math.inf, 0.0
        if self._has_sent:
            bytes_per_ms, rtt_ms = self.link.rate_bits_per_s() / 8e3, self.link.trip_ms()
        head_ms, tail_ms = (0.0 if math.isinf(ms) else ms for ms in (self._head_ms, self._tail_ms))
        return Rates(bytes_per_ms=bytes_per_ms, rtt_ms=rtt_ms, head_ms=head_ms, tail_ms=tail_ms)
