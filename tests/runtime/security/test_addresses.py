"""Where a server may listen: on this machine as it likes, elsewhere with guards."""

from __future__ import annotations

import pathlib
import socket
from typing import Any

import pytest

from serverlight.errors import ConfigError
from serverlight.models import LoadedModel
from serverlight.partition import Partition
from serverlight.runtime.security import Security
from serverlight.runtime.server import Server

PUBLIC = ["0.0.0.0", "", "::", "192.0.2.1", "2001:db8::1"]


@pytest.mark.parametrize("host", PUBLIC)
@pytest.mark.parametrize("guards", [(), ("tls",), ("tokens",)])
def test_public_address_is_refused(
    residual: tuple[LoadedModel, Partition], server_pair: Any, token: str, tokens: pathlib.Path, host: str, guards: Any
) -> None:
    """Where others can connect, a server without encryption or without a check of who it is does not start."""
    fields = {**(server_pair if "tls" in guards else {}), **({"tokens": str(tokens)} if "tokens" in guards else {})}
    with pytest.raises(ConfigError) as caught:
        Server(residual[0], ["stem"], parts=residual[1], host=host, security=Security(**fields))
    message = str(caught.value)
    assert caught.value.field == "host"
    assert ("--tls-cert" in message, "--tokens" in message) == ("tls" not in guards, "tokens" not in guards)
    assert "--insecure" in message


@pytest.mark.parametrize("host", PUBLIC)
def test_public_address_is_taken_with_guards(ours: Any, server_pair: Any, token: str, tokens: Any, host: str) -> None:
    """Certificates with tokens will do, or with certificates of clients; or to be told that it does not matter."""
    Security(**server_pair, tokens=str(tokens)).check_host(host)
    Security(**server_pair, client_ca=ours.file).check_host(host)
    Security(insecure=True).check_host(host)


@pytest.mark.parametrize("host", PUBLIC)
def test_open_port_is_for_this_machine(server_pair: Any, token: str, tokens: pathlib.Path, host: str) -> None:
    """What has no guards of its own does not get the server's: others may reach it only where that is asked for by name."""
    guarded = Security(**server_pair, tokens=str(tokens))
    with pytest.raises(ConfigError, match=r"^http_host: .* can be reached by others"):
        guarded.check_open_host("http_host", host)
    guarded.check_open_host("http_host", "127.0.0.1")
    Security(insecure=True).check_open_host("http_host", host)


def test_name_is_loopback_with_all_its_addresses_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that means this machine and another address is public."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in ("127.0.0.1", "192.0.2.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with pytest.raises(ConfigError, match="can be reached by others"):
        Security().check_host("both.example.org")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_loopback_needs_no_guards(host: str) -> None:
    """On this machine anything goes."""
    Security().check_host(host)
