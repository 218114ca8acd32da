"""``chaos`` as people start it."""

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


def listening(process: subprocess.Popen[str]) -> str:
    assert process.stdout
    return str(json.loads(process.stdout.readline())["address"])


def connect(address: str) -> socket.socket:
    host, port = address.split(":")
    return socket.create_connection((host, int(port)), timeout=END_S)


def test_faults_are_told(start: Callable[..., subprocess.Popen[str]], echo: str) -> None:
    """Each fault is an event, with time, connection and kind; SIGTERM ends it in good order with the counts."""
    process = start("chaos", "--to", echo, "--fault", "kill:1:up", "--seed", "3", "--json", "-")
    with process:
        with connect(listening(process)) as connection:
            connection.sendall(b"hello")
            assert process.stdout
            event = json.loads(process.stdout.readline())
            assert (event["event"], event["kind"], event["connection"]) == ("fault", "kill", 0)
            assert event["at_s"] >= 0
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=END_S)
    assert json.loads(out) == {"event": "stopped", "faults": {"kill": 1}}
    assert (process.returncode, err) == (0, "")


def test_stops_after_its_time(cli: Callable[..., Any], echo: str, tmp_path: pathlib.Path) -> None:
    """With --for it ends by itself; people read lines, and the file has the same events."""
    path = tmp_path / "events.jsonl"
    outcome = cli("chaos", "--to", echo, "--for", "0.1", "--json", str(path))
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out.splitlines()[-1] == "stopped; faults: none"
    assert [json.loads(line)["event"] for line in path.read_text().splitlines()] == ["listening", "stopped"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--to", "nowhere"], "HOST:PORT"),
        (["--to", "a:1", "--listen", "6000"], "listen: must be HOST:PORT"),
        (["--to", "a:1", "--fault", "explode:1"], "none of kill, stall"),
        (["--to", "a:1", "--fault", "crash:@1s"], "serve --inject"),
        (["--to", "a:1", "--link", "fast"], "10mbit,20ms"),
    ],
)
def test_wrong_words(cli: Callable[..., Any], words: list[str], message: str) -> None:
    """What cannot be read is one line that says what to write."""
    outcome = cli("chaos", *words)
    assert (outcome.code, outcome.out) == (2, "")
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
