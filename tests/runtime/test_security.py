"""What a guarded server promises: strangers are refused before they are heard, and each client is told what does not fit."""

from __future__ import annotations

import datetime
import logging
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from serverlight.errors import (
    CertificateMismatch,
    ConfigError,
    MessageTooLarge,
    PeerUnavailable,
    QuotaExceeded,
    ServerBusy,
    Unauthenticated,
)
from serverlight.models import LoadedModel
from serverlight.partition import Partition
from serverlight.runtime import grpc_transport
from serverlight.runtime.credentials import Credentials
from serverlight.runtime.grpc_transport import MAX_METADATA_BYTES, SERVICE, GrpcTransport, check_health
from serverlight.runtime.messages import Failure, InferReply, Welcome
from serverlight.runtime.quotas import Quota, Quotas
from serverlight.runtime.security import Security
from serverlight.runtime.server import Server
from serverlight.runtime.tokens import add_client, hash_token
from serverlight.runtime.transport import InProcessTransport

trustme = pytest.importorskip("trustme", reason="trustme makes the certificates of these tests")

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
CONNECT, WATCH = f"/{SERVICE}/Connect", "/grpc.health.v1.Health/Watch"
ROUTES = [CONNECT, WATCH, f"/{SERVICE}/Nothing", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"]
WAIT_S = 20.0


class Authority:
    """Issues certificates into a folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        folder.mkdir()
        self._folder, self._ca, self._num = folder, trustme.CA(), 0
        self.file = str(folder / "ca.pem")
        self._ca.cert_pem.write_to_path(self.file)

    def issue(self, *names: str, common_name: str | None = None, expired: bool = False) -> dict[str, str]:
        """The fields ``tls_cert`` and ``tls_key`` of a new certificate."""
        self._num += 1
        ends = {"not_after": LONG_AGO} if expired else {}
        made = self._ca.issue_cert(*names, common_name=common_name, **ends)
        cert, key = (str(self._folder / f"{self._num}.{kind}") for kind in ("pem", "key"))
        pathlib.Path(cert).write_bytes(b"".join(part.bytes() for part in made.cert_chain_pems))
        made.private_key_pem.write_to_path(key)
        return {"tls_cert": cert, "tls_key": key}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates") / "ours")


@pytest.fixture(scope="module")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates") / "theirs")


@pytest.fixture(scope="module")
def server_pair(ours: Authority) -> dict[str, str]:
    return ours.issue("localhost", "127.0.0.1")


@pytest.fixture
def tokens(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "tokens.toml"


@pytest.fixture
def token(tokens: pathlib.Path) -> str:
    """The token of the one client that the file knows."""
    return add_client(str(tokens), "phone")


@pytest.fixture
def dial(open_stream: Any) -> Callable[..., Any]:
    """A stream to a server thread, with the fields of Credentials."""
    return lambda thread, **fields: open_stream(
        GrpcTransport(f"127.0.0.1:{thread.port}", credentials=Credentials(**fields))
    )


@pytest.fixture
def call() -> Iterator[Callable[..., tuple[grpc.StatusCode, str]]]:
    """Calls any route by hand, says nothing, and returns how gRPC ended it."""
    channels = []

    def call(port: int, route: str, *headers: tuple[str, str], root: str = "") -> tuple[grpc.StatusCode, str]:
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
        if root:
            trusted = grpc.ssl_channel_credentials(pathlib.Path(root).read_bytes())
            channels.append(grpc.secure_channel(f"localhost:{port}", trusted, options))
        else:
            channels.append(grpc.insecure_channel(f"localhost:{port}", options))
        ended = channels[-1].stream_stream(route, None, None)(iter(()), metadata=headers, timeout=WAIT_S)
        assert list(_messages(ended)) == []
        return ended.code(), ended.details()

    yield call
    for channel in channels:
        channel.close()


def _messages(ended: Any) -> Iterator[bytes]:
    try:
        yield from ended
    except grpc.RpcError:
        return


class Listening:
    """A core that notes who connects."""

    def __init__(self, core: Any) -> None:
        self.core, self.clients = core, []
        self.config = core.config

    def connect(self, reply: Any, *, client: str | None = None) -> Any:
        self.clients.append(client)
        return self.core.connect(reply, client=client)


# -- tokens -----------------------------------------------------------------------------------------


def bad_headers(tmp_path: pathlib.Path, good: str, tokens: pathlib.Path) -> dict[str, list[tuple[str, str]]]:
    expired = add_client(str(tokens), "expired", expires=LONG_AGO)
    foreign = add_client(str(tmp_path / "another.toml"), "phone")
    return {
        "none": [],
        "wrong": [("authorization", "Bearer sl_wrong")],
        "expired": [("authorization", f"Bearer {expired}")],
        "foreign": [("authorization", f"Bearer {foreign}")],
        "another scheme": [("authorization", f"Basic {good}")],
        "no scheme": [("authorization", good)],
        "empty": [("authorization", "Bearer ")],
        "cut short": [("authorization", f"Bearer {good[:-1]}")],
        "another case": [("authorization", f"Bearer {good.swapcase()}")],
        "the hash": [("authorization", f"Bearer {hash_token(good)}")],
        "two": [("authorization", "Bearer sl_wrong"), ("authorization", f"Bearer {good}")],
        "long": [("authorization", "Bearer " + "x" * 4000)],
        "another header": [("x-authorization", f"Bearer {good}")],
    }


def test_strangers_are_refused_alike_on_every_route(
    make_core: Any, serve: Any, call: Any, tmp_path: pathlib.Path, token: str, tokens: pathlib.Path
) -> None:
    """Whatever is wrong with a token, and whatever was asked for, there is or not: the answer is the same few words."""
    headers = bad_headers(tmp_path, token, tokens)
    core = Listening(make_core())
    thread = serve(core, Security(tokens=str(tokens)))
    answers = {call(thread.port, route, *header) for route in ROUTES for header in headers.values()}
    assert answers == {(grpc.StatusCode.UNAUTHENTICATED, "no valid token")}
    assert core.clients == []
    assert thread.server._gate.num_refused == len(ROUTES) * len(headers)


def test_good_token_is_let_through_to_every_route(
    make_core: Any, serve: Any, call: Any, token: str, tokens: pathlib.Path
) -> None:
    """With a token the routes are what they are without a gate."""
    thread = serve(make_core(), Security(tokens=str(tokens)))
    for scheme in ("Bearer", "bearer"):
        header = ("authorization", f"{scheme} {token}")
        assert call(thread.port, f"/{SERVICE}/Nothing", header)[0] is grpc.StatusCode.UNIMPLEMENTED
        assert call(thread.port, CONNECT, header)[0] is grpc.StatusCode.OK


def test_health_needs_no_token(make_core: Any, serve: Any, tokens: pathlib.Path, token: str) -> None:
    """Orchestrators have no token; they learn whether the server takes work, and nothing else."""
    thread = serve(make_core(), Security(tokens=str(tokens)))
    assert check_health(f"127.0.0.1:{thread.port}")
    with grpc.insecure_channel(f"127.0.0.1:{thread.port}") as channel:
        answer = channel.unary_unary("/grpc.health.v1.Health/Check", None, None)(b"", timeout=WAIT_S)
    assert health_pb2.HealthCheckResponse.FromString(answer).status == health_pb2.HealthCheckResponse.SERVING
    assert len(answer) == 2


def test_token_gives_the_client_its_name(
    make_core: Any, serve: Any, dial: Any, token: str, tokens: pathlib.Path
) -> None:
    """The name in the file is whose stream it is, whatever the client says of itself."""
    core = Listening(make_core())
    stream = dial(serve(core, Security(tokens=str(tokens))), token=token)
    assert isinstance(stream.greet(), Welcome)
    assert isinstance(stream.infer(1), InferReply)
    assert core.clients == ["phone"]


@pytest.mark.parametrize("fields", [{}, {"token": "sl_wrong"}])
def test_refusal_is_an_error_of_its_own(
    make_core: Any, serve: Any, dial: Any, token: str, tokens: pathlib.Path, fields: dict[str, str]
) -> None:
    """A client without a good token gets Unauthenticated, which says where a token comes from."""
    stream = dial(serve(make_core(), Security(tokens=str(tokens))), **fields)
    refused = stream.inbox.next()
    assert isinstance(refused, Unauthenticated)
    assert "--token-file" in str(refused)


@pytest.fixture
def checked_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grpc_transport, "_GRANT_CHECK_S", 0.01)


def test_tokens_come_and_go_without_a_restart(
    make_core: Any, serve: Any, dial: Any, token: str, tokens: pathlib.Path, checked_often: None
) -> None:
    """A client that is added may connect at once; of one that is removed, new streams are refused and open ones end."""
    thread = serve(make_core(), Security(tokens=str(tokens)))
    first = dial(thread, token=token)
    assert isinstance(first.greet(), Welcome)
    added = add_client(str(tokens), "tablet")
    second = dial(thread, token=added)
    assert isinstance(second.greet(), Welcome)
    assert isinstance(first.infer(1), InferReply)

    tokens.write_text(tokens.read_text().partition('[clients."tablet"]')[2].join(['[clients."tablet"]', ""]))
    ended = first.inbox.next()
    assert isinstance(ended, Failure)
    assert (ended.request_id, type(ended.error)) == (0, Unauthenticated)
    assert isinstance(dial(thread, token=token).inbox.next(), Unauthenticated)
    assert isinstance(second.infer(1), InferReply)


def test_broken_file_keeps_what_was_read(
    make_core: Any, serve: Any, dial: Any, token: str, tokens: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A file that cannot be read any more locks nobody out and lets nobody in; the log says what is wrong with it."""
    thread = serve(make_core(), Security(tokens=str(tokens)))
    good = tokens.read_text()
    for broken in (good + "\nnonsense", good + '\n[clients.x]\nsha256 = "1"', None):
        if broken is None:
            tokens.unlink()
        else:
            tokens.write_text(broken)
        with caplog.at_level(logging.ERROR):
            assert isinstance(dial(thread, token=token).greet(), Welcome)
            assert isinstance(dial(thread, token="sl_wrong").inbox.next(), Unauthenticated)
        assert "stays as it was read before" in caplog.text
        caplog.clear()
    tokens.write_text(good.replace("phone", "laptop"))
    assert isinstance(dial(thread, token=token).greet(), Welcome)


def test_stream_ends_when_its_token_expires(
    make_core: Any, serve: Any, dial: Any, tokens: pathlib.Path, checked_often: None
) -> None:
    """A token that runs out ends the streams that it opened."""
    soon = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    lent = add_client(str(tokens), "guest", expires=soon)
    stream = dial(serve(make_core(), Security(tokens=str(tokens))), token=lent)
    assert isinstance(stream.greet(), Welcome)
    text = tokens.read_text()
    tokens.write_text(text.replace(f"{soon.year}-", "2020-", 1))
    assert isinstance(stream.inbox.next().error, Unauthenticated)


@pytest.mark.parametrize("host", ["10.0.0.1", "example.org", "localhost.example.org", "0.0.0.0", "dns:///localhost"])
def test_token_is_not_sent_in_the_clear(host: str) -> None:
    """A token leaves this machine encrypted, or not at all unless that is asked for by name."""
    with pytest.raises(ConfigError, match=r"without encryption; give --tls-ca"):
        GrpcTransport(f"{host}:1", credentials=Credentials(token="sl_secret"))
    GrpcTransport(f"{host}:1", credentials=Credentials(token="sl_secret", insecure=True))
    GrpcTransport(f"{host}:1")


@pytest.mark.parametrize("address", ["localhost:1", "127.0.0.1:1", "127.8.0.1:1", "[::1]:1"])
def test_token_may_go_to_this_machine(address: str) -> None:
    """On loopback nobody listens in."""
    GrpcTransport(address, credentials=Credentials(token="sl_secret"))


def test_token_is_not_shown(ours: Authority) -> None:
    """Neither a config that is printed nor an error about one shows the token."""
    credentials = Credentials(token="sl_secret", tls_ca=ours.file)
    assert "secret" not in repr(credentials)
    with pytest.raises(ConfigError) as caught:
        Credentials(token="sl secret\n")
    assert "secret" not in str(caught.value)


# -- certificates -----------------------------------------------------------------------------------


def test_tls_and_a_token(
    make_core: Any, serve: Any, dial: Any, ours: Authority, server_pair: Any, token: str, tokens: pathlib.Path
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


def test_server_without_tls(make_core: Any, serve: Any, dial: Any, ours: Authority) -> None:
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
    make_core: Any, serve: Any, dial: Any, request: Any, ours: Authority,
    names: list[str], expired: bool, trusted: str, complaint: str,
) -> None:  # fmt: skip
    """A server whose certificate does not fit is not talked to; the error says which setting, and what is wrong."""
    core = Listening(make_core())
    thread = serve(core, Security(**ours.issue(*names, expired=expired)))
    ca = trusted if trusted == "system" else request.getfixturevalue(trusted).file
    error = refusal(dial(thread, tls_ca=ca, token="sl_secret"))
    assert error.field == "tls_ca"
    assert complaint in str(error)
    assert core.clients == []


def test_mutual_tls(make_core: Any, serve: Any, dial: Any, ours: Authority, server_pair: Any) -> None:
    """A client with a certificate of the right authority is let through, under the name in it."""
    core = Listening(make_core())
    thread = serve(core, Security(**server_pair, client_ca=ours.file))
    stream = dial(thread, tls_ca=ours.file, **ours.issue("phone@example.org", common_name="phone"))
    assert isinstance(stream.greet(), Welcome)
    other = dial(thread, tls_ca=ours.file, **ours.issue("tablet@example.org"))
    assert isinstance(other.greet(), Welcome)
    assert core.clients == ["certificate phone", "certificate tablet@example.org"]


@pytest.mark.parametrize("case", ["none", "another authority", "expired"])
def test_certificate_of_the_client_does_not_fit(
    make_core: Any, serve: Any, dial: Any, ours: Authority, theirs: Authority, server_pair: Any, case: str
) -> None:
    """A client without a certificate that the server takes is refused within TLS, and told that it is its certificate."""
    pair = {
        "none": dict[str, str],
        "another authority": lambda: theirs.issue("phone@example.org"),
        "expired": lambda: ours.issue("phone@example.org", expired=True),
    }[case]()
    core = Listening(make_core())
    error = refusal(dial(serve(core, Security(**server_pair, client_ca=ours.file)), tls_ca=ours.file, **pair))
    assert error.field == "tls_cert"
    assert ("wants a certificate" if case == "none" else "does not take") in str(error)
    assert core.clients == []


def test_certificates_are_renewed_without_a_restart(
    make_core: Any, serve: Any, dial: Any, ours: Authority, theirs: Authority
) -> None:
    """New files of certificate and key are taken up; files that are no pair are not."""
    pair, renewed = ours.issue("127.0.0.1"), theirs.issue("127.0.0.1")
    thread = serve(make_core(), Security(**pair))
    assert isinstance(dial(thread, tls_ca=ours.file).greet(), Welcome)
    write(pair["tls_key"], renewed["tls_key"])  # half of it
    assert isinstance(dial(thread, tls_ca=ours.file).greet(), Welcome)
    write(pair["tls_cert"], renewed["tls_cert"])
    assert isinstance(dial(thread, tls_ca=theirs.file).greet(), Welcome)
    refusal(dial(thread, tls_ca=ours.file))


def write(target: str, source: str) -> None:
    pathlib.Path(target).write_bytes(pathlib.Path(source).read_bytes())


def test_server_that_is_gone_is_no_matter_of_certificates(ours: Authority, open_stream: Any) -> None:
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
def test_files_that_do_not_fit(ours: Authority, server_pair: Any, side: Any, fields: Any, complaint: str) -> None:
    """Wrong files are found before anything is served or sent, and the error names the field."""
    more = {"tls_ca": ours.file} if side is Credentials else {}
    with pytest.raises(ConfigError, match=complaint):
        side(**more, **fields(ours, server_pair))


def test_key_with_a_password_is_refused(ours: Authority, tmp_path: pathlib.Path) -> None:
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


# -- addresses --------------------------------------------------------------------------------------

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
def test_public_address_is_taken_with_guards(
    ours: Authority, server_pair: Any, token: str, tokens: Any, host: str
) -> None:
    """Certificates with tokens will do, or with certificates of clients; or to be told that it does not matter."""
    Security(**server_pair, tokens=str(tokens)).check_host(host)
    Security(**server_pair, client_ca=ours.file).check_host(host)
    Security(insecure=True).check_host(host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_loopback_needs_no_guards(host: str) -> None:
    """On this machine anything goes."""
    Security().check_host(host)


# -- quotas -----------------------------------------------------------------------------------------


def test_request_over_quota_is_refused_at_once(make_core: Any, runner: Any, open_stream: Any) -> None:
    """A client that is over its quota is told which and when to come back; others, and its stream, go on."""
    core = make_core(
        quotas=Quotas(lambda name: Quota(requests_per_s=1e-3, burst_s=2000) if name == "greedy" else Quota())
    )
    greedy, other = (open_stream(InProcessTransport(core, client=name)) for name in ("greedy", "other"))
    for stream in (greedy, other):
        stream.greet()
    assert [type(greedy.infer(i)) for i in (1, 2)] == [InferReply] * 2
    refused = greedy.infer(3)
    assert isinstance(refused.error, QuotaExceeded)
    assert isinstance(refused.error, ServerBusy)
    assert refused.error.quota == "requests_per_s"
    assert 900_000 < refused.error.retry_after_ms <= 1_000_000
    assert [type(other.infer(i)) for i in range(1, 6)] == [InferReply] * 5
    again = open_stream(InProcessTransport(core, client="greedy"))
    again.greet()
    assert isinstance(again.infer(1).error, QuotaExceeded)
    assert len(runner.seen) == 7


def test_bytes_over_quota_are_refused(make_core: Any, open_stream: Any) -> None:
    """Bytes count as well; one request larger than a burst passes, and is paid off before the next."""
    core = make_core(quotas=Quotas(lambda name: Quota(bytes_per_s=1e-3, burst_s=1000)))
    stream = open_stream(InProcessTransport(core, client="greedy"))
    stream.greet()
    assert isinstance(stream.infer(1, bytes(1000)), InferReply)
    assert stream.infer(2, b"x").error.quota == "bytes_per_s"


def test_quota_comes_from_the_file_and_changes_with_it(
    make_core: Any, serve: Any, dial: Any, token: str, tokens: pathlib.Path
) -> None:
    """A client's section has its quotas; a new figure counts from the next stream on."""
    security = Security(tokens=str(tokens))
    server = security.read_tokens()
    assert server is not None
    assert server.quota_of("phone") == Quota()
    tokens.write_text(tokens.read_text() + "requests_per_s = 5\n")
    server.refresh()
    assert server.quota_of("phone") == Quota(requests_per_s=5)


def test_many_connections_have_one_turn(make_core: Any, runner: Any, open_stream: Any, until: Any) -> None:
    """A client with five connections is served no more often than one with a single connection."""
    core = make_core()
    held = open_stream(InProcessTransport(core))
    held.greet()
    runner.may_run.clear()
    held.say_infer(1, b"held")
    assert runner.has_begun.acquire(timeout=WAIT_S)
    for i in range(5):
        stream = open_stream(InProcessTransport(core, client="many"))
        stream.greet()
        stream.say_infer(1, b"many%d" % i)
    single = open_stream(InProcessTransport(core, client="single"))
    single.greet()
    for i in range(1, 4):
        single.say_infer(i, b"single%d" % i)
    runner.may_run.set()
    until(lambda: len(runner.seen) == 9)
    assert [data[:4] for data in runner.seen[1:7]] == [b"many", b"sing"] * 3


def test_flood_does_not_keep_others_out(make_core: Any, runner: Any, open_stream: Any) -> None:
    """When all places are taken by one client, another is still taken, in place of the flood's newest request."""
    core = make_core(max_waiting=4)
    flood = open_stream(InProcessTransport(core, client="flood"))
    flood.greet()
    runner.may_run.clear()
    flood.say_infer(1)
    assert runner.has_begun.acquire(timeout=WAIT_S)
    for i in range(2, 6):
        flood.say_infer(i, b"flood")
    other = open_stream(InProcessTransport(core, client="other"))
    other.greet()
    other.say_infer(1, b"other")
    refused = flood.inbox.next()
    assert (refused.request_id, type(refused.error)) == (5, ServerBusy)
    runner.may_run.set()
    assert isinstance(other.inbox.next(), InferReply)


# -- caps before anything is allocated ---------------------------------------------------------------


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
