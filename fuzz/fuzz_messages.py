"""Coverage-guided fuzzing of the readers of messages: whatever the bytes, they are a message or a ProtocolError.

    make fuzz-messages ARGS="-runs=1000000"      # any libFuzzer option; a corpus folder may be named too

The last bit of an input says whether a client or a server sent it. What is read must be a message of that side, and must be read
the same again when it is written.
"""

from __future__ import annotations

import pathlib
import sys

import atheris

with atheris.instrument_imports(include=["serverlight.runtime"]):
    from serverlight.errors import ProtocolError
    from serverlight.runtime.conversion import decode_client, decode_server, encode_client, encode_server
    from serverlight.runtime.messages import (
        CloseSession,
        Failure,
        Frame,
        Hello,
        Image,
        InferReply,
        InferRequest,
        MoveCut,
        OpenSession,
        Ping,
        Pong,
        RawTensor,
        Step,
        StepReply,
        Timing,
        Welcome,
    )
    from serverlight.sampling import Sampling

RAW = RawTensor(dtype="int64", shape=(1, 2), data=bytes(16), name="logits")
TIMING = Timing(queue_ms=0.5, decode_ms=1.5, tail_ms=2.5, cpu_ms=3.5, process_cpu_ms=4.5, sample_ms=5.5)
CLIENT = (
    Hello(plan_json="{}"),
    InferRequest(request_id=1, payloads=(Frame(data=b"f"), RAW, Image(data=b"i")), deadline_ms=5),
    OpenSession(sampling=Sampling(temperature=0.7, seed=5, logprobs=3), cut="layers.2", seen=(1, 300)),
    Step(step=70_000, frames=(b"frame", b"x" * 200), more=True, quiet=True),
    MoveCut(step=3, layer=2, keys=b"keys", values=b"values"),
    CloseSession(),
    Ping(),
)
SERVER = (
    Welcome(max_message_bytes=1 << 20, max_batch=3, max_in_flight=4, cuts=("layers.2",)),
    InferReply(request_id=5, outputs=(RAW,), timing=TIMING),
    StepReply(step=9, token_id=7, timing=TIMING, logprob=-0.5, top_logprobs=((1, -0.5),), frames=(b"frame",)),
    Failure(request_id=4, error=ProtocolError("why")),
    Pong(),
)


def one_input(data: bytes) -> None:
    """One execution."""
    try:
        if data[-1:] and data[-1] & 1:
            decode_server(data[:-1])
            return
        message = decode_client(data[:-1])
    except ProtocolError:
        return
    if isinstance(message, Failure):
        if message.request_id < 1 or not isinstance(message.error, ProtocolError):
            raise AssertionError(f"a failure of {message.request_id}: {message.error!r}")
    elif decode_client(encode_client(message)) != message:
        raise AssertionError("a message that is read another way when it is said again")


def main() -> None:
    """Runs libFuzzer with a message of each kind as seeds."""
    seeds = pathlib.Path(__file__).parent / "seeds-messages"
    seeds.mkdir(exist_ok=True)
    for message in CLIENT:
        (seeds / type(message).__name__).write_bytes(encode_client(message) + b"\0")
    for message in SERVER:
        (seeds / type(message).__name__).write_bytes(encode_server(message) + b"\1")
    atheris.Setup([sys.argv[0], "-max_len=4096", *sys.argv[1:], str(seeds)], one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
