"""How a server is guarded: certificates, tokens, and which addresses it may listen on."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from serverlight.errors import ConfigError
from serverlight.runtime.credentials import check_authorities, check_pair, is_loopback
from serverlight.runtime.tokens import TokenFile

__all__ = ["Security"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Security:
    """Who may connect to a server, and how; the defaults are for loopback.

    Files are checked at birth. Certificates and tokens are read again when their files change.

    Raises:
        ConfigError: a file cannot be read, or holds something else, or a certificate and key are not a pair.
    """

    tls_cert: str | None = None
    """PEM file of the server's certificate and those between it and the authority; with it, all traffic is encrypted."""

    tls_key: str | None = None
    """PEM file of its private key, without a password."""

    client_ca: str | None = None
    """PEM file of the authorities that vouch for clients; with it, a client without a certificate of theirs is refused."""

    tokens: str | None = None
    """File of clients with hashes of their tokens, see docs/security.md; with it, a client without a token is refused."""

    insecure: bool = False
    """Whether an address that others can reach will do without certificates and tokens."""

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ConfigError("tls_cert", "a certificate and its key go together; give both or neither")
        if self.client_ca and not self.tls_cert:
            raise ConfigError(
                "client_ca", "clients show certificates only over TLS; give --tls-cert and --tls-key as well"
            )
        self.check_certificates()
        self.read_tokens()

    def check_certificates(self) -> None:
        """Raises :class:`ConfigError` unless the files hold what they should, now."""
        if self.tls_cert and self.tls_key:
            check_pair(self.tls_cert, self.tls_key)
        if self.client_ca:
            check_authorities("client_ca", self.client_ca)

    def read_tokens(self) -> TokenFile | None:
        """The clients; ``None`` where anybody may connect."""
        return None if self.tokens is None else TokenFile(self.tokens)

    def check_host(self, host: str) -> None:
        """Raises :class:`ConfigError` for an address that others can reach, unless they are kept out."""
        if self.insecure or _stays_here(host):
            return
        missing = [
            *([] if self.tls_cert else ["--tls-cert and --tls-key (encryption)"]),
            *([] if self.tokens or self.client_ca else ["--tokens or --client-ca (who may connect)"]),
        ]
        if missing:
            raise ConfigError(
                "host", f"{host or 'every address'} can be reached by others; give {', and '.join(missing)}, "
                "or --insecure on a network that you trust"
            )  # fmt: skip


def _stays_here(host: str) -> bool:
    """Whether all addresses of a host are loopback; those of no host are all of the machine's."""
    try:
        found = socket.getaddrinfo(host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise ConfigError("host", f"cannot resolve {host!r}: {error}") from None
    return all(is_loopback(str(address[0])) for *_, address in found)
