"""Messages from strangers: whatever the bytes, they are a message or a ProtocolError."""

from __future__ import annotations

import contextlib

from hypothesis import given
from hypothesis import strategies as st

from serverlight.errors import ProtocolError
from serverlight.runtime.conversion import decode_client, decode_server, encode_client, encode_server
from serverlight.runtime.messages import (
    CloseSession,
    Failure,
    MoveCut,
    OpenSession,
    Ping,
    Pong,
    ServerMessage,
    Step,
    StepReply,
    Timing,
)
from serverlight.sampling import Sampling, Score

TIMING = Timing(queue_ms=0.5, decode_ms=1.5, tail_ms=2.5, cpu_ms=3.5, process_cpu_ms=4.5, sample_ms=5.5)
CLIENT = [
    encode_client(message)
    for message in (
        OpenSession(sampling=Sampling(temperature=0.7, top_k=5, seed=2**63, logprobs=3), cut="layers.2", seen=(1, 300)),
        Step(step=70_000, frames=(b"frame", b"x" * 200), more=True, quiet=True),
        Step(step=2, frames=(b"frame",), targets=(1, 70_000)),
        MoveCut(step=3, layer=2, keys=b"keys", values=b"values"),
        CloseSession(),
        Ping(),
    )
]
SERVER = [
    encode_server(message)
    for message in (
        StepReply(step=9, token_id=70_000, timing=TIMING, logprob=-0.5, top_logprobs=((1, -0.5), (2, -3.0))),
        StepReply(step=9, token_id=None, timing=TIMING, frames=(b"frame", b"")),
        StepReply(step=9, token_id=None, timing=TIMING, scores=(Score(-0.5, True), Score(-3.0, False))),
        Failure(request_id=4, error=ProtocolError("why")),
        Pong(),
    )
]


@st.composite
def mutated(draw: st.DrawFn, samples: list[bytes]) -> bytes:
    """A message with bytes replaced, taken out, put in or said twice, or only bytes."""
    data = bytearray(draw(st.sampled_from([b"", *samples])))
    for _ in range(draw(st.integers(0, 4))):
        start, size = draw(st.integers(0, len(data))), draw(st.integers(0, 6))
        data[start : start + size] = draw(st.one_of(st.binary(max_size=6), st.just(bytes(data))))
    return bytes(data)


@given(mutated(CLIENT))
def test_what_a_client_may_send(data: bytes) -> None:
    """Bytes from a client are a message, the failure of one step, or a ProtocolError; a message is said again alike."""
    try:
        message = decode_client(data)
    except ProtocolError:
        return
    if isinstance(message, Failure):
        assert message.request_id >= 1
        assert isinstance(message.error, ProtocolError)
    else:
        assert decode_client(encode_client(message)) == message


@given(mutated(SERVER))
def test_what_a_server_may_send(data: bytes) -> None:
    """Bytes from a server are a message or a ProtocolError."""
    with contextlib.suppress(ProtocolError):
        assert isinstance(decode_server(data), ServerMessage)
