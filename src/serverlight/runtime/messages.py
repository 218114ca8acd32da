"""The messages of docs/session-protocol.md, as plain data: no tensors, no sockets, no protobuf."""

from __future__ import annotations

from dataclasses import dataclass

from serverlight.errors import ServerlightError
from serverlight.plan import id_bytes
from serverlight.sampling import Sampling, Score

__all__ = [
    "PROTOCOL_VERSION",
    "ClientMessage",
    "CloseSession",
    "Failure",
    "Frame",
    "Hello",
    "Image",
    "InferReply",
    "InferRequest",
    "MoveCut",
    "OpenSession",
    "Payload",
    "Piece",
    "Ping",
    "Pong",
    "RawTensor",
    "ServerMessage",
    "Step",
    "StepReply",
    "Timing",
    "Welcome",
    "payload_bytes",
    "piece_bytes",
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

Piece = bytes | tuple[int, ...]
"""What goes up of some tokens of a sequence: the frame of their hidden states, or their ids."""


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

    cuts: tuple[str, ...] = ()
    """The cuts that the server serves; empty where it does not say."""

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
    """From tensors to outputs; of a step, to the logits."""

    cpu_ms: float
    """CPU time of the compute thread for this request."""

    process_cpu_ms: float
    """CPU time of the whole server process since it started."""

    sample_ms: float = 0.0
    """Of a step: choosing the token, or encoding what goes back."""

    batch_size: int = 1
    """How many requests ran together, this one included; 0 where the server does not say."""

    @property
    def total_ms(self) -> float:
        """From reading the request to the reply."""
        return self.queue_ms + self.decode_ms + self.tail_ms + self.sample_ms


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


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenSession:
    """Begin a sequence of a language model; a stream has one at a time."""

    sampling: Sampling
    """How the server chooses tokens."""

    cut: str = ""
    """Where the sequence is cut; empty where the plan says."""

    seen: tuple[int, ...] = ()
    """Tokens that occurred in the sequence before the first that the server will choose; for a repetition penalty only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """The next tokens of the session's sequence, as hidden states or as they are."""

    step: int
    """From 1, rising by one."""

    frames: tuple[bytes, ...] = ()
    """Encoded hidden states ``[1, tokens, hidden]``, which follow each other in the sequence."""

    token_ids: tuple[int, ...] = ()
    """In place of frames, at ``layers.0``: the tokens themselves."""

    more: bool = False
    """Whether the prompt goes on, so that no token is wanted yet."""

    quiet: bool = False
    """Of a plan with a second cut: whether the hidden states there are not wanted back."""

    targets: tuple[int, ...] = ()
    """The tokens that follow the step's last ones, where it is wanted how likely they are and not which token follows."""

    @property
    def request_id(self) -> int:
        """What a :class:`Failure` of this step is known by."""
        return self.step

    @property
    def deadline_ms(self) -> None:
        """A step is never skipped: those after it build on it."""
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class MoveCut:
    """The server takes over one layer, with the keys and values of all tokens so far; numbered with the steps."""

    step: int
    """The number after that of the step before."""

    layer: int
    """The layer before the session's first one."""

    keys: bytes
    """A frame ``[heads, kept tokens, head size]``."""

    values: bytes
    """Likewise."""

    @property
    def request_id(self) -> int:
        """As :attr:`Step.request_id`."""
        return self.step

    @property
    def deadline_ms(self) -> None:
        """As :attr:`Step.deadline_ms`."""
        return None


@dataclass(frozen=True, kw_only=True, slots=True)
class CloseSession:
    """The sequence is over; the server forgets it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ping:
    """Asks whether the server is alive."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pong:
    """It is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReply:
    """What a step gave."""

    step: int
    """The step's."""

    token_id: int | None
    """The token that follows, or ``None`` where the prompt goes on, a layer moved, or the device chooses."""

    timing: Timing
    """Where the server's time went."""

    logprob: float | None = None
    """Of the token, where the session asked: :attr:`serverlight.sampling.Choice.logprob`."""

    top_logprobs: tuple[tuple[int, float], ...] = ()
    """Likewise."""

    frames: tuple[bytes, ...] = ()
    """Hidden states ``[1, tokens, hidden]`` at the plan's second cut, one for each frame of the step."""

    scores: tuple[Score, ...] = ()
    """One for each of the step's targets."""

    @property
    def request_id(self) -> int:
        """As :attr:`Step.request_id`."""
        return self.step


ClientMessage = Hello | InferRequest | OpenSession | Step | MoveCut | CloseSession | Ping
ServerMessage = Welcome | InferReply | StepReply | Failure | Pong


def piece_bytes(piece: Piece) -> int:
    """Bytes of a frame, or of ids.

    >>> piece_bytes(b"abc"), piece_bytes((1, 300))
    (3, 3)
    """
    return len(piece) if isinstance(piece, bytes) else id_bytes(piece)


def payload_bytes(message: InferRequest | Step | MoveCut) -> int:
    """Bytes of frames, tensors, images and token ids in a request.

    >>> payload_bytes(InferRequest(request_id=1, payloads=(Frame(data=b"abc"), Image(data=b"de"))))
    5
    """
    match message:
        case InferRequest():
            return sum(len(payload.data) for payload in message.payloads)
        case Step():
            return sum(map(len, message.frames)) + id_bytes(message.token_ids)
        case MoveCut():
            return len(message.keys) + len(message.values)
