"""The event loop of one simulated server and its devices: batches, until nothing is asked any more. Compiled.

Nothing here, in ``devices.py`` and in ``waiting.py`` reads configuration or raises. All times are seconds. What the server does
follows ``runtime/core.py``, ``runtime/worker.py`` and ``runtime/decoders.py``; docs/simulation.md says where it is simpler.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from serverlight.simulation.compiled import entry_point, njit, sources
from serverlight.simulation.devices import answer, ask, next_due, vary
from serverlight.simulation.records import NONE, Limits, Outcome, State, Tables
from serverlight.simulation.waiting import NEWEST_SHARE, admit, closes_s, put_back, take_batch

__all__ = ["run_server"]

_TURN_SHARE = 0.2
"""As in ``runtime/scheduler.py``."""


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
        now_s = admit(s, t, limits, o, now_s + t.rows[cut, count].fixed_s * vary(limits, rng), rng)
        for i in range(done, done + count):
            now_s += t.groups[s.devices[s.slots[s.batch[i]].owner].group].reply_s
            answer(s, t, limits, o, s.batch[i], now_s, rng)
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
        now_s = admit(s, t, limits, o, now_s + _sweep_s(s, t, num_rows) * vary(limits, rng), rng)
        for i in range(num_rows):
            now_s += t.groups[s.devices[s.slots[s.rows[i]].owner].group].reply_s
            answer(s, t, limits, o, s.rows[i], now_s, rng)
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
            now_s = admit(s, t, limits, o, now_s + taken_s * vary(limits, rng), rng)
            s.slots[slot].left -= piece
            is_first = False
            if s.slots[slot].left == 0:
                _count_batch(limits, o, 1, now_s)
                now_s += t.groups[group].reply_s
                answer(s, t, limits, o, slot, now_s, rng)
                continue
        put_back(s, slot)
    return now_s


@njit
def _run_batch(s: State, t: Tables, limits: Limits, o: Outcome, now_s: float, rng: np.random.Generator) -> float:
    started_s = now_s
    now_s += limits.wake_s * s.server[0].is_asleep
    s.server[0].is_asleep = 0
    s.server[0].unread = s.server[0].unread_end
    size = take_batch(s, limits, now_s)
    for i in range(size):
        slot = s.batch[i]
        if s.slots[slot].left == s.slots[slot].tokens:
            s.slots[slot].begun_s = started_s
        if not s.slots[slot].is_ready:
            now_s += t.messages[s.devices[s.slots[slot].owner].group, s.slots[slot].tokens].decode_s
            s.slots[slot].is_ready = 1
    now_s = admit(s, t, limits, o, now_s, rng)
    if limits.is_language:
        now_s = _run_steps(s, t, limits, o, size, now_s, rng)
    else:
        now_s = _run_requests(s, t, limits, o, size, now_s, rng)
    spent_s = now_s - started_s
    mean_s, batch_s = s.server[0].mean_s, s.server[0].batch_s
    s.server[0].mean_s = spent_s / size if mean_s == 0 else mean_s + _TURN_SHARE * (spent_s / size - mean_s)
    s.server[0].batch_s = spent_s if batch_s == 0 else batch_s + NEWEST_SHARE * (spent_s - batch_s)
    s.server[0].ended_s = now_s
    o.server[0] += max(0.0, min(now_s, limits.end_s) - max(started_s, limits.warm_s))
    return now_s


@njit
def _run(s: State, t: Tables, limits: Limits, o: Outcome, rng: np.random.Generator) -> float:
    for device in range(len(s.devices)):
        is_open = t.groups[s.devices[device].group].rate_hz > 0
        due_s = next_due(s, t, limits, device, rng) if is_open else 0.0
        ask(s, t, limits, o, device, due_s, rng)
    now_s = 0.0
    while True:
        before_s = now_s
        now_s = admit(s, t, limits, o, now_s, rng)
        o.server[0] += max(0.0, min(now_s, limits.end_s) - max(before_s, limits.warm_s))
        if not s.server[0].waiting:
            if not s.server[0].heap:
                return now_s
            now_s = max(now_s, s.heap[0].at_s)
            s.server[0].is_asleep = 1
            continue
        if s.server[0].waiting < limits.max_batch and limits.max_delay_s > 0:
            until_s = closes_s(s, limits, now_s)
            if until_s > now_s:
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
                    now_s = min(until_s, s.heap[0].at_s) if s.server[0].heap else until_s
                    s.server[0].is_asleep = 1
                continue
        now_s = _run_batch(s, t, limits, o, now_s, rng)


def _compiled(sources: int) -> Callable[[State, Tables, Limits, Outcome, np.random.Generator], float]:
    """The entry point; what a closure holds is part of a function's key in the cache."""

    @entry_point
    def run(s, t, limits, o, rng):  # type: ignore[no-untyped-def]
        _ = sources
        return _run(s, t, limits, o, rng)

    return run


_RUN = _compiled(sources())


def run_server(s: State, t: Tables, limits: Limits, o: Outcome, rng: np.random.Generator) -> float:
    """Runs until nothing is asked any more; returns when that was. ``s`` is as :func:`new_state` made it."""
    return _RUN(s, t, limits, o, rng)
