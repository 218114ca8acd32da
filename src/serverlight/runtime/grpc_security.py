"""TLS and bearer tokens as gRPC wants them."""

from __future__ import annotations

import contextvars
import datetime
import logging
import pathlib
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import grpc
import grpc.aio

from serverlight.errors import ConfigError
from serverlight.runtime.credentials import SYSTEM_ROOTS, Credentials, read_pem
from serverlight.runtime.security import Security
from serverlight.runtime.tokens import Grant, TokenFile

__all__ = ["Gate", "add_port", "client_name", "granted", "metadata_of", "open_channel"]

_log = logging.getLogger(__name__)

_HEADER, _SCHEME = "authorization", "bearer "

_OPEN_TO_ALL = frozenset({"/grpc.health.v1.Health/Check"})
"""Orchestrators ask for it and have no token; its answer is one of two words. Every other method wants a token."""

_REFUSAL = "no valid token"
"""The same for all, whatever is wrong with theirs."""

_granted: contextvars.ContextVar[Grant | None] = contextvars.ContextVar("granted", default=None)


# -- the client's side ------------------------------------------------------------------------------


def open_channel(address: str, credentials: Credentials, options: list[tuple[str, Any]]) -> grpc.Channel:
    """A channel, encrypted where the credentials name authorities."""
    if credentials.tls_ca is None:
        return grpc.insecure_channel(address, options=options)
    roots = None if credentials.tls_ca == SYSTEM_ROOTS else read_pem("tls_ca", credentials.tls_ca)
    key, cert = None, None
    if credentials.tls_key and credentials.tls_cert:
        key, cert = read_pem("tls_key", credentials.tls_key), read_pem("tls_cert", credentials.tls_cert)
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(roots, key, cert), options=options)


def metadata_of(credentials: Credentials) -> tuple[tuple[str, str], ...]:
    """The token, as a header of the call."""
    return ((_HEADER, f"Bearer {credentials.token}"),) if credentials.token else ()


# -- the server's side ------------------------------------------------------------------------------


def add_port(server: grpc.aio.Server, address: str, security: Security) -> int:
    """Listens, encrypted where there is a certificate; files are read again when they change. Returns the port."""
    if security.tls_cert is None:
        return server.add_insecure_port(address)
    files = _CertificateFiles(security)
    credentials = grpc.dynamic_ssl_server_credentials(
        files.read(), files.read_if_changed, require_client_authentication=security.client_ca is not None
    )
    return server.add_secure_port(address, credentials)


class _CertificateFiles:
    def __init__(self, security: Security) -> None:
        self._security = security
        self._stamps = self._look()

    def read(self) -> Any:
        security = self._security
        assert security.tls_key is not None
        assert security.tls_cert is not None
        pair = read_pem("tls_key", security.tls_key), read_pem("tls_cert", security.tls_cert)
        roots = read_pem("client_ca", security.client_ca) if security.client_ca else None
        return grpc.ssl_server_certificate_configuration([pair], root_certificates=roots)

    def read_if_changed(self) -> Any:
        """For each handshake: what to use from now on, or ``None`` to go on as before."""
        stamps = self._look()
        if stamps == self._stamps:
            return None
        self._stamps = stamps
        try:
            self._security.check_certificates()
            return self.read()
        except ConfigError as error:
            _log.error("the certificates stay as they were read before: %s", error)
            return None

    def _look(self) -> list[int]:
        security = self._security
        paths = [path for path in (security.tls_cert, security.tls_key, security.client_ca) if path]
        try:
            return [pathlib.Path(path).stat().st_mtime_ns for path in paths]
        except OSError:
            return []


class Gate(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Refuses every call without a valid token, before anything that it sends is read."""

    def __init__(self, tokens: TokenFile) -> None:
        self._tokens = tokens
        self.num_refused = 0
        """Calls so far without a valid token."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        """Lets a call through, or answers it with the same refusal as any other."""
        if handler_call_details.method in _OPEN_TO_ALL:
            return await continuation(handler_call_details)
        self._tokens.refresh()
        grant = self._tokens.grant(_shown(handler_call_details.invocation_metadata), _now())
        if grant is None:
            self.num_refused += 1
            return grpc.stream_stream_rpc_method_handler(_refuse)  # reads nothing, whatever the method is
        _granted.set(grant)
        return await continuation(handler_call_details)

    def holds(self, grant: Grant) -> bool:
        """Whether a token that was good still is."""
        self._tokens.refresh()
        return self._tokens.holds(grant, _now())


def granted() -> Grant | None:
    """Whose call the running task answers, where a gate let it through."""
    return _granted.get()


def client_name(context: Any) -> str | None:
    """The name of a call's client: its token's, else its certificate's, else none."""
    if grant := granted():
        return grant.client
    facts = context.auth_context()
    for kind in ("x509_common_name", "x509_subject_alternative_name", "x509_subject"):
        for value in facts.get(kind, ()):
            if value:
                return f"certificate {value.decode(errors='replace')}"
    return None


async def _refuse(_requests: object, context: Any) -> None:
    await context.abort(grpc.StatusCode.UNAUTHENTICATED, _REFUSAL)


def _shown(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """The token of a call's headers; none where there are several."""
    values = [value for key, value in metadata if key == _HEADER]
    if len(values) != 1 or not isinstance(values[0], str) or not values[0].lower().startswith(_SCHEME):
        return None
    return values[0][len(_SCHEME) :].strip()


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
