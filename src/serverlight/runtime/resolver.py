"""Where servers are: a list of addresses, or a directory that is asked anew for each connection."""

from __future__ import annotations

import http.client
import json
import urllib.parse
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from serverlight.errors import ConfigError, PeerUnavailable, ProtocolError

__all__ = ["Directory", "FixedAddresses", "Resolver", "resolver_of"]

MAX_ANSWER_BYTES = 64 * 1024
"""The longest answer of a directory that is read."""

MAX_ADDRESSES = 1024
"""The most addresses that are taken from one."""

_SCHEMES = {
    "ray+http": (http.client.HTTPConnection, 80),
    "ray+https": (http.client.HTTPSConnection, 443),
}


@runtime_checkable
class Resolver(Protocol):
    """Knows where servers are."""

    def resolve(self, timeout_s: float) -> Sequence[str]:
        """``HOST:PORT`` of servers, the best first; raises :class:`PeerUnavailable` where none is known."""


@dataclass(frozen=True, slots=True)
class FixedAddresses:
    """Addresses that never change."""

    addresses: tuple[str, ...]
    """In the order of preference."""

    def resolve(self, timeout_s: float) -> Sequence[str]:
        """All of them."""
        return self.addresses


class Directory:
    """Asks ``serverlight serve --ray`` over HTTP where its replicas are.

    A session is one name for all that a device does: the same name leads to the same replica while that is alive. While
    the directory does not answer, its last answer holds.

    Args:
        address: ``ray+http://HOST:PORT``, or ``ray+https``; a path stands before the directory's own, and
            ``?session=NAME`` names the session, which otherwise gets a random name.

    Raises:
        ConfigError: the address is another.

    >>> Directory("ray+http://10.0.0.5:8000/tails?session=tablet-7").target
    '/tails/endpoint?session=tablet-7'
    """

    def __init__(self, address: str) -> None:
        parts = urllib.parse.urlsplit(address)
        names = dict(urllib.parse.parse_qsl(parts.query, keep_blank_values=True))
        if parts.scheme not in _SCHEMES or not parts.hostname or not names.keys() <= {"session"}:
            raise ConfigError(
                "address", f"must be ray+http://HOST:PORT, with ?session=NAME or without, got {address!r}"
            )
        try:
            self._host, self._port = parts.hostname, parts.port
        except ValueError as error:
            raise ConfigError("address", f"{error} in {address!r}; give ray+http://HOST:PORT") from None
        self._scheme = parts.scheme
        query = urllib.parse.urlencode({"session": names.get("session") or uuid.uuid4().hex})
        self.target = f"{parts.path.rstrip('/')}/endpoint?{query}"
        """Path and query of the request."""
        self._known: Sequence[str] = ()

    def resolve(self, timeout_s: float) -> Sequence[str]:
        """What the directory says now; raises :class:`ProtocolError` where that is no list of addresses."""
        try:
            self._known = _read_addresses(self._ask(timeout_s), self._name)
        except PeerUnavailable:
            if not self._known:
                raise
        return self._known

    @property
    def _name(self) -> str:
        return f"the directory at {self._host}:{self._port or _SCHEMES[self._scheme][1]}"

    def _ask(self, timeout_s: float) -> bytes:
        connect, port = _SCHEMES[self._scheme]
        # Straight there: neither a proxy of the environment nor a redirection, both are for the web.
        connection = connect(self._host, self._port or port, timeout=timeout_s)
        try:
            connection.request("GET", self.target, headers={"Accept": "application/json"})
            answer = connection.getresponse()
            body: bytes = answer.read(MAX_ANSWER_BYTES + 1)
        except (OSError, http.client.HTTPException) as error:
            raise PeerUnavailable(f"{self._name} cannot be asked ({error!r}); is `serve --ray` up?") from None
        finally:
            connection.close()
        if answer.status != http.client.OK:
            raise PeerUnavailable(f"{self._name} answers {answer.status}; has it replicas that run?")
        return body


@dataclass(frozen=True, slots=True)
class _Several:
    """What each of them says, in their order."""

    resolvers: tuple[Resolver, ...]

    def resolve(self, timeout_s: float) -> Sequence[str]:
        found: dict[str, None] = {}
        reasons = []
        for resolver in self.resolvers:
            try:
                found |= dict.fromkeys(resolver.resolve(timeout_s))
            except PeerUnavailable as error:
                reasons.append(str(error))
        if not found:
            raise PeerUnavailable("; ".join(reasons))
        return tuple(found)


def resolver_of(addresses: Sequence[str] | Resolver) -> Resolver:
    """Addresses of servers and of directories, as one resolver; raises :class:`ConfigError` for none at all.

    >>> resolver_of(["127.0.0.1:50051", "127.0.0.1:50052"]).resolve(1.0)
    ('127.0.0.1:50051', '127.0.0.1:50052')
    """
    if isinstance(addresses, Resolver):
        return addresses
    if not addresses:
        raise ConfigError("addresses", "give at least one HOST:PORT")
    if not any("://" in address for address in addresses):
        return FixedAddresses(tuple(addresses))
    return _Several(tuple(Directory(a) if "://" in a else FixedAddresses((a,)) for a in addresses))


def _read_addresses(body: bytes, name: str) -> Sequence[str]:
    if len(body) > MAX_ANSWER_BYTES:
        raise ProtocolError(f"{name} sends more than {MAX_ANSWER_BYTES} bytes; is it one of `serverlight serve --ray`?")
    try:
        answer: Any = json.loads(body)
    except (ValueError, RecursionError):
        answer = None
    found = answer.get("all") if isinstance(answer, dict) else None
    if not isinstance(found, list) or not 0 < len(found) <= MAX_ADDRESSES or not all(map(_is_address, found)):
        raise ProtocolError(f"{name} sends no list of HOST:PORT; is it one of `serverlight serve --ray`?")
    return tuple(found)


def _is_address(value: object) -> bool:
    if not isinstance(value, str) or len(value) > 300:
        return False
    host, _, port = value.rpartition(":")
    return bool(host) and "/" not in host and port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536
