"""How the core tells what happened, and a recorder that looks at it on a thread of its own: no metrics, no web here."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple, Protocol

from serverlight.errors import ServerlightError
from serverlight.plan import id_bytes
from serverlight.runtime.messages import Failure, Frame, InferReply, MoveCut, Step, StepReply, Timing

if TYPE_CHECKING:
    from serverlight.plan import Plan
    from serverlight.runtime.scheduler import Job

__all__ = [
    "OK",
    "Answered",
    "Event",
    "Greeted",
    "Observer",
    "Recorder",
    "Refused",
    "SessionClosed",
    "SessionOpened",
    "Stream",
    "StreamClosed",
    "StreamOpened",
    "log_fields",
]

OK = "ok"
"""The code of a request that was answered; any other is the name of an error's class."""

_MAX_EVENTS = 50_000
"""Answers that wait to be looked at; further ones are counted as lost."""

_FRONT_BYTES = 54
"""The longest header of a frame (docs/wire-format.md, section 2): it tells the elements, and the rest need not be kept."""

_TICK_S = 1.0

_AT_ONCE = 16
"""Events between two offers of the interpreter's lock to the compute thread: a tenth of a millisecond."""


class Stream(Protocol):
    """One client's stream: a key of which nothing is known but its number."""

    number: int
    """Rises from stream to stream."""

    caller: str
    """What the client said of its own trace (:mod:`serverlight.runtime.tracing`), or nothing."""


class Observer:
    """Is told what happens in a server, by whichever thread it happens on; this one does not listen.

    A method must be quick and must not raise.
    """

    def stream_opened(self, stream: Stream) -> None:
        """A client has connected."""

    def greeted(self, stream: Stream, plan: Plan) -> None:
        """Its plan is one that the server serves."""

    def stream_closed(self, stream: Stream) -> None:
        """The client is gone, and its session with it."""

    def session_opened(self, stream: Stream, cut: str) -> None:
        """A sequence begins."""

    def session_closed(self, stream: Stream, *, expired: bool = False) -> None:
        """A sequence is over, if there was one; ``expired`` where it was idle for too long."""

    def answered(self, job: Job, message: InferReply | StepReply | Failure) -> None:
        """The compute thread has answered a request."""

    def refused(self, stream: Stream, error: ServerlightError, *, request_id: int = 0) -> None:
        """A request was refused on its arrival, or, with ``request_id`` 0, the stream was ended."""


# -- what there is to tell ---------------------------------------------------------------------------


class StreamOpened(NamedTuple):
    """As :meth:`Observer.stream_opened`."""

    stream: Stream


class Greeted(NamedTuple):
    """As :meth:`Observer.greeted`."""

    stream: Stream
    model: str
    cut: str


class StreamClosed(NamedTuple):
    """As :meth:`Observer.stream_closed`."""

    stream: Stream


class SessionOpened(NamedTuple):
    """As :meth:`Observer.session_opened`."""

    stream: Stream
    cut: str


class SessionClosed(NamedTuple):
    """As :meth:`Observer.session_closed`."""

    stream: Stream
    expired: bool


class Refused(NamedTuple):
    """As :meth:`Observer.refused`."""

    stream: Stream
    request_id: int
    code: str
    at_s: float
    """When, by the monotonic clock."""


class Answered(NamedTuple):
    """One request with its answer: sizes and times, and of its frames the headers only."""

    stream: object
    request_id: int
    kind: str
    """``infer``, ``step`` or ``move``."""
    code: str
    """:data:`OK`, or the name of the error's class."""
    timing: Timing | None
    """``None`` where it failed."""
    up_bytes: int
    """Bytes of the payloads, without the message around them."""
    down_bytes: int
    """Bytes of outputs, or of frames that go back."""
    num_up: int
    """Payloads that came."""
    num_down: int
    """Outputs or frames that went back."""
    frame_bytes: int
    """Those of ``up_bytes`` that are frames."""
    fronts: tuple[bytes, ...]
    """The first bytes of each frame."""
    num_tokens: int
    """Tokens that the server chose: 0 or 1."""
    layer: int
    """Of a move the layer that the server took over; -1 for others."""
    arrived_s: float
    """When the request was read, by the monotonic clock."""
    at_s: float
    """When it was answered."""


Event = StreamOpened | Greeted | StreamClosed | SessionOpened | SessionClosed | Refused | Answered


def _answered(job: Job, message: InferReply | StepReply | Failure) -> Answered:
    request, kind, layer, num_up = job.request, "infer", -1, 0
    frames: tuple[bytes, ...]
    other_bytes = 0
    if isinstance(request, Step):
        kind, frames = "step", request.frames
        num_up, other_bytes = min(1, len(request.token_ids)), id_bytes(request.token_ids)
    elif isinstance(request, MoveCut):
        kind, frames, layer = "move", (request.keys, request.values), request.layer
    else:
        frames = tuple(payload.data for payload in request.payloads if isinstance(payload, Frame))
        num_up = len(request.payloads)
        other_bytes = sum(len(payload.data) for payload in request.payloads if not isinstance(payload, Frame))
    down: tuple[bytes, ...] = ()
    num_tokens = 0
    if isinstance(message, StepReply):
        down, num_tokens = message.frames, int(message.token_id is not None)
    elif isinstance(message, InferReply):
        down = tuple(output.data for output in message.outputs)
    frame_bytes = sum(map(len, frames))
    failed = isinstance(message, Failure)
    return Answered(
        job.owner,
        request.request_id,
        kind,
        type(message.error).__name__ if isinstance(message, Failure) else OK,
        None if isinstance(message, Failure) else message.timing,
        frame_bytes + other_bytes,
        sum(map(len, down)),
        num_up or len(frames),
        len(down),
        0 if failed else frame_bytes,
        () if failed else tuple([frame[:_FRONT_BYTES] for frame in frames]),
        num_tokens,
        layer,
        job.arrived_s,
        time.monotonic(),
    )


def log_fields(job: Job) -> dict[str, object]:
    """What a log record of a request says beside its text, as ``extra``."""
    number = getattr(job.owner, "number", None)
    return {"stream": number, "request_id": job.request.request_id, "cut": job.cut}


# -- the recorder -----------------------------------------------------------------------------------


class Recorder(Observer):
    """Notes events in a microsecond or two each, and hands them to sinks once a second, on a thread of its own.

    Args:
        sinks: take one event each, in the order in which they happened on one thread.
        on_tick: called once a second with the monotonic clock, after the sinks have had all events so far.
    """

    def __init__(self, *sinks: Callable[[Event], None], on_tick: Callable[[float], None] | None = None) -> None:
        self._sinks, self._on_tick = sinks, on_tick
        self._events: deque[Event] = deque()
        self._lock = threading.Lock()  # guards the sinks, not the events
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="serverlight-recorder", daemon=True)
        self.num_lost = 0
        """Answers that were not counted, since nobody came to look at them in time."""

    def start(self) -> None:
        """Begins to look, once a second."""
        self._thread.start()

    def stop(self) -> None:
        """Looks a last time."""
        self._stopping.set()
        self._thread.join()

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """While this is held, the sinks have had every event so far, and get no other."""
        with self._lock:
            self._flush()
            yield

    def _run(self) -> None:
        while True:
            is_last = self._stopping.wait(_TICK_S)
            with self.settled():
                if self._on_tick is not None:
                    self._on_tick(time.monotonic())
            if is_last:
                return

    def _flush(self) -> None:
        for i in range(len(self._events)):
            event = self._events.popleft()
            for sink in self._sinks:
                sink(event)
            if i % _AT_ONCE == 0:
                time.sleep(0)  # else the compute thread waits for the interpreter until all is looked at

    # The order of appends is that of the calls; a deque needs no lock for it.

    def stream_opened(self, stream: Stream) -> None:
        """Notes it."""
        self._events.append(StreamOpened(stream))

    def greeted(self, stream: Stream, plan: Plan) -> None:
        """Notes it."""
        self._events.append(Greeted(stream, plan.model, plan.cut))

    def stream_closed(self, stream: Stream) -> None:
        """Notes it."""
        self._events.append(StreamClosed(stream))

    def session_opened(self, stream: Stream, cut: str) -> None:
        """Notes it."""
        self._events.append(SessionOpened(stream, cut))

    def session_closed(self, stream: Stream, *, expired: bool = False) -> None:
        """Notes it."""
        self._events.append(SessionClosed(stream, expired))

    def answered(self, job: Job, message: InferReply | StepReply | Failure) -> None:
        """Notes sizes and times."""
        if len(self._events) < _MAX_EVENTS:
            self._events.append(_answered(job, message))
        else:
            self.num_lost += 1

    def refused(self, stream: Stream, error: ServerlightError, *, request_id: int = 0) -> None:
        """Notes it."""
        if len(self._events) < _MAX_EVENTS:
            self._events.append(Refused(stream, request_id, type(error).__name__, time.monotonic()))
        else:
            self.num_lost += 1
