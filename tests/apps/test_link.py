"""``link`` as people start it."""

from __future__ import annotations

import json
import pathlib
import signal
import socket
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

END_S = 60


def event(process: subprocess.Popen[str]) -> dict[str, Any]:
    assert process.stdout
    return dict(json.loads(process.stdout.readline()))


def exchange(address: str, data: bytes) -> bytes:
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=END_S) as connection:
        connection.sendall(data)
        return connection.recv(len(data), socket.MSG_WAITALL)


def is_open(address: str) -> bool:
    try:
        return exchange(address, b"hello") == b"hello"
    except ConnectionError:
        return False


def test_tells_how_the_link_changes(start: Callable[..., subprocess.Popen[str]], echo: str, tmp_path: Any) -> None:
    """Each piece of the course is an event, rates scaled; bytes pass, and are counted at the end."""
    trace = tmp_path / "trace.csv"
    trace.write_text("time_s,rate_bits_per_s,delay_ms\n0,4e6,1\n0.05,8e6,1\n")
    process = start("link", echo, "--model", str(trace), "--scale", "2", "--json", "-")
    with process:
        address = event(process)["address"]
        assert [event(process)["link"] for _ in range(2)] == ["8mbit,1ms", "16mbit,1ms"]
        assert exchange(address, b"hello") == b"hello"
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=END_S)
    assert json.loads(out) == {"event": "stopped", "bytes_up": 5, "bytes_down": 5}
    assert (process.returncode, err) == (0, "")


def test_takes_orders(start: Callable[..., subprocess.Popen[str]], echo: str) -> None:
    """Lines on standard input change, cut and restore the link; what cannot be read is told, and its end stops."""
    process = start("link", echo, "--control", "--json", "-")
    with process:
        address = event(process)["address"]
        assert event(process)["link"] == "10mbit,20ms"
        assert process.stdin
        for order, told in (("1mbit,2ms", "1mbit,2ms"), ("cut", "cut"), ("restore", "1mbit,2ms")):
            process.stdin.write(f"{order}\n")
            process.stdin.flush()
            assert event(process)["link"] == told
            assert is_open(address) == (order != "cut")
        out, err = process.communicate("faster\n", timeout=END_S)
    assert json.loads(out)["event"] == "stopped"
    assert err.count("\n") == 1
    assert "cannot read 'faster'" in err


def test_stops_after_its_time(cli: Callable[..., Any], echo: str, tmp_path: pathlib.Path) -> None:
    """With --for it ends by itself; people read lines, and the file has the same events."""
    path = tmp_path / "events.jsonl"
    outcome = cli("link", echo, "--model", "1mbit,5ms", "--for", "0.2", "--json", str(path))
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1] == "stopped; 0 bytes up, 0 down"
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["listening", "link", "stopped"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "HOST:PORT"),
        (["a:1", "--model", "fast"], "10mbit,20ms"),
        (["a:1", "--model", "gone.csv"], "cannot read gone.csv"),
        (["a:1", "--scale", "0"], "scale: must be a positive number"),
        (["a:1", "--json", "/nowhere/x"], "json: no folder"),
    ],
)
def test_wrong_words(cli: Callable[..., Any], words: list[str], message: str) -> None:
    """What cannot be read is one line that says what to write."""
    outcome = cli("link", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
