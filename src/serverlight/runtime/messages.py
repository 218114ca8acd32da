"""The messages of docs/session-protocol.md, as plain data: no tensors, no sockets, no protobuf."""

from __future__ import annotations

from dataclasses import dataclass

from serverlight.errors import ServerlightError

__all__ = [
    "PROTOCOL_VERSION",
    "ClientMessage",
    "Failure",
    "Frame",
    "Hello",
    "Image",
    "InferReply",
    "InferRequest",
    "Payload",
    "RawTensor",
    "ServerMessage",
    "Timing",
    "Welcome",
]

PROTOCOL_VERSION = 1
"""Version of docs/session-protocol.md; both sides must have the same."""


# -- payloads ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Frame:
    """One encoded tensor (docs/wire-format.md)."""

    data: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class RawTensor:
    """One tensor as it is: row-major, little-endian."""

    dtype: str
    """Element type as torch names it: ``float32``, ``int64``, ..."""

    shape: tuple[int, ...]
    """Dimensions, outermost first."""

    data: bytes
    """The elements."""

    name: str = ""
    """The output's name; empty on the way up."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """One picture as PNG or JPEG, for the cut ``input`` only."""

    data: bytes


Payload = Frame | RawTensor | Image


# -- messages ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Hello:
    """The client's first message."""

    plan_json: str
    """The client's :class:`~serverlight.plan.Plan`."""

    protocol_version: int = PROTOCOL_VERSION
    """What the client speaks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Welcome:
    """The server's answer to a :class:`Hello` that it accepts."""

    max_message_bytes: int
    """The largest client message that the server reads."""

    max_batch: int
    """The most samples in one request."""

    max_in_flight: int
    """Requests without a reply that the server reads from one stream; it leaves further ones unread."""

    protocol_version: int = PROTOCOL_VERSION
    """What the server speaks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InferRequest:
    """Run the tail once."""

    request_id: int
    """From 1, strictly increasing within a stream."""

    payloads: tuple[Payload, ...]
    """One per tensor of the cut, in its order; or images only."""

    deadline_ms: int | None = None
    """How long the answer is worth having, from the server's reading of the request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Timing:
    """Where the server's time went, in milliseconds."""

    queue_ms: float
    """From reading the request to starting on it."""

    decode_ms: float
    """From payloads to tensors."""

    tail_ms: float
    """From tensors to outputs."""

    cpu_ms: float
    """CPU time of the compute thread for this request."""

    process_cpu_ms: float
    """CPU time of the whole server process since it started."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InferReply:
    """What the tail made of one request."""

    request_id: int
    """The request's."""

    outputs: tuple[RawTensor, ...]
    """The outputs as a flat list; the client knows their structure."""

    timing: Timing
    """Where the server's time went."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """One request failed, or with ``request_id`` 0 the whole stream did."""

    request_id: int
    """The request's, or 0."""

    error: ServerlightError
    """What happened."""


ClientMessage = Hello | InferRequest
ServerMessage = Welcome | InferReply | Failure
