"""Certificates, a file of tokens, and calls by hand."""

from __future__ import annotations

import datetime
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from serverlight.runtime.credentials import Credentials
from serverlight.runtime.grpc_transport import GrpcTransport
from serverlight.runtime.tokens import add_client

LONG_AGO = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
WAIT_S = 20.0


class Authority:
    """Issues certificates into a folder."""

    def __init__(self, folder: pathlib.Path) -> None:
        trustme = pytest.importorskip("trustme", reason="trustme makes the certificates of these tests")
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
def server_pair(ours: Any) -> dict[str, str]:
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


@pytest.fixture
def listen_to() -> Callable[[Any], Listening]:
    """Wraps a core so that it is known who connected."""
    return Listening


class Listening:
    """A core that notes who connects."""

    def __init__(self, core: Any) -> None:
        self.core, self.clients = core, []
        self.config = core.config

    def connect(self, reply: Any, *, client: str | None = None) -> Any:
        self.clients.append(client)
        return self.core.connect(reply, client=client)
