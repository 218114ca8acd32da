"""Which request the server runs next: a plain state machine without a clock, a tensor or a socket of its own."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serverlight.errors import ServerBusy
from serverlight.runtime.messages import InferReply, InferRequest, MoveCut, ServerMessage, Step, StepReply
from serverlight.runtime.sessions import Session

if TYPE_CHECKING:
    from serverlight.runtime.catalogue import Engine

__all__ = ["Answer", "Job", "Scheduler"]

_ACTIVE_S = 1.0
"""A client whose last request is no older shares the compute thread with the others."""

_NEWEST_SHARE = 0.2
"""Weight of the newest request in the running mean of the time that one takes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, weakref_slot=True)
class Job:
    """One request on its way through the server."""

    owner: object
    """The connection that it came by."""

    client: str | None = None
    """Whose connection that is, where it is known."""

    weight: int = 1
    """How many requests its client has in one turn."""

    engine: Engine | None = None
    """Which model it is for."""

    cut: str
    """Which tail it is for."""

    request: InferRequest | Step | MoveCut
    """What came."""

    reply: Callable[[ServerMessage], None]
    """Where the answer goes."""

    arrived_s: float
    """When it was read."""

    session: Session | None = None
    """What a step goes on with."""

    reserve: Callable[[int], None] = lambda num_bytes: None
    """Is told the bytes that the session will hold, before any work, and may raise."""

    @property
    def turn(self) -> object:
        """With whom it shares turns: however many connections a client has, it has one turn."""
        return self.owner if self.client is None else self.client

    def is_expired(self, now_s: float) -> bool:
        """Whether nobody wants the answer any more."""
        deadline_ms = self.request.deadline_ms
        return deadline_ms is not None and now_s > self.arrived_s + deadline_ms / 1e3


Answer = InferReply | StepReply | BaseException | None
"""What became of a request; ``None``: it goes on in a later batch."""


class Scheduler:
    """Clients in turn, each one's requests in order, up to a limit; what is over the limit is told when to come back.

    So one that sends much at once waits behind itself, not others behind it; nor does it keep others out: when all places
    are taken, the newest request of whoever has most makes room for one of somebody who has fewer.

    >>> scheduler = Scheduler(max_waiting=2)
    >>> scheduler.num_waiting
    0
    """

    def __init__(self, *, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._queues: dict[object, deque[Job]] = {}  # none is empty; whose turn is next comes first
        self._front: object = None  # whose turn it is
        self._num_in_turn = 0
        self._mean_s = 0.0
        self._last_s: dict[object, float] = {}  # by turn, the longest silent first

    @property
    def num_waiting(self) -> int:
        """Requests that have not been taken yet."""
        return sum(map(len, self._queues.values()))

    def admit(self, job: Job) -> Job | None:
        """Takes a request in, and returns the one that was given up for it, if any; raises :class:`ServerBusy` at once when
        there are too many.
        """
        given_up = self._make_room(job) if self.num_waiting >= self._max_waiting else None
        self._queues.setdefault(job.turn, deque()).append(job)
        self._last_s.pop(job.turn, None)
        self._last_s[job.turn] = job.arrived_s
        return given_up

    def _make_room(self, job: Job) -> Job:
        longest = max(self._queues.values(), key=len)
        # Even with the new one its client has fewer than the other: so nobody takes a place back and forth.
        if len(self._queues.get(job.turn, ())) + 1 >= len(longest):
            raise ServerBusy(self.retry_after_ms)
        return longest.pop()

    def take(self) -> Job | None:
        """The request to run next, or ``None``."""
        if not self._queues:
            return None
        whose = next(iter(self._queues))
        self._num_in_turn = self._num_in_turn + 1 if whose == self._front else 1
        self._front, waiting = whose, self._queues[whose]
        job = waiting.popleft()
        if not waiting or self._num_in_turn >= job.weight:
            del self._queues[whose]
            self._front = None
        if waiting:
            self._queues.setdefault(whose, waiting)
        return job

    def take_batch(self, limit: int, *, is_shared: bool = False) -> list[Job]:
        """Up to so many to run together, in the order of turns; of a session's steps, which follow from each other, one.

        Where the thread is shared, no client has more requests than its weight in a batch, so that one who sends many at
        once makes nobody else wait for all of them. Sessions are not counted: each has one step under way by nature.
        """
        batch, later = list[Job](), dict[object, list[Job]]()
        owners, num_of = set[object](), Counter[object]()
        while len(batch) < limit and (job := self.take()) is not None:
            is_next = job.owner not in owners if job.session is not None else num_of[job.turn] < job.weight
            if is_next or (job.session is None and not is_shared):
                owners.add(job.owner)
                num_of[job.turn] += job.session is None
                batch.append(job)
            else:
                later.setdefault(job.turn, []).append(job)
        for turn, jobs in later.items():
            self._queues.setdefault(turn, deque()).extendleft(reversed(jobs))
        return batch

    def is_shared(self, now_s: float) -> bool:
        """Whether more than one client has sent something lately, or waits."""
        while self._last_s and now_s - self._last_s[oldest := next(iter(self._last_s))] > _ACTIVE_S:
            del self._last_s[oldest]
        return len(self._last_s.keys() | self._queues.keys()) > 1

    def put_back(self, job: Job) -> None:
        """One that was taken is to go on before what its owner has sent since; its turn comes after the others'."""
        self._queues.setdefault(job.turn, deque()).appendleft(job)

    @property
    def oldest_s(self) -> float:
        """When the one that waits longest arrived; raises :class:`ValueError` where none waits."""
        return min(waiting[0].arrived_s for waiting in self._queues.values())

    def forget(self, owner: object) -> int:
        """Drops the waiting requests of a connection that is gone; returns how many."""
        before = self.num_waiting
        self._last_s.pop(owner, None)  # of a client with a name another connection may be there
        kept = {whose: deque(job for job in jobs if job.owner is not owner) for whose, jobs in self._queues.items()}
        self._queues = {whose: jobs for whose, jobs in kept.items() if jobs}
        return before - self.num_waiting

    def took(self, seconds: float, num_requests: int = 1) -> None:
        """Notes how long a batch kept the compute thread."""
        seconds /= max(1, num_requests)
        self._mean_s = seconds if self._mean_s == 0 else self._mean_s + _NEWEST_SHARE * (seconds - self._mean_s)

    @property
    def retry_after_ms(self) -> int:
        """When about half of what waits now will be done, in milliseconds; at least 1."""
        return max(1, round(self._mean_s * 1e3 * self.num_waiting / 2))
