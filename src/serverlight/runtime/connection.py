"""The protocol of one stream, on the server: Hello, then requests, or the steps of a session."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from serverlight.errors import (
    MessageTooLarge,
    PeerUnavailable,
    ProtocolError,
    ServerlightError,
)
from serverlight.plan import Plan
from serverlight.runtime.messages import (
    PROTOCOL_VERSION,
    ClientMessage,
    CloseSession,
    Failure,
    Hello,
    InferRequest,
    MoveCut,
    OpenSession,
    Ping,
    Pong,
    ServerMessage,
    Step,
    StepReply,
    Welcome,
)
from serverlight.runtime.scheduler import Job
from serverlight.runtime.sessions import Session
from serverlight.runtime.tracing import caller

if TYPE_CHECKING:
    from serverlight.runtime.catalogue import Engine
    from serverlight.runtime.core import ServerCore

__all__ = ["Connection", "shutting_down"]

_MOST_HELLO_BYTES = 1 << 16


class Connection:
    """The protocol of one stream: Hello first, then requests with rising ids."""

    _numbers = itertools.count(1)

    def __init__(self, core: ServerCore, reply: Callable[[ServerMessage], None], client: str | None) -> None:
        self._core, self._reply, self.client = core, reply, client
        self.number, self.caller = next(self._numbers), caller.get()
        self._plan: Plan | None = None
        self.engine: Engine | None = None  # the model that it holds
        self._session: Session | None = None
        self._last_id = self._last_step = 0
        self._is_closed = False
        self.over = False

    def check_size(self, num_bytes: int) -> None:
        """Raises :class:`MessageTooLarge` for a message so large that it cannot have a meaning here; it need not be parsed."""
        if num_bytes > (most := self._most_bytes):
            raise MessageTooLarge(
                f"a message of {num_bytes} bytes, where at most {most} make sense; is it for this cut?"
            )

    @property
    def _most_bytes(self) -> int:
        limit = self._core.config.max_message_bytes
        if self._plan is None or self.engine is None:
            return min(limit, _MOST_HELLO_BYTES)
        return min(limit, self.engine.most_bytes.get(self._plan.cut, limit))

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

    def dismiss(self) -> None:
        """The server is leaving; a session is told where it stood, other streams when they ask."""
        if self._session is not None:
            self.fail(_session_handed_over(self._last_step))

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
        self._plan, self.engine = plan, (engine := self._core.engines.hold(plan))
        self._core.observer.greeted(self, engine.plans[plan.cut])
        config = self._core.config
        self._reply(
            Welcome(
                max_message_bytes=self._most_bytes,
                max_batch=config.max_batch,
                max_in_flight=config.max_in_flight,
                cuts=tuple(engine.plans),
            )
        )

    def expire(self) -> None:
        """The session had no step for too long."""
        self._close_session(expired=True)
        self.fail(PeerUnavailable("the session was idle for too long and is forgotten; open it again"))

    def _open(self, message: OpenSession) -> None:
        if (plan := self._plan) is None or (engine := self.engine) is None:
            raise ProtocolError("a session before Hello; say Hello first")
        if self._session is not None:
            raise ProtocolError("a second session on one stream; close the first, or open another stream")
        if message.cut:
            plan = dataclasses.replace(plan, cut=message.cut)
            engine.agree(plan)
        self._session = self._core.open_session(self, engine, plan, message)

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
            weight=self._core.weight_of(self.client),
            engine=self.engine,
            cut=self._plan.cut if self._plan else "",
            request=message,
            reply=self._answer,
            arrived_s=time.monotonic(),
            session=session,
            reserve=functools.partial(self._core.reserve, self),
        )
        try:
            self._core.submit(job)
        except ServerlightError as error:
            self._core.observer.refused(self, error, request_id=message.request_id)
            self._reply(Failure(request_id=message.request_id, error=error))

    def _answer(self, message: ServerMessage) -> None:
        if isinstance(message, StepReply):
            self._last_step = message.step
        self._reply(message)


def _read_plan(plan_json: str) -> Plan:
    try:
        return Plan.from_json(plan_json)
    except ServerlightError:
        raise
    except (TypeError, ValueError, RecursionError) as exc:
        raise ProtocolError(f"the plan in Hello cannot be read: {type(exc).__name__}") from None


def shutting_down() -> PeerUnavailable:
    """What a server that is leaving says."""
    return PeerUnavailable("the server is shutting down; connect to another, or again when it is back")


def _session_handed_over(last_step: int) -> PeerUnavailable:
    return PeerUnavailable(
        f"the server is shutting down; step {last_step} was the last that it answered: open the session at another, and "
        "send all its frames there"
    )
