"""Why a connection was not made, where TLS is the reason: gRPC says little, so an odd end is looked into by hand."""

from __future__ import annotations

import contextlib
import socket
import ssl

from serverlight.errors import CertificateMismatch
from serverlight.runtime.credentials import SYSTEM_ROOTS, Credentials

__all__ = ["explain"]

_PROBE_S = 2.0
"""How long it may take to look into a connection that ended oddly."""

_NEVER_UP = "failed to connect to all addresses"
_ENDED = ("Socket closed", "Connection reset", "Broken pipe")


def explain(details: str, address: str, credentials: Credentials) -> CertificateMismatch | None:
    """The error for a connection that TLS ended; ``None`` where TLS is not to blame.

    Args:
        details: what gRPC says.
        address: ``HOST:PORT``.
        credentials: the client's.
    """
    if credentials.tls_ca is not None and (error := _read(details, address, credentials.tls_ca)):
        return error
    if _NEVER_UP in details and any(word in details for word in _ENDED):
        return _probe(address, credentials)
    return None


def _read(details: str, address: str, tls_ca: str) -> CertificateMismatch | None:
    """What gRPC, or rather BoringSSL, says in words of its own."""
    if "Hostname Verification Check failed" in details:
        reason = f"the certificate of {address} is for another name; connect by a name that it has in subjectAltName"
    elif "WRONG_VERSION_NUMBER" in details:
        reason = f"{address} does not speak TLS; start the server with --tls-cert, or leave this away"
    elif "certificate has expired" in details:
        reason = f"the certificate of {address} has expired; renew it on the server"
    elif "certificate is not yet valid" in details:
        reason = f"the certificate of {address} is not valid yet; set the clocks"
    elif "CERTIFICATE_VERIFY_FAILED" in details:
        whose = "the public authorities" if tls_ca == SYSTEM_ROOTS else tls_ca
        reason = f"{whose} did not issue the certificate of {address}; give the file of the authority that did"
    else:
        return None
    return CertificateMismatch("tls_ca", reason)


def _probe(address: str, credentials: Credentials) -> CertificateMismatch | None:
    """Connects once more without gRPC, which does not tell a refusal within TLS from a server that has gone away."""
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    try:
        context = _context(credentials)
        with socket.create_connection((host, int(port)), _PROBE_S) as plain:
            return _shake_hands(context, plain, host, address, credentials)
    except OSError:  # errors of ssl and of time as well
        return None


def _shake_hands(
    context: ssl.SSLContext, plain: socket.socket, host: str, address: str, credentials: Credentials
) -> CertificateMismatch | None:
    with context.wrap_socket(plain, server_hostname=host) as encrypted:
        if credentials.tls_ca is None:
            return CertificateMismatch("tls_ca", f"{address} speaks TLS only; give the file of the authority behind it")
        if _goes_on(encrypted):
            return None
    if credentials.tls_cert is None:
        return CertificateMismatch(
            "tls_cert", f"{address} wants a certificate of the client; give --tls-cert and --tls-key"
        )
    return CertificateMismatch(
        "tls_cert", f"{address} does not take {credentials.tls_cert}; give one that is not out of date, and of its authority"
    )  # fmt: skip


def _goes_on(encrypted: ssl.SSLSocket) -> bool:
    """A client learns whether its certificate is taken when the server says something, or ends."""
    with contextlib.suppress(ssl.SSLError, ConnectionError):
        return bool(encrypted.recv(1))
    return False


def _context(credentials: Credentials) -> ssl.SSLContext:
    """As gRPC's; without authorities the question is only whether there is TLS at all, and nothing is told to the server."""
    context = ssl.create_default_context(cafile=None if credentials.tls_ca == SYSTEM_ROOTS else credentials.tls_ca)
    if credentials.tls_ca is None:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    if credentials.tls_cert and credentials.tls_key:
        context.load_cert_chain(credentials.tls_cert, credentials.tls_key)
    return context
