"""The client's end of the protocol: the handshake, and which reply belongs to whom."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future
from typing import Any

from serverlight.errors import (
    ConnectTimeout,
    DeadlineExceeded,
    PeerUnavailable,
    ProtocolError,
    ServerlightError,
    TransportError,
)
from serverlight.plan import Plan
from serverlight.runtime import failure
from serverlight.runtime.heartbeat import Heartbeat
from serverlight.runtime.messages import (
    PROTOCOL_VERSION,
    CloseSession,
    Failure,
    Hello,
    InferReply,
    InferRequest,
    MoveCut,
    OpenSession,
    Payload,
    Ping,
    ServerMessage,
    Step,
    StepReply,
    Welcome,
)
from serverlight.runtime.transport import Transport

__all__ = ["ClientStream"]


class ClientStream:
    """Tells replies apart by their request's id, so that threads can share one stream; a Listener."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = threading.RLock()  # guards all below; a reply may come while its request is being sent
        self._last_id = 0
        self._waiting: dict[int, Future[tuple[Any, int]]] = {}
        self._error: ServerlightError | None = None
        self._welcome: Future[Welcome] = Future()
        self._heard_s = 0.0

    def greet(self, plan: Plan, timeout_s: float) -> Welcome:
        """Opens the stream and agrees on the plan."""
        self._transport.open(self)
        try:
            self._transport.send(Hello(plan_json=plan.to_json()))
            welcome = self._welcome.result(timeout_s)
            if welcome.protocol_version != PROTOCOL_VERSION:
                raise ProtocolError(
                    f"the server speaks protocol version {welcome.protocol_version}, this client {PROTOCOL_VERSION}; "
                    "install the same serverlight on both"
                )
            return welcome
        except TimeoutError:
            self.close()
            raise ConnectTimeout(f"no answer within {timeout_s} s; is the address right, is the server up?") from None
        except BaseException:
            self.close()
            raise

    def ask(self, payloads: tuple[Payload, ...], deadline_ms: int) -> tuple[InferReply, int, int]:
        """Sends a request and waits for its reply; returns it with the bytes up and down."""
        future: Future[tuple[InferReply, int]] = Future()
        with self._lock:
            if self._error is not None:
                raise _copy(self._error)
            self._last_id += 1
            request_id = self._last_id
            self._waiting[request_id] = future
            try:
                request = InferRequest(request_id=request_id, payloads=payloads, deadline_ms=deadline_ms)
                uplink_bytes = self._transport.send(request)
            except BaseException:
                del self._waiting[request_id]
                raise
        try:
            reply, downlink_bytes = future.result(deadline_ms / 1e3)
        except TimeoutError:
            raise DeadlineExceeded(f"no reply within {deadline_ms} ms; allow more time, or try a faster link") from None
        finally:
            with self._lock:
                self._waiting.pop(request_id, None)
        return reply, uplink_bytes, downlink_bytes

    def open_session(self, opened: OpenSession) -> None:
        """Begins a sequence; a refusal ends the stream."""
        self._transport.send(opened)

    def reopen_session(self, opened: OpenSession) -> None:
        """Ends the sequence and begins another at a cut of the server's; to be called when no step waits."""
        with self._lock:
            if self._error is not None:
                raise _copy(self._error)
        self._transport.send(CloseSession())
        self._transport.send(opened)

    def post(self, step: Step | MoveCut) -> tuple[Future[tuple[StepReply, int]], int]:
        """Sends a step without waiting; returns what will hold its reply and its bytes, and the bytes up."""
        future: Future[tuple[StepReply, int]] = Future()
        with self._lock:
            if self._error is not None:
                raise _copy(self._error)
            self._waiting[step.step] = future
            return future, self._transport.send(step)

    def wait_for(
        self, future: Future[tuple[StepReply, int]], timeout_s: float, heartbeat: Heartbeat, num_bytes: int = 0
    ) -> tuple[StepReply, int]:
        """The reply to a step; where it is long in coming, asks whether the server is alive.

        Args:
            future: what :meth:`post` returned.
            timeout_s: how long a server may work on it.
            heartbeat: how long it may be silent.
            num_bytes: what was sent and has no answer, and so may lie in the way of a ping.

        Raises:
            DeadlineExceeded: the server lives, but gave no reply in time.
            PeerUnavailable: it is silent, or the stream is broken.
            ServerlightError: the step was refused.
        """
        began_s, patience_s = time.monotonic(), heartbeat.patience_s(num_bytes)
        while True:
            left_s = began_s + timeout_s - time.monotonic()
            try:
                return future.result(min(heartbeat.interval_s, max(left_s, 0.0)))
            except TimeoutError:
                now_s = time.monotonic()
            silent_s = now_s - max(began_s, self._heard_s)
            if silent_s >= patience_s:
                raise PeerUnavailable(f"the server has been silent for {silent_s:.1f} s; it hangs, or the link is down")
            if now_s - began_s >= timeout_s:
                raise DeadlineExceeded(f"no reply within {timeout_s} s, though the server is alive; allow more time")
            self._transport.send(Ping())

    @property
    def num_waiting(self) -> int:
        """Requests that have no reply yet."""
        return len(self._waiting)

    def close(self) -> None:
        """Ends the stream; a second call does nothing."""
        self._transport.close()

    def on_message(self, message: ServerMessage, num_bytes: int) -> None:
        """Hands a message to the thread that waits for it; what nobody waits for any more is dropped."""
        self._heard_s = time.monotonic()
        match message:
            case Welcome():
                if not self._welcome.done():
                    self._welcome.set_result(message)
            case Failure(request_id=0):
                self._end(message.error)
            case Failure():
                if future := self._take(message.request_id):
                    future.set_exception(message.error)
            case InferReply() | StepReply():
                if future := self._take(message.request_id):
                    future.set_result((message, num_bytes))

    def on_closed(self, error: TransportError) -> None:
        """Everybody who waits is told."""
        self._end(error)

    def _take(self, request_id: int) -> Future[tuple[Any, int]] | None:
        with self._lock:
            return self._waiting.pop(request_id, None)

    def _end(self, error: ServerlightError) -> None:
        with self._lock:
            if self._error is None:  # the first reason is the true one
                self._error = error
            waiting, self._waiting = self._waiting, {}
        if not self._welcome.done():
            self._welcome.set_exception(_copy(self._error))
        for future in waiting.values():
            future.set_exception(_copy(self._error))


def _copy(error: ServerlightError) -> ServerlightError:
    """A fresh error for each thread that raises it, since raising writes a traceback into it."""
    return failure.rebuild(*failure.describe(error))
