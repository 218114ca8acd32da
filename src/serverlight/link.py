"""Imitated links: how fast bytes cross, and a TCP proxy in user space that makes them cross so fast.

The proxy needs no root, works on any system, and can change or cut the link while it runs. It ends TCP on both sides, so it
shows rate, delay, jitter and cut-offs, but not packet loss.
"""

from __future__ import annotations

import asyncio
import random
import re
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from serverlight.errors import AddressInUse, ConfigError

__all__ = ["LinkConfig", "LinkProxy", "Meddle"]

_RATES = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
_TIMES_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)")
_HINT = "write it like 10mbit,20ms or 10mbit,20ms,5ms (rate, one-way delay, jitter; units kbit, mbit, gbit, us, ms, s)"

Meddle = Callable[[bytes], Awaitable[bytes]]
"""Takes a piece before it is handed on, and returns what to hand on; a seam for faults."""

CHUNK_BYTES = 4096
"""The proxy forwards pieces of this size: small ones keep the rate smooth."""

MAX_CHUNKS = 8192
"""Bound of the proxy's memory per direction of a connection: 32 MiB."""

MAX_BACKLOG_S = 0.2
"""How far the proxy reads ahead of the rate, as the buffer of a router would; then the sender is held back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkConfig:
    """A link that is the same in both directions.

    >>> link = LinkConfig.parse("10mbit,20ms")
    >>> link.rate_bits_per_s, link.delay_ms, link.jitter_ms
    (10000000.0, 20.0, 0.0)
    """

    rate_bits_per_s: float | None = None
    """Bits per second; ``None`` for as fast as it goes."""

    delay_ms: float = 0.0
    """One-way delay in milliseconds."""

    jitter_ms: float = 0.0
    """Up to so many milliseconds more, drawn evenly for each piece; order is kept."""

    def __post_init__(self) -> None:
        if self.rate_bits_per_s is not None and not 0 < self.rate_bits_per_s < float("inf"):
            raise ConfigError("rate_bits_per_s", f"must be positive, got {self.rate_bits_per_s!r}; None is no limit")
        for name in ("delay_ms", "jitter_ms"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(name, f"must be zero or more milliseconds, got {getattr(self, name)!r}")

    @classmethod
    def parse(cls, text: str) -> LinkConfig:
        """Reads ``rate``, ``rate,delay``, ``rate,delay,jitter`` or only times; raises :class:`ConfigError`.

        >>> LinkConfig.parse("1.5gbit, 300us") == LinkConfig(rate_bits_per_s=1.5e9, delay_ms=0.3)
        True
        >>> LinkConfig.parse("fast")
        Traceback (most recent call last):
        ...
        serverlight.errors.ConfigError: link: cannot read 'fast'; write it like 10mbit,20ms or 10mbit,20ms,5ms \
(rate, one-way delay, jitter; units kbit, mbit, gbit, us, ms, s)
        """
        rates, times = [], []
        for part in text.lower().split(","):
            match = _QUANTITY.fullmatch(part.strip())
            number, unit = match.groups() if match else ("", "")
            if unit in _RATES:
                rates.append(float(number) * _RATES[unit])
            elif unit in _TIMES_MS:
                times.append(float(number) * _TIMES_MS[unit])
            else:
                raise ConfigError("link", f"cannot read {part.strip()!r}; {_HINT}")
        if len(rates) > 1 or len(times) > 2:
            raise ConfigError("link", f"too many parts in {text!r}; {_HINT}")
        delay_ms, jitter_ms = [*times, 0.0, 0.0][:2]
        return cls(rate_bits_per_s=rates[0] if rates else None, delay_ms=delay_ms, jitter_ms=jitter_ms)

    def __str__(self) -> str:
        rate = [] if self.rate_bits_per_s is None else [f"{self.rate_bits_per_s / 1e6:g}mbit"]
        jitter = [f"{self.jitter_ms:g}ms"] if self.jitter_ms else []
        return ",".join([*rate, f"{self.delay_ms:g}ms", *jitter])

    def deliver_at(self, now_s: float, free_s: float, num_bytes: int, jitter: float = 0.0) -> tuple[float, float]:
        """When the link is free again, and when the last of ``num_bytes`` handed over at ``now_s`` arrives.

        ``free_s`` is when the link has sent all that came before, ``jitter`` a number from 0 to 1. No clock is read.

        >>> LinkConfig.parse("8kbit,20ms").deliver_at(10.0, 0.0, 500)  # 1000 bytes a second
        (10.5, 10.52)
        >>> LinkConfig.parse("8kbit,20ms").deliver_at(10.0, 10.5, 500)  # behind the first
        (11.0, 11.02)
        """
        send_s = 0.0 if self.rate_bits_per_s is None else num_bytes * 8 / self.rate_bits_per_s
        free_s = max(now_s, free_s) + send_s
        return free_s, free_s + (self.delay_ms + jitter * self.jitter_ms) / 1e3


class LinkProxy:
    """A TCP proxy in front of ``target`` that behaves like a link; a context manager on a thread of its own.

    ``with LinkProxy("127.0.0.1:5000", LinkConfig.parse("10mbit,20ms")) as proxy: connect(proxy.address, ...)``

    All connections through one proxy share its link, each direction on its own.
    """

    def __init__(self, target: str, link: LinkConfig, *, host: str = "127.0.0.1", port: int = 0, seed: int = 0) -> None:
        self._target_host, _, target_port = target.rpartition(":")
        if not target_port.isdigit() or not self._target_host:
            raise ConfigError("target", f"must be HOST:PORT, got {target!r}")
        self._target_port, self._host, self._port = int(target_port), host, port
        self._up, self._down = _Direction(link, seed), _Direction(link, seed + 1)
        self._is_cut = False
        self._writers: set[asyncio.StreamWriter] = set()

    @property
    def address(self) -> str:
        """``HOST:PORT`` to connect to instead of the target."""
        return f"{self._host}:{self._port}"

    @property
    def bytes_up(self) -> int:
        """Bytes that clients have sent so far, all connections together."""
        return self._up.num_bytes

    @property
    def bytes_down(self) -> int:
        """Bytes that the target has sent so far."""
        return self._down.num_bytes

    def start(self) -> Self:
        """Starts to listen; raises :class:`AddressInUse` when the proxy's own address cannot be had."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="serverlight-link", daemon=True)
        self._thread.start()
        opening = asyncio.start_server(self._on_connection, self._host, self._port)
        try:
            self._server = asyncio.run_coroutine_threadsafe(opening, self._loop).result()
        except OSError as exc:
            self._stop_loop()
            raise AddressInUse(f"cannot listen on {self.address}: {exc.strerror}; choose another port, or 0") from None
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    def set_link(self, link: LinkConfig) -> None:
        """Changes the link from now on; what is already under way arrives as it was going to."""
        self._up.link = self._down.link = link

    def cut(self) -> None:
        """Breaks all connections and takes no more of them until :meth:`restore`."""
        self._is_cut = True
        self._call(self._abort_all)

    def restore(self) -> None:
        """Takes connections again."""
        self._is_cut = False

    def close(self) -> None:
        """Breaks all connections and stops listening."""
        self._call(self._abort_all)
        self._call(self._server.close)
        self._stop_loop()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, action: Callable[[], object]) -> None:
        """Runs a plain function on the loop's thread and waits for it."""

        async def run() -> None:
            action()

        asyncio.run_coroutine_threadsafe(run(), self._loop).result()

    def _stop_loop(self) -> None:
        async def finish_others() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(finish_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _abort_all(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            if not self._is_cut:
                await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # either side went away, or the proxy closes; whoever is left is told by the abort below
        finally:
            writer.transport.abort()
            self._writers.discard(writer)

    def _meddle(self) -> tuple[Meddle, Meddle]:
        """What happens to the pieces of a new connection, up and down."""
        return _leave_alone, _leave_alone

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        target_reader, target_writer = await asyncio.open_connection(self._target_host, self._target_port)
        self._writers.add(target_writer)
        meddle_up, meddle_down = self._meddle()
        pumps = [
            asyncio.ensure_future(self._up.pump(reader, target_writer, meddle_up)),
            asyncio.ensure_future(self._down.pump(target_reader, writer, meddle_down)),
        ]
        try:
            await asyncio.gather(*pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            target_writer.transport.abort()
            self._writers.discard(target_writer)


async def _leave_alone(piece: bytes) -> bytes:
    return piece


class _Direction:
    """One direction of the link, shared by all connections."""

    def __init__(self, link: LinkConfig, seed: int) -> None:
        self.link, self.num_bytes = link, 0
        self._free_s, self._random = 0.0, random.Random(seed)

    async def pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, meddle: Meddle) -> None:
        """Forwards until the reader's end, each piece when its time has come; raises OSError when either side breaks."""
        under_way: asyncio.Queue[tuple[float, bytes | None]] = asyncio.Queue(MAX_CHUNKS)
        taking = asyncio.ensure_future(self._take(reader, under_way))
        try:
            await self._deliver(under_way, writer, meddle)
        finally:
            taking.cancel()

    async def _take(self, reader: asyncio.StreamReader, under_way: asyncio.Queue[tuple[float, bytes | None]]) -> None:
        clock = asyncio.get_running_loop().time
        last: bytes | None = b""
        try:
            while chunk := await reader.read(CHUNK_BYTES):
                self.num_bytes += len(chunk)
                self._free_s, arrival_s = self.link.deliver_at(clock(), self._free_s, len(chunk), self._random.random())
                await under_way.put((arrival_s, chunk))
                await asyncio.sleep(max(0.0, self._free_s - clock() - MAX_BACKLOG_S))
        except OSError:
            last = None
        await under_way.put((self.link.deliver_at(clock(), self._free_s, 0)[1], last))

    async def _deliver(
        self, under_way: asyncio.Queue[tuple[float, bytes | None]], writer: asyncio.StreamWriter, meddle: Meddle
    ) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            arrival_s, chunk = await under_way.get()
            if (wait_s := arrival_s - clock()) > 0:
                await asyncio.sleep(wait_s)
            if chunk is None:
                raise ConnectionResetError
            if not chunk:
                break
            writer.write(await meddle(chunk))
            await writer.drain()
        if writer.can_write_eof():
            writer.write_eof()
