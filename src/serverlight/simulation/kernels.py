"""The event loop of one simulated server and its devices, compiled: a heap with one event for each device, and batches.

Nothing here reads configuration or raises. All times are seconds. What the server does follows ``runtime/core.py``,
``runtime/scheduler.py``, ``runtime/window.py``, ``runtime/worker.py`` and ``runtime/decoders.py``; docs/simulation.md says where it
is simpler.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

__all__ = ["BINS", "BINS_PER_E", "LEAST_S", "Limits", "Outcome", "State", "Tables", "run_server"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

njit = numba.njit(nogil=True, error_model="numpy")
entry_point = numba.njit(cache=True, nogil=True, error_model="numpy")

LEAST_S, BINS_PER_E, BINS = 1e-6, 200, 4600
"""The histogram of latencies: from a microsecond on, 200 bins for each factor of e, to about two hours."""

_NEWEST_SHARE, _LATE, _LEAST_GAP_S = 0.25, 2.0, 5e-4
"""As in ``runtime/window.py``."""

_TURN_SHARE, _ACTIVE_S = 0.2, 1.0
"""As in ``runtime/scheduler.py``."""

NONE = -1


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
    slot_s: float
    """Of the curve of arrivals."""

    one_process: bool
    """Whether what closed-loop devices do for messages goes one after another, as in a load generator."""


class Tables(NamedTuple):
    """What things take: ``[group]``, ``[group, tokens]``, ``[cut, rows]`` or ``[cut, tokens]``."""

    rate_hz: Floats
    """Requests or sequences of a device in a second; 0 for a closed loop."""

    think_s: Floats
    is_local: Flags
    cut: Ints
    """In the order of depth."""

    new_tokens: Ints
    opening_s: Floats
    delay_s: Floats
    jitter_s: Floats
    down_s: Floats
    reply_s: Floats
    device_s: Floats
    device_context_s: Floats
    up_s: Floats
    up_bytes: Floats
    half_s: Floats
    """Of the messages' time beside the server's, each way."""

    read_s: Floats
    decode_s: Floats
    rows_s: Floats
    rows_context_s: Floats
    prompt_s: Floats
    prompt_context_s: Floats
    arrivals: Floats
    """The integral of the arrivals' curve, whose mean is 1, at the ends of its slots."""


class State(NamedTuple):
    """Of devices, of requests (slots), and of the server."""

    # of devices
    group: Ints
    prompt: Ints
    """Tokens of its prompts."""

    asked: Floats
    """How far its arrivals are, in requests expected."""

    device_free_s: Floats
    link_free_s: Floats
    last_s: Floats
    """When its latest message arrives."""

    gap_s: Floats
    answered_s: Floats
    context: Ints
    prompt_left: Ints
    made: Ints
    first: Ints
    """Its waiting requests, a list of slots."""

    last: Ints
    count: Ints
    # of slots
    device: Ints
    due_s: Floats
    arrived_s: Floats
    begun_s: Floats
    tokens: Ints
    left: Ints
    """Of its tokens, those that have not run."""

    ready: Ints
    """Whether it was decoded."""

    following: Ints
    # of the server
    heap_s: Floats
    heap: Ints
    ring: Ints
    """Devices with waiting requests, whose turn is next first; from ``at[RING]`` on, around the end."""

    unread: Ints
    batch: Ints
    rows: Ints
    numbers: Ints
    clocks: Floats


HEAP, RING, TURNS, WAITING, NEWEST, FREE, SESSIONS, SCAN, UNREAD, UNREAD_END = range(10)
"""In ``State.numbers``: sizes and places."""

BATCH_S, MEAN_S, NEWEST_S, OTHER_S, GENERATOR_S = range(5)
"""In ``State.clocks``."""


class Outcome(NamedTuple):
    """What is counted."""

    counts: Ints
    """``[group, 8]``, see below."""

    sums: Floats
    """``[group, 4]``."""

    histogram: Ints
    """``[2 * group + is first token, bin]``: latencies."""

    server: Floats
    """Busy seconds, batches, requests in batches, from warm-up to end."""

    trace: Floats
    """``[item, 6]``: group, device, due, arrived, begun, done; as many as there is room for."""

    traced: Ints


ASKED, ANSWERED, REFUSED, WITHIN, FIRSTS, ENDED, MEASURED, MEASURED_REFUSED = range(8)
"""In ``Outcome.counts``: all asked, answered and refused; answers between warm-up and end; and those that latencies count."""

LATENCY, SERVER, BYTES = range(3)
"""In ``Outcome.sums``: of measured requests; bytes of those that were sent between warm-up and end."""


# -- the heap of messages under way -----------------------------------------------------------------


@njit
def _push(s: State, at_s: float, slot: int) -> None:
    i = s.numbers[HEAP]
    s.numbers[HEAP] = i + 1
    while i > 0:
        above = (i - 1) >> 1
        if s.heap_s[above] <= at_s:
            break
        s.heap_s[i], s.heap[i] = s.heap_s[above], s.heap[above]
        i = above
    s.heap_s[i], s.heap[i] = at_s, slot


@njit
def _pop(s: State) -> int:
    slot = s.heap[0]
    size = s.numbers[HEAP] - 1
    s.numbers[HEAP] = size
    at_s, moved, i = s.heap_s[size], s.heap[size], 0
    while True:
        below = 2 * i + 1
        if below >= size:
            break
        if below + 1 < size and s.heap_s[below + 1] < s.heap_s[below]:
            below += 1
        if at_s <= s.heap_s[below]:
            break
        s.heap_s[i], s.heap[i] = s.heap_s[below], s.heap[below]
        i = below
    s.heap_s[i], s.heap[i] = at_s, moved
    return slot


# -- devices ----------------------------------------------------------------------------------------


@njit
def _next_due(s: State, t: Tables, limits: Limits, device: int, rng: np.random.Generator) -> float:
    """When the device's next request is due by its arrivals; infinite after the end."""
    s.asked[device] += rng.standard_exponential() / t.rate_hz[s.group[device]]
    asked, curve = s.asked[device], t.arrivals
    if asked >= curve[-1]:
        return math.inf
    i = np.searchsorted(curve, asked, side="right")
    before = curve[i - 1] if i > 0 else 0.0
    due_s: float = (i + (asked - before) / (curve[i] - before)) * limits.slot_s
    return due_s if due_s < limits.end_s else math.inf


@njit
def _new_slot(s: State, device: int, due_s: float) -> int:
    slot = s.numbers[FREE]
    s.numbers[FREE] = s.following[slot]
    s.device[slot], s.due_s[slot] = device, due_s
    return slot


@njit
def _free(s: State, slot: int) -> None:
    s.following[slot] = s.numbers[FREE]
    s.numbers[FREE] = slot


@njit
def _send(
    s: State, t: Tables, limits: Limits, o: Outcome, slot: int, from_s: float, tokens: int, rng: np.random.Generator
) -> None:
    """The device's work on a request, then its way to the server."""
    device = s.device[slot]
    group = s.group[device]
    s.tokens[slot] = s.left[slot] = tokens
    s.ready[slot] = 0
    ready_s = max(from_s, s.device_free_s[device]) + t.device_s[group, tokens]
    ready_s += s.context[device] * t.device_context_s[group, tokens]
    s.device_free_s[device] = ready_s
    if not t.is_local[group]:
        if limits.warm_s <= ready_s < limits.end_s:
            o.sums[group, BYTES] += t.up_bytes[group, tokens]
        if not (limits.one_process and t.rate_hz[group] == 0):
            ready_s += t.half_s[group, tokens]
        ready_s = max(ready_s, s.link_free_s[device]) + t.up_s[group, tokens]
        s.link_free_s[device] = ready_s
        ready_s += t.delay_s[group] + t.jitter_s[group] * rng.random()
        ready_s = max(ready_s, s.last_s[device])
        s.last_s[device] = ready_s
    _push(s, ready_s, slot)


@njit
def _ask(
    s: State, t: Tables, limits: Limits, o: Outcome, device: int, due_s: float, rng: np.random.Generator
) -> None:
    """A new request, or the first part of a new sequence; none after the end."""
    if due_s >= limits.end_s:
        return
    slot, tokens, group = _new_slot(s, device, due_s), 1, s.group[device]
    o.counts[group, ASKED] += 1
    from_s = due_s
    if limits.is_language:
        tokens = min(s.prompt[device], limits.chunk_tokens)
        s.context[device], s.made[device], s.prompt_left[device] = 0, 0, s.prompt[device] - tokens
        from_s += t.opening_s[group]
    _send(s, t, limits, o, slot, from_s, tokens, rng)


@njit
def _record(s: State, t: Tables, limits: Limits, o: Outcome, slot: int, done_s: float, first: int) -> None:
    group, due_s = s.group[s.device[slot]], s.due_s[slot]
    is_within = limits.warm_s <= done_s < limits.end_s
    o.counts[group, WITHIN] += is_within
    o.counts[group, FIRSTS] += is_within and first
    counts = limits.warm_s <= due_s < limits.end_s if t.rate_hz[group] > 0 else is_within
    if counts:
        latency_s = done_s - due_s
        place = int(BINS_PER_E * math.log(max(latency_s, LEAST_S) / LEAST_S))
        o.histogram[2 * group + first, min(place, BINS - 1)] += 1
        o.counts[group, MEASURED] += 1
        o.sums[group, LATENCY] += latency_s
        o.sums[group, SERVER] += s.begun_s[slot] - s.arrived_s[slot]
    if o.traced[0] < len(o.trace):
        row = o.trace[o.traced[0]]
        row[0], row[1], row[2] = group, s.device[slot], due_s
        row[3], row[4], row[5] = s.arrived_s[slot], s.begun_s[slot], done_s
        o.traced[0] += 1


@njit
def _answer(
    s: State, t: Tables, limits: Limits, o: Outcome, slot: int, replied_s: float, rng: np.random.Generator
) -> None:
    """A reply on its way back, and what its device does next."""
    device = s.device[slot]
    group, tokens = s.group[device], s.tokens[slot]
    is_closed, done_s = t.rate_hz[group] == 0, replied_s
    if not t.is_local[group]:
        s.answered_s[device] = replied_s
        done_s += t.down_s[group] + t.delay_s[group] + t.jitter_s[group] * rng.random()
        if limits.one_process and is_closed:
            done_s = max(done_s, s.clocks[GENERATOR_S]) + t.half_s[group, tokens]
            s.clocks[GENERATOR_S] = done_s + t.half_s[group, tokens]
        else:
            done_s += t.half_s[group, tokens]
    after_s = done_s + t.think_s[group]
    if limits.one_process and is_closed:
        after_s += t.half_s[group, tokens]
    if not limits.is_language:
        o.counts[group, ANSWERED] += 1
        _record(s, t, limits, o, slot, done_s, 0)
        _free(s, slot)
        if is_closed:
            _ask_after(s, t, limits, o, device, done_s + t.think_s[group], after_s, rng)
        return
    s.context[device] += tokens
    if s.prompt_left[device]:
        tokens = min(s.prompt_left[device], limits.chunk_tokens)
        s.prompt_left[device] -= tokens
        _send(s, t, limits, o, slot, after_s - t.think_s[group], tokens, rng)
        return
    _record(s, t, limits, o, slot, done_s, 1 if s.made[device] == 0 else 0)
    s.made[device] += 1
    if s.made[device] < t.new_tokens[group]:
        s.due_s[slot] = done_s + t.think_s[group]
        _send(s, t, limits, o, slot, after_s, 1, rng)
        return
    o.counts[group, ANSWERED] += 1
    o.counts[group, ENDED] += limits.warm_s <= done_s < limits.end_s
    s.numbers[SESSIONS] -= not t.is_local[group]
    s.device_free_s[device] = done_s
    _free(s, slot)
    if is_closed:
        _ask_after(s, t, limits, o, device, done_s, after_s - t.think_s[group], rng)
    else:
        s.answered_s[device] = s.gap_s[device] = math.nan  # its stream is closed
        _ask(s, t, limits, o, device, _next_due(s, t, limits, device, rng), rng)


@njit
def _ask_after(
    s: State,
    t: Tables,
    limits: Limits,
    o: Outcome,
    device: int,
    due_s: float,
    from_s: float,
    rng: np.random.Generator,
) -> None:
    """A closed loop goes on: the request is due, and leaves once its turn in the device's process has come."""
    s.device_free_s[device] = max(s.device_free_s[device], from_s)
    _ask(s, t, limits, o, device, due_s, rng)


# -- the queue --------------------------------------------------------------------------------------


@njit
def _turn(s: State, device: int) -> None:
    """The device's turn comes after all others'."""
    size = len(s.ring)
    s.ring[(s.numbers[RING] + s.numbers[TURNS]) % size] = device
    s.numbers[TURNS] += 1


@njit
def _enqueue(s: State, slot: int) -> None:
    device = s.device[slot]
    s.following[slot] = NONE
    if s.count[device]:
        s.following[s.last[device]] = slot
    else:
        s.first[device] = slot
        _turn(s, device)
    s.last[device] = slot
    s.count[device] += 1
    s.numbers[WAITING] += 1


@njit
def _put_back(s: State, slot: int) -> None:
    """One that was taken goes on before what its device has sent since."""
    device = s.device[slot]
    s.following[slot] = s.first[device] if s.count[device] else NONE
    if not s.count[device]:
        s.last[device] = slot
        _turn(s, device)
    s.first[device] = slot
    s.count[device] += 1
    s.numbers[WAITING] += 1


@njit
def _take_first(s: State, device: int) -> int:
    slot = s.first[device]
    s.first[device] = s.following[slot]
    s.count[device] -= 1
    s.numbers[WAITING] -= 1
    return slot


@njit
def _give_up_newest(s: State, newcomer: int) -> int:
    """The newest request of the device with most, where the newcomer has fewer even with its own; else none."""
    longest = NONE
    for i in range(s.numbers[TURNS]):
        device = s.ring[(s.numbers[RING] + i) % len(s.ring)]
        if longest == NONE or s.count[device] > s.count[longest]:
            longest = device
    if longest == NONE or s.count[newcomer] + 1 >= s.count[longest]:
        return NONE
    before = s.first[longest]
    while s.following[before] != s.last[longest]:
        before = s.following[before]
    given_up = s.last[longest]
    s.following[before] = NONE
    s.last[longest] = before
    s.count[longest] -= 1
    s.numbers[WAITING] -= 1
    return given_up


@njit
def _refuse(s: State, t: Tables, limits: Limits, o: Outcome, slot: int, now_s: float) -> None:
    """Told to come back: a closed loop or a sequence does, an open loop does not ask again."""
    device = s.device[slot]
    group = s.group[device]
    o.counts[group, REFUSED] += 1
    if limits.is_language or t.rate_hz[group] == 0:
        retry_s = max(1e-3, s.clocks[MEAN_S] * s.numbers[WAITING] / 2)
        s.last_s[device] = now_s + retry_s + 2 * t.delay_s[group] + t.up_s[group, s.tokens[slot]]
        _push(s, s.last_s[device], slot)
        return
    o.counts[group, MEASURED_REFUSED] += limits.warm_s <= s.due_s[slot] < limits.end_s
    _free(s, slot)


@njit
def _arrive(s: State, t: Tables, limits: Limits, o: Outcome, slot: int, now_s: float) -> None:
    device = s.device[slot]
    group = s.group[device]
    opens = limits.is_language and s.context[device] == 0 and s.prompt_left[device] + s.tokens[slot] == s.prompt[device]
    if opens and s.numbers[SESSIONS] >= limits.max_sessions:
        _refuse(s, t, limits, o, slot, now_s)
        return
    if s.numbers[WAITING] >= limits.max_waiting:
        given_up = _give_up_newest(s, device)
        if given_up == NONE:
            _refuse(s, t, limits, o, slot, now_s)
            return
        _refuse(s, t, limits, o, given_up, now_s)
    s.numbers[SESSIONS] += opens
    if device != s.numbers[NEWEST]:
        s.clocks[OTHER_S] = s.clocks[NEWEST_S]
        s.numbers[NEWEST] = device
    s.clocks[NEWEST_S] = s.arrived_s[slot] = now_s
    if not math.isnan(s.answered_s[device]):
        gap_s, known_s = now_s - s.answered_s[device], s.gap_s[device]
        s.answered_s[device] = math.nan
        s.gap_s[device] = gap_s if math.isnan(known_s) else known_s + _NEWEST_SHARE * (gap_s - known_s)
    _enqueue(s, slot)
    size = len(s.unread)
    if s.numbers[UNREAD_END] - s.numbers[UNREAD] < size:
        s.unread[s.numbers[UNREAD_END] % size] = slot
        s.numbers[UNREAD_END] += 1


@njit
def _admit(s: State, t: Tables, limits: Limits, o: Outcome, now_s: float, rng: np.random.Generator) -> float:
    """Takes in all that has come; reading it takes the server's time, and so until then more may come."""
    while s.numbers[HEAP] and s.heap_s[0] <= now_s:
        at_s, slot = s.heap_s[0], _pop(s)
        device = s.device[slot]
        group = s.group[device]
        is_open = t.rate_hz[group] > 0 and not limits.is_language
        if t.is_local[group]:
            s.arrived_s[slot] = s.begun_s[slot] = at_s
            _answer(s, t, limits, o, slot, at_s, rng)
        else:
            now_s += t.read_s[group, s.tokens[slot]]
            _arrive(s, t, limits, o, slot, max(at_s, now_s) if s.numbers[WAITING] == 0 else at_s)
        if is_open:
            _ask(s, t, limits, o, device, _next_due(s, t, limits, device, rng), rng)
    return now_s


@njit
def _closes_s(s: State, limits: Limits, now_s: float) -> float:
    """Until when to wait for others, as ``Window.closes_s``; looks at devices until one is awaited to the last moment."""
    oldest_s = math.inf
    for i in range(s.numbers[TURNS]):
        oldest_s = min(oldest_s, s.arrived_s[s.first[s.ring[(s.numbers[RING] + i) % len(s.ring)]]])
    last_s = oldest_s + min(limits.max_delay_s, s.clocks[BATCH_S])
    if last_s <= now_s:
        return now_s
    closes_s, size, start = now_s, len(s.group), s.numbers[SCAN]
    for i in range(size):
        device = start + i - size if start + i >= size else start + i
        answered_s = s.answered_s[device]
        if math.isnan(answered_s) or math.isnan(s.gap_s[device]):
            continue
        gap_s = max(s.gap_s[device], _LEAST_GAP_S)
        late_s = answered_s + _LATE * gap_s
        if answered_s + gap_s <= last_s and late_s > now_s:
            closes_s = max(closes_s, min(late_s, last_s))
            if closes_s == last_s:
                s.numbers[SCAN] = device
                break
    return closes_s


@njit
def _take_batch(s: State, limits: Limits, now_s: float) -> int:
    """Fills ``State.batch`` in the order of turns, one request of each device, or all of one that is alone."""
    is_shared = s.numbers[TURNS] > 1 or now_s - s.clocks[OTHER_S] <= _ACTIVE_S
    size, turns = 0, s.numbers[TURNS]
    for _ in range(turns):
        if size == limits.max_batch:
            break
        device = s.ring[s.numbers[RING]]
        s.numbers[RING] = (s.numbers[RING] + 1) % len(s.ring)
        s.numbers[TURNS] -= 1
        wanted = 1 if is_shared else s.count[device]
        while wanted and size < limits.max_batch:
            s.batch[size] = _take_first(s, device)
            size, wanted = size + 1, wanted - 1
        if s.count[device]:
            _turn(s, device)
    return size


# -- batches ----------------------------------------------------------------------------------------


@njit
def _run_requests(
    s: State, t: Tables, limits: Limits, o: Outcome, size: int, now_s: float, rng: np.random.Generator
) -> float:
    """Single-shot: the requests of each cut together, cut by cut."""
    done = 0
    while done < size:
        cut, count = t.cut[s.group[s.device[s.batch[done]]]], 0
        for i in range(done, size):  # those of this cut come to the front, in order
            slot = s.batch[i]
            if t.cut[s.group[s.device[slot]]] == cut:
                for j in range(i, done + count, -1):
                    s.batch[j] = s.batch[j - 1]
                s.batch[done + count] = slot
                count += 1
        now_s = _admit(s, t, limits, o, now_s + t.rows_s[cut, count], rng)
        for i in range(done, done + count):
            now_s += t.reply_s[s.group[s.device[s.batch[i]]]]
            _answer(s, t, limits, o, s.batch[i], now_s, rng)
        done += count
    return now_s


@njit
def _sweep_s(s: State, t: Tables, num_rows: int) -> float:
    """One pass over the layers: each row joins at its cut, and all attend to as many tokens as the longest."""
    context, total_s = 0, 0.0
    for i in range(num_rows):
        context = max(context, s.context[s.device[s.rows[i]]])
    reached, before = 0, NONE
    for cut in range(len(t.rows_s)):
        joining = 0
        for i in range(num_rows):
            joining += t.cut[s.group[s.device[s.rows[i]]]] == cut
        if joining:
            if before != NONE:
                total_s -= t.rows_s[cut, reached] + context * t.rows_context_s[cut, reached]
            reached, before = reached + joining, cut
            total_s += t.rows_s[cut, reached] + context * t.rows_context_s[cut, reached]
    return max(total_s, 0.0)


@njit
def _run_steps(
    s: State, t: Tables, limits: Limits, o: Outcome, size: int, now_s: float, rng: np.random.Generator
) -> float:
    """Language models: all steps in one sweep, then one piece of the first prompt."""
    num_rows = 0
    for i in range(size):
        slot = s.batch[i]
        if s.tokens[slot] == 1 and s.context[s.device[slot]] > 0:
            s.rows[num_rows] = slot
            num_rows += 1
    if num_rows:
        now_s = _admit(s, t, limits, o, now_s + _sweep_s(s, t, num_rows), rng)
        for i in range(num_rows):
            now_s += t.reply_s[s.group[s.device[s.rows[i]]]]
            _answer(s, t, limits, o, s.rows[i], now_s, rng)
    is_first, taken = True, 0
    for i in range(size):
        slot = s.batch[i]
        if taken < num_rows and s.rows[taken] == slot:  # both are in one order
            taken += 1
            continue
        group = s.group[s.device[slot]]
        if is_first:
            piece = min(s.left[slot], limits.prefill_tokens)
            context = s.context[s.device[slot]] + s.tokens[slot] - s.left[slot]
            taken_s = t.prompt_s[t.cut[group], piece] + context * t.prompt_context_s[t.cut[group], piece]
            now_s = _admit(s, t, limits, o, now_s + taken_s, rng)
            s.left[slot] -= piece
            is_first = False
            if s.left[slot] == 0:
                now_s += t.reply_s[group]
                _answer(s, t, limits, o, slot, now_s, rng)
                continue
        _put_back(s, slot)
    return now_s


@njit
def _run_batch(s: State, t: Tables, limits: Limits, o: Outcome, now_s: float, rng: np.random.Generator) -> float:
    started_s = now_s
    s.numbers[UNREAD] = s.numbers[UNREAD_END]
    size = _take_batch(s, limits, now_s)
    for i in range(size):
        slot = s.batch[i]
        if s.left[slot] == s.tokens[slot]:
            s.begun_s[slot] = started_s
        if not s.ready[slot]:
            now_s += t.decode_s[s.group[s.device[slot]], s.tokens[slot]]
            s.ready[slot] = 1
    now_s = _admit(s, t, limits, o, now_s, rng)
    if limits.is_language:
        now_s = _run_steps(s, t, limits, o, size, now_s, rng)
    else:
        now_s = _run_requests(s, t, limits, o, size, now_s, rng)
    spent_s = now_s - started_s
    mean_s, batch_s = s.clocks[MEAN_S], s.clocks[BATCH_S]
    s.clocks[MEAN_S] = spent_s / size if mean_s == 0 else mean_s + _TURN_SHARE * (spent_s / size - mean_s)
    s.clocks[BATCH_S] = spent_s if batch_s == 0 else batch_s + _NEWEST_SHARE * (spent_s - batch_s)
    o.server[0] += max(0.0, min(now_s, limits.end_s) - max(started_s, limits.warm_s))
    if limits.warm_s <= started_s < limits.end_s:
        o.server[1] += 1
        o.server[2] += size
    return now_s


@entry_point
def run_server(s: State, t: Tables, limits: Limits, o: Outcome, rng: np.random.Generator) -> float:
    """Runs until nothing is asked any more; returns when that was. ``s`` is as :func:`new_state` made it."""
    for device in range(len(s.group)):
        is_open = t.rate_hz[s.group[device]] > 0
        due_s = _next_due(s, t, limits, device, rng) if is_open else 0.0
        _ask(s, t, limits, o, device, due_s, rng)
    now_s = 0.0
    while True:
        before_s = now_s
        now_s = _admit(s, t, limits, o, now_s, rng)
        o.server[0] += max(0.0, min(now_s, limits.end_s) - max(before_s, limits.warm_s))
        if not s.numbers[WAITING]:
            if not s.numbers[HEAP]:
                return now_s
            now_s = max(now_s, s.heap_s[0])
            continue
        if s.numbers[WAITING] < limits.max_batch and limits.max_delay_s > 0:
            closes_s = _closes_s(s, limits, now_s)
            if closes_s > now_s:
                if s.numbers[UNREAD] < s.numbers[UNREAD_END]:
                    slot = s.unread[s.numbers[UNREAD] % len(s.unread)]
                    s.numbers[UNREAD] += 1
                    spent_s = 0.0 if s.ready[slot] else t.decode_s[s.group[s.device[slot]], s.tokens[slot]]
                    s.ready[slot] = 1
                    o.server[0] += spent_s if limits.warm_s <= now_s < limits.end_s else 0.0
                    now_s += spent_s
                else:
                    now_s = min(closes_s, s.heap_s[0]) if s.numbers[HEAP] else closes_s
                continue
        now_s = _run_batch(s, t, limits, o, now_s, rng)


def new_state(group: Ints, prompt: Ints, limits: Limits) -> State:
    """Devices of these groups, with prompts of so many tokens; all else is empty."""
    devices = len(group)
    slots = devices + min(limits.max_waiting, 1 << 24) + limits.max_batch + 1
    numbers = np.zeros(10, np.int64)
    numbers[NEWEST] = NONE
    clocks = np.zeros(5)
    clocks[NEWEST_S] = clocks[OTHER_S] = -math.inf
    whole: dict[str, Any] = {
        name: np.zeros(devices, np.int64) for name in ("context", "prompt_left", "made", "first", "last", "count")
    }
    real = {name: np.zeros(devices) for name in ("asked", "device_free_s", "link_free_s", "last_s")}
    unknown = {name: np.full(devices, math.nan) for name in ("gap_s", "answered_s")}
    slot_whole = {name: np.zeros(slots, np.int64) for name in ("device", "tokens", "left", "ready")}
    slot_real = {name: np.zeros(slots) for name in ("due_s", "arrived_s", "begun_s")}
    return State(
        group=group, prompt=prompt, **whole, **real, **unknown, **slot_whole, **slot_real,
        following=np.arange(1, slots + 1), heap_s=np.zeros(slots), heap=np.zeros(slots, np.int64),
        ring=np.zeros(devices + 1, np.int64), unread=np.zeros(1024, np.int64),
        batch=np.zeros(limits.max_batch, np.int64), rows=np.zeros(limits.max_batch, np.int64),
        numbers=numbers, clocks=clocks,
    )  # fmt: skip
