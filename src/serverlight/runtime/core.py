"""The server without its sockets: streams, handshake, queue, and the one thread that computes."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from serverlight.errors import (
    DeadlineExceeded,
    QuotaExceeded,
    RemoteError,
    ServerBusy,
    ServerlightError,
)
from serverlight.plan import Plan
from serverlight.runtime.catalogue import Catalogue, Engine
from serverlight.runtime.connection import Connection, shutting_down
from serverlight.runtime.engines import Engines
from serverlight.runtime.memory import is_out_of_memory
from serverlight.runtime.messages import (
    Failure,
    InferReply,
    MoveCut,
    OpenSession,
    ServerMessage,
    Step,
    StepReply,
    payload_bytes,
)
from serverlight.runtime.observe import Observer, log_fields
from serverlight.runtime.quotas import Quotas
from serverlight.runtime.scheduler import Answer, Job, Scheduler
from serverlight.runtime.server_config import ServerConfig
from serverlight.runtime.sessions import Session, SessionTable
from serverlight.runtime.window import Window

__all__ = ["ServerConfig", "ServerCore"]

_IDLE_CHECK_S, _LOOK_S = 1.0, 1e-3

_NO_MEMORY_RETRY_MS = 100
"""When to come back with a request that there was no memory for."""

_log = logging.getLogger(__name__)


class ServerCore:
    """Takes streams from any transport and runs their requests, in batches, on a thread of its own.

    ``catalogue`` has the models that are served. ``quotas`` has the shares of clients that have a name.
    """

    def __init__(
        self, catalogue: Catalogue, *, config: ServerConfig | None = None, quotas: Quotas | None = None
    ) -> None:
        self.config, self._quotas = config or ServerConfig(), quotas or Quotas()
        self.observer = Observer()  # is told what happens; to be set before the start
        self.has_crashed = False  # the compute thread ended by an error: nothing is answered any more
        self.num_answered = 0  # by the compute thread, since the start
        self.engines = Engines(catalogue)
        self._scheduler = Scheduler(max_waiting=self.config.max_waiting)
        self._sessions = SessionTable(
            max_sessions=self.config.max_sessions,
            max_kv_bytes=self.config.max_kv_bytes,
            idle_s=self.config.session_idle_s,
            quotas=self._quotas,
        )
        self._changed = threading.Condition()  # guards all below, the scheduler and the table of sessions
        self._window = Window(max_delay_s=self.config.max_batch_delay_ms / 1e3)
        self._running: list[Job] = []
        self._unprepared = deque[Job]()  # came since the last batch was taken
        self._given_up = deque[Job]()  # for other clients' requests; they may have been prepared
        self._is_shared = False
        self._is_idle = False  # the compute thread waits for a first request
        self._connections: set[Connection] = set()
        self._is_draining = self._is_stopped = False
        self._thread = threading.Thread(target=self._live, name="serverlight-compute", daemon=True)

    # -- life cycle ------------------------------------------------------------------------------

    def start(self) -> Self:
        """Starts the compute thread, and the one that loads models."""
        self.engines.start()
        self._thread.start()
        return self

    def drain(self, timeout_s: float) -> int:
        """Refuses new work and finishes what was accepted, for so long at most; returns how many requests were given up."""
        with self._changed:
            self._is_draining = True
            self._changed.wait_for(lambda: not self._running and not self._scheduler.num_waiting, timeout_s)
            given_up = []
            while (job := self._scheduler.take()) is not None:
                given_up.append(job)
            connections = list(self._connections)
        for job in given_up:
            job.reply(Failure(request_id=job.request.request_id, error=shutting_down()))
        for connection in connections:
            connection.dismiss()
        return len(given_up) + len(self._running)

    def stop(self) -> None:
        """Ends the threads; a request that is running is waited for."""
        with self._changed:
            self._is_draining = self._is_stopped = True
            self._changed.notify_all()
        self._thread.join()
        self.engines.stop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drain(self.config.drain_s)
        self.stop()

    @property
    def num_waiting(self) -> int:
        """Requests accepted and not yet begun."""
        return self._scheduler.num_waiting

    @property
    def is_busy(self) -> bool:
        """Whether the compute thread has something to do."""
        return bool(self._running) or self._scheduler.num_waiting > 0

    @property
    def num_streams(self) -> int:
        """Streams that are open now."""
        return len(self._connections)

    @property
    def num_sessions(self) -> int:
        """Sequences of language models that are open now."""
        return len(self._sessions)

    @property
    def is_draining(self) -> bool:
        """Whether new work is refused."""
        return self._is_draining

    # -- streams ---------------------------------------------------------------------------------

    def connect(self, reply: Callable[[ServerMessage], None], *, client: str | None = None) -> Connection:
        """A new stream; its first message must be a :class:`Hello`. ``client`` is whose it is, where that is known."""
        connection = Connection(self, reply, client)
        self.observer.stream_opened(connection)
        with self._changed:
            self._connections.add(connection)
            too_many = len(self._connections) > self.config.max_streams
            retry_after_ms = self._scheduler.retry_after_ms
            over_quota = self._quotas.enter(client)
        if self._is_draining:
            connection.fail(shutting_down())
        elif too_many or over_quota:
            connection.fail(QuotaExceeded("max_streams", retry_after_ms) if over_quota else ServerBusy(retry_after_ms))
        return connection

    def disconnect(self, connection: Connection) -> None:
        """A stream is gone, and with it the requests that it had waiting."""
        with self._changed:
            self._connections.discard(connection)
            self._window.forget(connection)
            self._quotas.leave(connection.client)
            self._sessions.remove(connection)
            self._scheduler.forget(connection)
            self._changed.notify_all()
        if connection.engine is not None:
            self.engines.release(connection.engine)
        self.observer.stream_closed(connection)

    def submit(self, job: Job) -> None:
        """Queues a request; raises :class:`ServerBusy` or :class:`PeerUnavailable` at once if it cannot be taken.

        Another client's newest request may be given up for it, if that has many more waiting.
        """
        with self._changed:
            if self._is_draining:
                raise shutting_down()
            if job.session is not None and isinstance(job.request, Step | MoveCut):
                least_bytes = job.session.least_bytes(job.request)
                self._sessions.check(job.owner, least_bytes, self._scheduler.retry_after_ms)
            self._quotas.charge(job.client, payload_bytes(job.request), job.arrived_s)
            if (given_up := self._scheduler.admit(job)) is not None:
                self._given_up.append(given_up)
            self._window.arrived(job.owner, job.arrived_s)
            retry_after_ms = self._scheduler.retry_after_ms
            self._unprepared.append(job)
            if self._is_idle or self._wait_s(job.arrived_s) == 0:
                self._changed.notify_all()
        if given_up is not None:
            given_up.reply(Failure(request_id=given_up.request.request_id, error=ServerBusy(retry_after_ms)))

    # -- sessions --------------------------------------------------------------------------------

    def weight_of(self, client: str | None) -> int:
        """How many requests a client has in one turn."""
        return self._quotas.of(client).weight

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that sequences have reserved."""
        return self._sessions.kv_bytes

    @property
    def plans(self) -> tuple[Plan, ...]:
        """One for each cut of each model that is loaded; they name the model."""
        return tuple(plan for engine in self.engines.catalogue.engines for plan in engine.plans.values())

    def open_session(self, owner: Connection, engine: Engine, plan: Plan, opened: OpenSession) -> Session:
        """Begins a sequence; raises :class:`ServerBusy` at once where there are too many."""
        with self._changed:
            self._quotas.charge(owner.client, 0, time.monotonic())
        session = engine.runner.open_session(plan, opened)
        with self._changed:
            if self._is_draining:
                raise shutting_down()
            self._sessions.add(owner, time.monotonic(), self._scheduler.retry_after_ms, client=owner.client)
            self._changed.notify_all()  # from now on the thread looks for idle ones
        self.observer.session_opened(owner, plan.cut)
        return session

    def touch_session(self, owner: object) -> None:
        """Notes that a session is not idle."""
        with self._changed:
            self._sessions.touch(owner, time.monotonic())

    def close_session(self, owner: Connection, *, expired: bool = False) -> None:
        """Gives back what a session has reserved."""
        with self._changed:
            self._sessions.remove(owner)
        self.observer.session_closed(owner, expired=expired)

    def reserve(self, owner: object, num_bytes: int) -> None:
        """The session will hold so many bytes in all; raises :class:`ServerBusy` where they are not to be had."""
        with self._changed:
            self._sessions.reserve(owner, num_bytes, self._scheduler.retry_after_ms)

    # -- the compute thread ----------------------------------------------------------------------

    def _live(self) -> None:
        try:
            self._compute()
        except BaseException:
            _log.critical("the compute thread has crashed; what waits is given up", exc_info=True)
            self.has_crashed = True
            running, self._running = self._running, []
            for job in running:
                job.reply(_own_fault(job))
            self.drain(0)

    def _compute(self) -> None:
        while self._next():
            started_s = time.monotonic()
            for job, answer in self._run(started_s):
                self._take_answer(job, answer)
            with self._changed:
                seconds = (now_s := time.monotonic()) - started_s
                self._scheduler.took(seconds, self._running, now_s=now_s)
                self._window.took(seconds, now_s=now_s)
                self._running = []
                self._changed.notify_all()

    def _next(self) -> list[Job]:
        """What runs next, once there is something and the window for more has closed; nothing when the server stops."""
        while True:
            with self._changed:
                if self._is_stopped:
                    return []
                while self._given_up:
                    _forget(self._given_up.popleft())
                now_s = time.monotonic()
                if (wait_s := self._wait_s(now_s)) == 0:
                    self._unprepared.clear()
                    self._is_shared = self._scheduler.is_shared(now_s)
                    self._running = self._scheduler.take_batch(
                        self.config.max_batch_requests, is_shared=self._is_shared, now_s=now_s
                    )
                    return self._running
                if not self._unprepared:
                    self._is_idle = not self._scheduler.num_waiting
                    # One request after the other would wake this thread for each; a look now and then costs less.
                    self._changed.wait(wait_s if self._is_idle or wait_s is None else min(wait_s, _LOOK_S))
                    self._is_idle = False
                    for connection in self._sessions.idle(time.monotonic()):
                        connection.expire()
                    continue  # what has come may be all that is waited for
                job = self._unprepared.popleft()
            self.engines.prepare(job)

    def _wait_s(self, now_s: float) -> float | None:
        """How long until there is something to run; ``None`` where only a change can tell."""
        if not self._scheduler.num_waiting:
            return _IDLE_CHECK_S if len(self._sessions) else None
        if (rest_s := self._scheduler.rest_s(now_s)) > 0:
            return rest_s
        if self._scheduler.num_waiting >= self.config.max_batch_requests:
            return 0.0
        return max(0.0, self._window.closes_s(oldest_s=self._scheduler.oldest_s(now_s), now_s=now_s) - now_s)

    def _run(self, now_s: float) -> Iterator[tuple[Job, Answer]]:
        late = [job for job in self._running if job.is_expired(now_s)]
        for job in late:
            _forget(job)
            yield job, _too_late(job)
        left = dict.fromkeys(job for job in self._running if job not in late)
        try:
            for job, answer in self.engines.run(list(left), is_shared=self._is_shared):
                del left[job]
                yield job, answer
        except Exception as error:  # whatever a model raises, the thread must live on for the others
            for job in left:
                yield job, error

    def _take_answer(self, job: Job, answer: Answer) -> None:
        if answer is None:
            with self._changed:
                if job.owner in self._connections:
                    self._scheduler.put_back(job)
            return
        self._deliver(job, _failure(job, answer) if isinstance(answer, BaseException) else answer)
        with self._changed:
            self._window.answered(job.owner, time.monotonic())

    def _deliver(self, job: Job, message: InferReply | StepReply | Failure) -> None:
        self.num_answered += 1
        self.observer.answered(job, message)  # before the reply: whoever has an answer finds it counted
        try:
            job.reply(message)
        except Exception:  # an output that cannot be serialised, say
            text = "the reply to request %d at cut %s failed"
            _log.exception(text, job.request.request_id, job.cut, extra=log_fields(job))
            job.reply(_own_fault(job))


def _forget(job: Job) -> None:
    """Gives back what a request that is not to run has reserved."""
    if job.session is not None and isinstance(job.request, Step | MoveCut):
        job.session.give_up(job.request)


def _failure(job: Job, error: BaseException) -> Failure:
    if isinstance(error, ServerlightError):
        return Failure(request_id=job.request.request_id, error=error)
    _log.error("request %d at cut %s failed", job.request.request_id, job.cut, exc_info=error, extra=log_fields(job))
    if is_out_of_memory(error):  # another server may have room, or this one when others have gone
        return Failure(request_id=job.request.request_id, error=ServerBusy(_NO_MEMORY_RETRY_MS))
    return _own_fault(job)


def _own_fault(job: Job) -> Failure:
    request_id = job.request.request_id
    return Failure(request_id=request_id, error=RemoteError(f"the server failed on request {request_id}; see its log"))


def _too_late(job: Job) -> DeadlineExceeded:
    return DeadlineExceeded(f"the request waited longer than its {job.request.deadline_ms} ms; it was not run")
