"""A TCP relay with faults between clients and a server: the asyncio shell around :mod:`serverlight.faults`."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from typing import Self

from serverlight.errors import ConfigError
from serverlight.faults import DIRECTIONS, Fault, FaultPlan, Roll, Strike
from serverlight.link import LinkConfig, LinkProxy, Meddle

__all__ = ["ChaosRelay"]


class ChaosRelay(LinkProxy):
    """Passes bytes on to ``target`` as a :class:`LinkProxy` does, and lets the plan's faults strike its connections.

    ``with ChaosRelay("127.0.0.1:5000", FaultPlan.parse(["kill:0.001"])) as relay: connect(relay.address, ...)``

    Chance is asked for each piece of at most 4096 bytes. What TCP makes of a message is up to the machine; so the same seed
    gives the same faults for the same pieces, not the same moments.

    Args:
        target: ``HOST:PORT`` of the server.
        plan: the faults.
        link: what the way is like otherwise; both directions alike, shared by all connections.
        host: where to listen.
        port: where to listen; 0 for any free port.
        on_strike: hears of each fault as it strikes, on the relay's thread.

    Raises:
        ConfigError: the target is no address, or a fault is for servers only.
    """

    def __init__(
        self,
        target: str,
        plan: FaultPlan,
        *,
        link: LinkConfig | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        on_strike: Callable[[Strike], None] = lambda strike: None,
    ) -> None:
        super().__init__(target, link or LinkConfig(), host=host, port=port, seed=plan.seed)
        if any(fault.kind == "crash" for fault in plan.faults):
            raise ConfigError(
                "fault", "a relay cannot crash a server; start the server with `serve --inject crash:...`"
            )
        self._plan, self._on_strike = plan, on_strike
        self._count, self._lines = itertools.count(), dict[int, _Line]()

    @property
    def num_open(self) -> int:
        """Connections that are open now."""
        return len(self._lines)

    def start(self) -> Self:
        """Starts to listen, and the time that moments count from; raises :class:`AddressInUse`."""
        super().start()
        self._started_s = self._loop.time()
        asyncio.run_coroutine_threadsafe(self._keep_time(), self._loop)
        return self

    def _now_s(self) -> float:
        return self._loop.time() - self._started_s

    async def _keep_time(self) -> None:
        now_s = 0.0
        while (moment := self._plan.next_moment(now_s)) is not None:
            now_s, faults = moment
            await asyncio.sleep(max(0.0, now_s - self._now_s()))
            for line, fault in itertools.product(list(self._lines.values()), faults):
                line.suffer(fault, fault.direction)

    def _meddle(self) -> tuple[Meddle, Meddle]:
        connection = asyncio.current_task()
        assert connection is not None
        line = _Line(next(self._count), self._now_s, connection.cancel, self._on_strike)
        self._lines[line.index] = line
        connection.add_done_callback(lambda _: self._lines.pop(line.index))
        return line.meddle("up", self._plan.roll(line.index, "up")), line.meddle(
            "down", self._plan.roll(line.index, "down")
        )


class _Line:
    """One connection, and what faults have made of it."""

    def __init__(
        self, index: int, now_s: Callable[[], float], kill: Callable[[], object], tell: Callable[[Strike], None]
    ) -> None:
        self.index, self._now_s, self._kill, self._tell = index, now_s, kill, tell
        self._resumes_s = self._slow_until_s = 0.0
        self._slow_link = LinkConfig()
        self._free_s = dict.fromkeys(DIRECTIONS, 0.0)
        self._dropped, self._to_corrupt = set[str](), set[str]()

    def suffer(self, fault: Fault, direction: str | None) -> None:
        """A fault strikes; without a direction it strikes both."""
        directions = DIRECTIONS if direction is None else (direction,)
        now_s = self._now_s()
        match fault.kind:
            case "kill":
                self._kill()
            case "stall":
                self._resumes_s = max(self._resumes_s, now_s + fault.for_s)
            case "drop":
                self._dropped.update(directions)
            case "corrupt":
                self._to_corrupt.update(directions)
            case "slow" if fault.link is not None:
                self._slow_link, self._slow_until_s = fault.link, now_s + fault.for_s
        # What holds a connection holds both directions, and a connection without one has neither.
        told = direction or "" if fault.kind in ("drop", "corrupt") else ""
        self._tell(Strike(at_s=now_s, kind=fault.kind, connection=self.index, direction=told, for_s=fault.for_s))

    def meddle(self, direction: str, roll: Roll) -> Meddle:
        """What happens to the pieces of one direction."""

        async def meddle(piece: bytes) -> bytes:
            if direction in self._dropped:
                return b""
            if (fault := roll.next()) is not None:
                self.suffer(fault, direction)
            if direction in self._to_corrupt:
                self._to_corrupt.discard(direction)
                piece = roll.flip(piece)
            await self._hold(direction, len(piece))
            return b"" if direction in self._dropped else piece

        return meddle

    async def _hold(self, direction: str, num_bytes: int) -> None:
        while (wait_s := self._resumes_s - self._now_s()) > 0:  # another stall may come meanwhile
            await asyncio.sleep(wait_s)
        now_s = self._now_s()
        if now_s < self._slow_until_s:
            self._free_s[direction], arrives_s = self._slow_link.deliver_at(now_s, self._free_s[direction], num_bytes)
            await asyncio.sleep(max(0.0, arrives_s - now_s))
        else:
            await asyncio.sleep(0)  # where the connection was killed it ends here
