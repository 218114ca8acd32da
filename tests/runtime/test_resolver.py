"""Addresses, directories that are asked for them, and a sequence that moves to where one says."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from serverlight.codec import CodecConfig
from serverlight.errors import ConfigError, PeerUnavailable, ProtocolError
from serverlight.generation import DecoderLoopback, LoadedDecoder
from serverlight.plan import Plan
from serverlight.runtime.decoder_client import DecoderClient
from serverlight.runtime.resolver import MAX_ANSWER_BYTES, Directory, Resolver, resolver_of
from serverlight.runtime.server import Server

A, B, C = "10.0.0.1:50051", "10.0.0.2:50051", "10.0.0.3:50051"


class FakeDirectory(http.server.ThreadingHTTPServer):
    """Answers every question with what it was told, and notes what was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.status, self.body = 200, b""
        self.asked: list[str] = []
        self._thread = threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def say(self, *addresses: str) -> None:
        self.status, self.body = 200, json.dumps({"address": addresses[0], "all": addresses}).encode()

    @property
    def address(self) -> str:
        return f"ray+http://127.0.0.1:{self.server_address[1]}"

    def end(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()


class _Handler(http.server.BaseHTTPRequestHandler):
    server: FakeDirectory

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.send_response(self.server.status)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.send_header("Location", "http://127.0.0.1:9/")
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def directory() -> Iterator[FakeDirectory]:
    directory = FakeDirectory()
    yield directory
    directory.end()


def test_directory_is_asked_each_time(directory: FakeDirectory) -> None:
    """Each question gets the directory's present answer, in its order, under the one name of the session."""
    resolver = Directory(f"{directory.address}/tails/?session=tablet 7")
    directory.say(A, B)
    assert list(resolver.resolve(5.0)) == [A, B]
    directory.say(B)
    assert list(resolver.resolve(5.0)) == [B]
    assert directory.asked == ["/tails/endpoint?session=tablet+7"] * 2


def test_each_device_has_a_name(directory: FakeDirectory) -> None:
    """Without a name of its own a session keeps one that no other has."""
    directory.say(A)
    one, other = Directory(directory.address), Directory(directory.address)
    for resolver in (one, one, other):
        resolver.resolve(5.0)
    assert directory.asked[0] == directory.asked[1] != directory.asked[2]


def test_last_answer_holds(directory: FakeDirectory) -> None:
    """A directory that is away for a while does not take its replicas with it; one that never answered is an error."""
    resolver = Directory(directory.address)
    directory.status = 503
    with pytest.raises(PeerUnavailable, match="503"):
        resolver.resolve(5.0)
    directory.say(A, B)
    resolver.resolve(5.0)
    directory.end()
    assert list(resolver.resolve(5.0)) == [A, B]
    with pytest.raises(PeerUnavailable, match="cannot be asked"):
        Directory(directory.address).resolve(5.0)


def test_redirection_is_not_followed(directory: FakeDirectory) -> None:
    """Where servers are is said by the directory that the user named, and no other."""
    directory.status = 302
    with pytest.raises(PeerUnavailable, match="302"):
        Directory(directory.address).resolve(5.0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\xfe",
        b"[" * 50_000,
        b"[]",
        b'{"all": []}',
        b'{"all": "10.0.0.1:50051"}',
        b'{"all": ["10.0.0.1"]}',
        b'{"all": ["10.0.0.1:0"]}',
        b'{"all": ["10.0.0.1:99999"]}',
        b'{"all": ["10.0.0.1:' + b"9" * 5000 + b'"]}',
        b'{"all": ["unix:///run/x:1"]}',
        b'{"all": ["10.0.0.1:50051", 7]}',
        json.dumps({"all": [A] * 1025}).encode(),
        b" " * (MAX_ANSWER_BYTES + 1),
    ],
)
def test_hostile_answers(directory: FakeDirectory, body: bytes) -> None:
    """What is no list of addresses, or too long, is refused; nothing of it is used."""
    directory.body = body
    with pytest.raises(ProtocolError, match="the directory at"):
        Directory(directory.address).resolve(5.0)


@pytest.mark.parametrize(
    "address",
    ["http://10.0.0.5:8000", "ray+http://", "ray+http://10.0.0.5:port", "ray+http://10.0.0.5:8000/?token=x"],
)
def test_what_is_no_directory(address: str) -> None:
    """An address of another kind is named, with the right form beside it."""
    with pytest.raises(ConfigError, match=r"ray\+http://HOST:PORT"):
        resolver_of([address])


def test_directories_and_servers_together(directory: FakeDirectory) -> None:
    """Addresses of both kinds may be mixed: their order is kept, each is tried once, and one that is silent is left out."""
    directory.say(B, C)
    silent = "ray+http://127.0.0.1:9"
    assert list(resolver_of([A, directory.address, silent, B]).resolve(5.0)) == [A, B, C]
    with pytest.raises(PeerUnavailable, match=r"127\.0\.0\.1:9"):
        resolver_of([silent]).resolve(5.0)
    with pytest.raises(ConfigError, match="at least one"):
        resolver_of([])


# -- a sequence that follows one --------------------------------------------------------------------

CUT = "layers.1"
PROMPT = [1, 17, 40, 9, 33, 71, 5]


@pytest.fixture(scope="module")
def plan(head: LoadedDecoder) -> Plan:
    return Plan(model=head.name, revision=head.revision, cut=CUT, codec=CodecConfig(profile="fp16"))


def test_sequence_goes_where_the_directory_says(
    directory: FakeDirectory,
    start_process: Callable[..., Any],
    tiny_llama: str,
    head: LoadedDecoder,
    tail: LoadedDecoder,
    plan: Plan,
) -> None:
    """When a server is killed the directory is asked again; a new address that it names goes on with the same tokens, also
    where the dead one is still listed before it.
    """
    expected = DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=20)
    victim = start_process(tiny_llama, CUT)
    directory.say(victim.address)
    heard: list[int] = []

    with Server(tail, [CUT]) as server:

        def hear(token: int) -> None:
            heard.append(token)
            if len(heard) == 5:
                directory.say(victim.address, server.address)
                victim.kill()

        client = DecoderClient([directory.address], plan=plan, head=head)
        made = client.generate(PROMPT, max_new_tokens=20, on_token=hear)
    assert made.token_ids == expected == tuple(heard)
    assert made.num_recoveries == 1


class Noting:
    """A resolver of the user's own, which says what each answer was good for."""

    def __init__(self, *answers: list[str]) -> None:
        self.answers, self.num_asked = answers, 0

    def resolve(self, timeout_s: float) -> list[str]:
        answer = self.answers[min(self.num_asked, len(self.answers) - 1)]
        self.num_asked += 1
        return answer


def test_resolver_of_the_users_own(head: LoadedDecoder, tail: LoadedDecoder, plan: Plan) -> None:
    """Any object that resolves will do, and is asked once where all goes well; the first address of its list that has
    not failed is taken, whatever became of the list meanwhile.
    """
    with Server(tail, [CUT]) as server:
        resolver: Resolver = Noting([server.address])
        client = DecoderClient(resolver, plan=plan, head=head)
        made = client.generate(PROMPT, max_new_tokens=3)
        assert isinstance(resolver, Noting)
        assert resolver.num_asked == 1
    expected = made.token_ids
    first, second, wrong = Server(tail, [CUT]).start(), Server(tail, [CUT]).start(), Server(tail, [CUT]).start()
    resolver = Noting([first.address, wrong.address], [second.address, wrong.address])
    streams: list[tuple[int, int]] = []

    def hear(token: int) -> None:
        streams.append((second.core.num_streams, wrong.core.num_streams))
        if len(streams) == 1:
            first.drain(0)

    made = DecoderClient(resolver, plan=plan, head=head).generate(PROMPT, max_new_tokens=3, on_token=hear)
    assert made.token_ids == expected
    assert streams == [(0, 0), (1, 0), (1, 0)]
    for server in (second, wrong):
        server.drain()
