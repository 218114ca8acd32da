"""One input of the fuzzer of sessions: clients act on a server, and whatever they do, it keeps its promises.

A promise that does not hold is an ``AssertionError``.
"""

from __future__ import annotations

import logging
import zlib
from collections import Counter
from typing import Any

from session_moves import Choices, Speaker, altered
from session_worlds import CONFIG, InlineCore, World

from serverlight.errors import ProtocolError, RemoteError, ServerBusy, ServerlightError
from serverlight.runtime.conversion import decode_client, encode_client
from serverlight.runtime.messages import (
    Failure,
    Hello,
    InferReply,
    InferRequest,
    MoveCut,
    Ping,
    Pong,
    ServerMessage,
    Step,
    StepReply,
    Welcome,
)
from serverlight.runtime.transport import InProcessTransport

NUM_CLIENTS, MOST_MOVES, MOST_BATCHES = 5, 96, 400
"""One client more than streams are allowed."""

NAMES = (None, None, "phone", "phone", "phone")
"""Two whose names nobody knows; the others share a quota, and have a stream more than it allows."""

PLAYS = {
    "writes": bytes([4, 8, 0, 0, 10, 0, 13, 0, 2, 0, 13, 0, 0, 0, 7, 0]),
    "samples": bytes([4, 8, 1, 0, 10, 7, 60, 3, 200, 9, 90, 2, 1, 1, 5, 13, 0, 2, 1, 13, 8, 2, 0, 1, 1]),
    "moves": bytes([4, 8, 0, 0, 10, 0, 13, 0, 2, 1, 11, 0, 200, 7, 200, 7, 0, 13, 0, 0, 0]),
    "ids": bytes([4, 8, 2, 0, 10, 0, 13, 4, 3, 1, 2, 3, 0, 13, 4, 1, 5, 0, 13, 4, 1, 99, 0, 7, 0]),
    "asks": bytes([4, 8, 0, 0, 12, 0, 8, 0, 12, 0, 25, 0, 12, 8, 1, 28, 0]),
    "together": bytes([
        4, 8, 0, 0, 24, 1, 0, 40, 0, 0, 10, 0, 26, 2, 1, 42, 0, 13, 0, 0, 29, 0, 1, 45, 0, 2, 1, 13, 0, 0, 29, 0, 0, 45, 0, 0, 1,
    ]),
    "leaves": bytes([4, 8, 0, 0, 10, 0, 13, 0, 2, 13, 0, 0, 2, 8, 0, 0, 10, 0, 13, 0, 2, 1, 3, 4, 0]),
    "drains": bytes([4, 8, 0, 0, 10, 0, 13, 0, 2, 1, 13, 0, 0, 0xF4, 2, 8, 0, 0]),
    "talks": bytes([4, 8, 0, 0, 7, 1, 7, 1, 5, 3, 1, 2, 3, 6, 1, 0, 1, 0, 4, 4]),
    "reads ahead": bytes([
        4, 8, 0, 0, 10, 0, 13, 0, 2, 0x83, 11, 0, 200, 7, 200, 7, 0, 13, 0, 0, 0x83, 2, 8, 0, 0, 10, 0, 13, 0, 2, 0x83, 1,
    ]),
    "lies": bytes([4, 8, 0, 0, 10, 0, 13, 0, 200, 23, 0, 13, 0, 240, 3, 1, 9, 3, 2, 1, 7, 0, 12, 8, 2, 23, 24, 0]),
}  # fmt: skip
"""What an input may look like, all with five clients: in the first, one says hello, a session, a prompt and a token with a batch
after each, and closes; see :func:`act`."""


class Client:
    """A stream, and what it is owed."""

    def __init__(self, core: InlineCore, world: World, name: str | None) -> None:
        self._core, self._name, self._world = core, name, world
        self.answers = list[ServerMessage]()
        self.connect()

    def connect(self) -> None:
        """Leaves, if it is there, and comes anew."""
        self.leave()
        self.speaker, self.last = Speaker(self._world), b""
        self.owed = Counter[int]()
        self.pings, self.hellos, self.is_over = 0, 0, False
        self._transport = Raw(self._core, client=self._name)
        self._transport.open(self)

    def leave(self) -> None:
        """Closes the stream."""
        if hasattr(self, "_transport"):
            self._transport.close()

    def say(self, data: bytes) -> None:
        """Sends bytes that may be a message, and checks that they end the stream where they are none."""
        self.last = data
        if self.is_over:
            self._transport.send_bytes(data)
            return
        try:
            message = decode_client(data)
        except ProtocolError:
            self._transport.send_bytes(data)
            expect(self.is_over, "bytes that are no message, and the stream goes on")
            return
        match message:
            case Hello():
                self.hellos += 1
            case Ping():
                self.pings += 1
            case InferRequest() | Step() | MoveCut() | Failure():
                self.owed[message.request_id] += 1
        self._transport.send_bytes(data)

    def on_message(self, message: ServerMessage, num_bytes: int) -> None:
        """Hears an answer, which has to be one that it is owed."""
        expect(not self.is_over, f"the stream is over, and {message} came")
        expect(num_bytes < 2 * CONFIG.max_message_bytes, f"an answer of {num_bytes} bytes")
        self.answers.append(message)
        match message:
            case Welcome():
                self.hellos -= 1
                expect(self.hellos == 0, "a Welcome without a Hello")
            case Pong():
                self.pings -= 1
                expect(self.pings >= 0, "a Pong without a Ping")
            case InferReply() | StepReply() | Failure():
                if isinstance(message, Failure):
                    check_error(message.error)
                if message.request_id == 0:
                    self.is_over = True
                else:
                    self.owed[message.request_id] -= 1
                    expect(self.owed[message.request_id] >= 0, f"an answer too many: {message}")

    def on_closed(self, error: ServerlightError) -> None:
        """The stream is gone."""
        check_error(error)
        self.is_over = True

    def check_answered(self) -> None:
        """Nothing waits any more, so each request has had its answer."""
        if not self.is_over:
            expect(not +self.owed, f"without an answer: {+self.owed}")
            expect(self.pings == 0, "a Ping without a Pong")


class Raw(InProcessTransport):
    """Sends any bytes."""

    def send_bytes(self, data: bytes) -> None:
        """As a message that came over a socket."""
        self._arrive(data)


class Complaints(logging.Handler):
    """What the server logs as a fault of its own, which no input may bring about."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.heard: list[str] = []
        logging.getLogger("serverlight").addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keeps it with its traceback."""
        self.heard.append(self.format(record))


complaints = Complaints()


def play(world: World, data: bytes, honest_every: int = 1) -> list[ServerMessage]:
    """One execution; of all inputs one in ``honest_every`` is followed by a client whose answers are known.

    Returns what the server said, by client.
    """
    core, choices = world.new_core(), Choices(data)
    complaints.heard.clear()
    clients = [Client(core, world, name) for name in NAMES[: 1 + choices.byte() % NUM_CLIENTS]]
    for _ in range(MOST_MOVES):
        if choices.is_over:
            break
        act(core, clients, choices)
        check_limits(core)
    finish(core)
    for client in clients:
        client.check_answered()
        client.leave()
    left = core.num_streams, core.num_sessions, core.kv_bytes, core.num_waiting
    expect(left == (0, 0, 0, 0), f"streams, sessions, bytes of keys and values, requests left: {left}")
    held = [entry.num_streams for entry in core.engines.catalogue._entries.values()]
    expect(not any(held), f"models that are held by so many streams: {held}")
    if not core.is_draining and zlib.crc32(data) % honest_every == 0:
        expect(answers_of(core, world) == known_answers(world), "an honest client got other answers than ever")
    expect(not complaints.heard and not core.has_crashed, "\n".join(complaints.heard))
    return [answer for client in clients for answer in client.answers]


def act(core: InlineCore, clients: list[Client], choices: Choices) -> None:
    """One move: the server works, or a client says or does something."""
    byte = choices.byte()
    client, what = clients[(byte >> 4) % len(clients)], byte & 15
    speaker = client.speaker
    match what:
        case 0 | 1:
            core.work(1 + (what << 1))
        case 2:
            client.connect()
        case 3 if byte & 128:
            core.read_ahead()
        case 3:
            core.let_go_of_idle()
        case 4 if byte == 0xF4:
            core.drain(0)
        case 4:
            client.say(client.last)
        case 5:
            client.say(choices.rest(choices.byte()))
        case 6:
            client.say(altered(client.last, choices))
        case 7:
            client.say(encode_client(speaker.talk(choices)))
        case 8 | 9:
            client.say(encode_client(speaker.hello(choices)))
        case 10:
            client.say(encode_client(speaker.open(choices)))
        case 11:
            client.say(encode_client(speaker.move(choices)))
        case 12:
            client.say(encode_client(speaker.infer(choices)))
        case _:
            client.say(encode_client(speaker.step(choices)))


def finish(core: InlineCore) -> None:
    """All that waits, in a bounded number of batches."""
    core.work(MOST_BATCHES)
    expect(core.num_waiting == 0, f"{core.num_waiting} requests wait after {MOST_BATCHES} batches")


def check_limits(core: InlineCore) -> None:
    """No limit is passed, not even for a moment between two moves."""
    expect(core.num_waiting <= CONFIG.max_waiting, f"{core.num_waiting} requests wait")
    expect(core.num_sessions <= CONFIG.max_sessions, f"{core.num_sessions} sessions")
    expect(core.kv_bytes <= CONFIG.max_kv_bytes, f"{core.kv_bytes} bytes of keys and values")


def check_error(error: Any) -> None:
    """One of ours, not the server's own fault, and one that a client can do something about."""
    expect(isinstance(error, ServerlightError) and not isinstance(error, RemoteError), f"{error!r}")
    if isinstance(error, ServerBusy):
        expect(error.retry_after_ms >= 1, f"{error!r}")


def answers_of(core: InlineCore, world: World) -> list[Any]:
    """What an orderly client is told, without the times."""
    client = Client(core, world, None)
    client.say(encode_client(Hello(plan_json=world.plans[0].to_json())))
    for question in world.questions:
        client.say(encode_client(question))
        finish(core)
    client.check_answered()
    client.leave()
    expect(not client.owed.total(), "an honest client got no answer")
    return [
        (answer.step, answer.token_id) if isinstance(answer, StepReply) else getattr(answer, "outputs", type(answer))
        for answer in client.answers
    ]


_known: dict[int, list[Any]] = {}


def known_answers(world: World) -> list[Any]:
    """Those of a server that nobody else was at."""
    if id(world) not in _known:
        _known[id(world)] = answers_of(world.new_core(), world)
    return _known[id(world)]


def expect(holds: bool, otherwise: str) -> None:
    """Fails the execution if something does not hold."""
    if not holds:
        raise AssertionError(otherwise)
