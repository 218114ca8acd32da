"""What a client needs to reach a server that is guarded: whom it trusts, who it is."""

from __future__ import annotations

import ipaddress
import pathlib
import ssl
from dataclasses import dataclass, field

from serverlight.errors import ConfigError

__all__ = ["SYSTEM_ROOTS", "Credentials", "check_authorities", "check_pair", "is_loopback", "read_pem"]

SYSTEM_ROOTS = "system"
"""Stands for the public authorities that gRPC brings along, where a file's name would be."""

MAX_TOKEN_CHARS = 512
"""More than any token has; it travels in a header, whose size is limited."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """Whom a client trusts and who it is; the defaults are no encryption and no name.

    Files are checked at birth and read again for every connection, so that renewed certificates are taken up.

    Raises:
        ConfigError: a file cannot be read, or holds something else, or a certificate and key are not a pair.
    """

    tls_ca: str | None = None
    """PEM file of the authorities that may vouch for the server, or ``system``; with it the connection is encrypted."""

    tls_cert: str | None = None
    """PEM file of the client's own certificate, for servers that want one."""

    tls_key: str | None = None
    """PEM file of its private key, without a password."""

    token: str | None = field(default=None, repr=False)
    """The bearer token, as ``serverlight token`` printed it."""

    insecure: bool = False
    """Whether the token may travel over a network without encryption."""

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert", "a certificate and its key go together; give both or neither")
        if self.tls_cert and not self.tls_ca:
            raise ConfigError("tls_ca", "without it nothing is encrypted and no certificate is shown; give it as well")
        if self.tls_ca and self.tls_ca != SYSTEM_ROOTS:
            check_authorities("tls_ca", self.tls_ca)
        if self.tls_cert and self.tls_key:
            check_pair(self.tls_cert, self.tls_key)
        if self.token is not None and not _is_token(self.token):
            raise ConfigError("token", "is not what `serverlight token` prints; give that, in one line")

    def check_address(self, host: str) -> None:
        """Raises :class:`ConfigError` where the token would cross a network for everybody to read."""
        if self.token and not (self.tls_ca or self.insecure or is_loopback(host)):
            raise ConfigError(
                "token",
                f"would go to {host} without encryption; give --tls-ca (or --insecure on a network that you trust)",
            )


def is_loopback(host: str) -> bool:
    """Whether traffic to a host stays on this machine; of names only ``localhost`` is believed to.

    >>> is_loopback("127.0.0.1"), is_loopback("[::1]"), is_loopback("example.org"), is_loopback("0.0.0.0")
    (True, True, False, False)
    """
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def read_pem(field: str, path: str) -> bytes:
    """The bytes of a PEM file; raises :class:`ConfigError` that names the field."""
    try:
        data = pathlib.Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(field, f"cannot read {path}: {error.strerror}; check the path") from None
    if b"-----BEGIN " not in data:
        raise ConfigError(field, f"{path} holds no PEM; convert it with openssl, or check the path")
    return data


def check_authorities(field: str, path: str) -> None:
    """Raises :class:`ConfigError` unless a file holds certificates."""
    read_pem(field, path)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except ssl.SSLError:
        raise ConfigError(field, f"{path} holds no certificate that can be read; give a PEM file of them") from None


def check_pair(cert: str, key: str) -> None:
    """Raises :class:`ConfigError` unless two files hold a certificate and its key, which has no password."""
    read_pem("tls_cert", cert)
    read_pem("tls_key", key)
    try:
        # An empty password in place of a question on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise ConfigError("tls_key", f"{key} is not the key of {cert}; give the one it was made with") from None
        raise ConfigError(
            "tls_cert", f"{cert} and {key} cannot be read; give a PEM certificate, and its key without a password"
        ) from None


def _is_token(text: str) -> bool:
    return 0 < len(text) <= MAX_TOKEN_CHARS and all("!" <= c <= "~" for c in text)
