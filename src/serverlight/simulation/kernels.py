"""The event loop of one simulated server and its devices, compiled: a heap with one event for each device, and batches.

Nothing here reads configuration or raises. All times are seconds. What the server does follows ``runtime/core.py``,
``runtime/scheduler.py``, ``runtime/window.py``, ``runtime/worker.py`` and ``runtime/decoders.py``; docs/simulation.md says where it
is simpler.
"""

from __future__ import annotations

import math

import numba
import numpy as np

from serverlight.simulation.records import BINS, BINS_PER_E, LEAST_S, NONE, Limits, Outcome, State, Tables

__all__ = ["run_server"]

njit = numba.njit(nogil=True, error_model="numpy")
entry_point = numba.njit(cache=True, nogil=True, error_model="numpy")

_NEWEST_SHARE, _LATE, _LITTLE, _LEAST_GAP_S = 0.25, 2.0, 0.1, 5e-4
"""As in ``runtime/window.py``."""

_TURN_SHARE, _ACTIVE_S = 0.2, 1.0
"""As in ``runtime/scheduler.py``."""

_LOWER_QUARTILE = math.log(4 / 3)
"""Of an exponential's times whose mean is one."""


# -- the heap of messages under way -----------------------------------------------------------------


@njit
def _push(s: State, at_s: float, slot: int) -> None:
    i = s.server[0].heap
    s.server[0].heap = i + 1
    while i > 0:
        above = (i - 1) >> 1
        if s.heap[above].at_s <= at_s:
            break
        s.heap[i].at_s, s.heap[i].slot = s.heap[above].at_s, s.heap[above].slot
        i = above
    s.heap[i].at_s, s.heap[i].slot = at_s, slot


@njit
def _pop(s: State) -> int:
    slot: int = s.heap[0].slot
    size = s.server[0].heap - 1
    s.server[0].heap = size
    at_s, moved, i = s.heap[size].at_s, s.heap[size].slot, 0
    while True:
        below = 2 * i + 1
        if below >= size:
            break
        if below + 1 < size and s.heap[below + 1].at_s < s.heap[below].at_s:
            below += 1
        if at_s <= s.heap[below].at_s:
            break
        s.heap[i].at_s, s.heap[i].slot = s.heap[below].at_s, s.heap[below].slot
        i = below
    s.heap[i].at_s, s.heap[i].slot = at_s, moved
    return slot


# -- devices ----------------------------------------------------------------------------------------


@njit
def _vary(limits: Limits, rng: np.random.Generator) -> float:
    """How many times as long as a profile says something takes: the lower quartile is one, what is above has a long tail."""
    if limits.spread == 0:
        return 1.0
    return 1.0 + limits.spread * (rng.standard_exponential() - _LOWER_QUARTILE)


@njit
def _next_due(s: State, t: Tables, limits: Limits, device: int, rng: np.random.Generator) -> float:
    """When the device's next request is due by its arrivals; infinite after the end."""
    s.devices[device].asked += rng.standard_exponential() / t.groups[s.devices[device].group].rate_hz
    asked, curve = s.devices[device].asked, t.arrivals
    if asked >= curve[-1]:
        return math.inf
    i = np.searchsorted(curve, asked, side="right")
    before = curve[i - 1] if i > 0 else 0.0
    due_s: float = (i + (asked - before) / (curve[i] - before)) * limits.slot_s
    return due_s if due_s < limits.end_s else math.inf


@njit
def _new_slot(s: State, device: int, due_s: float) -> int:
    slot: int = s.server[0].free
    s.server[0].free = s.slots[slot].following
    s.slots[slot].owner, s.slots[slot].due_s = device, due_s
    return slot


@njit
def _free(s: State, slot: int) -> None:
    s.slots[slot].following = s.server[0].free
    s.server[0].free = slot


@njit
def _send(
    s: State, t: Tables, limits: Limits, o: Outcome, slot: int, from_s: float, tokens: int, rng: np.random.Generator
) -> None:
    """The device's work on a request, then its way to the server."""
    device = s.slots[slot].owner
    group = s.devices[device].group
    s.slots[slot].tokens = s.slots[slot].left = tokens
    s.slots[slot].is_ready = 0
    ready_s = max(from_s, s.devices[device].free_s) + t.messages[group, tokens].device_s
    ready_s += s.devices[device].context * t.messages[group, tokens].device_context_s
    s.devices[device].free_s = ready_s
    if not t.groups[group].is_local:
        if limits.warm_s <= ready_s < limits.end_s:
            o.groups[group].bytes += t.messages[group, tokens].up_bytes
        if not (limits.one_process and t.groups[group].rate_hz == 0):
            ready_s += t.messages[group, tokens].half_s * _vary(limits, rng)
        ready_s = max(ready_s, s.devices[device].link_free_s) + t.messages[group, tokens].up_s
        s.devices[device].link_free_s = ready_s
        ready_s += t.groups[group].delay_s + t.groups[group].jitter_s * rng.random()
        ready_s = max(ready_s, s.devices[device].last_s)
        s.devices[device].last_s = ready_s
    _push(s, ready_s, slot)


@njit
def _ask(s: State, t: Tables, limits: Limits, o: Outcome, device: int, due_s: float, rng: np.random.Generator) -> None:
    """A new request, or the first part of a new sequence; none after the end."""
    if due_s >= limits.end_s:
        return
    slot, tokens, group = _new_slot(s, device, due_s), 1, s.devices[device].group
    o.groups[group].asked += 1
    from_s = due_s
    if limits.is_language:
        tokens = min(s.devices[device].prompt, limits.chunk_tokens)
        s.devices[device].context, s.devices[device].made, s.devices[device].prompt_left = (
            0,
            0,
            s.devices[device].prompt - tokens,
        )
        from_s += t.groups[group].opening_s
    _send(s, t, limits, o, slot, from_s, tokens, rng)


@njit
def _record(s: State, t: Tables, limits: Limits, o: Outcome, slot: int, done_s: float, first: int) -> None:
    group, due_s = s.devices[s.slots[slot].owner].group, s.slots[slot].due_s
    is_within = limits.warm_s <= done_s < limits.end_s
    o.groups[group].items += is_within
    o.groups[group].firsts += is_within and first
    counts = limits.warm_s <= due_s < limits.end_s if t.groups[group].rate_hz > 0 else is_within
    if counts:
        latency_s = done_s - due_s
        place = int(BINS_PER_E * math.log(max(latency_s, LEAST_S) / LEAST_S))
        o.histogram[2 * group + first, min(place, BINS - 1)] += 1
        o.groups[group].measured += 1
        o.groups[group].latency_s += latency_s
        o.groups[group].wait_s += s.slots[slot].begun_s - s.slots[slot].arrived_s
    if o.traced[0] < len(o.trace):
        row = o.trace[o.traced[0]]
        row[0], row[1], row[2] = group, s.slots[slot].owner, due_s
        row[3], row[4], row[5] = s.slots[slot].arrived_s, s.slots[slot].begun_s, done_s
        o.traced[0] += 1


@njit
def _answer(
    s: State, t: Tables, limits: Limits, o: Outcome, slot: int, replied_s: float, rng: np.random.Generator
) -> None:
    """A reply on its way back, and what its device does next."""
    device = s.slots[slot].owner
    group, tokens = s.devices[device].group, s.slots[slot].tokens
    is_closed, done_s, sending_s = t.groups[group].rate_hz == 0, replied_s, 0.0
    if not t.groups[group].is_local:
        s.devices[device].answered_s = replied_s
        done_s += t.groups[group].down_s + t.groups[group].delay_s + t.groups[group].jitter_s * rng.random()
        half_s = t.messages[group, tokens].half_s
        if limits.one_process and is_closed:
            sending_s = half_s * _vary(limits, rng)
            done_s = max(done_s, s.server[0].generator_s) + half_s * _vary(limits, rng)
            s.server[0].generator_s = done_s + sending_s
        else:
            done_s += half_s * _vary(limits, rng)
    after_s = done_s + t.groups[group].think_s + sending_s
    if not limits.is_language:
        o.groups[group].answered += 1
        _record(s, t, limits, o, slot, done_s, 0)
        _free(s, slot)
        if is_closed:
            _ask_after(s, t, limits, o, device, done_s + t.groups[group].think_s, after_s, rng)
        return
    s.devices[device].context += tokens
    if s.devices[device].prompt_left:
        tokens = min(s.devices[device].prompt_left, limits.chunk_tokens)
        s.devices[device].prompt_left -= tokens
        _send(s, t, limits, o, slot, after_s - t.groups[group].think_s, tokens, rng)
        return
    _record(s, t, limits, o, slot, done_s, 1 if s.devices[device].made == 0 else 0)
    s.devices[device].made += 1
    if s.devices[device].made < t.groups[group].new_tokens:
        s.slots[slot].due_s = done_s + t.groups[group].think_s
        _send(s, t, limits, o, slot, after_s, 1, rng)
        return
    o.groups[group].answered += 1
    o.groups[group].ended += limits.warm_s <= done_s < limits.end_s
    s.server[0].sessions -= not t.groups[group].is_local
    s.devices[device].free_s = done_s
    _free(s, slot)
    if is_closed:
        _ask_after(s, t, limits, o, device, done_s, after_s - t.groups[group].think_s, rng)
    else:
        s.devices[device].answered_s = s.devices[device].gap_s = math.nan  # its stream is closed
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
    s.devices[device].free_s = max(s.devices[device].free_s, from_s)
    _ask(s, t, limits, o, device, due_s, rng)


# -- the queue --------------------------------------------------------------------------------------


@njit
def _turn(s: State, device: int) -> None:
    """The device's turn comes after all others'."""
    size = len(s.ring)
    s.ring[(s.server[0].ring + s.server[0].turns) % size] = device
    s.server[0].turns += 1


@njit
def _enqueue(s: State, slot: int) -> None:
    device = s.slots[slot].owner
    s.slots[slot].following = NONE
    if s.devices[device].count:
        s.slots[s.devices[device].last].following = slot
    else:
        s.devices[device].first = slot
        _turn(s, device)
    s.devices[device].last = slot
    s.devices[device].count += 1
    s.server[0].waiting += 1


@njit
def _put_back(s: State, slot: int) -> None:
    """One that was taken goes on before what its device has sent since."""
    device = s.slots[slot].owner
    s.slots[slot].following = s.devices[device].first if s.devices[device].count else NONE
    if not s.devices[device].count:
        s.devices[device].last = slot
        _turn(s, device)
    s.devices[device].first = slot
    s.devices[device].count += 1
    s.server[0].waiting += 1


@njit
def _take_first(s: State, device: int) -> int:
    slot: int = s.devices[device].first
    s.devices[device].first = s.slots[slot].following
    s.devices[device].count -= 1
    s.server[0].waiting -= 1
    return slot


@njit
def _give_up_newest(s: State, newcomer: int) -> int:
    """The newest request of the device with most, where the newcomer has fewer even with its own; else none."""
    longest = NONE
    for i in range(s.server[0].turns):
        device = s.ring[(s.server[0].ring + i) % len(s.ring)]
        if longest == NONE or s.devices[device].count > s.devices[longest].count:
            longest = device
    if longest == NONE or s.devices[newcomer].count + 1 >= s.devices[longest].count:
        return NONE
    before = s.devices[longest].first
    while s.slots[before].following != s.devices[longest].last:
        before = s.slots[before].following
    given_up: int = s.devices[longest].last
    s.slots[before].following = NONE
    s.devices[longest].last = before
    s.devices[longest].count -= 1
    s.server[0].waiting -= 1
    return given_up


@njit
def _refuse(s: State, t: Tables, limits: Limits, o: Outcome, slot: int, now_s: float) -> None:
    """Told to come back: a closed loop or a sequence does, an open loop does not ask again."""
    device = s.slots[slot].owner
    group = s.devices[device].group
    o.groups[group].refused += 1
    if limits.is_language or t.groups[group].rate_hz == 0:
        retry_s = max(1e-3, s.server[0].mean_s * s.server[0].waiting / 2)
        s.devices[device].last_s = (
            now_s + retry_s + 2 * t.groups[group].delay_s + t.messages[group, s.slots[slot].tokens].up_s
        )
        _push(s, s.devices[device].last_s, slot)
        return
    o.groups[group].lost += limits.warm_s <= s.slots[slot].due_s < limits.end_s
    _free(s, slot)


@njit
def _arrive(s: State, t: Tables, limits: Limits, o: Outcome, slot: int, now_s: float) -> None:
    device = s.slots[slot].owner
    opens = (
        limits.is_language
        and s.devices[device].context == 0
        and s.devices[device].prompt_left + s.slots[slot].tokens == s.devices[device].prompt
    )
    if opens and s.server[0].sessions >= limits.max_sessions:
        _refuse(s, t, limits, o, slot, now_s)
        return
    if s.server[0].waiting >= limits.max_waiting:
        given_up = _give_up_newest(s, device)
        if given_up == NONE:
            _refuse(s, t, limits, o, slot, now_s)
            return
        _refuse(s, t, limits, o, given_up, now_s)
    s.server[0].sessions += opens
    if device != s.server[0].newest:
        s.server[0].other_s = s.server[0].newest_s
        s.server[0].newest = device
    s.server[0].newest_s = s.slots[slot].arrived_s = now_s
    if not math.isnan(s.devices[device].answered_s):
        gap_s, known_s = now_s - s.devices[device].answered_s, s.devices[device].gap_s
        s.devices[device].answered_s = math.nan
        s.devices[device].gap_s = gap_s if math.isnan(known_s) else known_s + _NEWEST_SHARE * (gap_s - known_s)
    _enqueue(s, slot)
    size = len(s.unread)
    if s.server[0].unread_end - s.server[0].unread < size:
        s.unread[s.server[0].unread_end % size] = slot
        s.server[0].unread_end += 1


@njit
def _admit(s: State, t: Tables, limits: Limits, o: Outcome, now_s: float, rng: np.random.Generator) -> float:
    """Takes in all that has come; reading it takes the server's time, and so until then more may come."""
    while s.server[0].heap and s.heap[0].at_s <= now_s:
        at_s, slot = s.heap[0].at_s, _pop(s)
        device = s.slots[slot].owner
        group = s.devices[device].group
        is_open = t.groups[group].rate_hz > 0 and not limits.is_language
        if t.groups[group].is_local:
            s.slots[slot].arrived_s = s.slots[slot].begun_s = at_s
            _answer(s, t, limits, o, slot, at_s, rng)
        else:
            read_s = t.messages[group, s.slots[slot].tokens].read_s * _vary(limits, rng)
            now_s += read_s
            _arrive(s, t, limits, o, slot, at_s + read_s)
        if is_open:
            _ask(s, t, limits, o, device, _next_due(s, t, limits, device, rng), rng)
    return now_s


@njit
def _closes_s(s: State, limits: Limits, now_s: float) -> float:
    """Until when to wait for others, as ``Window.closes_s``; looks at devices until one is awaited to the last moment."""
    oldest_s = math.inf
    for i in range(s.server[0].turns):
        oldest_s = min(oldest_s, s.slots[s.devices[s.ring[(s.server[0].ring + i) % len(s.ring)]].first].arrived_s)
    batch_s, ended_s = s.server[0].batch_s, s.server[0].ended_s
    last_s = max(oldest_s + min(limits.max_delay_s, batch_s), ended_s + min(limits.max_delay_s, _LITTLE * batch_s))
    if last_s <= now_s:
        return now_s
    closes_s, size, start = now_s, len(s.devices), s.server[0].scan
    for i in range(size):
        device = start + i - size if start + i >= size else start + i
        answered_s = s.devices[device].answered_s
        if math.isnan(answered_s) or math.isnan(s.devices[device].gap_s):
            continue
        gap_s = max(s.devices[device].gap_s, _LEAST_GAP_S)
        late_s = answered_s + _LATE * gap_s
        if answered_s + gap_s <= last_s and late_s > now_s:
            closes_s = max(closes_s, min(late_s, last_s))
            if closes_s == last_s:
                s.server[0].scan = device
                break
    return closes_s


@njit
def _take_batch(s: State, limits: Limits, now_s: float) -> int:
    """Fills ``State.batch`` in the order of turns, one request of each device, or all of one that is alone."""
    is_shared = s.server[0].turns > 1 or now_s - s.server[0].other_s <= _ACTIVE_S
    size, turns = 0, s.server[0].turns
    for _ in range(turns):
        if size == limits.max_batch:
            break
        device = s.ring[s.server[0].ring]
        s.server[0].ring = (s.server[0].ring + 1) % len(s.ring)
        s.server[0].turns -= 1
        wanted = 1 if is_shared else s.devices[device].count
        while wanted and size < limits.max_batch:
            s.batch[size] = _take_first(s, device)
            size, wanted = size + 1, wanted - 1
        if s.devices[device].count:
            _turn(s, device)
    return size


# -- batches ----------------------------------------------------------------------------------------


@njit
def _count_batch(limits: Limits, o: Outcome, size: int, now_s: float) -> None:
    """A run of a tail, as a reply tells its size."""
    if limits.warm_s <= now_s < limits.end_s:
        o.server[1] += 1
        o.server[2] += size


@njit
def _run_requests(
    s: State, t: Tables, limits: Limits, o: Outcome, size: int, now_s: float, rng: np.random.Generator
) -> float:
    """Single-shot: the requests of each cut together, cut by cut."""
    done = 0
    while done < size:
        cut, count = t.groups[s.devices[s.slots[s.batch[done]].owner].group].cut, 0
        for i in range(done, size):  # those of this cut come to the front, in order
            slot = s.batch[i]
            if t.groups[s.devices[s.slots[slot].owner].group].cut == cut:
                for j in range(i, done + count, -1):
                    s.batch[j] = s.batch[j - 1]
                s.batch[done + count] = slot
                count += 1
        _count_batch(limits, o, count, now_s)
        now_s = _admit(s, t, limits, o, now_s + t.rows[cut, count].fixed_s * _vary(limits, rng), rng)
        for i in range(done, done + count):
            now_s += t.groups[s.devices[s.slots[s.batch[i]].owner].group].reply_s
            _answer(s, t, limits, o, s.batch[i], now_s, rng)
        done += count
    return now_s


@njit
def _sweep_s(s: State, t: Tables, num_rows: int) -> float:
    """One pass over the layers: each row joins at its cut, and all attend to as many tokens as the longest."""
    context, total_s = 0, 0.0
    for i in range(num_rows):
        context = max(context, s.devices[s.slots[s.rows[i]].owner].context)
    reached, before = 0, NONE
    for cut in range(len(t.rows)):
        joining = 0
        for i in range(num_rows):
            joining += t.groups[s.devices[s.slots[s.rows[i]].owner].group].cut == cut
        if joining:
            if before != NONE:
                total_s -= t.rows[cut, reached].fixed_s + context * t.rows[cut, reached].context_s
            reached, before = reached + joining, cut
            total_s += t.rows[cut, reached].fixed_s + context * t.rows[cut, reached].context_s
    return max(total_s, 0.0)


@njit
def _run_steps(
    s: State, t: Tables, limits: Limits, o: Outcome, size: int, now_s: float, rng: np.random.Generator
) -> float:
    """Language models: all steps in one sweep, then one piece of the first prompt."""
    num_rows = 0
    for i in range(size):
        slot = s.batch[i]
        if s.slots[slot].tokens == 1 and s.devices[s.slots[slot].owner].context > 0:
            s.rows[num_rows] = slot
            num_rows += 1
    if num_rows:
        _count_batch(limits, o, num_rows, now_s)
        now_s = _admit(s, t, limits, o, now_s + _sweep_s(s, t, num_rows) * _vary(limits, rng), rng)
        for i in range(num_rows):
            now_s += t.groups[s.devices[s.slots[s.rows[i]].owner].group].reply_s
            _answer(s, t, limits, o, s.rows[i], now_s, rng)
    is_first, taken = True, 0
    for i in range(size):
        slot = s.batch[i]
        if taken < num_rows and s.rows[taken] == slot:  # both are in one order
            taken += 1
            continue
        group = s.devices[s.slots[slot].owner].group
        if is_first:
            piece = min(s.slots[slot].left, limits.prefill_tokens)
            context = s.devices[s.slots[slot].owner].context + s.slots[slot].tokens - s.slots[slot].left
            taken_s = (
                t.prompts[t.groups[group].cut, piece].fixed_s
                + context * t.prompts[t.groups[group].cut, piece].context_s
            )
            now_s = _admit(s, t, limits, o, now_s + taken_s * _vary(limits, rng), rng)
            s.slots[slot].left -= piece
            is_first = False
            if s.slots[slot].left == 0:
                _count_batch(limits, o, 1, now_s)
                now_s += t.groups[group].reply_s
                _answer(s, t, limits, o, slot, now_s, rng)
                continue
        _put_back(s, slot)
    return now_s


@njit
def _run_batch(s: State, t: Tables, limits: Limits, o: Outcome, now_s: float, rng: np.random.Generator) -> float:
    started_s = now_s
    now_s += limits.wake_s * s.server[0].is_asleep
    s.server[0].is_asleep = 0
    s.server[0].unread = s.server[0].unread_end
    size = _take_batch(s, limits, now_s)
    for i in range(size):
        slot = s.batch[i]
        if s.slots[slot].left == s.slots[slot].tokens:
            s.slots[slot].begun_s = started_s
        if not s.slots[slot].is_ready:
            now_s += t.messages[s.devices[s.slots[slot].owner].group, s.slots[slot].tokens].decode_s
            s.slots[slot].is_ready = 1
    now_s = _admit(s, t, limits, o, now_s, rng)
    if limits.is_language:
        now_s = _run_steps(s, t, limits, o, size, now_s, rng)
    else:
        now_s = _run_requests(s, t, limits, o, size, now_s, rng)
    spent_s = now_s - started_s
    mean_s, batch_s = s.server[0].mean_s, s.server[0].batch_s
    s.server[0].mean_s = spent_s / size if mean_s == 0 else mean_s + _TURN_SHARE * (spent_s / size - mean_s)
    s.server[0].batch_s = spent_s if batch_s == 0 else batch_s + _NEWEST_SHARE * (spent_s - batch_s)
    s.server[0].ended_s = now_s
    o.server[0] += max(0.0, min(now_s, limits.end_s) - max(started_s, limits.warm_s))
    return now_s


@entry_point
def run_server(s: State, t: Tables, limits: Limits, o: Outcome, rng: np.random.Generator) -> float:
    """Runs until nothing is asked any more; returns when that was. ``s`` is as :func:`new_state` made it."""
    for device in range(len(s.devices)):
        is_open = t.groups[s.devices[device].group].rate_hz > 0
        due_s = _next_due(s, t, limits, device, rng) if is_open else 0.0
        _ask(s, t, limits, o, device, due_s, rng)
    now_s = 0.0
    while True:
        before_s = now_s
        now_s = _admit(s, t, limits, o, now_s, rng)
        o.server[0] += max(0.0, min(now_s, limits.end_s) - max(before_s, limits.warm_s))
        if not s.server[0].waiting:
            if not s.server[0].heap:
                return now_s
            now_s = max(now_s, s.heap[0].at_s)
            s.server[0].is_asleep = 1
            continue
        if s.server[0].waiting < limits.max_batch and limits.max_delay_s > 0:
            closes_s = _closes_s(s, limits, now_s)
            if closes_s > now_s:
                if s.server[0].unread < s.server[0].unread_end:
                    slot = s.unread[s.server[0].unread % len(s.unread)]
                    s.server[0].unread += 1
                    spent_s = (
                        0.0
                        if s.slots[slot].is_ready
                        else t.messages[s.devices[s.slots[slot].owner].group, s.slots[slot].tokens].decode_s
                    )
                    s.slots[slot].is_ready = 1
                    o.server[0] += spent_s if limits.warm_s <= now_s < limits.end_s else 0.0
                    now_s += spent_s
                else:
                    now_s = min(closes_s, s.heap[0].at_s) if s.server[0].heap else closes_s
                    s.server[0].is_asleep = 1
                continue
        now_s = _run_batch(s, t, limits, o, now_s, rng)
