"""The relay with faults, before a server that sends back what it gets."""

from __future__ import annotations

import contextlib
import queue
import socket
import time
from collections.abc import Callable, Iterator

import pytest

from serverlight.chaos import ChaosRelay
from serverlight.errors import ConfigError
from serverlight.faults import FaultPlan, Strike
from serverlight.link import LinkConfig

WAIT_S = 20.0
"""The machine may be busy."""


class Started:
    """A relay, what it has told, and sockets to it."""

    def __init__(self, stack: contextlib.ExitStack, target: str, *faults: str, link: LinkConfig | None = None) -> None:
        self.told: queue.SimpleQueue[Strike] = queue.SimpleQueue()
        plan = FaultPlan.parse(faults, seed=5)
        self.relay = stack.enter_context(ChaosRelay(target, plan, link=link, on_strike=self.told.put))
        self._stack = stack

    def connect(self) -> socket.socket:
        host, port = self.relay.address.split(":")
        return self._stack.enter_context(socket.create_connection((host, int(port)), timeout=WAIT_S))

    def next(self) -> Strike:
        return self.told.get(timeout=WAIT_S)


@pytest.fixture
def start(echo: str) -> Iterator[Callable[..., Started]]:
    with contextlib.ExitStack() as stack:
        yield lambda *faults, **more: Started(stack, echo, *faults, **more)


def echoed(connection: socket.socket, data: bytes) -> bytes:
    connection.sendall(data)
    back = b""
    while len(back) < len(data) and (piece := connection.recv(65536)):
        back += piece
    return back


def is_broken(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_without_faults_it_is_a_link(start: Callable[..., Started]) -> None:
    """Every byte arrives, and the link's delay is kept."""
    started = start(link=LinkConfig.parse("10ms"))
    started_s = time.monotonic()
    assert echoed(started.connect(), b"hello") == b"hello"
    assert time.monotonic() - started_s >= 0.02
    assert started.told.empty()


def test_kill_by_chance(start: Callable[..., Started]) -> None:
    """A killed connection breaks, and its bytes never arrive; the next connection has its own chance."""
    started = start("kill:1:up")
    for index in range(2):
        connection = started.connect()
        connection.sendall(b"hello")
        assert is_broken(connection)
        assert (strike := started.next()).kind == "kill"
        assert strike.connection == index


def test_kill_at_a_moment(start: Callable[..., Started]) -> None:
    """A moment strikes all connections that are open, idle ones too, and none that comes later."""
    started = start("kill:@300ms")
    connections = [started.connect() for _ in range(3)]
    for connection in connections:
        assert echoed(connection, b"hello") == b"hello"
    assert all(is_broken(connection) for connection in connections)
    assert {started.next().connection for _ in range(3)} == {0, 1, 2}
    assert echoed(started.connect(), b"hello") == b"hello"


def test_stall_holds_both_directions(start: Callable[..., Started]) -> None:
    """What is stalled arrives late, whole and in order."""
    started = start("stall:1:60ms:up")
    connection = started.connect()
    started_s = time.monotonic()
    assert echoed(connection, b"one") == b"one"
    assert echoed(connection, b"two") == b"two"
    assert time.monotonic() - started_s >= 0.12
    assert started.next().for_s == 0.06


@pytest.mark.parametrize("direction", ["up", "down"])
def test_drop_swallows_one_direction(start: Callable[..., Started], direction: str) -> None:
    """Nothing comes any more, but the connection stays open, as with a half-open one."""
    started = start(f"drop:1:{direction}")
    connection = started.connect()
    connection.sendall(b"hello")
    assert started.next().direction == direction
    connection.settimeout(0.1)
    with pytest.raises(TimeoutError):
        connection.recv(1)
    assert started.relay.num_open == 1


def test_slow_link_by_chance(start: Callable[..., Started]) -> None:
    """1250 bytes at 100 kbit/s take 0.1 s."""
    started = start("slow:1:100kbit:1min:up")
    started_s = time.monotonic()
    assert len(echoed(started.connect(), bytes(1250))) == 1250
    assert time.monotonic() - started_s >= 0.1


def test_corrupt_alters_one_bit(start: Callable[..., Started]) -> None:
    """One bit of a piece is another, and the rest arrives as it was."""
    started = start("corrupt:1:up")
    back = echoed(started.connect(), bytes(100))
    assert sum(byte.bit_count() for byte in back) == 1
    assert len(back) == 100


def test_relay_counts_what_is_open(start: Callable[..., Started]) -> None:
    """A connection that is over is forgotten."""
    started = start()
    connection = started.connect()
    assert echoed(connection, b"hello") == b"hello"
    assert started.relay.num_open == 1
    connection.close()
    give_up_s = time.monotonic() + WAIT_S
    while started.relay.num_open and time.monotonic() < give_up_s:
        time.sleep(0.001)
    assert started.relay.num_open == 0


def test_crash_is_for_servers(start: Callable[..., Started]) -> None:
    """A relay cannot end the server's process, and says what can."""
    with pytest.raises(ConfigError, match="--inject"):
        start("crash:@1s")
