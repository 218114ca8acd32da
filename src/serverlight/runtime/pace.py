"""How fast device, link and server are, as far as a sequence has shown it, and what moving its cut would cost."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MoveCost", "Pace", "Rates", "cheaper", "fit_link", "recompute_cost", "ship_cost"]

WINDOW = 5
"""Steps whose median is the time of a step: one slow step is no reason to move."""

MANY = 64
"""Messages that the link's rate is estimated from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Speeds of a sequence's way."""

    bytes_per_ms: float
    """The uplink; infinite where it is too fast to be seen."""

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


def fit_link(samples: Sequence[tuple[int, float]]) -> tuple[float, float]:
    """Bytes per millisecond and round trip in milliseconds, from sizes of messages and how long they were under way.

    A line through the typical small and the typical large message. Where sizes hardly differ all time counts as the
    bytes', which makes a link look slower than it is, for both ways to move alike.

    >>> fit_link([(1000, 12.0), (1000, 12.0), (9000, 20.0)])
    (1000.0, 11.0)
    """
    least, most = min(size for size, _ in samples), max(size for size, _ in samples)
    if most >= 2 * least:
        small = _middle([sample for sample in samples if sample[0] <= 1.5 * least])
        large = _middle([sample for sample in samples if 1.5 * sample[0] >= most])
        if large[1] > small[1]:
            rate = (large[0] - small[0]) / (large[1] - small[1])
            return rate, max(0.0, small[1] - small[0] / rate)
        return math.inf, max(0.0, small[1])
    size, time_ms = _middle(samples)
    return (size / time_ms if time_ms > 0 else math.inf), 0.0


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


class Pace:
    """Collects what steps took.

    >>> Pace(num_layers=8).step_ms(4, 4) is None
    True
    """

    def __init__(self, num_layers: int) -> None:
        self._num_layers = num_layers
        self._steps: deque[Observed] = deque(maxlen=WINDOW)
        self._link: deque[tuple[int, float]] = deque(maxlen=MANY)
        self._largest: tuple[int, float] | None = None
        self._head_ms = self._tail_ms = math.inf

    def observe(self, step: Observed) -> None:
        """Takes note of a step."""
        # Tokens that go together are cheaper, and moves are made of many: the best rates seen are theirs.
        self._head_ms = min(self._head_ms, step.head_ms / (step.num_tokens * max(1, step.layer)))
        behind = max(1, self._num_layers - step.layer)
        self._tail_ms = min(self._tail_ms, step.tail_ms / (step.last_tokens * behind))
        if step.last_bytes:
            sample = step.last_bytes, max(0.0, step.wait_ms - step.server_ms)
            self._link.append(sample)
            self._largest = max(self._largest or sample, sample)
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
        samples = [*self._link, *([self._largest] if self._largest else [])]
        bytes_per_ms, rtt_ms = fit_link(samples) if samples else (math.inf, 0.0)
        head_ms, tail_ms = (0.0 if math.isinf(ms) else ms for ms in (self._head_ms, self._tail_ms))
        return Rates(bytes_per_ms=bytes_per_ms, rtt_ms=rtt_ms, head_ms=head_ms, tail_ms=tail_ms)


def _middle(samples: Sequence[tuple[int, float]]) -> tuple[float, float]:
    return statistics.median(size for size, _ in samples), statistics.median(time_ms for _, time_ms in samples)
