"""A TCP proxy in user space that makes bytes cross as fast as an imitated link.

The proxy needs no root, works on any system, and can change or cut the link while it runs. It ends TCP on both sides, so it
shows rate, delay, jitter and cut-offs, but not packet loss.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from serverlight.errors import AddressInUse, ConfigError
from serverlight.link.config import LinkConfig
from serverlight.link.precise import new_precise_loop

__all__ = ["LinkProxy", "Meddle"]

Meddle = Callable[[bytes], Awaitable[bytes]]
"""Takes a piece before it is handed on, and returns what to hand on; a seam for faults."""

CHUNK_BYTES = 4096
"""The proxy forwards pieces of this size: small ones keep the rate smooth."""

MAX_CHUNKS = 8192
"""Bound of the proxy's memory per direction of a connection: 32 MiB."""

MAX_BACKLOG_S = 0.2
"""How far the proxy reads ahead of the rate, as the buffer of a router would; then the sender is held back."""


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
    def link(self) -> LinkConfig | None:
        """What it is like now; ``None`` while it is cut."""
        return None if self._is_cut else self._up.link

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
        self._loop = new_precise_loop()
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
        # The client's own handshake ends here, and takes no time; a real one would take as long as there and back.
        await asyncio.sleep(self._up.delay_s + self._down.delay_s)
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

    @property
    def delay_s(self) -> float:
        """Of a byte that has the link to itself."""
        return self.link.deliver_at(0.0, 0.0, 0)[1]

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
