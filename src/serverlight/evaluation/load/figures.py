"""What a load comes to: when requests are due, which latencies count, and the figures of a row. No clock is read here."""

from __future__ import annotations

import dataclasses
import random
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FP16",
    "FULL",
    "IN_PROCESS",
    "OURS",
    "PERCENTILES",
    "SERIAL",
    "SYSTEMS",
    "LoadRow",
    "Sample",
    "Turn",
    "Workload",
    "arrivals",
    "correct_for_omission",
    "load_row",
    "mean_batch",
    "percentile",
]

PERCENTILES = (50, 95, 99)

FULL, FP16, OURS, SERIAL, IN_PROCESS = SYSTEMS = ("full-server", "fp16-cut", "serverlight", "one-by-one", "in-process")
"""What is compared: a server of the whole model, a shallow cut in plain halves, deep cuts in our frames with batches, the same
with one request at a time, and the same batches without a server."""

Workload = Literal["vision", "lm"]

MAX_ADDED = 1 << 20
"""Latencies that a correction adds at most; only an interval of nearly nothing would want more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One answer: an image's classes, or a token."""

    client: int
    """Which device, from 0 on."""

    due_s: float
    """When its request was to be sent."""

    done_s: float
    """When the answer was there."""

    uplink_bytes: int
    """All that was sent for it."""

    batch_size: int
    """Requests that the server ran together with it, itself included."""

    process_cpu_ms: float
    """CPU time of the whole server process so far."""

    is_first: bool = False
    """Of a token, whether it is the first of its text, and its prompt was run for it."""

    @property
    def latency_ms(self) -> float:
        """From when it was due."""
        return (self.done_s - self.due_s) * 1e3


@dataclass(kw_only=True, slots=True)
class Turn:
    """What was seen of a number of devices from the end of the warm-up on."""

    begin_s: float = 0.0
    end_s: float = 0.0
    samples: list[Sample] = field(default_factory=list)
    """Also of before and after."""

    num_refused: int = 0
    """Requests that the server was too busy for; they were sent again."""

    unanswered_ms: list[float] = field(default_factory=list)
    """In an open loop, how long each request without an answer had waited in the end."""

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.end_s - self.begin_s

    @property
    def answers(self) -> list[Sample]:
        """Those that came within it."""
        return [sample for sample in self.samples if self.begin_s <= sample.done_s < self.end_s]

    @property
    def due(self) -> list[Sample]:
        """Those that were due within it and came some time: in an open loop, a late answer counts."""
        return [sample for sample in self.samples if self.begin_s <= sample.due_s < self.end_s]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadRow:
    """One workload and system with a number of devices; an item is an image or a token."""

    workload: Workload
    system: str
    """One of :data:`SYSTEMS`."""

    clients: int
    cuts: tuple[str, ...]
    """Where the devices have cut the model, in the order in which they take them."""

    throughput_per_s: float
    """Items that the server answered in a second."""

    latency_ms_p50: float
    """Of an item, corrected for coordinated omission; of texts, tokens after the first."""

    latency_ms_p95: float
    latency_ms_p99: float

    measured_ms_p50: float
    """The same without correction."""

    measured_ms_p95: float
    measured_ms_p99: float

    server_cpu_s_per_item: float
    """CPU time of the whole server process, network and prompts included."""

    uplink_bytes_per_item: float
    """Every byte of the messages, framing and prompts included."""

    mean_batch: float
    """Requests that the server ran at a time."""

    items: int
    seconds: float
    """The time that they came in."""

    refused: int = 0
    """Requests that were told to come back later, and did."""

    unanswered: int = 0
    """Of an open loop, requests without an answer in the end; their latencies count as far as they go."""

    rate_per_s: float | None = None
    """Of an open loop, the requests that were due in a second."""

    device_0_s_per_item: float | None = None
    """Of a closed loop, what an item takes the first device: its own work, and the wait."""

    device_ms_per_item: float = 0.0
    """The device's own work alone, head and codec, as measured beforehand on this machine."""

    first_token_ms_p50: float | None = None
    """Of texts, from sending the prompt."""

    turns_per_s: tuple[float, ...] = ()
    """Throughput of each turn; turns of one round, of whatever system, had the same machine."""

    note: str = ""
    """What one must know to read the row."""

    @property
    def is_short(self) -> bool:
        """Whether devices had less than one answer each in a turn, which was too short for so slow a server to tell a rate."""
        return self.rate_per_s is None and self.items < self.clients * max(1, len(self.turns_per_s))

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return {**dataclasses.asdict(self), "cuts": list(self.cuts), "turns_per_s": list(self.turns_per_s)}


# -- when requests are due --------------------------------------------------------------------------


def arrivals(rate_per_s: float, duration_s: float, seed: int) -> tuple[float, ...]:
    """Seconds from the start at which requests are due: a Poisson process, the same for the same seed.

    >>> arrivals(0.0, 10.0, seed=1)
    ()
    >>> [round(second, 2) for second in arrivals(2.0, 2.0, seed=1)]
    [0.07, 1.01, 1.73, 1.88]
    """
    source, found, now_s = random.Random(seed), list[float](), 0.0
    while rate_per_s > 0 and (now_s := now_s + source.expovariate(rate_per_s)) < duration_s:
        found.append(now_s)
    return tuple(found)


# -- latencies --------------------------------------------------------------------------------------


def correct_for_omission(latencies_ms: Sequence[float], interval_ms: float) -> NDArray[np.float64]:
    """The latencies, and those of the requests that a waiting device would have sent meanwhile.

    A device that sends a request only when the last one was answered sends none while the server stalls, and so a long
    stall is one sample among many good ones (coordinated omission). As in HdrHistogram, a latency L adds L - I, L - 2 I
    and so on, down to I, the interval in which the device would have sent.

    >>> correct_for_omission([10.0, 35.0], interval_ms=10.0).tolist()
    [10.0, 35.0, 25.0, 15.0]
    """
    measured = np.asarray(latencies_ms, np.float64)
    if not 0 < interval_ms < np.inf or not len(measured):
        return measured
    counts = np.maximum(measured // interval_ms - 1, 0).astype(np.int64)
    if counts.sum() > MAX_ADDED:
        return measured
    added = [latency - interval_ms * np.arange(1, count + 1) for latency, count in zip(measured, counts, strict=True)]
    return np.concatenate([measured, *added])


def percentile(values: Sequence[float] | NDArray[np.float64], percent: float) -> float:
    """The smallest value that at least so many percent of all do not exceed; 0 of none.

    >>> percentile([4.0, 1.0, 3.0, 2.0], 50), percentile([4.0, 1.0, 3.0, 2.0], 51)
    (2.0, 3.0)
    """
    return float(np.percentile(values, percent, method="inverted_cdf")) if len(values) else 0.0


def mean_batch(sizes: Sequence[int]) -> float:
    """Requests over batches, from the size that each request was told; 0 of none.

    >>> mean_batch([3, 3, 3, 1])  # two batches
    2.0
    """
    return len(sizes) / sum(1 / size for size in sizes) if sizes else 0.0


# -- a row ------------------------------------------------------------------------------------------


def load_row(
    turns: Sequence[Turn],
    *,
    workload: Workload,
    system: str,
    clients: int,
    cuts: Sequence[str],
    rate_per_s: float | None = None,
    device_ms: float = 0.0,
    thinks: bool = False,
    note: str = "",
) -> LoadRow:
    """The figures of all turns of a system together.

    In an open loop (with a rate) latencies count from when a request was due, which needs no correction. In a closed loop
    they are corrected by the interval that a device keeps when nothing is wrong: their median and, where devices take
    (``thinks``) the time of their own work between requests, that time.
    """
    answers = [sample for turn in turns for sample in turn.answers]
    timed = [sample for turn in turns for sample in (turn.answers if rate_per_s is None else turn.due)]
    steps_ms = [sample.latency_ms for sample in timed if not sample.is_first]
    steps_ms += [waited_ms for turn in turns for waited_ms in turn.unanswered_ms]
    corrected: Sequence[float] | NDArray[np.float64] = steps_ms
    if rate_per_s is None and steps_ms:
        corrected = correct_for_omission(steps_ms, statistics.median(steps_ms) + (device_ms if thinks else 0.0))
    seconds, firsts_ms = sum(turn.seconds for turn in turns), [s.latency_ms for s in timed if s.is_first]
    is_closed = rate_per_s is None and system != IN_PROCESS
    firsts_own_ms = [s.latency_ms for s in answers if is_closed and s.client == 0 and not s.is_first]
    return LoadRow(
        workload=workload,
        system=system,
        clients=clients,
        cuts=tuple(cuts),
        throughput_per_s=len(answers) / seconds if seconds else 0.0,
        **{f"latency_ms_p{percent}": percentile(corrected, percent) for percent in PERCENTILES},
        **{f"measured_ms_p{percent}": percentile(steps_ms, percent) for percent in PERCENTILES},
        server_cpu_s_per_item=_cpu_s_per_item(turns),
        uplink_bytes_per_item=sum(sample.uplink_bytes for sample in answers) / max(1, len(answers)),
        mean_batch=mean_batch([sample.batch_size for sample in answers]),
        items=len(answers),
        seconds=seconds,
        refused=sum(turn.num_refused for turn in turns),
        unanswered=sum(len(turn.unanswered_ms) for turn in turns),
        rate_per_s=rate_per_s,
        device_0_s_per_item=(statistics.mean(firsts_own_ms) + device_ms) / 1e3 if firsts_own_ms else None,
        device_ms_per_item=device_ms,
        first_token_ms_p50=statistics.median(firsts_ms) if firsts_ms else None,
        turns_per_s=tuple(len(turn.answers) / turn.seconds for turn in turns if turn.seconds),
        note=note,
    )


def _cpu_s_per_item(turns: Sequence[Turn]) -> float:
    """Between the first and the last time that the server told lie all answers but those of the first."""
    spent_ms, items = 0.0, 0
    for turn in turns:
        stamps_ms = [sample.process_cpu_ms for sample in turn.answers]
        if stamps_ms:
            spent_ms += max(stamps_ms) - min(stamps_ms)
            items += sum(stamp > min(stamps_ms) for stamp in stamps_ms)
    return spent_ms / 1e3 / items if items else 0.0
