"""Caps that hold before anything is allocated: headers, messages, handshakes, connections."""

from __future__ import annotations

import pathlib
import socket
from typing import Any

import grpc
import pytest

from serverlight.errors import MessageTooLarge
from serverlight.runtime import grpc_transport
from serverlight.runtime.grpc_transport import MAX_METADATA_BYTES, SERVICE
from serverlight.runtime.messages import InferReply, Welcome
from serverlight.runtime.security import Security

CONNECT = f"/{SERVICE}/Connect"
WAIT_S = 20.0


def test_headers_over_the_limit(
    make_core: Any, serve: Any, call: Any, until: Any, token: str, tokens: pathlib.Path
) -> None:
    """Headers beyond 8 KiB together end the call, also with a good token; nothing of it stays, and the server lives."""
    core = make_core()
    thread = serve(core, Security(tokens=str(tokens)))
    good = ("authorization", f"Bearer {token}")
    for more in ([("x-large", "x" * MAX_METADATA_BYTES)], [(f"x-{i}", "x") for i in range(1000)]):
        assert call(thread.port, CONNECT, good, *more)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    until(lambda: core.num_streams == 0)
    assert call(thread.port, CONNECT, good, ("x-small", "x" * 4000))[0] is grpc.StatusCode.OK


def test_message_over_the_limit_is_not_read(make_core: Any, serve: Any, dial: Any, runner: Any) -> None:
    """A message longer than the limit ends its stream by its length alone."""
    thread = serve(make_core(max_message_bytes=1000))
    stream = dial(thread)
    stream.greet()
    stream.say_infer(1, bytes(2000))
    assert isinstance(stream.inbox.next(), MessageTooLarge)
    assert runner.seen == []


def test_half_open_connection_is_ended(
    make_core: Any, serve: Any, server_pair: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who connects and does not shake hands is cut off, with TLS and without."""
    monkeypatch.setattr(grpc_transport, "_HANDSHAKE_S", 0.1)
    for security in (Security(), Security(**server_pair)):
        thread = serve(make_core(), security)
        with socket.create_connection(("127.0.0.1", thread.port), timeout=WAIT_S) as silent:
            while silent.recv(1 << 12):
                pass


def test_connections_over_the_limit(make_core: Any, serve: Any, dial: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """More connections than the limit are closed at once, before any handshake; those there are go on."""
    monkeypatch.setattr(grpc_transport, "_MAX_CONNECTIONS", 2)
    thread = serve(make_core())
    first, second = dial(thread), dial(thread)
    assert isinstance(first.greet(), Welcome)
    assert isinstance(second.greet(), Welcome)
    with socket.create_connection(("127.0.0.1", thread.port), timeout=WAIT_S) as third:
        assert third.recv(1) == b""
    assert isinstance(first.infer(1), InferReply)
