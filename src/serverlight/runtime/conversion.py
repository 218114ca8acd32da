"""Messages to protobuf bytes and back; every size that a stranger sends is proved before it is used."""

from __future__ import annotations

import math
from typing import TypeVar

from google.protobuf.message import DecodeError

from serverlight.errors import ConfigError, ProtocolError
from serverlight.runtime import failure
from serverlight.runtime import serverlight_pb2 as pb
from serverlight.runtime.messages import (
    ClientMessage,
    CloseSession,
    Failure,
    Frame,
    Hello,
    Image,
    InferReply,
    InferRequest,
    MoveCut,
    OpenSession,
    Payload,
    Ping,
    Pong,
    RawTensor,
    ServerMessage,
    Step,
    StepReply,
    Timing,
    Welcome,
)
from serverlight.sampling import Sampling, Score

__all__ = ["DTYPE_BYTES", "decode_client", "decode_server", "encode_client", "encode_server"]

DTYPE_BYTES = {
    "bool": 1, "uint8": 1, "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8,
}  # fmt: skip
"""Bytes of one element of every dtype that a raw tensor may have."""

_M = TypeVar("_M", pb.ClientMessage, pb.ServerMessage)

MAX_RANK = 8
"""As in docs/wire-format.md."""

MAX_EXTENT_BYTES = 2**62
"""Strides are 64-bit integers, also those of an empty tensor with a huge dimension."""

MAX_STEP_FRAMES = 4096
"""A session replayed after a lost connection has one frame for each token."""

MAX_STEP_TOKENS = 2**17
"""Token ids in a step; a context may be as long."""

MAX_PLAN_CHARS = 64 * 2**10
"""A plan takes a few hundred characters."""


# -- the client's messages --------------------------------------------------------------------------


def encode_client(message: ClientMessage) -> bytes:
    """Serialises what the client says."""
    match message:
        case Hello():
            hello = pb.Hello(protocol_version=message.protocol_version, plan_json=message.plan_json)
            return pb.ClientMessage(hello=hello).SerializeToString()
        case InferRequest():
            payloads = [_payload_to_pb(payload) for payload in message.payloads]
            infer = pb.InferRequest(
                request_id=message.request_id, payloads=payloads, deadline_ms=message.deadline_ms or 0
            )
            return pb.ClientMessage(infer=infer).SerializeToString()
        case OpenSession():
            opened = pb.OpenSession(sampling=_sampling_to_pb(message.sampling), cut=message.cut, seen=message.seen)
            return pb.ClientMessage(open=opened).SerializeToString()
        case Step():
            step = pb.Step(
                step=message.step,
                frames=message.frames,
                token_ids=message.token_ids,
                more=message.more,
                quiet=message.quiet,
                targets=message.targets,
            )
            return pb.ClientMessage(step=step).SerializeToString()
        case MoveCut():
            move = pb.MoveCut(step=message.step, layer=message.layer, keys=message.keys, values=message.values)
            return pb.ClientMessage(move=move).SerializeToString()
        case CloseSession():
            return pb.ClientMessage(close=pb.CloseSession()).SerializeToString()
        case Ping():
            return pb.ClientMessage(ping=pb.Ping()).SerializeToString()


def decode_client(data: bytes) -> ClientMessage | Failure:
    """Parses what a client said.

    A request with an id but a payload that no server could take becomes the :class:`Failure` to answer it with. Raises
    :class:`ProtocolError` for bytes that are no message at all.
    """
    message = _parse(pb.ClientMessage(), data)
    match message.WhichOneof("body"):
        case "hello":
            return _hello_from_pb(message.hello)
        case "infer":
            return _request_from_pb(message.infer)
        case "open":
            return _open_from_pb(message.open)
        case "step":
            return _step_from_pb(message.step)
        case "move":
            return _move_from_pb(message.move)
        case "close":
            return CloseSession()
        case "ping":
            return Ping()
    raise ProtocolError("an empty message, or one of a newer protocol; update the older side")


def _hello_from_pb(hello: pb.Hello) -> Hello:
    if len(hello.plan_json) > MAX_PLAN_CHARS:
        raise ProtocolError(f"a plan of {len(hello.plan_json)} characters; at most {MAX_PLAN_CHARS} are read")
    return Hello(protocol_version=hello.protocol_version, plan_json=hello.plan_json)


def _request_from_pb(infer: pb.InferRequest) -> InferRequest | Failure:
    if infer.request_id == 0:
        raise ProtocolError("request_id 0 stands for the stream; number requests from 1")
    try:
        payloads = tuple(_payload_from_pb(payload) for payload in infer.payloads)
    except ProtocolError as error:
        return Failure(request_id=infer.request_id, error=error)
    return InferRequest(request_id=infer.request_id, payloads=payloads, deadline_ms=infer.deadline_ms or None)


def _step_from_pb(step: pb.Step) -> Step | Failure:
    if step.step == 0:
        raise ProtocolError("step 0 stands for the stream; number steps from 1")
    frames, ids = len(step.frames), len(step.token_ids)
    if frames > MAX_STEP_FRAMES or ids > MAX_STEP_TOKENS or (frames > 0) == (ids > 0):
        error = ProtocolError(
            f"a step of {frames} frames and {ids} token ids; send 1 to {MAX_STEP_FRAMES} frames, or 1 to {MAX_STEP_TOKENS} ids"
        )
        return Failure(request_id=step.step, error=error)
    return Step(
        step=step.step,
        frames=tuple(step.frames),
        token_ids=tuple(step.token_ids),
        more=step.more,
        quiet=step.quiet,
        targets=tuple(step.targets),
    )


def _move_from_pb(move: pb.MoveCut) -> MoveCut:
    if move.step == 0:
        raise ProtocolError("step 0 stands for the stream; number steps from 1")
    return MoveCut(step=move.step, layer=move.layer, keys=move.keys, values=move.values)


def _open_from_pb(opened: pb.OpenSession) -> OpenSession:
    return OpenSession(sampling=_sampling_from_pb(opened.sampling), cut=opened.cut, seen=tuple(opened.seen))


def _sampling_to_pb(sampling: Sampling) -> pb.Sampling:
    return pb.Sampling(
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p,
        seed=sampling.seed,
        repetition_penalty=sampling.repetition_penalty if sampling.weighs_repetition else 0.0,
        logprobs=sampling.logprobs,
    )


def _sampling_from_pb(sampling: pb.Sampling) -> Sampling:
    try:
        return Sampling(
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p or 1.0,
            min_p=sampling.min_p,
            seed=sampling.seed,
            repetition_penalty=sampling.repetition_penalty or 1.0,
            logprobs=sampling.logprobs if sampling.HasField("logprobs") else None,
        )
    except ConfigError as error:
        raise ProtocolError(f"the session's sampling cannot be used: {error}") from None


def _payload_to_pb(payload: Payload) -> pb.Payload:
    match payload:
        case Frame():
            return pb.Payload(frame=payload.data)
        case Image():
            return pb.Payload(image=payload.data)
        case RawTensor():
            return pb.Payload(raw=_tensor_to_pb(payload))


def _payload_from_pb(payload: pb.Payload) -> Payload:
    match payload.WhichOneof("content"):
        case "frame":
            return Frame(data=payload.frame)
        case "image":
            return Image(data=payload.image)
        case "raw":
            return _tensor_from_pb(payload.raw)
    raise ProtocolError("a payload without content; send a frame, a raw tensor or an image")


# -- the server's messages --------------------------------------------------------------------------


def encode_server(message: ServerMessage) -> bytes:
    """Serialises what the server says."""
    match message:
        case Welcome():
            welcome = pb.Welcome(
                protocol_version=message.protocol_version,
                max_message_bytes=message.max_message_bytes,
                max_batch=message.max_batch,
                max_in_flight=message.max_in_flight,
                cuts=message.cuts,
            )
            return pb.ServerMessage(welcome=welcome).SerializeToString()
        case InferReply():
            outputs = [_tensor_to_pb(output) for output in message.outputs]
            infer = pb.InferReply(request_id=message.request_id, outputs=outputs, timing=_timing_to_pb(message.timing))
            return pb.ServerMessage(infer=infer).SerializeToString()
        case StepReply():
            return pb.ServerMessage(step=_step_reply_to_pb(message)).SerializeToString()
        case Failure():
            code, text, attributes_json = failure.describe(message.error)
            error = pb.Error(request_id=message.request_id, code=code, message=text, attributes_json=attributes_json)
            return pb.ServerMessage(error=error).SerializeToString()
        case Pong():
            return pb.ServerMessage(pong=pb.Pong()).SerializeToString()


def decode_server(data: bytes) -> ServerMessage:
    """Parses what a server said; raises :class:`ProtocolError`."""
    message = _parse(pb.ServerMessage(), data)
    match message.WhichOneof("body"):
        case "welcome":
            return _welcome_from_pb(message.welcome)
        case "infer":
            return _reply_from_pb(message.infer)
        case "step":
            return _step_reply_from_pb(message.step)
        case "error":
            error = failure.rebuild(message.error.code, message.error.message, message.error.attributes_json)
            return Failure(request_id=message.error.request_id, error=error)
        case "pong":
            return Pong()
    raise ProtocolError("an empty message, or one of a newer protocol; update the older side")


def _welcome_from_pb(welcome: pb.Welcome) -> Welcome:
    return Welcome(
        protocol_version=welcome.protocol_version,
        max_message_bytes=welcome.max_message_bytes,
        max_batch=welcome.max_batch,
        max_in_flight=welcome.max_in_flight,
        cuts=tuple(welcome.cuts),
    )


def _reply_from_pb(infer: pb.InferReply) -> InferReply:
    return InferReply(
        request_id=infer.request_id,
        outputs=tuple(_tensor_from_pb(output) for output in infer.outputs),
        timing=_timing_from_pb(infer.timing),
    )


def _step_reply_to_pb(reply: StepReply) -> pb.StepReply:
    logprobs = None
    if reply.logprob is not None:
        ids, values = zip(*reply.top_logprobs, strict=True) if reply.top_logprobs else ((), ())
        logprobs = pb.Logprobs(chosen=reply.logprob, ids=ids, values=values)
    timing = _timing_to_pb(reply.timing)
    return pb.StepReply(
        step=reply.step,
        token_id=reply.token_id,
        timing=timing,
        logprobs=logprobs,
        frames=reply.frames,
        target_logprobs=[score.logprob for score in reply.scores],
        target_likeliest=[score.is_likeliest for score in reply.scores],
    )


def _step_reply_from_pb(step: pb.StepReply) -> StepReply:
    if len(step.logprobs.ids) != len(step.logprobs.values):
        raise ProtocolError(f"{len(step.logprobs.ids)} likeliest tokens with {len(step.logprobs.values)} probabilities")
    if len(step.target_logprobs) != len(step.target_likeliest):
        raise ProtocolError(
            f"{len(step.target_logprobs)} targets' probabilities with {len(step.target_likeliest)} ranks"
        )
    return StepReply(
        step=step.step,
        token_id=step.token_id if step.HasField("token_id") else None,
        timing=_timing_from_pb(step.timing),
        logprob=step.logprobs.chosen if step.HasField("logprobs") else None,
        top_logprobs=tuple(zip(step.logprobs.ids, step.logprobs.values, strict=True)),
        frames=tuple(step.frames),
        scores=tuple(map(Score, step.target_logprobs, step.target_likeliest)),
    )


def _timing_from_pb(timing: pb.Timing) -> Timing:
    return Timing(
        queue_ms=timing.queue_ms,
        decode_ms=timing.decode_ms,
        tail_ms=timing.tail_ms,
        cpu_ms=timing.cpu_ms,
        process_cpu_ms=timing.process_cpu_ms,
        sample_ms=timing.sample_ms,
        batch_size=timing.batch_size,
    )


def _timing_to_pb(timing: Timing) -> pb.Timing:
    return pb.Timing(
        queue_ms=timing.queue_ms,
        decode_ms=timing.decode_ms,
        tail_ms=timing.tail_ms,
        cpu_ms=timing.cpu_ms,
        process_cpu_ms=timing.process_cpu_ms,
        sample_ms=timing.sample_ms,
        batch_size=timing.batch_size,
    )


# -- both ways --------------------------------------------------------------------------------------


def _tensor_to_pb(tensor: RawTensor) -> pb.Tensor:
    return pb.Tensor(dtype=tensor.dtype, shape=tensor.shape, data=tensor.data, name=tensor.name)


def _tensor_from_pb(tensor: pb.Tensor) -> RawTensor:
    itemsize = DTYPE_BYTES.get(tensor.dtype)
    if itemsize is None:
        raise ProtocolError(f"dtype {tensor.dtype[:40]!r} cannot be sent raw; choose from {', '.join(DTYPE_BYTES)}")
    if len(tensor.shape) > MAX_RANK:
        raise ProtocolError(f"a raw tensor of rank {len(tensor.shape)}; at most {MAX_RANK} dimensions are read")
    # Python's integers do not overflow, so a shape that claims terabytes is caught here, before anything is allocated.
    if math.prod(max(size, 1) for size in tensor.shape) * itemsize > MAX_EXTENT_BYTES:
        raise ProtocolError(f"a raw tensor of shape {tuple(tensor.shape)}, which no machine can index")
    num_bytes = math.prod(tensor.shape) * itemsize
    if num_bytes != len(tensor.data):
        raise ProtocolError(
            f"a raw {tensor.dtype} tensor of shape {tuple(tensor.shape)} takes {num_bytes} bytes, {len(tensor.data)} came"
        )
    return RawTensor(dtype=tensor.dtype, shape=tuple(tensor.shape), data=tensor.data, name=tensor.name)


def _parse(message: _M, data: bytes) -> _M:
    try:
        message.ParseFromString(data)
    except DecodeError:
        raise ProtocolError("bytes that are no message of this protocol; is the other side serverlight?") from None
    return message
