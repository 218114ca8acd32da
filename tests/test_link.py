from __future__ import annotations

import contextlib
import socket
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverlight.errors import AddressInUse, ConfigError
from serverlight.link import LinkConfig, LinkProxy, precise

FAST = LinkConfig()


# -- the description --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("10mbit,20ms", LinkConfig(rate_bits_per_s=1e7, delay_ms=20)),
        ("10mbit, 20ms, 5ms", LinkConfig(rate_bits_per_s=1e7, delay_ms=20, jitter_ms=5)),
        ("0.5MBIT", LinkConfig(rate_bits_per_s=5e5)),
        ("64kbit,1s", LinkConfig(rate_bits_per_s=64e3, delay_ms=1000)),
        ("1gbit,250us", LinkConfig(rate_bits_per_s=1e9, delay_ms=0.25)),
        ("20ms", LinkConfig(delay_ms=20)),
        ("0ms", LinkConfig()),
    ],
)
def test_parse(text: str, link: LinkConfig) -> None:
    """A link is written as people say it: rate, one-way delay, jitter."""
    assert LinkConfig.parse(text) == link


@pytest.mark.parametrize(
    "text", ["", "fast", "10", "10 bananas", "-1mbit", "10mbit,,20ms", "1mbit,2mbit", "1ms,2ms,3ms", "0mbit", "nanms"]
)
def test_rejects_nonsense(text: str) -> None:
    """What cannot be read is refused, and what to write instead is shown."""
    with pytest.raises(ConfigError, match=r"10mbit,20ms|must be positive"):
        LinkConfig.parse(text)


@pytest.mark.parametrize(
    "fields", [{"rate_bits_per_s": 0}, {"rate_bits_per_s": -1}, {"delay_ms": -1}, {"jitter_ms": -1}]
)
def test_rejects_negative(fields: dict[str, float]) -> None:
    """No link runs backwards."""
    with pytest.raises(ConfigError):
        LinkConfig(**fields)


@given(st.none() | st.integers(1, 10**6).map(lambda n: n * 1e3), st.integers(0, 10_000), st.integers(0, 100))
def test_text_round_trip(rate: float | None, delay_ms: int, jitter_ms: int) -> None:
    """The text of a link gives the same link again."""
    link = LinkConfig(rate_bits_per_s=rate, delay_ms=delay_ms, jitter_ms=jitter_ms)
    again = LinkConfig.parse(str(link))
    assert (
        again.rate_bits_per_s == pytest.approx(rate, rel=1e-5) if rate else again.rate_bits_per_s is None
    )  # six digits
    assert (again.delay_ms, again.jitter_ms) == (delay_ms, jitter_ms)


# -- the schedule -----------------------------------------------------------------------------------


def test_idle_link_takes_transmission_and_delay() -> None:
    """On an idle link a message takes its bits over the rate, plus the delay."""
    link = LinkConfig.parse("1mbit,20ms")
    free_s, arrival_s = link.deliver_at(100.0, 0.0, 12_500)
    assert free_s == pytest.approx(100.1)
    assert arrival_s == pytest.approx(100.12)


def test_busy_link_queues() -> None:
    """What comes while the link is busy waits for it."""
    link = LinkConfig.parse("1mbit,20ms")
    free_s = 0.0
    for i in range(1, 5):
        free_s, arrival_s = link.deliver_at(100.0, free_s, 12_500)
        assert arrival_s == pytest.approx(100.0 + i * 0.1 + 0.02)


def test_unlimited_link_only_delays() -> None:
    """Without a rate, size does not matter."""
    assert LinkConfig.parse("20ms").deliver_at(1.0, 0.0, 10**9) == (1.0, pytest.approx(1.02))


def test_jitter_adds_its_share() -> None:
    """Jitter adds between nothing and all of itself to the arrival, and nothing to the link's own time."""
    link = LinkConfig.parse("1mbit,20ms,10ms")
    assert link.deliver_at(0.0, 0.0, 0, jitter=0.0) == (0.0, 0.02)
    assert link.deliver_at(0.0, 0.0, 0, jitter=0.5) == (0.0, 0.025)


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 10**6)), min_size=1, max_size=30))
def test_schedule_never_beats_the_link(sends: list[tuple[float, int]]) -> None:
    """Whatever is sent when: arrivals keep their order, and no more bytes pass than the rate allows."""
    link = LinkConfig(rate_bits_per_s=1e6, delay_ms=5)
    now_s = free_s = last_s = 0.0
    sent_bytes = 0
    for gap_s, num_bytes in sends:
        now_s += gap_s
        free_s, arrival_s = link.deliver_at(now_s, free_s, num_bytes)
        sent_bytes += num_bytes
        assert arrival_s >= max(last_s, now_s + 0.005)
        assert free_s >= sends[0][0] + sent_bytes * 8e-6 - 1e-6
        last_s = arrival_s


# -- the proxy --------------------------------------------------------------------------------------


def open_socket(address: str) -> socket.socket:
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=20)


def echoed(connection: socket.socket, data: bytes) -> bytes:
    """Sends from a thread, so that large data cannot lock up, and reads as much back."""
    sender = threading.Thread(target=connection.sendall, args=(data,))
    sender.start()
    back = b""
    while len(back) < len(data) and (piece := connection.recv(65536)):
        back += piece
    sender.join()
    return back


@pytest.mark.parametrize("link", ["0ms", "100mbit,1ms", "100mbit,1ms,3ms"])
def test_proxy_passes_bytes_and_counts_them(echo: str, link: str) -> None:
    """Every byte arrives in order, jitter or not, and is counted in its direction."""
    data = bytes(range(256)) * 1000
    with LinkProxy(echo, LinkConfig.parse(link)) as proxy, open_socket(proxy.address) as connection:
        assert echoed(connection, data) == data
        assert (proxy.bytes_up, proxy.bytes_down) == (len(data), len(data))


def test_proxy_is_as_slow_as_its_link(echo: str) -> None:
    """A round trip takes both transmissions and both delays; never less. (Never more is up to the machine.)"""
    data = bytes(5000)
    with LinkProxy(echo, LinkConfig.parse("1mbit,10ms")) as proxy, open_socket(proxy.address) as connection:
        started_s = time.monotonic()
        echoed(connection, data)
        assert time.monotonic() - started_s >= 0.04 + 0.02  # pieces of 4096 bytes overlap on the way back, no more


def test_connections_share_the_link(echo: str) -> None:
    """Two clients behind one link get half of it each."""
    with LinkProxy(echo, LinkConfig.parse("1mbit")) as proxy:
        connections = [open_socket(proxy.address) for _ in range(2)]
        threads = [threading.Thread(target=echoed, args=(each, bytes(5000))) for each in connections]
        started_s = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - started_s >= 0.08
        for connection in connections:
            connection.close()


def test_link_changes_while_it_runs(echo: str) -> None:
    """A link that becomes fast is fast for open connections too."""
    with LinkProxy(echo, LinkConfig.parse("1kbit")) as proxy, open_socket(proxy.address) as connection:
        proxy.set_link(FAST)
        assert len(echoed(connection, bytes(500_000))) == 500_000  # at 1 kbit/s this would take over an hour


def test_sender_is_held_back(echo: str) -> None:
    """The proxy takes no more than its link carries, but for the 0.2 s that its buffer holds and two pieces under way."""
    bytes_per_s = 100e3
    with (
        LinkProxy(echo, LinkConfig(rate_bits_per_s=8 * bytes_per_s)) as proxy,
        open_socket(proxy.address) as connection,
    ):
        started_s = time.monotonic()
        sender = threading.Thread(target=send_what_it_takes, args=(connection, bytes(1 << 20)))
        sender.start()
        for _ in range(50):
            taken = proxy.bytes_up
            assert taken <= bytes_per_s * (time.monotonic() - started_s + 0.2) + 2 * 4096
            time.sleep(0.002)
        assert taken > 0
        proxy.cut()
        sender.join()


def send_what_it_takes(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        connection.sendall(data)


def test_cut_breaks_and_restore_mends(echo: str) -> None:
    """A cut link breaks what is open and serves nobody until it is restored."""
    with LinkProxy(echo, FAST) as proxy:
        with open_socket(proxy.address) as connection:
            assert echoed(connection, b"hello") == b"hello"
            proxy.cut()
            assert is_broken(connection)
        with open_socket(proxy.address) as connection:
            assert is_broken(connection)
        proxy.restore()
        with open_socket(proxy.address) as connection:
            assert echoed(connection, b"hello") == b"hello"


def is_broken(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_target_that_is_down_breaks_the_connection() -> None:
    """A client of a target that is not there is told at once."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with LinkProxy(address, FAST) as proxy, open_socket(proxy.address) as connection:
            assert is_broken(connection)


def test_end_of_stream_passes(echo: str) -> None:
    """A client that has said all it had to say still gets the rest of the answer."""
    with LinkProxy(echo, LinkConfig.parse("10mbit,2ms")) as proxy, open_socket(proxy.address) as connection:
        connection.sendall(b"last words")
        connection.shutdown(socket.SHUT_WR)
        back = b""
        while piece := connection.recv(100):
            back += piece
        assert back == b"last words"


@pytest.mark.parametrize("target", ["", "localhost", ":80", "host:", "host:http"])
def test_rejects_target_without_port(target: str) -> None:
    """A target is HOST:PORT."""
    with pytest.raises(ConfigError, match="HOST:PORT"):
        LinkProxy(target, FAST)


def test_proxy_address_in_use(echo: str) -> None:
    """A proxy that cannot have its own port says so, and leaves nothing running."""
    with pytest.raises(AddressInUse, match="cannot listen"):
        LinkProxy(echo, FAST, port=int(echo.split(":")[1])).start()


# -- the loop ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_fd", [0, 1024])
def test_loop_wakes_for_timers_and_for_others(max_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop with precise timers hears another thread while it waits for a far timer, and keeps the order of its timers."""
    monkeypatch.setattr(precise, "_MAX_FD", max_fd)  # above it, it waits as other loops do
    loop, seen = precise.new_precise_loop(), list[str]()
    loop.call_later(3600, seen.append, "far")
    loop.call_later(0.02, seen.append, "second")
    loop.call_later(0.01, seen.append, "first")
    threading.Timer(0.05, lambda: loop.call_soon_threadsafe(loop.stop)).start()
    loop.run_forever()
    loop.close()
    assert seen == ["first", "second"]


def test_to_connect_takes_a_round_trip() -> None:
    """A server hears of a connection as late as if it had shaken hands over the link."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        with LinkProxy(f"{host}:{port}", LinkConfig(delay_ms=100)) as proxy:
            proxy_host, _, proxy_port = proxy.address.rpartition(":")
            began_s = time.perf_counter()
            with socket.create_connection((proxy_host, int(proxy_port))), server.accept()[0]:
                assert time.perf_counter() - began_s >= 0.2
