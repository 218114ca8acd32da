"""Plans with a second cut: both ends of the model on the device, over true sockets."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from serverlight.codec import Codec, CodecConfig, decode  # noqa: E402
from serverlight.errors import ConfigError, FrameError, PeerUnavailable, PlanMismatch, ProtocolError  # noqa: E402
from serverlight.generation import DecoderLoopback, LoadedDecoder  # noqa: E402
from serverlight.plan import Plan  # noqa: E402
from serverlight.runtime import conversion, grpc_transport  # noqa: E402
from serverlight.runtime.decoder_client import DecoderClient  # noqa: E402
from serverlight.runtime.decoder_session import DecoderSession  # noqa: E402
from serverlight.runtime.exits import Caps  # noqa: E402
from serverlight.runtime.grpc_transport import GrpcTransport  # noqa: E402
from serverlight.runtime.messages import Hello, MoveCut, OpenSession, Step, StepReply  # noqa: E402
from serverlight.runtime.server import Server  # noqa: E402
from serverlight.sampling import Sampling  # noqa: E402

PROMPT = [1, 17, 40, 9, 33, 71, 5]
CUTS = ["layers.0", "layers.1"]


@dataclasses.dataclass(frozen=True)
class Parts:
    head: LoadedDecoder
    middle: LoadedDecoder
    tail: LoadedDecoder
    plan: Plan

    def loopback(self, **fields: Any) -> DecoderLoopback:
        return DecoderLoopback(dataclasses.replace(self.plan, **fields), self.head, self.tail, self.middle)

    def client(self, *addresses: str, codec: CodecConfig | None = None, **options: Any) -> DecoderClient:
        plan = dataclasses.replace(self.plan, codec=codec or self.plan.codec)
        return DecoderClient(addresses, plan=plan, head=self.head, tail=self.tail, **options)


@pytest.fixture(scope="module")
def parts(tiny_llama: str) -> Parts:
    head = LoadedDecoder.head(tiny_llama, "layers.1", dtype=torch.float32)
    return Parts(
        head=head,
        middle=LoadedDecoder.middle(tiny_llama, "layers.0", "layers.3", dtype=torch.float32),
        tail=LoadedDecoder.tail(tiny_llama, "layers.3", dtype=torch.float32),
        plan=Plan(
            model=head.name,
            revision=head.revision,
            cut="layers.1",
            return_cut="layers.3",
            codec=CodecConfig(profile="fp16"),
        ),
    )


@pytest.fixture(scope="module")
def server(parts: Parts) -> Iterator[Server]:
    with Server(parts.middle, CUTS) as server:
        yield server


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.9, top_k=20, seed=4)])
@pytest.mark.parametrize("profile", ["fp16", "serverlight"])
def test_socket_gives_what_the_loopback_gives(server: Server, parts: Parts, sampling: Sampling, profile: str) -> None:
    """Greedy or sampled, the prompt in chunks: token for token the same over a socket as in one process."""
    codec = CodecConfig(profile=profile)
    wanted: dict[str, Any] = {"max_new_tokens": 30, "sampling": sampling, "chunk_tokens": 3}
    expected = parts.loopback(codec=codec).generate(PROMPT, **wanted)
    heard: list[int] = []
    made = parts.client(server.address, codec=codec).generate(PROMPT, on_token=heard.append, **wanted)
    assert made.token_ids == expected == tuple(heard)
    assert all(cost.downlink_bytes > 0 and cost.device_tail_ms > 0 for cost in made.costs)


def test_near_lossless_text_is_that_of_the_uncut_model(server: Server, parts: Parts, tiny_llama: str) -> None:
    """With halves across both cuts, greedy tokens are what the uncut model generates."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    ids = torch.tensor([PROMPT])
    expected = model.generate(
        ids, do_sample=False, max_new_tokens=40, min_new_tokens=40, attention_mask=torch.ones_like(ids), pad_token_id=0
    )[0, len(PROMPT) :].tolist()
    made = parts.client(server.address).generate(PROMPT, max_new_tokens=40)
    assert list(made.token_ids) == expected


def test_no_token_leaves_the_device(server: Server, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the device says is a plan, an opening without any sampling, and frames; what it hears has no token."""
    said: list[Any] = []
    heard: list[Any] = []
    encode, read = conversion.encode_client, conversion.decode_server
    monkeypatch.setattr(grpc_transport, "encode_client", lambda message: said.append(message) or encode(message))
    monkeypatch.setattr(grpc_transport, "decode_server", lambda data: heard.append(read(data)) or heard[-1])
    parts.client(server.address).generate(
        PROMPT, max_new_tokens=10, sampling=Sampling(temperature=0.7, seed=12), stop_ids=[3]
    )
    assert {type(message) for message in said} == {Hello, OpenSession, Step}
    for message in said:
        if isinstance(message, OpenSession):
            assert message == OpenSession(sampling=Sampling())
        if isinstance(message, Step):
            assert message == Step(step=message.step, frames=message.frames, more=message.more)
            assert all(decode(frame).shape[2] == 32 for frame in message.frames)
    replies = [message for message in heard if isinstance(message, StepReply)]
    assert len(replies) == 10
    assert all(reply.token_id is None for reply in replies)


@pytest.mark.parametrize("profile", ["fp16", "serverlight"])
@pytest.mark.parametrize("at", [1, 14])
def test_server_lost(server: Server, parts: Parts, profile: str, at: int) -> None:
    """A server that goes away changes no token; hidden states that were taken already are not sent again."""
    codec = CodecConfig(profile=profile)
    first = Server(parts.middle, CUTS).start()
    heard: list[int] = []

    def hear(token: int) -> None:
        heard.append(token)
        if len(heard) == at:
            thread = threading.Thread(target=first.drain, args=(0,))
            thread.start()
            thread.join()

    client = parts.client(first.address, server.address, codec=codec)
    made = client.generate(PROMPT, max_new_tokens=30, on_token=hear, chunk_tokens=3)
    assert made.token_ids == parts.loopback(codec=codec).generate(PROMPT, max_new_tokens=30, chunk_tokens=3)
    assert made.num_recoveries == 1
    typical = sorted(cost.downlink_bytes for cost in made.costs)[15]
    assert made.costs[at].downlink_bytes < 3 * typical + 80


def test_server_lost_within_the_prompt(server: Server, parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no hidden state of the prompt was taken yet all come from the next server."""
    seen = list[DecoderSession]()
    begin = DecoderSession.begin

    def fail_first(self: DecoderSession, message: Any, *args: Any, **options: Any) -> Any:
        seen.append(self)
        if message.step == 2 and self is seen[0]:
            raise PeerUnavailable("gone")
        return begin(self, message, *args, **options)

    monkeypatch.setattr(DecoderSession, "begin", fail_first)
    made = parts.client(server.address).generate(PROMPT, max_new_tokens=5, chunk_tokens=3)
    assert made.token_ids == parts.loopback().generate(PROMPT, max_new_tokens=5, chunk_tokens=3)
    assert made.num_recoveries == 1


@pytest.mark.parametrize("way", ["shipped", "recomputed"])
def test_early_exit(server: Server, parts: Parts, way: str) -> None:
    """The first cut moves as ever; keys and values behind the second count as the device's."""
    caps = Caps(device_memory_bytes=2 * 128 * 15, way=way)
    made = parts.client(server.address, caps=caps).generate(PROMPT, max_new_tokens=20)
    assert made.token_ids == parts.loopback().generate(PROMPT, max_new_tokens=20)
    (exit,) = made.exits
    assert (exit.token_index, exit.to_cut, exit.way) == (9, "layers.0", way)


def test_parts_and_plans(server: Server, parts: Parts, tiny_llama: str) -> None:
    """Parts that do not make up the plan are refused on the device, a server with another second cut in the handshake."""
    plain = dataclasses.replace(parts.plan, return_cut=None)
    for plan, tail in ((parts.plan, None), (plain, parts.tail)):
        with pytest.raises(PlanMismatch, match="return_cut"):
            DecoderClient([server.address], plan=plan, head=parts.head, tail=tail)
    with pytest.raises(PlanMismatch, match="return_cut"):
        DecoderLoopback(parts.plan, parts.head, parts.tail)
    with pytest.raises(ConfigError, match="layers"):
        DecoderClient(
            [server.address],
            plan=dataclasses.replace(parts.plan, return_cut="layers.2"),
            head=parts.head,
            tail=parts.tail,
        )
    with pytest.raises(ConfigError, match="tail"):
        DecoderClient([server.address], plan=parts.plan, head=parts.head, tail=parts.middle)
    for plan, tail in (
        (plain, None),
        (dataclasses.replace(parts.plan, return_cut="layers.4"), LoadedDecoder.tail(tiny_llama, "layers.4")),
    ):
        client = DecoderClient([server.address], plan=plan, head=parts.head, tail=tail)
        with pytest.raises(PlanMismatch, match="return_cut"):
            client.generate(PROMPT, max_new_tokens=2)


@pytest.mark.parametrize("frames", [(), (b"junk",), "short", "twice"])
def test_server_that_returns_something_else(
    server: Server, parts: Parts, monkeypatch: pytest.MonkeyPatch, frames: Any
) -> None:
    """A device takes exactly the hidden states that are due, and says so if others come."""
    frame = Codec(parts.plan.codec).encode(torch.zeros(1, 3, 32))
    returned = {"short": (frame,), "twice": (frame,) * 4}.get(frames, frames) if isinstance(frames, str) else frames
    monkeypatch.setattr(DecoderSession, "_encode", lambda *_: returned)
    with pytest.raises((ProtocolError, FrameError)):
        parts.client(server.address).generate(PROMPT, max_new_tokens=2)


def test_quiet_steps_and_moves(server: Server, parts: Parts, open_stream: Any) -> None:
    """A quiet step gets no hidden states; one frame comes back for each that went; a layer can be taken over."""
    halves = Codec(parts.plan.codec)
    stream = open_stream(GrpcTransport(server.address))
    stream.greet(parts.plan)
    stream.say(OpenSession(sampling=Sampling()))
    pieces = tuple(halves.encode(torch.zeros(1, size, 32)) for size in (4, 1, 2))
    assert stream.ask(Step(step=1, frames=pieces, quiet=True)).frames == ()
    assert len(stream.ask(Step(step=2, frames=pieces)).frames) == 3
    layer = halves.encode(torch.zeros(2, 14, 8))
    assert stream.ask(MoveCut(step=3, layer=0, keys=layer, values=layer)).token_id is None
    assert len(stream.ask(Step(step=4, frames=pieces[:1], more=True)).frames) == 1


def test_plan_returns() -> None:
    """A plan with a second cut is written and read; one without has no such field, so that older servers read it."""
    plan = Plan(model="m", revision="r", cut="layers.1", return_cut="layers.3")
    assert Plan.from_json(plan.to_json()) == plan
    assert "return_cut" not in dataclasses.replace(plan, return_cut=None).to_json()
    for bad in ("", 3):
        with pytest.raises(ConfigError, match="return_cut"):
            dataclasses.replace(plan, return_cut=bad)
