"""Early exits over true sockets: the moves, also where servers die; test_pace.py has the decisions."""

from __future__ import annotations

import dataclasses
import math
import pathlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")

from serverlight.codec import Codec, CodecConfig  # noqa: E402
from serverlight.errors import (  # noqa: E402
    ContextExceeded,
    CutNotFound,
    FrameError,
    FrameTooLarge,
    InputMismatch,
    ProtocolError,
    ServerBusy,
)
from serverlight.generation import DecoderLoopback, LoadedDecoder  # noqa: E402
from serverlight.plan import Plan  # noqa: E402
from serverlight.runtime.conversion import decode_client, encode_client  # noqa: E402
from serverlight.runtime.core import ServerConfig  # noqa: E402
from serverlight.runtime.decoder_client import DecoderClient, Generation  # noqa: E402
from serverlight.runtime.decoder_session import DecoderSession  # noqa: E402
from serverlight.runtime.exits import Caps, Exit  # noqa: E402
from serverlight.runtime.grpc_transport import GrpcTransport  # noqa: E402
from serverlight.runtime.messages import Failure, MoveCut, OpenSession, Step, StepReply  # noqa: E402
from serverlight.runtime.server import Server  # noqa: E402
from serverlight.sampling import Sampling  # noqa: E402

CUTS = ["layers.0", "layers.1", "layers.2", "layers.3"]
PROMPT = [1, 17, 40, 9, 33, 71, 5]
NUM_TOKENS = 40
LAYER_BYTES = 128
"""Keys and values of a token in a layer: two, of two heads of eight float32."""


@pytest.fixture(scope="module")
def head(tiny_llama: str) -> LoadedDecoder:
    return LoadedDecoder.head(tiny_llama, "layers.3", dtype=torch.float32)


@pytest.fixture(scope="module")
def tail(tiny_llama: str) -> LoadedDecoder:
    return LoadedDecoder.tail(tiny_llama, "layers.0", dtype=torch.float32)


@pytest.fixture(scope="module")
def plan(head: LoadedDecoder) -> Plan:
    return Plan(model=head.name, revision=head.revision, cut="layers.3", codec=CodecConfig(profile="fp16"))


@pytest.fixture(scope="module")
def server(tail: LoadedDecoder) -> Iterator[Server]:
    with Server(tail, CUTS) as server:
        yield server


def memory_for(layers: int, num_tokens: int) -> int:
    """A cap that so many layers hit with one token more."""
    return layers * LAYER_BYTES * num_tokens


def moves(made: Generation) -> list[tuple[int, str, str, str | None, str | None]]:
    return [(exit.token_index, exit.reason, exit.from_cut, exit.to_cut, exit.way) for exit in made.exits]


# -- over sockets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["shipped", "recomputed"])
def test_memory_moves_the_cut(server: Server, head: LoadedDecoder, tail: LoadedDecoder, plan: Plan, way: str) -> None:
    """A device whose keys and values fill its memory gives away layer after layer; no token is lost, repeated or changed."""
    expected = DecoderLoopback(dataclasses.replace(plan, cut="layers.1"), head, tail).generate(
        PROMPT, max_new_tokens=NUM_TOKENS
    )
    caps = Caps(device_memory_bytes=memory_for(3, 15), way=way)
    heard: list[int] = []
    told: list[Exit] = []
    client = DecoderClient([server.address], plan=plan, head=head, caps=caps)
    made = client.generate(PROMPT, max_new_tokens=NUM_TOKENS, on_token=heard.append, on_exit=told.append)
    assert made.token_ids == expected == tuple(heard)
    assert made.exits == tuple(told)
    assert moves(made) == [
        (9, "memory", "layers.3", "layers.2", way),  # 7 of the prompt and 9 are the first 16 tokens
        (16, "memory", "layers.2", "layers.1", way),
        (39, "memory", "layers.1", "layers.0", way),
    ]
    assert made.num_recoveries == 0
    assert all(exit.num_bytes > 0 and exit.cost_ms > 0 for exit in made.exits)
    assert "layers.3 to layers.2" in str(made.exits[0])


@pytest.mark.parametrize("way", ["shipped", "recomputed", "auto"])
def test_deadline_hands_the_rest_to_the_server(
    server: Server, head: LoadedDecoder, tail: LoadedDecoder, plan: Plan, way: str
) -> None:
    """Steps that are late hand all layers to the server, once: what can be no shallower goes on."""
    expected = DecoderLoopback(dataclasses.replace(plan, cut="layers.0"), head, tail).generate(
        PROMPT, max_new_tokens=NUM_TOKENS
    )
    caps = Caps(step_deadline_ms=1e-6, on_limit="server", way=way)
    made = DecoderClient([server.address], plan=plan, head=head, caps=caps).generate(PROMPT, max_new_tokens=NUM_TOKENS)
    assert made.token_ids == expected
    assert [move[:4] for move in moves(made)] == [(6, "deadline", "layers.3", "layers.0")]
    assert made.exits[0].way in ("shipped", "recomputed")


@pytest.mark.parametrize(
    "caps",
    [Caps(device_memory_bytes=memory_for(3, 15)), Caps(step_deadline_ms=1e-6), Caps(device_memory_bytes=0)],
)
def test_stop(server: Server, head: LoadedDecoder, tail: LoadedDecoder, plan: Plan, caps: Caps) -> None:
    """Who would rather stop keeps the tokens that there are, with the reason."""
    expected = DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=NUM_TOKENS)
    client = DecoderClient([server.address], plan=plan, head=head, caps=dataclasses.replace(caps, on_limit="stop"))
    made = client.generate(PROMPT, max_new_tokens=NUM_TOKENS)
    (exit,) = made.exits
    assert made.token_ids or caps.device_memory_bytes == 0
    assert exit.to_cut is None
    assert exit.token_index == len(made.token_ids) < NUM_TOKENS
    assert made.token_ids == expected[: len(made.token_ids)]
    assert "stopped" in str(exit)


@pytest.mark.parametrize("way", ["shipped", "recomputed"])
def test_windowed_layers(tmp_path: pathlib.Path, way: str) -> None:
    """Layers that remember a window only move as well, when it is long past the first tokens."""
    config = transformers.MistralConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, sliding_window=8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformers.MistralForCausalLM(config).save_pretrained(tmp_path)
    head = LoadedDecoder.head(str(tmp_path), "layers.3", dtype=torch.float32)
    tail = LoadedDecoder.tail(str(tmp_path), "layers.0", dtype=torch.float32)
    plan = Plan(model=head.name, revision=head.revision, cut="layers.3", codec=CodecConfig(profile="fp16"))
    prompt = [1 + 7 * i % 90 for i in range(90)]
    caps = Caps(step_deadline_ms=1e-6, on_limit="server", way=way)
    with Server(tail, CUTS) as server:
        made = DecoderClient([server.address], plan=plan, head=head, caps=caps).generate(prompt, max_new_tokens=20)
    assert made.token_ids == DecoderLoopback(plan, head, tail).generate(prompt, max_new_tokens=20)
    assert [exit.way for exit in made.exits] == [way]


def test_bfloat16(tiny_llama: str) -> None:
    """Halves hold what a model in bfloat16 computes, so that not a bit changes when keys and values are shipped."""
    head = LoadedDecoder.head(tiny_llama, "layers.3", dtype=torch.bfloat16)
    tail = LoadedDecoder.tail(tiny_llama, "layers.0", dtype=torch.bfloat16)
    plan = Plan(model=head.name, revision=head.revision, cut="layers.3", codec=CodecConfig(profile="fp16"))
    caps = Caps(device_memory_bytes=memory_for(3, 15) // 2, way="shipped")
    with Server(tail, CUTS) as server:
        made = DecoderClient([server.address], plan=plan, head=head, caps=caps).generate(PROMPT, max_new_tokens=35)
    assert made.token_ids == DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=35)
    assert [exit.token_index for exit in made.exits] == [9, 16]


def test_prompt_too_long_for_the_cut(server: Server, head: LoadedDecoder, tail: LoadedDecoder, plan: Plan) -> None:
    """A prompt that does not fit begins at the cut where it does, and nothing has to be moved."""
    caps = Caps(device_memory_bytes=memory_for(2, len(PROMPT)))
    made = DecoderClient([server.address], plan=plan, head=head, caps=caps).generate(PROMPT, max_new_tokens=1)
    assert made.token_ids == DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=1)
    assert moves(made) == [(0, "memory", "layers.3", "layers.2", None)]


def test_nowhere_to_go(tail: LoadedDecoder, head: LoadedDecoder, plan: Plan) -> None:
    """Where the server serves no cut that keeps the memory cap the answer stops; a deadline alone does not stop it."""
    with Server(tail, ["layers.3"]) as server:
        caps = Caps(device_memory_bytes=memory_for(3, 15))
        made = DecoderClient([server.address], plan=plan, head=head, caps=caps).generate(PROMPT, max_new_tokens=20)
        assert moves(made) == [(9, "memory", "layers.3", None, None)]
        late = Caps(step_deadline_ms=1e-6)
        made = DecoderClient([server.address], plan=plan, head=head, caps=late).generate(PROMPT, max_new_tokens=20)
        assert (len(made.token_ids), made.exits) == (20, ())


def test_recomputed_as_if_cut_there_from_the_start(
    server: Server, head: LoadedDecoder, tail: LoadedDecoder, plan: Plan
) -> None:
    """With a coarse codec too, what follows a recomputed exit is what a session at the new cut says after the same tokens."""
    plan = dataclasses.replace(plan, codec=CodecConfig(sparsity=0.5))
    caps = Caps(device_memory_bytes=memory_for(3, 15), way="recomputed")
    client = DecoderClient([server.address], plan=plan, head=head, caps=caps)
    made = client.generate(PROMPT, max_new_tokens=16, chunk_tokens=1)
    (exit,) = made.exits
    at_new_cut = DecoderLoopback(dataclasses.replace(plan, cut=str(exit.to_cut)), head, tail)
    before = list(made.token_ids[: exit.token_index])
    rest = at_new_cut.generate(PROMPT + before, max_new_tokens=16 - len(before), chunk_tokens=1)
    assert made.token_ids[exit.token_index :] == rest


@pytest.mark.parametrize("way", ["shipped", "recomputed"])
def test_moves_keep_what_was_seen(
    server: Server, head: LoadedDecoder, tail: LoadedDecoder, plan: Plan, way: str
) -> None:
    """A repetition penalty counts every token before a move, the newest too, and chance goes on as it would have."""
    for sampling in (Sampling(repetition_penalty=4.0), Sampling(temperature=0.8, repetition_penalty=1.5, seed=3)):
        expected = DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=NUM_TOKENS, sampling=sampling)
        caps = Caps(device_memory_bytes=memory_for(3, 15), way=way)
        client = DecoderClient([server.address], plan=plan, head=head, caps=caps)
        made = client.generate(PROMPT, max_new_tokens=NUM_TOKENS, sampling=sampling)
        assert made.token_ids == expected
        assert len(made.exits) == 3


@pytest.mark.parametrize("error", [ServerBusy(1), None])
def test_move_that_fails(
    server: Server,
    head: LoadedDecoder,
    tail: LoadedDecoder,
    plan: Plan,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception | None,
) -> None:
    """A server that has no room to take a layer over, or values that the codec cannot carry: then it is recomputed."""

    def refuse(*_: object) -> None:
        assert error is not None
        raise error

    codec = CodecConfig(profile="fp16")
    if error is None:
        monkeypatch.setattr(
            "serverlight.runtime.moving.write_layer", lambda state, codec: codec.encode(np.float32([math.nan]))
        )
    else:
        monkeypatch.setattr(DecoderSession, "_take_over", refuse)
    caps = Caps(device_memory_bytes=memory_for(3, 15), way="shipped", codec=codec)
    made = DecoderClient([server.address], plan=plan, head=head, caps=caps).generate(PROMPT, max_new_tokens=NUM_TOKENS)
    assert made.token_ids == DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=NUM_TOKENS)
    assert {exit.way for exit in made.exits} == {"recomputed"}


@pytest.mark.parametrize(("way", "at"), [("shipped", 12), ("recomputed", 12), ("shipped", 9), ("recomputed", 16)])
def test_server_killed_after_an_exit(
    server: Server, start_process: Any, tiny_llama: str, head: Any, tail: Any, plan: Plan, way: str, at: int
) -> None:
    """A server killed after a move, or about the time of one, changes no token: another goes on at the new cut."""
    victim = start_process(tiny_llama, *CUTS)
    caps = Caps(device_memory_bytes=memory_for(3, 15), way=way)
    heard: list[int] = []

    def hear(token: int) -> None:
        heard.append(token)
        if len(heard) == at:
            threading.Timer(0.001, victim.process.kill).start()

    client = DecoderClient([victim.address, server.address], plan=plan, head=head, caps=caps)
    made = client.generate(PROMPT, max_new_tokens=NUM_TOKENS, on_token=hear)
    victim.kill()
    assert made.token_ids == DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=NUM_TOKENS)
    assert made.num_recoveries == 1
    assert [move[:4] for move in moves(made)] == [
        (9, "memory", "layers.3", "layers.2"),
        (16, "memory", "layers.2", "layers.1"),
        (39, "memory", "layers.1", "layers.0"),
    ]


def test_stories_with_exits(shared_data: pathlib.Path) -> None:
    """A trained Llama that gives away all its layers in mid-story writes what the uncut model does."""
    path = shared_data / "lm" / "stories260K_llama"
    if not path.is_dir():
        pytest.skip("needs lm/stories260K_llama of the shared data")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = transformers.AutoTokenizer.from_pretrained(path)("Once upon a time", return_tensors="pt").input_ids
    mask = torch.ones_like(ids)
    whole = model.generate(
        ids, do_sample=False, max_new_tokens=150, min_new_tokens=150, attention_mask=mask, pad_token_id=0
    )
    head = LoadedDecoder.head(str(path), "layers.4", dtype=torch.float32)
    plan = Plan(model=head.name, revision=head.revision, cut="layers.4", codec=CodecConfig(profile="fp16"))
    cuts = [f"layers.{layer}" for layer in range(5)]
    with Server(LoadedDecoder.tail(str(path), "layers.0", dtype=torch.float32), cuts) as server:
        for way in ("shipped", "recomputed"):
            caps = Caps(device_memory_bytes=4 * 30 * 256, way=way)
            client = DecoderClient([server.address], plan=plan, head=head, caps=caps)
            made = client.generate(ids[0].tolist(), max_new_tokens=150)
            assert list(made.token_ids) == whole[0, ids.shape[1] :].tolist()
            assert [exit.to_cut for exit in made.exits] == ["layers.3", "layers.2", "layers.1", "layers.0"]


# -- what a stranger may send -----------------------------------------------------------------------


HALVES = Codec(CodecConfig(profile="fp16"))


def layer_frame(*shape: int) -> bytes:
    return HALVES.encode(np.zeros(shape, np.float32))


@pytest.fixture
def stream(open_stream: Any, server: Server, plan: Plan) -> Any:
    """A session at layers.3 that has seen seven tokens."""
    stream = open_stream(GrpcTransport(server.address))
    stream.greet(plan)
    stream.say(OpenSession(sampling=Sampling()))
    assert isinstance(stream.ask(Step(step=1, frames=(layer_frame(1, 7, 32),))), StepReply)
    return stream


GOOD = layer_frame(2, 7, 8)


@pytest.mark.parametrize(
    ("move", "error"),
    [
        (MoveCut(step=2, layer=3, keys=GOOD, values=GOOD), ProtocolError),  # the server's already
        (MoveCut(step=2, layer=1, keys=GOOD, values=GOOD), ProtocolError),  # layer 2 is next
        (MoveCut(step=2, layer=2**32 - 1, keys=GOOD, values=GOOD), ProtocolError),
        (MoveCut(step=3, layer=2, keys=GOOD, values=GOOD), ProtocolError),
        (MoveCut(step=2, layer=2, keys=b"", values=GOOD), FrameError),
        (MoveCut(step=2, layer=2, keys=GOOD, values=b"junk"), FrameError),
        (MoveCut(step=2, layer=2, keys=GOOD[:-1], values=GOOD), FrameError),
        (MoveCut(step=2, layer=2, keys=layer_frame(2, 8, 8), values=GOOD), FrameTooLarge),
        (MoveCut(step=2, layer=2, keys=GOOD, values=layer_frame(16, 16, 8)), FrameTooLarge),
        (MoveCut(step=2, layer=2, keys=layer_frame(1, 7, 8), values=GOOD), InputMismatch),
        (MoveCut(step=2, layer=2, keys=layer_frame(2, 7, 4), values=GOOD), InputMismatch),
        (MoveCut(step=2, layer=2, keys=layer_frame(14, 8), values=GOOD), InputMismatch),
        (MoveCut(step=2, layer=2, keys=layer_frame(2, 6, 8), values=layer_frame(2, 6, 8)), InputMismatch),
        (MoveCut(step=2, layer=2, keys=GOOD, values=layer_frame(2, 6, 8)), InputMismatch),
    ],
)
def test_bad_moves(stream: Any, server: Server, move: MoveCut, error: type[Exception]) -> None:
    """A move that breaks a rule is refused by the rule's name, reserves nothing, and the session goes on."""
    reserved = server.core.kv_bytes
    answer = stream.ask(move)
    assert isinstance(answer, Failure)
    assert type(answer.error) is error or (error is FrameError and isinstance(answer.error, FrameError))
    assert answer.request_id == move.step
    assert server.core.kv_bytes == reserved
    good = MoveCut(step=2, layer=2, keys=GOOD, values=GOOD)
    first = stream.ask(good)
    assert isinstance(first, StepReply)
    assert stream.ask(good) == first
    assert server.core.kv_bytes == reserved + 7 * LAYER_BYTES
    assert isinstance(stream.ask(Step(step=3, frames=(layer_frame(1, 1, 32),))), StepReply)


def test_layers_that_a_server_does_not_have(tiny_llama: str, open_stream: Any, plan: Plan, server: Server) -> None:
    """A layer before the server's first is refused, as is one before the first token or for which there is no room."""
    part = LoadedDecoder.tail(tiny_llama, "layers.3", dtype=torch.float32)
    config = ServerConfig(max_kv_bytes=7 * LAYER_BYTES)
    with Server(part, ["layers.3"], config=config) as small:
        stream = open_stream(GrpcTransport(small.address))
        assert stream.greet(plan).cuts == ("layers.3",)
        stream.say(OpenSession(sampling=Sampling()))
        move = MoveCut(step=1, layer=2, keys=GOOD, values=GOOD)
        assert isinstance(stream.ask(move).error, ProtocolError)
        assert isinstance(stream.ask(Step(step=1, frames=(layer_frame(1, 7, 32),))), StepReply)
        assert isinstance(stream.ask(dataclasses.replace(move, step=2)).error, CutNotFound)
    with Server(server_part(tiny_llama), CUTS, config=config) as full:
        stream = open_stream(GrpcTransport(full.address))
        stream.greet(plan)
        stream.say(OpenSession(sampling=Sampling()))
        assert isinstance(stream.ask(Step(step=1, frames=(layer_frame(1, 7, 32),))), StepReply)
        assert isinstance(stream.ask(dataclasses.replace(move, step=2)).error, ContextExceeded)


def server_part(folder: str) -> LoadedDecoder:
    return LoadedDecoder.tail(folder, "layers.0", dtype=torch.float32)


def test_session_at_another_cut(stream: Any, open_stream: Any, server: Server, plan: Plan) -> None:
    """A session may be opened at any cut that is served, whatever the plan says; at another one the stream ends."""
    other = open_stream(GrpcTransport(server.address))
    other.greet(plan)
    other.say(OpenSession(sampling=Sampling(), cut="layers.1"))
    assert isinstance(other.ask(Step(step=1, frames=(layer_frame(1, 7, 32),))), StepReply)
    assert isinstance(other.ask(MoveCut(step=2, layer=0, keys=GOOD, values=GOOD)), StepReply)
    bad = open_stream(GrpcTransport(server.address))
    bad.greet(plan)
    assert "layers.4" in str(bad.ask(OpenSession(sampling=Sampling(), cut="layers.4")).error)


def test_messages_return() -> None:
    """What is encoded is decoded the same; a move with the number of the stream is no message."""
    move = MoveCut(step=3, layer=2, keys=b"k", values=b"v")
    assert decode_client(encode_client(move)) == move
    opened = OpenSession(sampling=Sampling(), cut="layers.2")
    assert decode_client(encode_client(opened)) == opened
    with pytest.raises(ProtocolError, match="step 0"):
        decode_client(encode_client(dataclasses.replace(move, step=0)))
