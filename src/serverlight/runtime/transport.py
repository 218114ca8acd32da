"""The transports that carry messages between device and server, and the seams they are plugged into.

Nothing here knows tensors. A transport hands messages to a listener as they come, so that one stream can carry many
requests at once, and later the steps of a session.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol

from serverlight.errors import PeerUnavailable, ServerlightError, TransportError
from serverlight.link import LinkConfig
from serverlight.runtime.conversion import decode_client, decode_server, encode_client, encode_server
from serverlight.runtime.messages import ClientMessage, Failure, ServerMessage
from serverlight.runtime.server_config import DEFAULT_MAX_MESSAGE_BYTES

__all__ = [
    "DEFAULT_MAX_MESSAGE_BYTES",
    "Connection",
    "InProcessTransport",
    "Listener",
    "MessageServer",
    "Transport",
    "wire_bytes",
]

_GRPC_PREFIX_BYTES = 5
_HTTP2_FRAME_HEADER_BYTES = 9
_HTTP2_FRAME_BYTES = 16 * 2**10


def wire_bytes(num_bytes: int) -> int:
    """Bytes that a serialised message of ``num_bytes`` takes on the TCP stream.

    gRPC puts 5 bytes before each message, HTTP/2 puts 9 bytes before each DATA frame of at most 16 KiB.

    >>> wire_bytes(1000), wire_bytes(100_000)
    (1014, 100068)
    """
    framed_bytes = num_bytes + _GRPC_PREFIX_BYTES
    return framed_bytes + _HTTP2_FRAME_HEADER_BYTES * -(-framed_bytes // _HTTP2_FRAME_BYTES)


class Listener(Protocol):
    """Hears what comes back over a transport, on a thread of the transport; it must not block."""

    def on_message(self, message: ServerMessage, num_bytes: int) -> None:
        """A message came; it took ``num_bytes`` on the wire."""

    def on_closed(self, error: TransportError) -> None:
        """Nothing will come any more; called once."""


class Transport(Protocol):
    """The client's end of one stream."""

    def open(self, listener: Listener) -> None:
        """Starts the stream; failures to connect arrive at ``listener.on_closed``."""

    def send(self, message: ClientMessage) -> int:
        """Queues a message and returns its bytes on the wire; raises :class:`MessageTooLarge`. Thread-safe."""

    def close(self) -> None:
        """Ends the stream and waits for its threads; a second call does nothing."""


class Connection(Protocol):
    """The server's end of one stream."""

    @property
    def over(self) -> bool:
        """Whether the server is done with this stream."""

    def check_size(self, num_bytes: int) -> None:
        """Raises :class:`MessageTooLarge` for a message that is not worth parsing."""

    def receive(self, message: ClientMessage | Failure) -> None:
        """Takes the client's next message, or the failure that stands for one; the answer comes through the callback
        of :meth:`MessageServer.connect`. Never blocks.
        """

    def fail(self, error: ServerlightError) -> None:
        """Tells the client that the stream is over, and why."""

    def close(self) -> None:
        """The stream is gone: waiting requests of it are forgotten."""


class MessageServer(Protocol):
    """What a transport's server side talks to."""

    def connect(self, reply: Callable[[ServerMessage], None], *, client: str | None = None) -> Connection:
        """A new stream, of the client of that name where it has one; ``reply`` is called from any thread and must not
        block.
        """


class InProcessTransport:
    """A true client and a true server in one process, without a socket; optionally over an imitated link.

    Messages are serialised and parsed as on a socket, so that sizes and checks are the same.
    """

    def __init__(self, server: MessageServer, *, link: LinkConfig | None = None, client: str | None = None) -> None:
        self._server, self._client = server, client
        self._up, self._down = _ImitatedLink(link), _ImitatedLink(link)
        self._connection: Connection | None = None
        self._is_closed = self._is_over = False

    def open(self, listener: Listener) -> None:
        """Connects to the server object."""
        self._listener = listener
        self._connection = self._server.connect(self._on_reply, client=self._client)
        if self._is_over:  # refused before there was anything to close
            self.close()

    def send(self, message: ClientMessage) -> int:
        """Hands the message over, at once or when the imitated link has carried it."""
        data = encode_client(message)
        num_bytes = wire_bytes(len(data))
        self._up.carry(num_bytes, lambda: self._arrive(data))
        return num_bytes

    def close(self) -> None:
        """Tells the server that this client is gone."""
        if self._connection is not None and not self._is_closed:
            self._is_closed = True
            self._connection.close()
            self._listener.on_closed(PeerUnavailable("this client is closed; connect again"))

    def _arrive(self, data: bytes) -> None:
        if self._connection is None or self._is_closed:
            return
        try:
            self._connection.check_size(len(data))
            self._connection.receive(decode_client(data))
        except TransportError as error:
            self._connection.fail(error)

    def _on_reply(self, message: ServerMessage) -> None:
        data = encode_server(message)
        num_bytes = wire_bytes(len(data))
        self._down.carry(num_bytes, lambda: self._deliver(decode_server(data), num_bytes))

    def _deliver(self, message: ServerMessage, num_bytes: int) -> None:
        self._listener.on_message(message, num_bytes)
        if isinstance(message, Failure) and message.request_id == 0:
            self._is_over = True
            self.close()


class _ImitatedLink:
    """One direction of a link: calls back when the bytes would have arrived."""

    def __init__(self, link: LinkConfig | None) -> None:
        self._link, self._free_s, self._lock = link, 0.0, threading.Lock()

    def carry(self, num_bytes: int, arrive: Callable[[], None]) -> None:
        if self._link is None:
            arrive()
            return
        with self._lock:
            now_s = time.monotonic()
            self._free_s, arrival_s = self._link.deliver_at(now_s, self._free_s, num_bytes)
        timer = threading.Timer(arrival_s - now_s, arrive)
        timer.daemon = True
        timer.start()
