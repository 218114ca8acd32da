"""The server's queue in the simulation: who is let in, whose turn it is, and how long a batch waits for others. Compiled.

It follows ``runtime/scheduler.py`` and ``runtime/window.py``.
"""

from __future__ import annotations

import math

import numpy as np

from serverlight.simulation.compiled import njit
from serverlight.simulation.devices import answer, ask, free, next_due, pop, push, vary
from serverlight.simulation.records import NONE, Limits, Outcome, State, Tables

__all__ = ["NEWEST_SHARE", "admit", "closes_s", "put_back", "take_batch"]

NEWEST_SHARE = 0.25
_LATE, _LITTLE, _LEAST_GAP_S = 2.0, 0.1, 5e-4
"""As in ``runtime/window.py``."""

_ACTIVE_S = 1.0
"""As in ``runtime/scheduler.py``."""


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
def put_back(s: State, slot: int) -> None:
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
        push(s, s.devices[device].last_s, slot)
        return
    o.groups[group].lost += limits.warm_s <= s.slots[slot].due_s < limits.end_s
    free(s, slot)


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
        s.devices[device].gap_s = gap_s if math.isnan(known_s) else known_s + NEWEST_SHARE * (gap_s - known_s)
    _enqueue(s, slot)
    size = len(s.unread)
    if s.server[0].unread_end - s.server[0].unread < size:
        s.unread[s.server[0].unread_end % size] = slot
        s.server[0].unread_end += 1


@njit
def admit(s: State, t: Tables, limits: Limits, o: Outcome, now_s: float, rng: np.random.Generator) -> float:
    """Takes in all that has come; reading it takes the server's time, and so until then more may come."""
    while s.server[0].heap and s.heap[0].at_s <= now_s:
        at_s, slot = s.heap[0].at_s, pop(s)
        device = s.slots[slot].owner
        group = s.devices[device].group
        is_open = t.groups[group].rate_hz > 0 and not limits.is_language
        if t.groups[group].is_local:
            s.slots[slot].arrived_s = s.slots[slot].begun_s = at_s
            answer(s, t, limits, o, slot, at_s, rng)
        else:
            read_s = t.messages[group, s.slots[slot].tokens].read_s * vary(limits, rng)
            now_s += read_s
            _arrive(s, t, limits, o, slot, at_s + read_s)
        if is_open:
            ask(s, t, limits, o, device, next_due(s, t, limits, device, rng), rng)
    return now_s


@njit
def closes_s(s: State, limits: Limits, now_s: float) -> float:
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
def take_batch(s: State, limits: Limits, now_s: float) -> int:
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
