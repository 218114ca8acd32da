"""Whether the compute thread lives and gets on: a pure watchdog, and the loop that tells the health service."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import Protocol

__all__ = ["Health", "Watchdog", "Watched", "watch_over"]

LOOK_S = 0.5

_log = logging.getLogger(__name__)


class Health(StrEnum):
    """What there is to say about the compute thread."""

    OK = "ok"
    """It waits for work, or gets on with it."""

    STALLED = "stalled"
    """It has been at the same work for too long; it may come back."""

    CRASHED = "crashed"
    """It is gone; the process has to be started anew."""


class Watched(Protocol):
    """What is watched: a :class:`~serverlight.runtime.core.ServerCore`."""

    @property
    def has_crashed(self) -> bool:
        """Whether the compute thread ended by an error."""

    @property
    def is_busy(self) -> bool:
        """Whether there is anything that it should be doing."""

    @property
    def num_answered(self) -> int:
        """Answers so far."""


class Watchdog:
    """Finds out whether work gets on, from looks at it now and then; the clock is an argument.

    >>> watchdog = Watchdog(stall_s=60)
    >>> [str(watchdog.look(is_busy=True, num_answered=3, now_s=now_s)) for now_s in (0, 59, 61)]
    ['ok', 'ok', 'stalled']
    >>> str(watchdog.look(is_busy=True, num_answered=4, now_s=62))
    'ok'
    """

    def __init__(self, *, stall_s: float) -> None:
        self._stall_s = stall_s
        self._seen = -1
        self._since_s = 0.0

    def look(self, *, is_busy: bool, num_answered: int, now_s: float) -> Health:
        """``STALLED`` where there was work all the time, and no answer."""
        if not is_busy or num_answered != self._seen:
            self._seen, self._since_s = num_answered, now_s
        return Health.STALLED if now_s - self._since_s > self._stall_s else Health.OK


async def watch_over(
    core: Watched,
    *,
    stall_s: float,
    on_change: Callable[[Health], Awaitable[None]],
    until: asyncio.Event,
) -> None:
    """Looks twice a second until ``until`` is set, and reports every change of health, to the log as well."""
    watchdog, health = Watchdog(stall_s=stall_s), Health.OK
    while not until.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(until.wait(), LOOK_S)
        before, health = health, _look(core, watchdog)
        if health is not before:
            await on_change(health)
            _report(health, stall_s)


def _look(core: Watched, watchdog: Watchdog) -> Health:
    if core.has_crashed:
        return Health.CRASHED
    return watchdog.look(is_busy=core.is_busy, num_answered=core.num_answered, now_s=time.monotonic())


def _report(health: Health, stall_s: float) -> None:
    if health is Health.OK:
        _log.warning("the compute thread gets on again; the server is healthy")
    elif health is Health.STALLED:
        _log.error("no answer for %g s although there is work; the server is not healthy", stall_s)
    else:
        _log.error("the compute thread has crashed; the server is not healthy: restart it")
