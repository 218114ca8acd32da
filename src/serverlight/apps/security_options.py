"""Certificates and tokens: options of the server, and of every command that talks to one."""

from __future__ import annotations

import os
import pathlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.runtime.credentials import Credentials
    from serverlight.runtime.security import Security

__all__ = ["TOKEN_VARIABLE", "CredentialOptions", "SecurityOptions"]

TOKEN_VARIABLE = "SERVERLIGHT_TOKEN"


@dataclass(frozen=True, kw_only=True, slots=True)
class SecurityOptions:
    """Who may connect to a server, and how."""

    tls_cert: Annotated[
        str | None, typer.Option(metavar="FILE", help="The server's certificate (PEM); with it traffic is encrypted.")
    ] = None
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="Its private key (PEM, no password).")] = None
    client_ca: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Take only clients with a certificate of these authorities (PEM)."),
    ] = None
    tokens: Annotated[
        str | None, typer.Option(metavar="FILE", help="Take only clients with a token of `serverlight token`.")
    ] = None
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Listen where others can connect, without certificates or tokens.")
    ] = False

    def read(self, host: str) -> Security:
        """Checks all of it, and the address; raises :class:`ConfigError` before any model is loaded."""
        from serverlight.runtime.security import Security

        security = Security(
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            client_ca=self.client_ca,
            tokens=self.tokens,
            insecure=self.insecure,
        )
        security.check_host(host)
        return security


@dataclass(frozen=True, kw_only=True, slots=True)
class CredentialOptions:
    """Whom a client trusts, and who it is."""

    tls_ca: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Encrypt, and trust servers of these authorities (PEM); `system` for the public ones."
        ),
    ] = None
    tls_cert: Annotated[
        str | None, typer.Option(metavar="FILE", help="This device's certificate (PEM), if the server wants one.")
    ] = None
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="Its private key (PEM, no password).")] = None
    token: Annotated[
        str | None,
        typer.Option(
            metavar="TOKEN",
            help=f"This device's token; better in {TOKEN_VARIABLE}, since others can see a command line.",
        ),
    ] = None
    token_file: Annotated[str | None, typer.Option(metavar="FILE", help="A file that holds the token alone.")] = None
    insecure: Annotated[bool, typer.Option("--insecure", help="Send the token over a network without encryption.")] = (
        False
    )

    def read(self, *addresses: str) -> Credentials:
        """Checks all of it for these servers; raises :class:`ConfigError` before any model is loaded."""
        from serverlight.runtime.credentials import Credentials

        credentials = Credentials(
            tls_ca=self.tls_ca,
            tls_cert=self.tls_cert,
            tls_key=self.tls_key,
            token=self._token(),
            insecure=self.insecure,
        )
        for address in addresses:
            credentials.check_address(address.rpartition(":")[0])
        return credentials

    def _token(self) -> str | None:
        if self.token and self.token_file:
            raise ConfigError("token", "give --token or --token-file, one of them")
        if self.token_file is None:
            return self.token or os.environ.get(TOKEN_VARIABLE) or None
        try:
            return pathlib.Path(self.token_file).read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError("token_file", f"cannot read {self.token_file}: {error}; check the path") from None
