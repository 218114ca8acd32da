"""The server without its sockets: streams, handshake, queue, and the one thread that computes."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from serverlight.codec.config import CodecConfig
from serverlight.errors import (
    ConfigError,
    DeadlineExceeded,
    PeerUnavailable,
    PlanMismatch,
    ProtocolError,
    RemoteError,
    ServerBusy,
    ServerlightError,
)
from serverlight.plan import Plan
from serverlight.runtime.messages import (
    PROTOCOL_VERSION,
    ClientMessage,
    CloseSession,
    Failure,
    Hello,
    InferReply,
    InferRequest,
    MoveCut,
    OpenSession,
    Ping,
    Pong,
    ServerMessage,
    Step,
    StepReply,
    Welcome,
    payload_bytes,
)
from serverlight.runtime.observe import Observer, log_fields
from serverlight.runtime.quotas import Quotas
from serverlight.runtime.scheduler import Answer, Job, Scheduler
from serverlight.runtime.sessions import Session, SessionTable
from serverlight.runtime.transport import DEFAULT_MAX_MESSAGE_BYTES
from serverlight.runtime.window import Window

__all__ = ["Runner", "ServerConfig", "ServerCore"]

_IDLE_CHECK_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerConfig:
    """Limits of a server; the defaults suit small models on a few cores."""

    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES
    """The largest message it reads or writes."""

    max_batch: int = 64
    """The most samples in one request."""

    max_batch_requests: int = 64
    """The most requests that run as one batch; 1 runs one after the other."""

    max_batch_delay_ms: float = 5.0
    """The longest that a request waits for others to join its batch, in milliseconds."""

    max_waiting: int = 64
    """The most requests that wait, all clients together; further ones get :class:`ServerBusy`."""

    max_in_flight: int = 16
    """Requests without a reply that it reads from one stream; it leaves further ones unread."""

    max_streams: int = 256
    """The most streams at a time; further ones get :class:`ServerBusy`."""

    hello_timeout_s: float = 10.0
    """How long a new stream may say nothing."""

    max_sessions: int = 64
    """The most sequences of a language model at a time; further ones get :class:`ServerBusy`."""

    max_session_tokens: int = 8192
    """The most tokens of one sequence; the model's context may hold fewer."""

    max_kv_bytes: int = 2**30
    """Keys and values of all sequences together; a step beyond it gets :class:`ServerBusy`."""

    session_idle_s: float = 600.0
    """How long a sequence is remembered without a step."""

    drain_s: float = 10.0
    """How long a stopping server goes on with what it has accepted."""

    stall_s: float = 60.0
    """How long there may be work and no answer before the server says that it is not healthy."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "drain_s" else 1
            if field.type == "int" and (not isinstance(value, int) or value < least):
                raise ConfigError(field.name, f"must be a whole number of at least {least}, got {value!r}")
            if field.type == "float" and not value >= 0:
                raise ConfigError(field.name, f"must be zero or more, got {value!r}")


class Runner(Protocol):
    """What the compute thread calls; :class:`serverlight.runtime.worker.Worker` is one."""

    def run(self, jobs: Sequence[Job]) -> Iterator[tuple[Job, Answer]]:
        """Runs requests together and gives out each one's answer as soon as it is there; an error is the request's own."""

    def open_session(self, plan: Plan, opened: OpenSession) -> Session:
        """Begins a sequence; raises :class:`ProtocolError` where the model is no language model."""


class ServerCore:
    """Takes streams from any transport and runs their requests, in batches, on a thread of its own.

    ``plans`` has one plan for each cut that is served. With ``codec`` given, clients must use exactly these settings;
    otherwise any, since a frame describes itself. ``quotas`` has the shares of clients that have a name.
    """

    def __init__(
        self,
        runner: Runner,
        plans: Mapping[str, Plan],
        *,
        codec: CodecConfig | None = None,
        config: ServerConfig | None = None,
        quotas: Quotas | None = None,
        head_shares: Mapping[str, float] | None = None,
    ) -> None:
        self.config, self._quotas = config or ServerConfig(), quotas or Quotas()
        self.head_shares = dict(head_shares or {})  # the device's part of the whole model's work, where it is known
        self.observer = Observer()  # is told what happens; to be set before the start
        self.has_crashed = False  # the compute thread ended by an error: nothing is answered any more
        self.num_answered = 0  # by the compute thread, since the start
        self._runner, self._plans, self._codec = runner, dict(plans), codec
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
        self._connections: set[_Connection] = set()
        self._is_draining = self._is_stopped = False
        self._thread = threading.Thread(target=self._live, name="serverlight-compute", daemon=True)

    # -- life cycle ------------------------------------------------------------------------------

    def start(self) -> Self:
        """Starts the compute thread."""
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
        for job in given_up:
            job.reply(Failure(request_id=job.request.request_id, error=_shutting_down()))
        return len(given_up) + len(self._running)

    def stop(self) -> None:
        """Ends the compute thread; a request that is running is waited for."""
        with self._changed:
            self._is_draining = self._is_stopped = True
            self._changed.notify_all()
        self._thread.join()

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
    def is_draining(self) -> bool:
        """Whether new work is refused."""
        return self._is_draining

    # -- streams ---------------------------------------------------------------------------------

    def connect(self, reply: Callable[[ServerMessage], None], *, client: str | None = None) -> _Connection:
        """A new stream; its first message must be a :class:`Hello`. ``client`` is whose it is, where that is known."""
        connection = _Connection(self, reply, client)
        self.observer.stream_opened(connection)
        with self._changed:
            self._connections.add(connection)
            too_many = len(self._connections) > self.config.max_streams
            retry_after_ms = self._scheduler.retry_after_ms
        if self._is_draining:
            connection.fail(_shutting_down())
        elif too_many:
            connection.fail(ServerBusy(retry_after_ms))
        return connection

    def disconnect(self, connection: _Connection) -> None:
        """A stream is gone, and with it the requests that it had waiting."""
        with self._changed:
            self._connections.discard(connection)
            self._window.forget(connection)
            self._sessions.remove(connection)
            self._scheduler.forget(connection)
            self._changed.notify_all()
        self.observer.stream_closed(connection)

    def agree(self, plan: Plan) -> None:
        """Raises :class:`PlanMismatch`, worded for the client, unless this server serves the client's plan."""
        anyones = next(iter(self._plans.values()))
        plan.check_compatible(self._plans.get(plan.cut, dataclasses.replace(anyones, cut=plan.cut)))
        if plan.cut not in self._plans:
            raise PlanMismatch("cut", plan.cut, ", ".join(self._plans))
        for field in dataclasses.fields(CodecConfig) if self._codec else ():
            ours, theirs = getattr(plan.codec, field.name), getattr(self._codec, field.name)
            if ours != theirs:
                raise PlanMismatch(f"codec.{field.name}", ours, theirs)

    def submit(self, job: Job) -> None:
        """Queues a request; raises :class:`ServerBusy` or :class:`PeerUnavailable` at once if it cannot be taken.

        Another client's newest request may be given up for it, if that has many more waiting.
        """
        with self._changed:
            if self._is_draining:
                raise _shutting_down()
            if job.session is not None and isinstance(job.request, Step | MoveCut):
                least_bytes = job.session.least_bytes(job.request)
                self._sessions.check(job.owner, least_bytes, self._scheduler.retry_after_ms)
            self._quotas.charge(job.client, payload_bytes(job.request), job.arrived_s)
            given_up = self._scheduler.admit(job)
            self._window.arrived(job.owner, job.arrived_s)
            retry_after_ms = self._scheduler.retry_after_ms
            self._changed.notify_all()
        if given_up is not None:
            given_up.reply(Failure(request_id=given_up.request.request_id, error=ServerBusy(retry_after_ms)))

    # -- sessions --------------------------------------------------------------------------------

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values that sequences have reserved."""
        return self._sessions.kv_bytes

    @property
    def cuts(self) -> tuple[str, ...]:
        """The cuts that are served."""
        return tuple(self._plans)

    def open_session(self, owner: _Connection, plan: Plan, opened: OpenSession) -> Session:
        """Begins a sequence; raises :class:`ServerBusy` at once where there are too many."""
        session = self._runner.open_session(plan, opened)
        with self._changed:
            if self._is_draining:
                raise _shutting_down()
            self._quotas.charge(owner.client, 0, now_s := time.monotonic())
            self._sessions.add(owner, now_s, self._scheduler.retry_after_ms, client=owner.client)
            self._changed.notify_all()  # from now on the thread looks for idle ones
        self.observer.session_opened(owner, plan.cut)
        return session

    def touch_session(self, owner: object) -> None:
        """Notes that a session is not idle."""
        with self._changed:
            self._sessions.touch(owner, time.monotonic())

    def close_session(self, owner: _Connection, *, expired: bool = False) -> None:
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
                seconds = time.monotonic() - started_s
                self._scheduler.took(seconds, len(self._running))
                self._window.took(seconds)
                self._running = []
                self._changed.notify_all()

    def _next(self) -> list[Job]:
        """What runs next, once there is something and the window for more has closed; nothing when the server stops."""
        with self._changed:
            while not self._is_stopped:
                wait_s = _IDLE_CHECK_S if len(self._sessions) else None
                if self._scheduler.num_waiting:
                    now_s = time.monotonic()
                    wait_s = self._window.closes_s(oldest_s=self._scheduler.oldest_s, now_s=now_s) - now_s
                    if wait_s <= 0 or self._scheduler.num_waiting >= self.config.max_batch_requests:
                        break
                self._changed.wait(wait_s)
                for connection in self._sessions.idle(time.monotonic()):
                    connection.expire()
            if not self._is_stopped:
                self._running = self._scheduler.take_batch(self.config.max_batch_requests)
            return self._running

    def _run(self, now_s: float) -> Iterator[tuple[Job, Answer]]:
        late = [job for job in self._running if job.is_expired(now_s)]
        for job in late:
            if job.session is not None:
                job.session.give_up()
            yield job, _too_late(job)
        left = dict.fromkeys(job for job in self._running if job not in late)
        try:
            for job, answer in self._runner.run(list(left)):
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


class _Connection:
    """The protocol of one stream: Hello first, then requests with rising ids."""

    _numbers = itertools.count(1)

    def __init__(self, core: ServerCore, reply: Callable[[ServerMessage], None], client: str | None) -> None:
        self._core, self._reply, self.client = core, reply, client
        self.number = next(self._numbers)
        self._plan: Plan | None = None
        self._session: Session | None = None
        self._last_id = 0
        self._is_closed = False
        self.over = False

    def receive(self, message: ClientMessage | Failure) -> None:
        """Takes one message and never raises."""
        if self.over:
            return
        session = self._session  # the compute thread may take it away meanwhile, if it has been idle
        try:
            match message:
                case Hello():
                    self._greet(message)
                case Ping():
                    self._reply(Pong())
                case OpenSession():
                    self._open(message)
                case CloseSession():
                    self._close_session()
                case _ if session is not None:
                    self._take_step(message, session)
                case _:
                    self._take_request(message)
        except ServerlightError as error:
            self.fail(error)

    def fail(self, error: ServerlightError) -> None:
        """Says why and ends the stream."""
        if not self.over:
            self.over = True
            self._core.observer.refused(self, error)
            self._reply(Failure(request_id=0, error=error))

    def close(self) -> None:
        """The client is gone."""
        if not self._is_closed:
            self.over = self._is_closed = True
            self._session = None
            self._core.disconnect(self)

    def _greet(self, hello: Hello) -> None:
        if self._plan is not None:
            raise ProtocolError("a second Hello; open another stream for another plan")
        if hello.protocol_version != PROTOCOL_VERSION:
            raise ProtocolError(
                f"the client speaks protocol version {hello.protocol_version}, the server {PROTOCOL_VERSION}; "
                "install the same serverlight on both"
            )
        plan = _read_plan(hello.plan_json)
        self._core.agree(plan)
        self._plan = plan
        self._core.observer.greeted(self, plan)
        config = self._core.config
        self._reply(
            Welcome(
                max_message_bytes=config.max_message_bytes,
                max_batch=config.max_batch,
                max_in_flight=config.max_in_flight,
                cuts=self._core.cuts,
            )
        )

    def expire(self) -> None:
        """The session had no step for too long."""
        self._close_session(expired=True)
        self.fail(PeerUnavailable("the session was idle for too long and is forgotten; open it again"))

    def _open(self, message: OpenSession) -> None:
        if (plan := self._plan) is None:
            raise ProtocolError("a session before Hello; say Hello first")
        if self._session is not None:
            raise ProtocolError("a second session on one stream; close the first, or open another stream")
        if message.cut:
            plan = dataclasses.replace(plan, cut=message.cut)
            self._core.agree(plan)
        self._session = self._core.open_session(self, plan, message)

    def _close_session(self, *, expired: bool = False) -> None:
        self._session = None
        self._core.close_session(self, expired=expired)

    def _take_step(self, message: InferRequest | Step | MoveCut | Failure, session: Session) -> None:
        if isinstance(message, InferRequest):
            raise ProtocolError("a request within a session; send steps, or close the session")
        if isinstance(message, Failure):
            self._reply(message)
            return
        self._core.touch_session(self)
        self._submit(message, session)

    def _take_request(self, message: InferRequest | Step | MoveCut | Failure) -> None:
        if isinstance(message, Step | MoveCut):
            raise ProtocolError("a step without a session; open one first")
        if self._plan is None:
            raise ProtocolError("a request before Hello; say Hello first")
        if message.request_id <= self._last_id:
            raise ProtocolError(f"request_id {message.request_id} after {self._last_id}; ids must rise")
        self._last_id = message.request_id
        if isinstance(message, Failure):
            self._reply(message)
            return
        self._submit(message)

    def _submit(self, message: InferRequest | Step | MoveCut, session: Session | None = None) -> None:
        job = Job(
            owner=self,
            client=self.client,
            cut=self._plan.cut if self._plan else "",
            request=message,
            reply=self._reply,
            arrived_s=time.monotonic(),
            session=session,
            reserve=functools.partial(self._core.reserve, self),
        )
        try:
            self._core.submit(job)
        except ServerlightError as error:
            self._core.observer.refused(self, error, request_id=message.request_id)
            self._reply(Failure(request_id=message.request_id, error=error))


def _read_plan(plan_json: str) -> Plan:
    try:
        return Plan.from_json(plan_json)
    except ServerlightError:
        raise
    except (TypeError, ValueError, RecursionError) as exc:
        raise ProtocolError(f"the plan in Hello cannot be read: {type(exc).__name__}") from None


def _failure(job: Job, error: BaseException) -> Failure:
    if isinstance(error, ServerlightError):
        return Failure(request_id=job.request.request_id, error=error)
    _log.error("request %d at cut %s failed", job.request.request_id, job.cut, exc_info=error, extra=log_fields(job))
    return _own_fault(job)


def _own_fault(job: Job) -> Failure:
    request_id = job.request.request_id
    return Failure(request_id=request_id, error=RemoteError(f"the server failed on request {request_id}; see its log"))


def _too_late(job: Job) -> DeadlineExceeded:
    return DeadlineExceeded(f"the request waited longer than its {job.request.deadline_ms} ms; it was not run")


def _shutting_down() -> PeerUnavailable:
    return PeerUnavailable("the server is shutting down; connect to another, or again when it is back")
