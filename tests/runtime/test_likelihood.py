"""How likely a given text is, asked across a cut: over true sockets, with the tail on either side."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from serverlight.codec import Codec, CodecConfig  # noqa: E402
from serverlight.errors import ConfigError, ContextExceeded, PeerUnavailable, ProtocolError  # noqa: E402
from serverlight.generation import DecoderLoopback, LoadedDecoder  # noqa: E402
from serverlight.plan import Plan  # noqa: E402
from serverlight.runtime import conversion  # noqa: E402
from serverlight.runtime.decoder_client import DecoderClient  # noqa: E402
from serverlight.runtime.decoder_session import DecoderSession  # noqa: E402
from serverlight.runtime.grpc_transport import GrpcTransport  # noqa: E402
from serverlight.runtime.messages import OpenSession, Step, StepReply, Timing  # noqa: E402
from serverlight.runtime.server import Server  # noqa: E402
from serverlight.runtime.serverlight_pb2 import ServerMessage  # noqa: E402
from serverlight.sampling import Sampling, Score  # noqa: E402

CUT, RETURN_CUT = "layers.1", "layers.3"
TEXT = [(7 * i * i + 3 * i) % 96 for i in range(100)]
"""Longer than the pieces that a server runs at a time."""

HALVES = CodecConfig(profile="fp16")


@pytest.fixture(scope="module")
def plan(head: LoadedDecoder) -> Plan:
    return Plan(model=head.name, revision=head.revision, cut=CUT, codec=HALVES)


@pytest.fixture(scope="module")
def server(tail: LoadedDecoder) -> Iterator[Server]:
    with Server(tail, [CUT]) as server:
        yield server


def uncut_logprobs(folder: str) -> torch.Tensor:
    """Of each token of the text after those before it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logprobs = model(torch.tensor([TEXT])).logits[0].log_softmax(-1)
    return logprobs[:-1].gather(1, torch.tensor(TEXT[1:])[:, None])[:, 0]


@pytest.mark.parametrize("profile", ["fp16", "serverlight"])
@pytest.mark.parametrize(("num_targets", "chunk_tokens"), [(1, 128), (70, 128), (99, 7), (3, 96)])
def test_socket_gives_what_the_loopback_gives(
    server: Server, head: Any, tail: Any, plan: Plan, profile: str, num_targets: int, chunk_tokens: int
) -> None:
    """The same scores to the bit over a socket as in one process, of as many tokens as were asked about."""
    plan = dataclasses.replace(plan, codec=CodecConfig(profile=profile))
    asked = {"num_targets": num_targets, "chunk_tokens": chunk_tokens}
    expected = DecoderLoopback(plan, head, tail).likelihood(TEXT, **asked)
    found = DecoderClient([server.address], plan=plan, head=head).likelihood(TEXT, **asked)
    assert found.scores == expected.scores
    assert len(found.scores) == num_targets
    assert (found.num_tokens, found.frame_bytes) == (99, expected.frame_bytes)
    assert found.uplink_bytes > found.frame_bytes


def test_scores_are_those_of_the_uncut_model(server: Server, head: Any, plan: Plan, tiny_llama: str) -> None:
    """With halves across the cut each token is as likely as the uncut model finds it, and greedy texts are known as such."""
    client = DecoderClient([server.address], plan=plan, head=head)
    found = client.likelihood(TEXT, 99)
    assert [score.logprob for score in found.scores] == pytest.approx(uncut_logprobs(tiny_llama).tolist(), abs=5e-3)
    made = client.generate(TEXT[:9], max_new_tokens=6).token_ids
    assert client.likelihood([*TEXT[:9], *made], 6).is_likeliest
    assert not client.likelihood([*TEXT[:9], *made[:-1], (made[-1] + 1) % 96], 6).is_likeliest


@pytest.mark.parametrize("profile", ["fp16", "serverlight"])
def test_second_cut(tiny_llama: str, plan: Plan, head: Any, profile: str) -> None:
    """With the tail on the device the scores are those of one process, and no token leaves it."""
    plan = dataclasses.replace(plan, return_cut=RETURN_CUT, codec=CodecConfig(profile=profile))
    middle = LoadedDecoder.middle(tiny_llama, CUT, RETURN_CUT, dtype=torch.float32)
    tail = LoadedDecoder.tail(tiny_llama, RETURN_CUT, dtype=torch.float32)
    with Server(middle, [CUT]) as server:
        client = DecoderClient([server.address], plan=plan, head=head, tail=tail)
        for chunk_tokens in (7, 96):
            expected = DecoderLoopback(plan, head, tail, middle).likelihood(TEXT, 80, chunk_tokens=chunk_tokens)
            assert client.likelihood(TEXT, 80, chunk_tokens=chunk_tokens).scores == expected.scores


def test_server_lost(server: Server, head: Any, tail: Any, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a server fails in the middle of a text the next one is asked the same."""
    went = iter([True, False])
    begin = DecoderSession.begin

    def fail_once(self: DecoderSession, message: Any, *args: Any, **options: Any) -> Any:
        if message.step == 9 and next(went, False):
            raise PeerUnavailable("gone")
        return begin(self, message, *args, **options)

    monkeypatch.setattr(DecoderSession, "begin", fail_once)
    found = DecoderClient([server.address], plan=plan, head=head).likelihood(TEXT, 70, chunk_tokens=5)
    assert found.scores == DecoderLoopback(plan, head, tail).likelihood(TEXT, 70, chunk_tokens=5).scores


def test_server_that_knows_no_targets(server: Server, head: Any, plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older server, which takes no notice of targets, is found out."""
    read = conversion._step_from_pb
    monkeypatch.setattr(conversion, "_step_from_pb", lambda step: dataclasses.replace(read(step), targets=()))
    client = DecoderClient([server.address], plan=plan, head=head)
    with pytest.raises(ProtocolError, match="same version"):
        client.likelihood(TEXT, 5)


@pytest.mark.parametrize(
    ("num_tokens", "targets", "complaint"), [(2, (1, 2, 3), "3 targets for 2"), (2, (96,), "same tokenizer")]
)
def test_targets_that_cannot_be(
    open_stream: Any, server: Server, head: Any, plan: Plan, num_tokens: int, targets: tuple[int, ...], complaint: str
) -> None:
    """More targets than tokens, or one that is no token, fail their step; the session stays as it was."""
    stream = open_stream(GrpcTransport(server.address))
    stream.greet(plan)
    stream.say(OpenSession(sampling=Sampling()))
    frame = bytes(Codec(HALVES).encode(head.part(torch.tensor([TEXT[:num_tokens]]))))
    assert complaint in str(stream.ask(Step(step=1, frames=(frame,), targets=targets)).error)
    reply = stream.ask(Step(step=1, frames=(frame,), targets=(5,)))
    assert isinstance(reply, StepReply)
    assert len(reply.scores) == 1
    assert reply.token_id is None


def test_targets_need_a_tail(open_stream: Any, tiny_llama: str, head: Any, plan: Plan) -> None:
    """A server without the tail has no logits, and says so."""
    middle = LoadedDecoder.middle(tiny_llama, CUT, RETURN_CUT, dtype=torch.float32)
    with Server(middle, [CUT]) as server:
        stream = open_stream(GrpcTransport(server.address))
        stream.greet(dataclasses.replace(plan, return_cut=RETURN_CUT))
        stream.say(OpenSession(sampling=Sampling()))
        frame = bytes(Codec(HALVES).encode(head.part(torch.tensor([TEXT[:4]]))))
        assert "no logits" in str(stream.ask(Step(step=1, frames=(frame,), targets=(5,))).error)


def test_what_cannot_be_asked(head: Any, tail: Any, plan: Plan) -> None:
    """Nothing to ask, nothing before it, or too long a text is refused before any work, and the field named."""
    loopback = DecoderLoopback(plan, head, tail)
    for asker in (loopback, DecoderClient(["127.0.0.1:1"], plan=plan, head=head)):
        for text, num_targets in ((TEXT, 0), (TEXT, 100), ([], 1), ([3], 1)):
            with pytest.raises(ConfigError) as caught:
                asker.likelihood(text, num_targets)
            assert caught.value.field == "num_targets"
        with pytest.raises(ContextExceeded):
            asker.likelihood(TEXT[:65] * 2, 1)
    assert (
        loopback.likelihood(TEXT[:43] * 3, 1).num_tokens == 128
    )  # the whole context: the last token is only asked about


def test_scores_on_the_wire() -> None:
    """Scores come back as they were sent; a reply with more of one half than of the other is none."""
    timing = Timing(queue_ms=0, decode_ms=0, tail_ms=0, cpu_ms=0, process_cpu_ms=0)
    reply = StepReply(step=1, token_id=None, timing=timing, scores=(Score(-0.5, True), Score(-3.0, False)))
    data = conversion.encode_server(reply)
    assert conversion.decode_server(data) == reply
    message = ServerMessage.FromString(data)
    message.step.target_likeliest.pop()
    with pytest.raises(ProtocolError, match="targets"):
        conversion.decode_server(message.SerializeToString())
