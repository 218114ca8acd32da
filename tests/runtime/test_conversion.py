from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serverlight.errors import ProtocolError, ServerBusy
from serverlight.runtime import serverlight_pb2 as pb
from serverlight.runtime.conversion import (
    DTYPE_BYTES,
    MAX_STEP_TOKENS,
    decode_client,
    decode_server,
    encode_client,
    encode_server,
)
from serverlight.runtime.messages import (
    Failure,
    Frame,
    Hello,
    Image,
    InferReply,
    InferRequest,
    RawTensor,
    Step,
    Timing,
    Welcome,
)

TIMING = Timing(queue_ms=0.5, decode_ms=1.25, tail_ms=2.5, cpu_ms=3.75, process_cpu_ms=123456.789, sample_ms=0.125)
RAW = RawTensor(dtype="int64", shape=(1, 2), data=bytes(16))


@pytest.mark.parametrize(
    "message",
    [
        Hello(plan_json='{"cut":"é"}', protocol_version=7),
        InferRequest(request_id=1, payloads=()),
        InferRequest(
            request_id=2**63, payloads=(Frame(data=b"f"), RAW, Image(data=b""), Frame(data=b"")), deadline_ms=5
        ),
        InferRequest(request_id=3, payloads=(RawTensor(dtype="float32", shape=(), data=bytes(4)),)),
        InferRequest(request_id=3, payloads=(RawTensor(dtype="bool", shape=(0, 5), data=b""),)),
        Step(step=4, token_ids=(0, 5, 2**32 - 1), more=True),
    ],
)
def test_round_trip_client(message: Hello | InferRequest | Step) -> None:
    """What a client says arrives as it was said; rank 0 and empty tensors too."""
    assert decode_client(encode_client(message)) == message


@pytest.mark.parametrize(
    "message",
    [
        Welcome(max_message_bytes=2**40, max_batch=3, max_in_flight=4, protocol_version=9),
        InferReply(request_id=5, outputs=(), timing=TIMING),
        InferReply(
            request_id=5, outputs=(RawTensor(dtype="uint8", shape=(3,), data=b"abc", name="logits"),), timing=TIMING
        ),
    ],
)
def test_round_trip_server(message: Welcome | InferReply) -> None:
    """What a server says arrives as it was said."""
    assert decode_server(encode_server(message)) == message


def test_far_too_many_ids() -> None:
    """A step of more ids than any context holds, or of frames as well, is answered by its number."""
    for step in (
        Step(step=4, token_ids=(1,) * (MAX_STEP_TOKENS + 1)),
        Step(step=4, token_ids=(1,), frames=(b"x",)),
        Step(step=4),
    ):
        answer = decode_client(encode_client(step))
        assert isinstance(answer, Failure)
        assert (answer.request_id, type(answer.error)) == (4, ProtocolError)


def test_round_trip_failure() -> None:
    """A failure keeps its request and its error."""
    arrived = decode_server(encode_server(Failure(request_id=9, error=ServerBusy(30))))
    assert isinstance(arrived, Failure)
    assert arrived.request_id == 9
    assert isinstance(arrived.error, ServerBusy)
    assert arrived.error.retry_after_ms == 30


def as_request(**tensor: object) -> bytes:
    raw = pb.Tensor(**tensor)  # type: ignore[arg-type]
    return pb.ClientMessage(infer=pb.InferRequest(request_id=4, payloads=[pb.Payload(raw=raw)])).SerializeToString()


@pytest.mark.parametrize(
    ("tensor", "complaint"),
    [
        ({"dtype": "float32", "shape": [2**40], "data": b""}, "4398046511104 bytes, 0 came"),
        ({"dtype": "float32", "shape": [2**33, 2**33], "data": b"1234"}, "no machine can index"),
        ({"dtype": "float32", "shape": [0, 2**63], "data": b""}, "no machine can index"),
        ({"dtype": "float32", "shape": [2], "data": b"1234567"}, "8 bytes, 7 came"),
        ({"dtype": "float32", "shape": [1], "data": b"12345"}, "4 bytes, 5 came"),
        ({"dtype": "float32", "data": b""}, "4 bytes, 0 came"),
        ({"dtype": "float32", "shape": [1] * 9, "data": b"1234"}, "rank 9"),
        ({"dtype": "complex64", "shape": [1], "data": b"12345678"}, "complex64"),
        ({"dtype": "object", "shape": [1], "data": b"12345678"}, "object"),
        ({"dtype": "", "shape": [1], "data": b"1"}, "dtype ''"),
    ],
)
def test_rejects_raw_tensor_that_lies(tensor: dict[str, object], complaint: str) -> None:
    """A raw tensor whose size is not what it claims fails its own request, before anything is allocated."""
    rejected = decode_client(as_request(**tensor))
    assert isinstance(rejected, Failure)
    assert rejected.request_id == 4
    assert isinstance(rejected.error, ProtocolError)
    assert complaint in str(rejected.error)


def test_rejects_payload_without_content() -> None:
    """A payload of a kind that this version does not know fails its own request."""
    rejected = decode_client(
        pb.ClientMessage(infer=pb.InferRequest(request_id=4, payloads=[pb.Payload()])).SerializeToString()
    )
    assert isinstance(rejected, Failure)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff" * 100,
        pb.ClientMessage(infer=pb.InferRequest(request_id=0)).SerializeToString(),
        pb.ClientMessage(hello=pb.Hello(plan_json="x" * 100_000)).SerializeToString(),
    ],
)
def test_rejects_what_is_no_message(data: bytes) -> None:
    """Bytes that are no message, or one that cannot be answered by its id, end the stream."""
    with pytest.raises(ProtocolError):
        decode_client(data)


def test_client_rejects_a_lying_server() -> None:
    """A client checks the server's tensors as well."""
    raw = pb.Tensor(dtype="float32", shape=[2**50], data=b"")
    data = pb.ServerMessage(infer=pb.InferReply(request_id=1, outputs=[raw])).SerializeToString()
    with pytest.raises(ProtocolError, match="bytes, 0 came"):
        decode_server(data)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_our_error(data: bytes) -> None:
    """No bytes make the parser raise anything but ProtocolError."""
    for decode in (decode_client, decode_server):
        with contextlib.suppress(ProtocolError):
            decode(data)


@given(st.sampled_from(sorted(DTYPE_BYTES)), st.lists(st.integers(0, 4), max_size=8))
def test_round_trip_any_raw_tensor(dtype: str, shape: list[int]) -> None:
    """Every allowed dtype and shape passes with exactly its own number of bytes."""
    num_bytes = DTYPE_BYTES[dtype]
    for size in shape:
        num_bytes *= size
    message = InferRequest(request_id=1, payloads=(RawTensor(dtype=dtype, shape=tuple(shape), data=bytes(num_bytes)),))
    assert decode_client(encode_client(message)) == message
