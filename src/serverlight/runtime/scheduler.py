"""Which request the server runs next: a plain state machine without a clock, a tensor or a socket of its own."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from serverlight.errors import ServerBusy
from serverlight.runtime.messages import InferReply, InferRequest, MoveCut, ServerMessage, Step, StepReply
from serverlight.runtime.sessions import Session
from serverlight.runtime.shares import Shares

if TYPE_CHECKING:
    from serverlight.runtime.catalogue import Engine

__all__ = ["Answer", "Job", "Scheduler"]

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

    While others are about, one that has more than one request waiting gets no more than its share of the thread, even if
    that is idle then: a request that runs cannot be interrupted, and whoever comes meanwhile waits for it.

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
        self._shares = Shares()  # by turn

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
        self._shares.sent(job.turn, weight=job.weight, now_s=job.arrived_s)
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

    def take_batch(self, limit: int, *, is_shared: bool = False, now_s: float = 0.0) -> list[Job]:
        """Up to so many to run together, in the order of turns; of a session's steps, which follow from each other, one.

        Where the thread is shared, no client has more requests than its weight in a batch, so that one who sends many at
        once makes nobody else wait for all of them. Sessions are not counted: each has one step under way by nature.
        Clients that have had their share are passed over until :meth:`rest_s` has gone by.
        """
        resting = self._resting(now_s) if is_shared else {}
        kept = {turn: self._queues.pop(turn) for turn in resting}
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
        self._queues |= kept
        return batch

    def rest_s(self, now_s: float) -> float:
        """How long until somebody who waits may run; 0 for now."""
        resting = self._resting(now_s) if self.is_shared(now_s) else {}
        return min(resting.values()) if resting and len(resting) == len(self._queues) else 0.0

    def _resting(self, now_s: float) -> dict[object, float]:
        """Who has had his share and has more than one request waiting, and for how long he rests."""
        many = [turn for turn, waiting in self._queues.items() if len(waiting) > 1]
        return {turn: rest_s for turn in many if (rest_s := self._shares.rest_s(turn, now_s=now_s)) > 0}

    def is_shared(self, now_s: float) -> bool:
        """Whether more than one client has sent something lately, or waits."""
        return self._shares.about(now_s, self._queues.keys()) > 1

    def put_back(self, job: Job) -> None:
        """One that was taken is to go on before what its owner has sent since; its turn comes after the others'."""
        self._queues.setdefault(job.turn, deque()).appendleft(job)

    def oldest_s(self, now_s: float) -> float:
        """When the one that waits longest arrived, of those who need not rest; raises :class:`ValueError` where none waits."""
        resting = self._resting(now_s)
        able = [waiting[0].arrived_s for turn, waiting in self._queues.items() if turn not in resting]
        return min(able or [waiting[0].arrived_s for waiting in self._queues.values()])

    def forget(self, owner: object) -> int:
        """Drops the waiting requests of a connection that is gone; returns how many."""
        before = self.num_waiting
        self._shares.forget(owner)  # of a client with a name another connection may be there
        kept = {whose: deque(job for job in jobs if job.owner is not owner) for whose, jobs in self._queues.items()}
        self._queues = {whose: jobs for whose, jobs in kept.items() if jobs}
        return before - self.num_waiting

    def took(self, seconds: float, jobs: Sequence[Job], *, now_s: float) -> None:
        """Notes how long a batch kept the compute thread."""
        seconds /= max(1, len(jobs))
        for job in jobs:
            self._shares.took(job.turn, seconds, now_s=now_s)
        self._mean_s = seconds if self._mean_s == 0 else self._mean_s + _NEWEST_SHARE * (seconds - self._mean_s)

    @property
    def retry_after_ms(self) -> int:
        """When about half of what waits now will be done, in milliseconds; at least 1."""
        return max(1, round(self._mean_s * 1e3 * self.num_waiting / 2))
