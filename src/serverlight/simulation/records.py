"""What the event loop works on: records of numbers, since it is compiled. All times are seconds."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "BINS",
    "BINS_PER_E",
    "COUNTS",
    "GROUP",
    "LEAST_S",
    "MESSAGE",
    "NONE",
    "WORK",
    "Limits",
    "Outcome",
    "State",
    "Tables",
    "new_outcome",
    "new_state",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Records = Any
"""Structured arrays."""

LEAST_S, BINS_PER_E, BINS = 1e-6, 200, 4600
"""The histogram of latencies: from a microsecond on, 200 bins for each factor of e, to about two hours. Numba keeps
compiled loops until ``kernels.py`` itself changes, so touch that when these change."""

NONE = -1
"""No slot, no device."""


class Limits(NamedTuple):
    """Of the server and of the run."""

    is_language: bool
    max_batch: int
    max_waiting: int
    max_sessions: int
    max_delay_s: float
    prefill_tokens: int
    """Tokens of a prompt that run between two batches."""

    chunk_tokens: int
    """Tokens of a prompt that cross at a time."""

    warm_s: float
    end_s: float
    wake_s: float
    """Of a batch that the server has waited for, for its messages together."""

    spread: float
    """Of times above those of a profile, which are lower quartiles."""

    slot_s: float
    """Of the curve of arrivals."""

    one_process: bool
    """Whether what closed-loop devices do for messages goes one after another, as in a load generator."""


class Tables(NamedTuple):
    """What things take: records of these types."""

    groups: Records
    """``[group]`` of :data:`GROUP`."""

    messages: Records
    """``[group, tokens]`` of :data:`MESSAGE`."""

    rows: Records
    """``[cut, rows]`` of :data:`WORK`: one step or sample of each."""

    prompts: Records
    """``[cut, tokens]`` of :data:`WORK`: a piece of one prompt."""

    arrivals: Floats
    """The integral of the arrivals' curve, whose mean is 1, at the ends of its slots."""


GROUP = np.dtype(
    [
        ("rate_hz", "f8"),  # requests or sequences of a device in a second; 0 for a closed loop
        ("think_s", "f8"),
        ("opening_s", "f8"),
        ("delay_s", "f8"),
        ("jitter_s", "f8"),
        ("down_s", "f8"),
        ("reply_s", "f8"),
        ("cut", "i8"),  # in the order of depth
        ("new_tokens", "i8"),
        ("is_local", "i8"),
    ]
)
MESSAGE = np.dtype(
    [
        ("device_s", "f8"),  # head and encoding, without anything before
        ("device_context_s", "f8"),  # for each token before
        ("up_s", "f8"),
        ("up_bytes", "f8"),
        ("half_s", "f8"),  # of the message's time beside the server's, each way
        ("read_s", "f8"),
        ("decode_s", "f8"),
    ]
)
WORK = np.dtype([("fixed_s", "f8"), ("context_s", "f8")])


class State(NamedTuple):
    """Devices, requests (slots), and the server."""

    devices: Records
    """Of :data:`DEVICE`."""

    slots: Records
    """Of :data:`SLOT`."""

    heap: Records
    """Of :data:`EVENT`: messages under way, the first to arrive at the top."""

    ring: Ints
    """Devices with waiting requests, whose turn is next first, around the end."""

    unread: Ints
    """Slots that came since the last batch was taken, around the end."""

    batch: Ints
    rows: Ints
    server: Records
    """One of :data:`SERVER`."""


DEVICE = np.dtype(
    [
        ("answered_s", "f8"),  # when its last request was answered, until the next comes
        ("gap_s", "f8"),  # how soon it comes again
        ("asked", "f8"),  # how far its arrivals are, in requests expected
        ("free_s", "f8"),
        ("link_free_s", "f8"),
        ("last_s", "f8"),  # when its latest message arrives
        ("group", "i4"),
        ("prompt", "i4"),  # tokens of its prompts
        ("context", "i4"),
        ("prompt_left", "i4"),
        ("made", "i4"),
        ("first", "i4"),  # its waiting requests, a list of slots
        ("last", "i4"),
        ("count", "i4"),
    ]
)
SLOT = np.dtype(
    [
        ("due_s", "f8"),
        ("arrived_s", "f8"),
        ("begun_s", "f8"),
        ("owner", "i4"),  # its device
        ("tokens", "i4"),
        ("left", "i4"),  # of its tokens, those that have not run
        ("is_ready", "i4"),  # whether it was decoded
        ("following", "i4"),
    ]
)
EVENT = np.dtype([("at_s", "f8"), ("slot", "i8")])
SERVER = np.dtype(
    [
        ("heap", "i8"),  # sizes and places
        ("ring", "i8"),
        ("turns", "i8"),
        ("waiting", "i8"),
        ("newest", "i8"),
        ("free", "i8"),
        ("sessions", "i8"),
        ("scan", "i8"),
        ("unread", "i8"),
        ("unread_end", "i8"),
        ("is_asleep", "i8"),  # whether it has waited since the last batch
        ("batch_s", "f8"),
        ("ended_s", "f8"),  # when the last batch did
        ("mean_s", "f8"),
        ("newest_s", "f8"),  # when somebody last sent something, and when somebody else did
        ("other_s", "f8"),
        ("generator_s", "f8"),
    ]
)


class Outcome(NamedTuple):
    """What is counted."""

    groups: Records
    """Of :data:`COUNTS`."""

    histogram: Ints
    """``[2 * group + is first token, bin]``: latencies."""

    server: Floats
    """Busy seconds, runs of a tail, requests in them, from warm-up to end."""

    trace: Floats
    """``[item, 6]``: group, device, due, arrived, begun, done; as many as there is room for."""

    traced: Ints


COUNTS = np.dtype(
    [
        ("asked", "i8"),  # over the whole run, like the next two
        ("answered", "i8"),
        ("refused", "i8"),
        ("items", "i8"),  # answered between warm-up and end, like the next two
        ("firsts", "i8"),
        ("ended", "i8"),
        ("measured", "i8"),  # those that latencies count
        ("lost", "i8"),  # of them, refused for good
        ("latency_s", "f8"),
        ("wait_s", "f8"),
        ("bytes", "f8"),  # sent between warm-up and end
    ]
)


def new_state(group: Ints, prompt: Ints, limits: Limits) -> State:
    """Devices of these groups, with prompts of so many tokens; all else is empty."""
    count = len(group)
    slots = np.zeros(count + limits.max_waiting + limits.max_batch + 1, SLOT)
    slots["following"] = np.arange(1, len(slots) + 1)
    devices, server = np.zeros(count, DEVICE), np.zeros(1, SERVER)
    devices["group"], devices["prompt"] = group, prompt
    devices["gap_s"] = devices["answered_s"] = math.nan
    server["newest"], server["newest_s"], server["other_s"] = NONE, -math.inf, -math.inf
    return State(
        devices=devices,
        slots=slots,
        heap=np.zeros(len(slots), EVENT),
        ring=np.zeros(count + 1, np.int64),
        unread=np.zeros(1024, np.int64),
        batch=np.zeros(limits.max_batch, np.int64),
        rows=np.zeros(limits.max_batch, np.int64),
        server=server,
    )


def new_outcome(num_groups: int, trace: int) -> Outcome:
    """Nothing counted yet, with room to tell so many items one by one."""
    return Outcome(
        groups=np.zeros(num_groups, COUNTS),
        histogram=np.zeros((2 * num_groups, BINS), np.int64),
        server=np.zeros(3),
        trace=np.zeros((trace, 6)),
        traced=np.zeros(1, np.int64),
    )
