"""The gRPC transport, client and server side; security is in grpc_security."""

from __future__ import annotations

import asyncio
import errno
import queue
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from serverlight.errors import (
    AddressInUse,
    ConfigError,
    DeadlineExceeded,
    MessageTooLarge,
    PeerUnavailable,
    ProtocolError,
    RemoteError,
    TransportError,
    Unauthenticated,
)
from serverlight.runtime import tls_failure
from serverlight.runtime.conversion import decode_client, decode_server, encode_client, encode_server
from serverlight.runtime.credentials import Credentials
from serverlight.runtime.grpc_security import (
    Gate,
    add_port,
    client_name,
    granted,
    metadata_of,
    open_channel,
)
from serverlight.runtime.loops import Mailbox
from serverlight.runtime.messages import (
    ClientMessage,
    CloseSession,
    Failure,
    OpenSession,
    Ping,
    Pong,
    ServerMessage,
    Welcome,
)
from serverlight.runtime.quotas import Bucket
from serverlight.runtime.security import Security
from serverlight.runtime.tokens import TokenFile
from serverlight.runtime.tracing import HEADER, caller, context_of_caller, read_header
from serverlight.runtime.transport import (
    DEFAULT_MAX_MESSAGE_BYTES,
    Connection,
    Listener,
    MessageServer,
    wire_bytes,
)

__all__ = [
    "ERROR_OF_STATUS",
    "SERVICE",
    "GrpcServer",
    "GrpcTransport",
    "check_health",
    "error_of_status",
]

SERVICE = "serverlight.v1.Tail"
"""The service's full name, also in the health service."""

KEEPALIVE_S = 20.0
"""After so long without a byte either side asks whether the other is still there."""

PING_TIMEOUT_S = 60.0
"""So long it waits for the answer."""

MAX_METADATA_BYTES = 8 * 2**10
"""Headers of a call, all together; a server refuses more before it keeps them."""

_HANDSHAKE_S, _IDLE_CONNECTION_S = 10.0, 60.0
_MAX_CONNECTIONS, _MAX_CALLS_PER_CONNECTION = 1024, 100

_TALK_PER_S, _TALK_AT_ONCE = 200.0, 1000.0
"""Messages of a stream that are no work: so many a second, and so many at once after a rest."""

_GRANT_CHECK_S = 1.0
"""How long a stream may outlive its token."""

ERROR_OF_STATUS: dict[grpc.StatusCode, type[TransportError]] = {
    grpc.StatusCode.OK: PeerUnavailable,  # the server ended the stream in good order
    grpc.StatusCode.CANCELLED: PeerUnavailable,
    grpc.StatusCode.UNKNOWN: RemoteError,
    grpc.StatusCode.INVALID_ARGUMENT: ProtocolError,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.NOT_FOUND: ProtocolError,
    grpc.StatusCode.ALREADY_EXISTS: ProtocolError,
    grpc.StatusCode.PERMISSION_DENIED: ProtocolError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: MessageTooLarge,  # how gRPC reports a message over its limit
    grpc.StatusCode.FAILED_PRECONDITION: ProtocolError,
    grpc.StatusCode.ABORTED: RemoteError,
    grpc.StatusCode.OUT_OF_RANGE: ProtocolError,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,  # somebody else's gRPC server
    grpc.StatusCode.INTERNAL: RemoteError,
    grpc.StatusCode.UNAVAILABLE: PeerUnavailable,
    grpc.StatusCode.DATA_LOSS: RemoteError,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
}
"""Our error for each way in which gRPC can end a stream."""

_REMEDIES: dict[type[TransportError], str] = {
    PeerUnavailable: "is the server up, and the address right?",
    ProtocolError: "is this a serverlight server of the same version?",
    MessageTooLarge: "send smaller batches",
    RemoteError: "the server's log has the details",
    DeadlineExceeded: "allow more time",
    Unauthenticated: "ask who runs the server for a token, and give it with --token-file or in SERVERLIGHT_TOKEN",
}


def error_of_status(code: grpc.StatusCode, details: str | None) -> TransportError:
    """Our error for a stream that gRPC ended with this status."""
    kind = ERROR_OF_STATUS[code]
    return kind(f"{details or code.value[1]}; {_REMEDIES[kind]}")


def _options(max_message_bytes: int) -> list[tuple[str, int]]:
    """What both sides set."""
    return [
        ("grpc.max_receive_message_length", max_message_bytes),
        ("grpc.max_send_message_length", max_message_bytes),
        ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1e3)),
        ("grpc.keepalive_timeout_ms", int(PING_TIMEOUT_S * 1e3)),
        # A ping waits behind the data that the socket has taken: at 1 Mbit/s a large message holds it up for long. So a
        # peer that hangs is found out late, and a request's own deadline comes first.
        ("grpc.http2.ping_timeout_ms", int(PING_TIMEOUT_S * 1e3)),
    ]


# -- the client's side ------------------------------------------------------------------------------


def client_options(max_message_bytes: int) -> list[tuple[str, int]]:
    """What a client's channel sets."""
    return [
        *_options(max_message_bytes),
        ("grpc.http2.max_pings_without_data", 0),
        # Otherwise clients of one process share a TCP connection, and the memory of a failed one.
        ("grpc.use_local_subchannel_pool", 1),
        # A device talks to its server directly; a proxy from the environment is for the web.
        ("grpc.enable_http_proxy", 0),
    ]


class GrpcTransport:
    """One stream to a server at ``HOST:PORT``, on a connection of its own.

    Raises:
        ConfigError: no address, or a token that would travel there without encryption.
    """

    def __init__(
        self,
        address: str,
        *,
        max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
        credentials: Credentials | None = None,
    ) -> None:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError("address", f"must be HOST:PORT, got {address!r}")
        self._credentials = credentials or Credentials()
        self._credentials.check_address(host)
        self._address, self._max_message_bytes = address, max_message_bytes
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._is_closed = False

    def open(self, listener: Listener) -> None:
        """Starts to connect; a server that is not there shows at ``listener.on_closed``."""
        self._channel = open_channel(self._address, self._credentials, client_options(self._max_message_bytes))
        connect = self._channel.stream_stream(f"/{SERVICE}/Connect", None, None)
        self._call = connect(iter(self._outbox.get, None), metadata=_headers(self._credentials))
        self._reader = threading.Thread(target=self._read, args=(listener,), name="serverlight-replies", daemon=True)
        self._reader.start()

    def send(self, message: ClientMessage) -> int:
        """Serialises and queues the message; returns its bytes on the wire."""
        data = encode_client(message)
        if len(data) > self._max_message_bytes:
            raise _too_large(len(data), self._max_message_bytes)
        self._outbox.put(data)
        return wire_bytes(len(data))

    def close(self) -> None:
        """Ends the stream and the connection."""
        if not self._is_closed:
            self._is_closed = True
            self._outbox.put(None)
            self._call.cancel()  # type: ignore[no-untyped-call]
            self._channel.close()
            self._reader.join()

    def _read(self, listener: Listener) -> None:
        error: TransportError = PeerUnavailable(f"{self._address} ended the stream; connect again")
        try:
            for data in self._call:
                listener.on_message(decode_server(data), wire_bytes(len(data)))
        except grpc.RpcError as exc:
            error = self._translate(exc)
        except ProtocolError as exc:
            error = exc
            self._call.cancel()  # type: ignore[no-untyped-call]
        self._outbox.put(None)  # gRPC's own thread waits for what we send next
        listener.on_closed(error)

    def _translate(self, exc: grpc.RpcError) -> TransportError:
        code, details = exc.code(), exc.details()  # the error is also the call
        if self._is_closed:
            return PeerUnavailable("this client is closed; connect again")
        if code is grpc.StatusCode.UNAVAILABLE and (
            error := tls_failure.explain(details or "", self._address, self._credentials)
        ):
            return error
        return error_of_status(code, f"{self._address}: {details}")


def _headers(credentials: Credentials) -> tuple[tuple[str, str], ...]:
    trace = context_of_caller()
    return (*metadata_of(credentials), *(((HEADER, trace),) if trace else ()))


def _too_large(num_bytes: int, limit: int) -> MessageTooLarge:
    return MessageTooLarge(f"a message of {num_bytes} bytes; at most {limit} are taken: send smaller batches")


def check_health(address: str, *, timeout_s: float = 2.0, credentials: Credentials | None = None) -> bool:
    """Asks the standard health service whether the server takes work; raises :class:`TransportError`."""
    with open_channel(address, credentials or Credentials(), [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            request = health_pb2.HealthCheckRequest(service=SERVICE)
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=timeout_s)
        except grpc.RpcError as exc:
            code, details = exc.code(), exc.details()  # the error is also the call
            raise error_of_status(code, f"{address}: {details}") from None
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


# -- the server's side ------------------------------------------------------------------------------


class GrpcServer:
    """Serves a :class:`MessageServer` on a socket, with the standard health service; lives on one event loop."""

    def __init__(
        self,
        core: MessageServer,
        *,
        max_message_bytes: int,
        max_in_flight: int,
        hello_timeout_s: float,
        security: Security | None = None,
        tokens: TokenFile | None = None,
    ) -> None:
        self._core, self._security = core, security or Security()
        self._gate = Gate(tokens) if tokens else None
        self._watching: asyncio.Task[None] | None = None
        self._max_message_bytes, self._max_in_flight = max_message_bytes, max_in_flight
        self._hello_timeout_s = hello_timeout_s
        self._streams: set[_ServerStream] = set()

    async def start(self, host: str, port: int) -> int:
        """Listens and returns the port; raises :class:`AddressInUse` or :class:`ConfigError`."""
        _check_address(host, port)
        self._mailbox = Mailbox(asyncio.get_running_loop())
        options = [
            *_options(self._max_message_bytes),
            ("grpc.so_reuseport", 0),  # else a second server on the port would silently take half of the clients
            ("grpc.http2.min_ping_interval_without_data_ms", int(KEEPALIVE_S * 500)),
            ("grpc.max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", MAX_METADATA_BYTES),
            ("grpc.server_handshake_timeout_ms", int(_HANDSHAKE_S * 1e3)),
            ("grpc.max_connection_idle_ms", int(_IDLE_CONNECTION_S * 1e3)),
            ("grpc.max_allowed_incoming_connections", _MAX_CONNECTIONS),
            ("grpc.max_concurrent_streams", _MAX_CALLS_PER_CONNECTION),
        ]
        self._server = grpc.aio.server(options=options, interceptors=[self._gate] if self._gate else None)
        handlers = {"Connect": grpc.stream_stream_rpc_method_handler(self._connect)}
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        try:
            bound = add_port(self._server, _join_address(host, port), self._security)
        except RuntimeError:
            raise _address_in_use(host, port) from None
        await self._server.start()
        await self.set_serving(True)
        if self._gate:
            self._watching = asyncio.create_task(self._watch(self._gate))
        return bound

    async def set_serving(self, serving: bool) -> None:
        """What the health service answers from now on."""
        status = health_pb2.HealthCheckResponse
        for service in ("", SERVICE):
            await self._health.set(service, status.SERVING if serving else status.NOT_SERVING)

    async def stop(self, grace_s: float) -> None:
        """Ends all streams once their replies are written, then the server."""
        if self._watching:
            self._watching.cancel()
        for stream in self._streams:
            stream.end()
        await self._server.stop(grace_s)

    async def _watch(self, gate: Gate) -> None:
        """Ends the streams of tokens that were withdrawn or are out of date."""
        while True:
            await asyncio.sleep(_GRANT_CHECK_S)
            for stream in self._streams:
                if stream.grant is not None and not gate.holds(stream.grant):
                    stream.connection.fail(Unauthenticated("the token is not valid any more; ask for another"))

    async def _connect(self, _requests: AsyncIterator[bytes], context: Any) -> None:
        stream = _ServerStream(context, self._mailbox, self._max_in_flight, self._max_message_bytes)
        caller.set(read_header(dict(context.invocation_metadata() or ()).get(HEADER)))
        connection = stream.connection = self._core.connect(stream.reply, client=client_name(context))
        self._streams.add(stream)
        reading = asyncio.ensure_future(stream.read(connection, self._hello_timeout_s))
        try:
            await stream.write()
        finally:
            self._streams.discard(stream)
            connection.close()
            reading.cancel()
            stream.forget_replies()
            await asyncio.gather(reading, return_exceptions=True)


_UNANSWERED = OpenSession, CloseSession, Ping
"""Messages that are not answered, or not by what a client could let pile up."""


class _ServerStream:
    """Takes at most so many requests ahead of the replies, so that a client cannot pile up work or unread replies.

    One message more is read, and waits where it is a request: a ping is answered however many are under way. What is no
    work, and keeps the loop busy all the same (pings, sessions that are opened and closed, requests that are refused), is
    read no faster than at a steady rate.
    """

    def __init__(self, context: Any, mailbox: Mailbox, max_in_flight: int, max_message_bytes: int) -> None:
        self._context, self._mailbox = context, mailbox
        self._max_in_flight, self._max_message_bytes = max_in_flight, max_message_bytes
        self._loop = asyncio.get_running_loop()
        self._outbox: asyncio.Queue[tuple[bytes, ServerMessage] | None] = asyncio.Queue()
        self._owes_pong = False
        self._slots = asyncio.Semaphore(max_in_flight)
        self._talk = Bucket(rate_per_s=_TALK_PER_S, capacity=_TALK_AT_ONCE)
        self.grant = granted()
        self.connection: Connection

    def reply(self, message: ServerMessage) -> None:
        """Queues a reply; called from any thread."""
        data = encode_server(message)
        if len(data) > self._max_message_bytes and not isinstance(message, Welcome | Pong):
            error = _too_large(len(data), self._max_message_bytes)
            message = Failure(request_id=message.request_id, error=error)
            data = encode_server(message)
        self._mailbox.put(self._queue, data, message)

    def _queue(self, data: bytes, message: ServerMessage) -> None:
        if isinstance(message, Pong):
            if self._owes_pong:  # one answers all pings of a client that does not read
                return
            self._owes_pong = True
        elif isinstance(message, Failure):
            self._talk.take(1, self._loop.time())
        self._outbox.put_nowait((data, message))

    def end(self) -> None:
        """Ends the stream after what is queued, also where that is still on its way to the loop."""
        self._loop.call_soon(self._outbox.put_nowait, None)

    def forget_replies(self) -> None:
        """Nobody waits for the client to take them any more: gRPC may answer a read that is cancelled with the client's end,
        and then the reader waits for its replies.
        """
        for _ in range(self._max_in_flight):
            self._slots.release()

    async def write(self) -> None:
        """Writes replies until the stream ends."""
        while (item := await self._outbox.get()) is not None:
            data, message = item
            await self._context.write(data)
            if isinstance(message, Pong):
                self._owes_pong = False
                continue
            self._slots.release()
            if isinstance(message, Failure) and message.request_id == 0:
                return

    async def read(self, connection: Connection, hello_timeout_s: float) -> None:
        """Hands messages to the connection until the client ends the stream."""
        try:
            await self._read_one(connection, hello_timeout_s)
            while not connection.over and await self._read_one(connection, None):
                pass
            # The client has said all it had to say; it still gets what is under way.
            for _ in range(self._max_in_flight):
                await self._slots.acquire()
        finally:
            self.end()

    async def _read_one(self, connection: Connection, timeout_s: float | None) -> bool:
        if (pause_s := self._talk.wait_s(1, self._loop.time())) > 0:
            await asyncio.sleep(pause_s)
        try:
            data = await asyncio.wait_for(self._context.read(), timeout_s)
            if data is grpc.aio.EOF:  # type: ignore[attr-defined]
                return False
            connection.check_size(len(data))
            message = decode_client(data)
            if isinstance(message, _UNANSWERED):
                self._talk.take(1, self._loop.time())
            else:
                await self._slots.acquire()
            connection.receive(message)
        except TimeoutError:
            connection.fail(ProtocolError(f"no Hello within {timeout_s} s"))
        except TransportError as error:
            connection.fail(error)
        return True


# -- addresses --------------------------------------------------------------------------------------


def _check_address(host: str, port: int) -> None:
    """Finds out by itself why an address cannot be had: gRPC only says that it cannot."""
    try:
        candidates = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, OverflowError) as exc:
        raise ConfigError("host", f"cannot resolve {host!r}: {exc}") from None
    family, kind, protocol, _, address = candidates[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                raise _address_in_use(host, port) from None
            raise ConfigError("host", f"cannot listen on {_join_address(host, port)}: {exc.strerror}") from None


def _address_in_use(host: str, port: int) -> AddressInUse:
    return AddressInUse(f"{_join_address(host, port)} is taken; choose another port, or 0 for any free one")


def _join_address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
