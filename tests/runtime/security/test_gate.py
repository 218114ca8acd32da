"""What a server with tokens promises: strangers are refused before they are heard, and clients have the names of their tokens."""

from __future__ import annotations

import datetime
import logging
import pathlib
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from serverlight.errors import ConfigError, Unauthenticated
from serverlight.runtime import grpc_transport
from serverlight.runtime.credentials import Credentials
from serverlight.runtime.grpc_transport import SERVICE, GrpcTransport, check_health
from serverlight.runtime.messages import Failure, InferReply, Welcome
from serverlight.runtime.security import Security
from serverlight.runtime.tokens import add_client, hash_token

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
CONNECT, WATCH = f"/{SERVICE}/Connect", "/grpc.health.v1.Health/Watch"
ROUTES = [CONNECT, WATCH, f"/{SERVICE}/Nothing", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"]
WAIT_S = 20.0


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
    make_core: Any, listen_to: Any, serve: Any, call: Any, tmp_path: pathlib.Path, token: str, tokens: pathlib.Path
) -> None:
    """Whatever is wrong with a token, and whatever was asked for, there is or not: the answer is the same few words."""
    headers = bad_headers(tmp_path, token, tokens)
    core = listen_to(make_core())
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
    make_core: Any, listen_to: Any, serve: Any, dial: Any, token: str, tokens: pathlib.Path
) -> None:
    """The name in the file is whose stream it is, whatever the client says of itself."""
    core = listen_to(make_core())
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


def test_token_is_not_shown(ours: Any) -> None:
    """Neither a config that is printed nor an error about one shows the token."""
    credentials = Credentials(token="sl_secret", tls_ca=ours.file)
    assert "secret" not in repr(credentials)
    with pytest.raises(ConfigError) as caught:
        Credentials(token="sl secret\n")
    assert "secret" not in str(caught.value)
