"""What TLS promises, on both sides: who does not fit is not talked to, and is told which setting it is."""

from __future__ import annotations

import pathlib
import socket
from typing import Any

import pytest

from serverlight.errors import CertificateMismatch, ConfigError, PeerUnavailable
from serverlight.runtime.credentials import Credentials
from serverlight.runtime.grpc_transport import GrpcTransport, check_health
from serverlight.runtime.messages import InferReply, Welcome
from serverlight.runtime.security import Security
from serverlight.runtime.tls_failure import explain


def test_tls_and_a_token(
    make_core: Any, serve: Any, dial: Any, ours: Any, server_pair: Any, token: str, tokens: pathlib.Path
) -> None:
    """Both together let a client through."""
    thread = serve(make_core(), Security(**server_pair, tokens=str(tokens)))
    stream = dial(thread, tls_ca=ours.file, token=token)
    assert isinstance(stream.greet(), Welcome)
    assert isinstance(stream.infer(1), InferReply)
    assert check_health(f"localhost:{thread.port}", credentials=Credentials(tls_ca=ours.file))


def refusal(stream: Any) -> CertificateMismatch:
    error = stream.inbox.next()
    assert isinstance(error, CertificateMismatch), error
    assert str(error).startswith(f"{error.field}: ")
    return error


def test_client_without_tls(make_core: Any, serve: Any, dial: Any, server_pair: Any) -> None:
    """A client that does not encrypt learns that it has to."""
    error = refusal(dial(serve(make_core(), Security(**server_pair))))
    assert (error.field, "speaks TLS only" in str(error)) == ("tls_ca", True)


def test_server_without_tls(make_core: Any, serve: Any, dial: Any, ours: Any) -> None:
    """A client that encrypts does not fall back where the server cannot, and says why."""
    error = refusal(dial(serve(make_core()), tls_ca=ours.file))
    assert (error.field, "does not speak TLS" in str(error)) == ("tls_ca", True)


@pytest.mark.parametrize(
    ("names", "expired", "trusted", "complaint"),
    [
        (["127.0.0.1"], False, "theirs", "theirs/ca.pem did not issue the certificate"),
        (["127.0.0.1"], False, "system", "the public authorities did not issue"),
        (["example.org"], False, "ours", "is for another name"),
        (["127.0.0.1"], True, "ours", "has expired"),
    ],
    ids=["another authority", "public authorities", "another name", "expired"],
)
def test_certificate_of_the_server_does_not_fit(
    make_core: Any, listen_to: Any, serve: Any, dial: Any, request: Any, ours: Any,
    names: list[str], expired: bool, trusted: str, complaint: str,
) -> None:  # fmt: skip
    """A server whose certificate does not fit is not talked to; the error says which setting, and what is wrong."""
    core = listen_to(make_core())
    thread = serve(core, Security(**ours.issue(*names, expired=expired)))
    ca = trusted if trusted == "system" else request.getfixturevalue(trusted).file
    error = refusal(dial(thread, tls_ca=ca, token="sl_secret"))
    assert error.field == "tls_ca"
    assert complaint in str(error)
    assert core.clients == []


def test_mutual_tls(make_core: Any, listen_to: Any, serve: Any, dial: Any, ours: Any, server_pair: Any) -> None:
    """A client with a certificate of the right authority is let through, under the name in it."""
    core = listen_to(make_core())
    thread = serve(core, Security(**server_pair, client_ca=ours.file))
    stream = dial(thread, tls_ca=ours.file, **ours.issue("phone@example.org", common_name="phone"))
    assert isinstance(stream.greet(), Welcome)
    other = dial(thread, tls_ca=ours.file, **ours.issue("tablet@example.org"))
    assert isinstance(other.greet(), Welcome)
    assert core.clients == ["certificate phone", "certificate tablet@example.org"]


@pytest.mark.parametrize("case", ["none", "another authority", "expired"])
def test_certificate_of_the_client_does_not_fit(
    make_core: Any, listen_to: Any, serve: Any, dial: Any, ours: Any, theirs: Any, server_pair: Any, case: str
) -> None:
    """A client without a certificate that the server takes is refused within TLS, and told that it is its certificate."""
    pair = {
        "none": dict[str, str],
        "another authority": lambda: theirs.issue("phone@example.org"),
        "expired": lambda: ours.issue("phone@example.org", expired=True),
    }[case]()
    core = listen_to(make_core())
    error = refusal(dial(serve(core, Security(**server_pair, client_ca=ours.file)), tls_ca=ours.file, **pair))
    assert error.field == "tls_cert"
    assert ("wants a certificate" if case == "none" else "does not take") in str(error)
    assert core.clients == []


def test_certificates_are_renewed_without_a_restart(
    make_core: Any, serve: Any, dial: Any, ours: Any, theirs: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """New files of certificate and key are taken up; files that are no pair are not, and the log says so."""
    pair, renewed = ours.issue("127.0.0.1"), theirs.issue("127.0.0.1")
    thread = serve(make_core(), Security(**pair))
    assert isinstance(dial(thread, tls_ca=ours.file).greet(), Welcome)
    write(pair["tls_key"], renewed["tls_key"])  # half of it
    assert isinstance(dial(thread, tls_ca=ours.file).greet(), Welcome)
    assert "is not the key of" in caplog.text
    write(pair["tls_cert"], renewed["tls_cert"])
    assert isinstance(dial(thread, tls_ca=theirs.file).greet(), Welcome)
    refusal(dial(thread, tls_ca=ours.file))


def write(target: str, source: str) -> None:
    pathlib.Path(target).write_bytes(pathlib.Path(source).read_bytes())


def test_server_that_answers_is_no_matter_of_certificates(
    make_core: Any, serve: Any, ours: Any, server_pair: Any
) -> None:
    """A connection that broke for another reason is not blamed on certificates that the server takes."""
    pair = ours.issue("phone@example.org")
    thread = serve(make_core(), Security(**server_pair, client_ca=ours.file))
    details = "failed to connect to all addresses; last error: Socket closed"
    fits = Credentials(tls_ca=ours.file, **pair)
    assert explain(details, f"127.0.0.1:{thread.port}", fits) is None
    assert explain("Socket closed", f"127.0.0.1:{thread.port}", Credentials()) is None
    assert isinstance(explain(details, f"127.0.0.1:{thread.port}", Credentials()), CertificateMismatch)


def test_server_that_is_gone_is_no_matter_of_certificates(ours: Any, open_stream: Any) -> None:
    """Where nobody listens the error is PeerUnavailable, with TLS and without: a client may try again."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for fields in ({}, {"tls_ca": ours.file}):
        stream = open_stream(GrpcTransport(f"127.0.0.1:{port}", credentials=Credentials(**fields)))
        assert isinstance(stream.inbox.next(), PeerUnavailable)


WRONG_FILES = {
    "cert without key": (lambda own, pair: {"tls_cert": pair["tls_cert"]}, "tls_cert: a certificate and its key"),
    "missing": (lambda own, pair: {**pair, "tls_cert": "nowhere.pem"}, "tls_cert: cannot read nowhere.pem"),
    "missing key": (lambda own, pair: {**pair, "tls_key": "nowhere.key"}, "tls_key: cannot read nowhere.key"),
    "no PEM": (lambda own, pair: {**pair, "tls_key": __file__}, "tls_key: .* holds no PEM"),
    "swapped": (lambda own, pair: {"tls_cert": pair["tls_key"], "tls_key": pair["tls_cert"]}, "tls_cert: .* cannot be read"),
    "another key": (
        lambda own, pair: {**pair, "tls_key": own.issue("127.0.0.1")["tls_key"]},
        "tls_key: .* is not the key of",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("fields", "complaint"), WRONG_FILES.values(), ids=WRONG_FILES)
@pytest.mark.parametrize("side", [Security, Credentials])
def test_files_that_do_not_fit(ours: Any, server_pair: Any, side: Any, fields: Any, complaint: str) -> None:
    """Wrong files are found before anything is served or sent, and the error names the field."""
    more = {"tls_ca": ours.file} if side is Credentials else {}
    with pytest.raises(ConfigError, match=complaint):
        side(**more, **fields(ours, server_pair))


def test_key_with_a_password_is_refused(ours: Any, tmp_path: pathlib.Path) -> None:
    """A key that asks for a password is an error, not a question on the terminal of a server."""
    from cryptography.hazmat.primitives import serialization as s

    pair = ours.issue("127.0.0.1")
    key = s.load_pem_private_key(pathlib.Path(pair["tls_key"]).read_bytes(), None)
    locked = key.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.BestAvailableEncryption(b"password"))
    pathlib.Path(pair["tls_key"]).write_bytes(locked)
    with pytest.raises(ConfigError, match="key without a password"):
        Security(**pair)


@pytest.mark.parametrize(
    ("side", "fields", "field"),
    [
        (Credentials, {"tls_ca": __file__}, "tls_ca"),
        (Credentials, {"tls_ca": "nowhere.pem"}, "tls_ca"),
        (Security, {"client_ca": __file__}, "client_ca"),
        (Security, {"tokens": "nowhere.toml"}, "tokens"),
    ],
)
def test_field_is_named(side: Any, fields: dict[str, str], field: str) -> None:
    """The error's field is the setting that is wrong."""
    with pytest.raises(ConfigError) as caught:
        side(**fields)
    assert caught.value.field == field
