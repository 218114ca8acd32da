"""Measurements that are taken again where others had the processor meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from serverlight.search.stopwatch import lower_quartile

__all__ = ["CoreWatch", "Steady", "loop_ms"]

T = TypeVar("T")

LOOP, LOOPS = 20_000, 3

SLOWER = 1.1
"""So many times the usual time of the loop says that others had a part of the core."""

PATIENCE_S = 20.0


def loop_ms() -> float:
    """Milliseconds of a fixed loop: longer where others have a part of the core, of its caches or of its clock."""
    found = list[float]()
    for _ in range(LOOPS):
        started_s, total = time.thread_time(), 0
        for i in range(LOOP):
            total += i * i
        found.append((time.thread_time() - started_s) * 1e3)
    return min(found)


class CoreWatch:
    """Looks at how fast the core is, again and again, and knows what is usual.

    Args:
        look: Takes longer the slower the core is.
        patience_s: For how long measurements may be taken again, all together.
    """

    def __init__(self, look: Callable[[], float] = loop_ms, *, patience_s: float = PATIENCE_S) -> None:
        self._look, self._seen, self.patience_s = look, list[float](), patience_s

    def look(self) -> float:
        """How fast it is just now."""
        self._seen.append(self._look())
        return self._seen[-1]

    @property
    def usual_ms(self) -> float:
        """The best quarter of all that was seen."""
        return lower_quartile(self._seen)

    def was_slow(self, ms: float) -> bool:
        """Whether that is slower than usual."""
        return ms > SLOWER * self.usual_ms


@dataclass(slots=True)
class _Taken(Generic[T]):
    work: Callable[[], T]
    result: T
    core_ms: float


class Steady(Generic[T]):
    """A row of measurements. In the end those beside which the core was slow are taken again, until it is as usual or
    patience is at an end; of each the one counts beside which it was fastest.

    A machine that is shared is slow for seconds or for minutes, and what is measured then says little of the others.

    >>> core, work = iter([1.0, 1.0, 1.0, 2.0, 1.0, 1.0]), iter(["a", "slow", "b"])
    >>> steady = Steady(CoreWatch(lambda: next(core)))
    >>> steady.take(lambda: next(work)), steady.take(lambda: next(work)), steady.settle()
    ('a', 'slow', ['a', 'b'])
    """

    def __init__(self, watch: CoreWatch, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._watch, self._clock = watch, clock
        self._taken = list[_Taken[T]]()

    def take(self, work: Callable[[], T]) -> T:
        """Measures, for the first time."""
        self._taken.append(taken := self._run(work))
        return taken.result

    def settle(self) -> list[T]:
        """The results, in order."""
        while (slow := self._slow()) and self._watch.patience_s > 0:
            began_s = self._clock()
            for i in slow:
                again = self._run(self._taken[i].work)
                self._taken[i] = min(self._taken[i], again, key=lambda taken: taken.core_ms)
            self._watch.patience_s -= self._clock() - began_s
        return [taken.result for taken in self._taken]

    def _slow(self) -> list[int]:
        return [i for i, taken in enumerate(self._taken) if self._watch.was_slow(taken.core_ms)]

    def _run(self, work: Callable[[], T]) -> _Taken[T]:
        before_ms = self._watch.look()
        result = work()
        return _Taken(work, result, max(before_ms, self._watch.look()))
