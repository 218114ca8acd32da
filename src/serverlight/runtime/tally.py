"""Sums of what a server has done: a plain state machine that events are fed to; it has no clock and no lock."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from serverlight.codec.wire import Reader
from serverlight.errors import FrameError
from serverlight.runtime.observe import (
    OK,
    Answered,
    Event,
    Greeted,
    Refused,
    SessionClosed,
    SessionOpened,
    StreamClosed,
    StreamOpened,
)

__all__ = ["PARTS", "Device", "Histogram", "Series", "Tally", "Work"]

PARTS = ("decode", "tail", "sample")
"""What the server's time goes to, beside waiting."""

SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
BITS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0, 24.0)


class Histogram:
    """How many values were at most each of some bounds.

    >>> histogram = Histogram((1, 2))
    >>> for value in (0.5, 2, 7):
    ...     histogram.add(value)
    >>> histogram.cumulative(), histogram.total
    ([1, 2, 3], 9.5)
    """

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds, self.counts, self.total = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[int]:
        """Values up to each bound, and last all of them."""
        return list(itertools.accumulate(self.counts))


class Series(NamedTuple):
    """What sums are kept by. There are few: as many as are served."""

    model: str
    """The plan's."""

    cut: str
    """Where the device has cut it."""

    kind: str
    """``infer``, ``step`` or ``move``."""


@dataclass(slots=True)
class Work:
    """Sums over the requests of one model, cut and kind."""

    requests: Counter[str] = field(default_factory=Counter)
    """By code."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    """By part; of requests that ran together each has its share."""

    runs: float = 0.0
    """Batches that ran; of requests that ran together each counts as its share."""

    cpu_s: float = 0.0
    """CPU time of the compute thread."""

    up_bytes: int = 0
    """Payloads that came, without the messages around them."""

    down_bytes: int = 0
    """Outputs and frames that went back."""

    up_frames: int = 0
    """Payloads that came."""

    down_frames: int = 0
    """Outputs and frames that went back."""

    frame_bytes: int = 0
    """Those of ``up_bytes`` that are frames of answered requests."""

    elements: int = 0
    """What those frames hold."""

    tokens: int = 0
    """Tokens that the server chose."""

    queue: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    """Seconds from reading a request to starting on it."""

    total: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    """Seconds from reading a request to its reply."""

    batch: Histogram = field(default_factory=lambda: Histogram(BATCHES))
    """How many requests ran together, counted at each of them."""

    bits: Histogram = field(default_factory=lambda: Histogram(BITS))
    """Bits of frames for each element, by request."""

    def add(self, event: Answered, elements: int) -> None:
        """Counts one request."""
        self.requests[event.code] += 1
        self.up_bytes, self.down_bytes = self.up_bytes + event.up_bytes, self.down_bytes + event.down_bytes
        self.up_frames, self.down_frames = self.up_frames + event.num_up, self.down_frames + event.num_down
        self.tokens += event.num_tokens
        if elements:
            self.frame_bytes, self.elements = self.frame_bytes + event.frame_bytes, self.elements + elements
            self.bits.add(8 * event.frame_bytes / elements)
        if (timing := event.timing) is not None:
            share = 1e-3 / max(1, timing.batch_size)
            self.runs += share * 1e3
            self.seconds["decode"] += timing.decode_ms * share
            self.seconds["tail"] += timing.tail_ms * share
            self.seconds["sample"] += timing.sample_ms * share
            self.cpu_s += timing.cpu_ms / 1e3
            self.queue.add(timing.queue_ms / 1e3)
            self.total.add(timing.total_ms / 1e3)
            self.batch.add(max(1, timing.batch_size))


@dataclass(slots=True)
class Device:
    """Sums over the requests of one stream."""

    number: int
    """The stream's."""

    model: str = ""
    """Empty before the plan is known, like ``cut``."""

    cut: str = ""
    """Where it is cut now."""

    has_session: bool = False
    """Whether a sequence is open."""

    num_sessions: int = 0
    """Sequences so far."""

    last_kind: str = ""
    """The kind of its newest request."""

    last_step: int = 0
    """The newest step of its session that was answered."""

    requests: int = 0
    """Answered, well or not."""

    errors: int = 0
    """Not well."""

    tokens: int = 0
    """Tokens that the server chose for it."""

    up_bytes: int = 0
    """As :attr:`Work.up_bytes`."""

    down_bytes: int = 0
    """As :attr:`Work.down_bytes`."""

    frame_bytes: int = 0
    """As :attr:`Work.frame_bytes`."""

    elements: int = 0
    """As :attr:`Work.elements`."""


class Tally:
    """All sums since the start."""

    def __init__(self) -> None:
        self.work: dict[Series, Work] = {}
        """By model, cut and kind."""

        self.devices: dict[object, Device] = {}
        """Streams that are open now."""

        self.errors: Counter[tuple[str, str]] = Counter()
        """By ``request`` or ``stream``, whichever failed, and code."""

        self.sessions_opened: Counter[tuple[str, str]] = Counter()
        """By model and cut."""

        self.sessions_ended: Counter[str] = Counter()
        """By how: ``closed``, ``expired``, or ``with_stream``, as most clients end theirs."""

        self.exits: Counter[str] = Counter()
        """Cuts that moved in mid-sequence, by how: ``shipped`` or ``recomputed``."""

        self.num_streams = 0
        """Streams since the start."""

    def take(self, event: Event) -> None:
        """Counts one event; one of a stream that is not open is ignored."""
        if isinstance(event, StreamOpened):
            self.num_streams += 1
            self.devices[event.stream] = Device(number=event.stream.number)
        elif (device := self.devices.get(event.stream)) is None:
            return
        elif isinstance(event, Answered):
            self._answered(device, event)
        elif isinstance(event, Greeted):
            device.model, device.cut = event.model, event.cut
        elif isinstance(event, SessionOpened):
            self._session_opened(device, event.cut)
        elif isinstance(event, SessionClosed):
            self._session_ended(device, "expired" if event.expired else "closed")
        elif isinstance(event, Refused):
            self.errors["request" if event.request_id else "stream", event.code] += 1
            device.errors += 1
        else:
            assert isinstance(event, StreamClosed)
            self._session_ended(device, "with_stream")
            del self.devices[event.stream]

    def _answered(self, device: Device, event: Answered) -> None:
        if event.kind != "infer" and event.code == OK and event.request_id == device.last_step:
            # Sent again, and answered with the same reply: nobody has looked at what came.
            event = event._replace(timing=None, frame_bytes=0, fronts=(), num_tokens=0)
        elements = 0 if event.kind == "move" else sum(map(_num_elements, event.fronts))
        if event.code != OK:
            self.errors["request", event.code] += 1
            device.errors += 1
        else:
            self._moved(device, event)
        series = Series(device.model, device.cut, event.kind)
        if (work := self.work.get(series)) is None:
            work = self.work[series] = Work()
        work.add(event, elements)
        device.requests, device.last_kind = device.requests + 1, event.kind
        device.tokens += event.num_tokens
        device.up_bytes, device.down_bytes = device.up_bytes + event.up_bytes, device.down_bytes + event.down_bytes
        if elements:
            device.frame_bytes, device.elements = device.frame_bytes + event.frame_bytes, device.elements + elements

    def _moved(self, device: Device, event: Answered) -> None:
        if event.kind == "move" and event.request_id != device.last_step:
            self.exits["shipped"] += device.last_kind != "move"
            device.cut = f"layers.{event.layer}"
        device.last_step = event.request_id if event.kind != "infer" else 0

    def _session_opened(self, device: Device, cut: str) -> None:
        self.exits["recomputed"] += bool(device.last_kind) and cut != device.cut
        self.sessions_opened[device.model, cut] += 1
        device.has_session, device.cut, device.last_step = True, cut, 0
        device.num_sessions += 1

    def _session_ended(self, device: Device, how: str) -> None:
        self.sessions_ended[how] += device.has_session
        device.has_session = False


def _num_elements(front: bytes) -> int:
    try:
        return Reader(front).header_fields().num_elements
    except FrameError:  # the runner of a test, say, takes what is no frame
        return 0
