"""Devices of the simulation: requests with what they take, and one event for each under way, on a heap. Compiled."""

from __future__ import annotations

import math

import numpy as np

from serverlight.simulation.compiled import njit
from serverlight.simulation.records import BINS, BINS_PER_E, LEAST_S, Limits, Outcome, State, Tables

__all__ = ["answer", "ask", "free", "next_due", "pop", "push", "vary"]

_LOWER_QUARTILE = math.log(4 / 3)
"""Of an exponential's times whose mean is one."""


# -- the heap of messages under way -----------------------------------------------------------------


@njit
def push(s: State, at_s: float, slot: int) -> None:
    """A request that comes to the server then."""
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
def pop(s: State) -> int:
    """The one that comes first."""
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
def vary(limits: Limits, rng: np.random.Generator) -> float:
    """How many times as long as a profile says something takes: the lower quartile is one, what is above has a long tail."""
    if limits.spread == 0:
        return 1.0
    return 1.0 + limits.spread * (rng.standard_exponential() - _LOWER_QUARTILE)


@njit
def next_due(s: State, t: Tables, limits: Limits, device: int, rng: np.random.Generator) -> float:
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
def free(s: State, slot: int) -> None:
    """The request is done with; another may take its place."""
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
            ready_s += t.messages[group, tokens].half_s * vary(limits, rng)
        ready_s = max(ready_s, s.devices[device].link_free_s) + t.messages[group, tokens].up_s
        s.devices[device].link_free_s = ready_s
        ready_s += t.groups[group].delay_s + t.groups[group].jitter_s * rng.random()
        ready_s = max(ready_s, s.devices[device].last_s)
        s.devices[device].last_s = ready_s
    push(s, ready_s, slot)


@njit
def ask(s: State, t: Tables, limits: Limits, o: Outcome, device: int, due_s: float, rng: np.random.Generator) -> None:
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
def answer(
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
            sending_s = half_s * vary(limits, rng)
            done_s = max(done_s, s.server[0].generator_s) + half_s * vary(limits, rng)
            s.server[0].generator_s = done_s + sending_s
        else:
            done_s += half_s * vary(limits, rng)
    after_s = done_s + t.groups[group].think_s + sending_s
    if not limits.is_language:
        o.groups[group].answered += 1
        _record(s, t, limits, o, slot, done_s, 0)
        free(s, slot)
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
    free(s, slot)
    if is_closed:
        _ask_after(s, t, limits, o, device, done_s, after_s - t.groups[group].think_s, rng)
    else:
        s.devices[device].answered_s = s.devices[device].gap_s = math.nan  # its stream is closed
        ask(s, t, limits, o, device, next_due(s, t, limits, device, rng), rng)


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
    ask(s, t, limits, o, device, due_s, rng)
