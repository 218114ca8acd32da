"""TurnState of many devices in one process, on one event loop: alone, or beside a rival that runs while they stand still."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from serverlight.evaluation.load.clients import Device, Pace, TurnState
from serverlight.evaluation.load.figures import Turn
from serverlight.evaluation.load.scripts import Script
from serverlight.runtime.loops import run_on_loop

__all__ = ["run_beside", "run_turn"]


def run_turn(addresses: Sequence[str], scripts: Sequence[Script], pace: Pace) -> Turn:
    """Lets a device for each script talk to the server at its address; raises what any of them meets.

    Raises:
        PeerUnavailable: a server is gone, or gives no answer.
        ServerlightError: a request is refused, other than for now.
    """
    return run_on_loop(_run(addresses, scripts, pace))


def run_beside(
    addresses: Sequence[str], scripts: Sequence[Script], pace: Pace, rival: Callable[[float], Turn], *, slices: int
) -> list[tuple[Turn, Turn]]:
    """As :func:`run_turn` of a closed loop, in slices: after each the devices stand still, and the rival has as long.

    The two are so close together that what else goes on in the machine falls on both. A slice begins when each device has had
    an answer, and ends with the last one.
    """
    return run_on_loop(_run_beside(addresses, scripts, pace, rival, slices))


async def _run(addresses: Sequence[str], scripts: Sequence[Script], pace: Pace) -> Turn:
    async with _devices(addresses, scripts, pace) as (state, tasks):
        state.turn.begin_s = time.perf_counter()
        await _while_all_run(tasks, asyncio.sleep(pace.duration_s))
        state.turn.end_s = time.perf_counter()
        if pace.rate_per_s is not None:
            await _while_all_run(tasks, state.wait_answered())
    return state.turn


async def _run_beside(
    addresses: Sequence[str], scripts: Sequence[Script], pace: Pace, rival: Callable[[float], Turn], slices: int
) -> list[tuple[Turn, Turn]]:
    found = list[tuple[Turn, Turn]]()
    async with _devices(addresses, scripts, pace) as (state, tasks):
        for _ in range(slices):
            await _while_all_run(tasks, state.stand_still())
            await _while_all_run(tasks, state.go_on())
            turn = state.turn
            await _while_all_run(tasks, asyncio.sleep(pace.duration_s / slices))
            await _while_all_run(tasks, state.stand_still())
            turn.end_s = time.perf_counter()
            found.append((turn, rival(turn.seconds)))
    return found


@contextlib.asynccontextmanager
async def _devices(
    addresses: Sequence[str], scripts: Sequence[Script], pace: Pace
) -> AsyncIterator[tuple[TurnState, list[asyncio.Task[None]]]]:
    """Devices that are warm, and their tasks."""
    state = TurnState(pace, len(scripts))
    devices = [Device(i, address, state) for i, address in enumerate(addresses)]
    tasks = [asyncio.create_task(device.run(script)) for device, script in zip(devices, scripts, strict=True)]
    try:
        await _while_all_run(tasks, state.wait_ready())
        await _while_all_run(tasks, asyncio.sleep(pace.warmup_s))
        yield state, tasks
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(device.close() for device in devices))


async def _while_all_run(tasks: Sequence[asyncio.Task[None]], what: Coroutine[Any, Any, None]) -> None:
    """Waits for something, and raises at once what a device raises meanwhile."""
    waiting = asyncio.ensure_future(what)
    try:
        done, _ = await asyncio.wait({*tasks, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    for task in done:
        task.result()
