"""The client's end of a stream on an event loop; light enough for very many of them in one process."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import grpc.aio

from serverlight.errors import PeerUnavailable, TransportError
from serverlight.runtime.conversion import decode_server, encode_client
from serverlight.runtime.grpc_transport import SERVICE, client_options, error_of_status
from serverlight.runtime.messages import ClientMessage, ServerMessage
from serverlight.runtime.transport import DEFAULT_MAX_MESSAGE_BYTES, wire_bytes

__all__ = ["AsyncGrpcStream"]


class AsyncGrpcStream:
    """One stream to a server at ``HOST:PORT`` on the running event loop, message by message, on a connection of its own.

    It has no timeouts, and brings neither certificates nor a token.
    """

    def __init__(self, address: str, *, max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES) -> None:
        self._address = address
        self._channel = grpc.aio.insecure_channel(address, options=client_options(max_message_bytes))
        # The types of the package know no call whose messages are written one by one.
        self._call: Any = self._channel.stream_stream(f"/{SERVICE}/Connect", None, None)()  # type: ignore[call-arg]

    async def send(self, message: ClientMessage) -> int:
        """Sends the message when there is room for it; returns its bytes on the wire. Raises :class:`TransportError`."""
        data = encode_client(message)
        try:
            await self._call.write(data)
        except (grpc.RpcError, asyncio.InvalidStateError) as exc:
            raise await self._reason(exc) from None
        return wire_bytes(len(data))

    async def receive(self) -> ServerMessage:
        """The next message; raises :class:`TransportError`, also where the server has ended the stream."""
        try:
            data = await self._call.read()
        except grpc.RpcError as exc:
            raise await self._reason(exc) from None
        if data is grpc.aio.EOF:  # type: ignore[attr-defined]
            raise PeerUnavailable(f"{self._address} ended the stream; connect again")
        return decode_server(data)

    async def close(self) -> None:
        """Ends the stream and the connection."""
        self._call.cancel()
        await self._channel.close(None)

    async def _reason(self, exc: Exception) -> TransportError:
        code, details = await self._call.code(), await self._call.details()
        return error_of_status(code, f"{self._address}: {details or exc}")
