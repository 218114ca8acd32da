"""One sequence on its way: the stream that it is on, and the frames from which another server can go on with it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import random
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TypeVar

from serverlight.errors import (
    CodecError,
    ConnectTimeout,
    DeadlineExceeded,
    FrameError,
    MessageTooLarge,
    PeerUnavailable,
    ProtocolError,
    QuotaExceeded,
    ServerBusy,
)
from serverlight.plan import Plan
from serverlight.runtime.credentials import Credentials
from serverlight.runtime.device import Device
from serverlight.runtime.grpc_transport import GrpcTransport
from serverlight.runtime.heartbeat import Heartbeat
from serverlight.runtime.messages import MoveCut, OpenSession, Piece, Step, StepReply
from serverlight.runtime.quotas import RENEWED
from serverlight.runtime.resolver import Resolver
from serverlight.runtime.stream import ClientStream
from serverlight.sampling import Sampling

__all__ = ["Link", "RemoteSequence", "Replies"]

_T = TypeVar("_T")

Replies = list[tuple[StepReply, int]]
"""Replies and their bytes, in the order of their steps."""

_RECOVERABLE = (ConnectTimeout, DeadlineExceeded, PeerUnavailable, ServerBusy)
_REPLAY_FRAMES = 32
"""Frames in one step of a replay: few enough for the limit on messages, even where each is a chunk of a prompt."""

_MAX_DAMAGED = 6
"""So often in a row servers may find a frame damaged, which takes some seconds; then it is no accident of the way. Where one
message in ten arrives damaged, that happens to one in ten million."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 1.0


@dataclass(frozen=True, slots=True)
class Link:
    """Where servers are, and how long to wait for them."""

    resolver: Resolver
    timeout_s: float
    step_timeout_s: float
    recovery_s: float
    heartbeat: Heartbeat
    credentials: Credentials


@dataclass(slots=True)
class _Pending:
    """A step that was sent."""

    message: Step | MoveCut
    future: Future[tuple[StepReply, int]]
    num_bytes: int


@dataclass(slots=True)
class RemoteSequence:
    """The frames of one sequence, and the stream that it is on; without one, the next wait finds one."""

    link: Link
    plan: Plan
    """Its cut is the sequence's, which may move."""

    sampling: Sampling
    device: Device
    """Makes the frames again that were dropped."""

    num_recoveries: int = 0
    cuts: tuple[str, ...] = ()
    """What the server serves."""

    _pieces: list[Piece] = field(default_factory=list)
    _targets: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _has_dropped: bool = False
    _num_taken: int = 0
    _stream: ClientStream | None = None
    _pending: list[_Pending] = field(default_factory=list)
    _max_in_flight: int = 1
    _num_steps: int = 0
    _address: str | None = None
    _failed: set[str] = field(default_factory=set)
    _has_begun: bool = False

    def begin(self) -> None:
        """Connects to a server, so that it is known what it serves; raises :class:`PeerUnavailable` where none is there."""
        self._begin()
        if self._stream is None:
            self._insist(lambda: None)

    def send(self, pieces: tuple[Piece, ...], *, more: bool, quiet: bool = False, targets: tuple[int, ...] = ()) -> int:
        """Keeps the pieces, all frames or all ids, and sends them without waiting; returns the bytes on the wire, 0 where no
        server is there.

        ``targets`` are as a :class:`Step` has them, for a single piece; then no cut moves in this sequence.
        """
        if targets:
            self._targets[len(self._pieces)] = targets
        self._pieces.extend(pieces)
        self._begin()
        try:
            if self._stream is not None:
                return self._post(pieces, more=more, quiet=quiet, targets=targets)
        except (*_RECOVERABLE, FrameError):
            self._drop()
        return 0

    def wait(self) -> Replies:
        """The replies to all that was sent, from this server or another."""
        replies = self._insist(self._collect)
        self._failed.clear()
        self._num_taken = self.device.num_frames
        return replies

    def restart(self, cut: str) -> None:
        """Begins again at another cut, on the same stream if there is one; all pieces are to be sent again."""
        self.plan = dataclasses.replace(self.plan, cut=cut)
        self._pieces, self._has_dropped = [], False
        if self._stream is None:
            return
        try:
            self._stream.reopen_session(self._opening(cut))
            self._num_steps = 0
        except _RECOVERABLE:
            self._drop()

    def ship(self, cut: str, layers: Iterable[tuple[int, bytes, bytes]]) -> int | None:
        """Moves the cut by sending keys and values, the deepest layer first; returns bytes, or ``None`` where it failed.

        After a failure the sequence is on no stream. After a success its pieces so far are of no use any more, and are
        dropped: should another server need them, the device makes those of the new cut.
        """
        if self._stream is None:
            return None
        try:
            num_bytes = sum(self._post_layer(*layer) for layer in layers)
            self._collect()
        except _RECOVERABLE:
            self._drop()
            return None
        except (CodecError, MessageTooLarge):  # this server is as good as before, shipping is not
            self.close()
            return None
        self.plan = dataclasses.replace(self.plan, cut=cut)
        self._pieces, self._has_dropped = [], True
        return num_bytes

    def close(self) -> None:
        """Ends the stream, and with it the server's memory of the sequence."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _begin(self) -> None:
        if self._has_begun:
            return
        self._has_begun = True
        reasons = []
        for address in self.link.resolver.resolve(self.link.timeout_s):
            try:
                return self._connect(address)
            except _RECOVERABLE as error:
                self._drop()
                if isinstance(error, ServerBusy):  # somebody is there, and says when to come back
                    return None
                reasons.append(f"{address}: {error}")
        raise PeerUnavailable(f"no server is there to begin with ({'; '.join(reasons)})")

    def _insist(self, act: Callable[[], _T]) -> _T:
        """Does something on a stream, on another one where that breaks."""
        give_up_s, pause_s = time.monotonic() + self.link.recovery_s, _FIRST_PAUSE_S
        num_damaged = 0
        while True:
            try:
                if self._stream is None:
                    self._connect(self._choose())
                    self._replay()
                    self.num_recoveries += 1
                return act()
            except (*_RECOVERABLE, FrameError) as error:
                self._drop()
                num_damaged = num_damaged + 1 if isinstance(error, FrameError) else 0  # it was whole when it left
                if num_damaged > _MAX_DAMAGED:
                    raise
                if isinstance(error, ServerBusy):
                    pause_s = max(pause_s, error.retry_after_ms / 1e3)
                # Clients that lost the same server must not all come back at the same moment.
                pause_s = pause_s * random.uniform(0.5, 1.0)
                if time.monotonic() + pause_s > give_up_s:
                    raise
            time.sleep(pause_s)
            pause_s = min(4 * pause_s, _LONGEST_PAUSE_S)

    def _choose(self) -> str:
        """The best address that has not failed since the last reply; where all have, they begin anew."""
        addresses = self.link.resolver.resolve(self.link.timeout_s)
        if self._failed.issuperset(addresses):
            self._failed.clear()
        return next(address for address in addresses if address not in self._failed)

    def _connect(self, address: str) -> None:
        self._address = address
        stream = ClientStream(GrpcTransport(address, credentials=self.link.credentials))
        welcome = stream.greet(self.plan, self.link.timeout_s)
        self._stream, self._num_steps, self._pending = stream, 0, []
        self.cuts, self._max_in_flight = welcome.cuts, max(1, welcome.max_in_flight)
        stream.open_session(self._opening())

    def _opening(self, cut: str = "") -> OpenSession:
        weighs = self.sampling.weighs_repetition
        return OpenSession(sampling=self.sampling, cut=cut, seen=tuple(sorted(self.device.seen)) if weighs else ())

    def _replay(self) -> None:
        """Sends all pieces: those whose replies were taken many at a time, each other one as it was sent first."""
        if self._has_dropped:
            self._pieces = [piece for pieces in self.device.again() for piece in pieces]
            self._has_dropped = False
        taken, others = self._pieces[: self._num_taken], self._pieces[self._num_taken :]
        for start in range(0, len(taken), _REPLAY_FRAMES):
            for _, alike in itertools.groupby(taken[start : start + _REPLAY_FRAMES], key=type):
                self._post(tuple(alike), more=True, quiet=True)
        for index, piece in enumerate(others, start=1):
            targets = self._targets.get(len(taken) + index - 1, ())
            self._post((piece,), more=index < len(others), targets=targets)

    def _post(
        self, pieces: tuple[Piece, ...], *, more: bool, quiet: bool = False, targets: tuple[int, ...] = ()
    ) -> int:
        frames = tuple(piece for piece in pieces if isinstance(piece, bytes))
        ids = tuple(token_id for piece in pieces if not isinstance(piece, bytes) for token_id in piece)
        step = Step(step=self._num_steps + 1, frames=frames, token_ids=ids, more=more, quiet=quiet, targets=targets)
        return self._post_message(step)

    def _post_layer(self, layer: int, keys: bytes, values: bytes) -> int:
        return self._post_message(MoveCut(step=self._num_steps + 1, layer=layer, keys=keys, values=values))

    def _post_message(self, message: Step | MoveCut) -> int:
        assert self._stream is not None
        if len(self._pending) >= self._max_in_flight:  # more would lie unread, with the pings behind them
            self._wait_for(len(self._pending) - self._max_in_flight)
        future, num_bytes = self._stream.post(message)
        self._num_steps += 1
        self._pending.append(_Pending(message, future, num_bytes))
        return num_bytes

    def _wait_for(self, index: int) -> tuple[StepReply, int]:
        """The reply to a step that is pending; where the server only asks to go slower, it is sent again in time."""
        give_up_s = time.monotonic() + self.link.recovery_s
        while True:
            try:
                return self._answer_to(index)
            except QuotaExceeded as error:
                pause_s = error.retry_after_ms / 1e3
                if error.quota not in RENEWED or time.monotonic() + pause_s > give_up_s:
                    raise
                self._send_again(index, pause_s)

    def _answer_to(self, index: int) -> tuple[StepReply, int]:
        assert self._stream is not None
        num_bytes = sum(pending.num_bytes for pending in self._pending if not pending.future.done())
        future = self._pending[index].future
        return self._stream.wait_for(future, self.link.step_timeout_s, self.link.heartbeat, num_bytes)

    def _send_again(self, index: int, pause_s: float) -> None:
        """A step that was refused, and those after it, which have failed as well: it was not their turn."""
        assert self._stream is not None
        for later in range(index + 1, len(self._pending)):
            with contextlib.suppress(ProtocolError, QuotaExceeded):
                self._answer_to(later)
        time.sleep(pause_s)
        for late in self._pending[index:]:
            late.future, _ = self._stream.post(late.message)

    def _collect(self) -> Replies:
        """Replies in the order of their steps, so that the first failure is the true one."""
        replies = [self._wait_for(index) for index in range(len(self._pending))]
        self._pending = []
        return replies

    def _drop(self) -> None:
        self.close()
        if self._address is not None:
            self._failed.add(self._address)
