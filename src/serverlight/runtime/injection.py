"""Faults within messages: what stands between a stream and the server's core, or between a client and its transport.

A relay alters bytes of TCP, where a flipped bit mostly ends the connection. Here a frame inside a message is altered, as bad
memory or a faulty device would do it, and the stream lives on.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from serverlight.errors import ConfigError, PeerUnavailable, ServerlightError
from serverlight.faults import Fault, FaultPlan, Roll, Strike
from serverlight.runtime.messages import (
    ClientMessage,
    Failure,
    Frame,
    Image,
    InferRequest,
    MoveCut,
    Payload,
    RawTensor,
    ServerMessage,
    Step,
)
from serverlight.runtime.transport import Connection, Listener, MessageServer, Transport

__all__ = ["EXIT_CRASHED", "InjectingServer", "InjectingTransport", "corrupt"]

EXIT_CRASHED = 70
"""Exit code of a process that a ``crash`` has ended; to the others it looks as if it had been killed."""

_log = logging.getLogger(__name__)

_M = TypeVar("_M", bound="ClientMessage | Failure")


def corrupt(message: _M, roll: Roll) -> _M:
    """The message with one bit of a frame, tensor or image altered; one that carries none is left as it is."""
    match message:
        case InferRequest(payloads=(first, *others)):
            return dataclasses.replace(message, payloads=(_corrupt_payload(first, roll), *others))
        case Step(frames=(head, *rest)):
            return dataclasses.replace(message, frames=(roll.flip(head), *rest))
        case MoveCut():
            return dataclasses.replace(message, keys=roll.flip(message.keys))
    return message


def _corrupt_payload(payload: Payload, roll: Roll) -> Payload:
    match payload:
        case Frame() | RawTensor() | Image():
            return dataclasses.replace(payload, data=roll.flip(payload.data))


class InjectingServer:
    """A :class:`MessageServer` whose streams suffer a plan's faults, each asked for with every message of a client.

    ``kill`` ends the stream, ``drop`` swallows all further messages (``up``) or replies (``down``), ``stall`` holds messages
    back, ``corrupt`` alters a frame of a message, ``crash`` ends the process without a word. Moments strike with the first
    message after them, each stream for itself.

    Raises :class:`ConfigError` for a slow link, and for altered replies.
    """

    def __init__(
        self, server: MessageServer, plan: FaultPlan, on_strike: Callable[[Strike], None] | None = None
    ) -> None:
        _check(plan)
        self._server, self._plan, self._on_strike = server, plan, on_strike or _log_strike
        self._count, self._started_s = itertools.count(), time.monotonic()

    def connect(self, reply: Callable[[ServerMessage], None], *, client: str | None = None) -> Connection:
        """A new stream."""
        victim = _Victim(self._plan, next(self._count), self._started_s, self._on_strike)
        return _InjectedConnection(self._server, reply, client, victim)


class InjectingTransport:
    """A client's transport that suffers a plan's faults, each asked for with every message that is sent.

    As :class:`InjectingServer`, but that ``kill`` closes the transport and there is no ``crash``.
    """

    def __init__(
        self,
        transport: Transport,
        plan: FaultPlan,
        *,
        connection: int = 0,
        on_strike: Callable[[Strike], None] | None = None,
    ) -> None:
        _check(plan, "crash")
        self._transport = transport
        self._victim = _Victim(plan, connection, time.monotonic(), on_strike or _log_strike)
        self._line = _Line()

    def open(self, listener: Listener) -> None:
        """Starts the stream."""
        self._listener = listener
        self._transport.open(_InjectedListener(listener, self._victim))

    def send(self, message: ClientMessage) -> int:
        """Sends, or does not; returns the bytes of the message either way, and 0 where it is held back."""
        fault = self._victim.meet()
        if fault is not None and fault.kind == "kill":
            threading.Thread(
                target=self._transport.close, daemon=True
            ).start()  # the sender may hold what its reader waits for
        if fault is not None and fault.kind == "corrupt":
            message = corrupt(message, self._victim.roll)
        if "up" in self._victim.dropped:
            return 0
        return self._line.carry(lambda: self._transport.send(message), self._victim.stalled_s()) or 0

    def close(self) -> None:
        """Ends the stream."""
        self._line.close()
        self._transport.close()


class _InjectedConnection:
    """The server's end of one stream."""

    def __init__(
        self, server: MessageServer, reply: Callable[[ServerMessage], None], client: str | None, victim: _Victim
    ) -> None:
        self._reply, self._victim, self._line = reply, victim, _Line()
        self._connection = server.connect(self._pass_on, client=client)

    @property
    def over(self) -> bool:
        """Whether the server is done with this stream."""
        return self._connection.over

    def check_size(self, num_bytes: int) -> None:
        """Raises :class:`MessageTooLarge` for a message that is not worth parsing."""
        self._connection.check_size(num_bytes)

    def receive(self, message: ClientMessage | Failure) -> None:
        """Takes a message, or does not."""
        fault = self._victim.meet()
        match fault.kind if fault else None:
            case "crash":
                os._exit(EXIT_CRASHED)
            case "kill":
                self._connection.fail(PeerUnavailable("the stream was ended by an injected fault; connect again"))
            case "corrupt":
                message = corrupt(message, self._victim.roll)
        if "up" not in self._victim.dropped:
            self._line.carry(lambda: self._connection.receive(message), self._victim.stalled_s())

    def fail(self, error: ServerlightError) -> None:
        """Tells the client that the stream is over."""
        self._connection.fail(error)

    def close(self) -> None:
        """The stream is gone."""
        self._line.close()
        self._connection.close()

    def _pass_on(self, message: ServerMessage) -> None:
        is_last = isinstance(message, Failure) and message.request_id == 0  # the stream waits for it to end
        if is_last or "down" not in self._victim.dropped:
            self._reply(message)


class _InjectedListener:
    def __init__(self, listener: Listener, victim: _Victim) -> None:
        self._listener, self._victim = listener, victim
        self.on_closed = listener.on_closed

    def on_message(self, message: ServerMessage, num_bytes: int) -> None:
        if "down" not in self._victim.dropped:
            self._listener.on_message(message, num_bytes)


class _Victim:
    """What the faults have made of one stream."""

    def __init__(self, plan: FaultPlan, connection: int, started_s: float, on_strike: Callable[[Strike], None]) -> None:
        self._plan, self._connection, self._started_s, self._on_strike = plan, connection, started_s, on_strike
        self.roll = plan.roll(connection)
        self._lock = threading.Lock()  # the threads of a client may share its transport
        self.dropped = set[str]()
        self._resumes_s = 0.0
        self._seen_s = time.monotonic() - started_s

    def meet(self) -> Fault | None:
        """The fault that strikes now, if any."""
        now_s = time.monotonic() - self._started_s
        with self._lock:
            fault = self._due(now_s) or self.roll.next()
        if fault is None:
            return None
        if fault.kind == "drop":
            self.dropped.update({fault.direction} if fault.direction else ("up", "down"))
        if fault.kind == "stall":
            self._resumes_s = max(self._resumes_s, now_s + fault.for_s)
        direction = (fault.direction or "") if fault.kind == "drop" else "up" if fault.kind == "corrupt" else ""
        self._on_strike(
            Strike(at_s=now_s, kind=fault.kind, connection=self._connection, direction=direction, for_s=fault.for_s)
        )
        return fault

    def stalled_s(self) -> float:
        """How long messages are held back from now."""
        return self._resumes_s - (time.monotonic() - self._started_s)

    def _due(self, now_s: float) -> Fault | None:
        moment = self._plan.next_moment(self._seen_s)
        if moment is None or moment[0] > now_s:
            return None
        self._seen_s = now_s
        return moment[1][0]


class _Line:
    """Carries messages in order, at once or when a stall is over; never blocks."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._held: deque[Callable[[], object]] = deque()
        self._is_closed = False

    def carry(self, act: Callable[[], int | None], wait_s: float) -> int | None:
        """Does it now and returns what it gives, or later and returns ``None``."""
        with self._lock:
            if wait_s <= 0 and not self._held:
                return act()
            self._held.append(act)
            if len(self._held) == 1:
                self._wake_in(wait_s)
        return None

    def close(self) -> None:
        """Forgets what is held back."""
        with self._lock:
            self._is_closed = True
            self._held.clear()

    def _wake_in(self, wait_s: float) -> None:
        timer = threading.Timer(max(0.0, wait_s), self._release)
        timer.daemon = True
        timer.start()

    def _release(self) -> None:
        with self._lock:
            while self._held and not self._is_closed:
                try:
                    self._held.popleft()()
                except ServerlightError as error:
                    _log.debug("a message that was held back could not be sent: %s", error)


def _log_strike(strike: Strike) -> None:
    _log.warning("injected fault: %s", strike)


def _check(plan: FaultPlan, *others: str) -> None:
    for fault in plan.faults:
        if fault.kind in ("slow", *others):
            raise ConfigError(
                "fault", f"{fault.kind!r} does not strike messages here; `serverlight chaos` has slow links"
            )
        if fault.kind == "corrupt" and fault.direction == "down":
            raise ConfigError("fault", "only messages of clients are altered; leave `:down` away")
