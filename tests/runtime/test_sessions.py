"""Sessions of language models over true sockets, and what they do when servers die."""

from __future__ import annotations

import pathlib
import random
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from serverlight.codec import Codec, CodecConfig  # noqa: E402
from serverlight.errors import (  # noqa: E402
    ContextExceeded,
    FrameError,
    GenerationInterrupted,
    PeerUnavailable,
    ProtocolError,
    ServerBusy,
)
from serverlight.generation import DecoderLoopback, LoadedDecoder  # noqa: E402
from serverlight.plan import Plan  # noqa: E402
from serverlight.runtime.conversion import decode_client, encode_client, encode_server  # noqa: E402
from serverlight.runtime.core import ServerConfig  # noqa: E402
from serverlight.runtime.decoder_client import DecoderClient  # noqa: E402
from serverlight.runtime.grpc_transport import GrpcTransport  # noqa: E402
from serverlight.runtime.messages import (  # noqa: E402
    CloseSession,
    Failure,
    OpenSession,
    Step,
    StepReply,
    Timing,
)
from serverlight.runtime.server import Server  # noqa: E402
from serverlight.runtime.sessions import SessionTable  # noqa: E402
from serverlight.runtime.transport import wire_bytes  # noqa: E402
from serverlight.sampling import Choice, Sampling  # noqa: E402

CUT = "layers.2"
PROMPT = [1, 17, 40, 9, 33, 71, 5]


@pytest.fixture(scope="module")
def plan(head: LoadedDecoder) -> Plan:
    return Plan(model=head.name, revision=head.revision, cut=CUT, codec=CodecConfig(profile="fp16"))


@pytest.fixture(scope="module")
def server(tail: LoadedDecoder) -> Iterator[Server]:
    with Server(tail, [CUT]) as server:
        yield server


@pytest.fixture
def frame(head: LoadedDecoder) -> bytes:
    return bytes(Codec(CodecConfig(profile="fp16")).encode(head.part(torch.tensor([PROMPT]))))


def open_session(open_stream: Any, address: str, plan: Plan) -> Any:
    stream = open_stream(GrpcTransport(address))
    stream.greet(plan)
    stream.say(OpenSession(sampling=Sampling()))
    return stream


SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.9, top_k=20, top_p=0.9, seed=4),
    Sampling(repetition_penalty=1.8),
]


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("profile", ["fp16", "serverlight"])
def test_socket_gives_what_the_loopback_gives(
    server: Server, head: LoadedDecoder, tail: LoadedDecoder, plan: Plan, sampling: Sampling, profile: str
) -> None:
    """Greedy or sampled, the prompt in chunks: token for token the same over a socket as in one process."""
    plan = Plan(model=plan.model, revision=plan.revision, cut=CUT, codec=CodecConfig(profile=profile))
    wanted = {"max_new_tokens": 30, "sampling": sampling, "chunk_tokens": 3}
    expected = DecoderLoopback(plan, head, tail).generate(PROMPT, **wanted)
    heard: list[int] = []
    made = DecoderClient([server.address], plan=plan, head=head).generate(PROMPT, on_token=heard.append, **wanted)
    assert made.token_ids == expected == tuple(heard)
    assert made.num_recoveries == 0
    assert len(made.costs) == 30


def test_near_lossless_text_is_that_of_the_uncut_model(server: Server, tiny_llama: str, head: Any, plan: Plan) -> None:
    """With halves across the cut, greedy tokens are what the uncut model generates."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    ids = torch.tensor([PROMPT])
    expected = model.generate(
        ids, do_sample=False, max_new_tokens=40, min_new_tokens=40, attention_mask=torch.ones_like(ids), pad_token_id=0
    )[0, len(PROMPT) :].tolist()
    made = DecoderClient([server.address], plan=plan, head=head).generate(PROMPT, max_new_tokens=40)
    assert list(made.token_ids) == expected


def test_probabilities_are_those_of_the_model(server: Server, tiny_llama: str, head: LoadedDecoder, plan: Plan) -> None:
    """Asked for, each token comes with its log-probability and the likeliest tokens'; not asked for, with nothing."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    client = DecoderClient([server.address], plan=plan, head=head)
    asked = Sampling(temperature=1.5, seed=3, logprobs=4)
    made = list(client.stream(PROMPT, max_new_tokens=6, sampling=asked))
    text = torch.tensor([[*PROMPT, *(token.token_id for token in made)]])
    with torch.inference_mode():
        expected = model(text).logits[0].log_softmax(-1)[len(PROMPT) - 1 :]
    for token, logprobs in zip(made, expected, strict=False):
        assert token.logprob == pytest.approx(logprobs[token.token_id].item(), abs=2e-3)  # halves cross the cut
        top = logprobs.topk(4)
        assert [token_id for token_id, _ in token.top_logprobs] == top.indices.tolist()
        assert [value for _, value in token.top_logprobs] == pytest.approx(top.values.tolist(), abs=2e-3)
    silent = next(client.stream(PROMPT, max_new_tokens=1))
    assert silent.logprob is None
    assert silent.top_logprobs == ()


def test_tokens_seen_are_of_the_vocabulary(open_stream: Any, server: Server, plan: Plan) -> None:
    """A token that the model does not have is refused when the session opens, and the remedy named."""
    stream = open_stream(GrpcTransport(server.address))
    stream.greet(plan)
    opened = OpenSession(sampling=Sampling(repetition_penalty=1.2), seen=(2**31,))
    assert "same tokenizer" in str(stream.ask(opened).error)


def test_reply_without_a_token(
    server: Server, head: LoadedDecoder, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that leaves the token out has broken the protocol, and is told so; it does not crash the device."""
    monkeypatch.setattr("serverlight.runtime.decoder_session.choose_token", lambda *_: Choice(None))  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="no token"):
        DecoderClient([server.address], plan=plan, head=head).generate(PROMPT, max_new_tokens=2)


def test_steps_twice_and_out_of_order(server: Server, open_stream: Any, plan: Plan, frame: bytes) -> None:
    """The last step again gets its answer again; any other number is refused by name, and the session goes on."""
    stream = open_session(open_stream, server.address, plan)
    first = stream.ask(Step(step=1, frames=(frame,)))
    assert isinstance(first, StepReply)
    assert stream.ask(Step(step=1, frames=(frame,))) == first
    refused = stream.ask(Step(step=3, frames=(frame,)))
    assert isinstance(refused.error, ProtocolError)
    assert "step 2 was expected" in str(refused.error)
    assert isinstance(stream.ask(Step(step=2, frames=(b"junk",))).error, FrameError)
    assert isinstance(stream.ask(Step(step=2, frames=(frame,))), StepReply)


def test_too_many_tokens(server: Server, open_stream: Any, plan: Plan, head: LoadedDecoder, frame: bytes) -> None:
    """What the context cannot hold is refused on the device, and by a server that is asked all the same."""
    client = DecoderClient([server.address], plan=plan, head=head)
    with pytest.raises(ContextExceeded):
        client.generate(PROMPT, max_new_tokens=200)
    stream = open_session(open_stream, server.address, plan)
    assert isinstance(stream.ask(Step(step=1, frames=(frame,) * 40)).error, (ContextExceeded, FrameError))
    assert isinstance(stream.ask(Step(step=1, frames=(frame,))), StepReply)


def test_sessions_out_of_place(server: Server, open_stream: Any, plan: Plan, frame: bytes) -> None:
    """A step without a session and a second session end their streams with a reason; others notice nothing."""
    good = open_session(open_stream, server.address, plan)
    stream = open_stream(GrpcTransport(server.address))
    stream.greet(plan)
    assert isinstance(stream.ask(Step(step=1, frames=(frame,))).error, ProtocolError)
    stream = open_session(open_stream, server.address, plan)
    assert isinstance(stream.ask(OpenSession(sampling=Sampling())).error, ProtocolError)
    assert isinstance(good.ask(Step(step=1, frames=(frame,))), StepReply)


def test_out_of_memory(tail: Any, open_stream: Any, plan: Plan, frame: bytes, until: Any) -> None:
    """A server without room for more keys and values says so at once, and has room when a session closes."""
    token_bytes = 2 * 2 * 2 * 8 * 4  # keys and values, layers, heads, head size, float32
    config = ServerConfig(max_kv_bytes=token_bytes * (len(PROMPT) + 1))
    with Server(tail, [CUT], config=config) as server:
        first, second = (open_session(open_stream, server.address, plan) for _ in range(2))
        assert isinstance(first.ask(Step(step=1, frames=(frame,))), StepReply)
        refused = second.ask(Step(step=1, frames=(frame,)))
        assert isinstance(refused.error, ServerBusy)
        assert refused.error.retry_after_ms >= 1
        first.say(CloseSession())
        until(lambda: server.core.kv_bytes == 0)
        assert isinstance(second.ask(Step(step=1, frames=(frame,))), StepReply)


def test_overhead_of_a_step() -> None:
    """Fields and framing beside the frame are at most 64 bytes a step, either way, also late in a long sequence."""
    frame = bytes(1500)
    assert wire_bytes(len(encode_client(Step(step=100_000, frames=(frame,))))) - len(frame) <= 64
    timing = Timing(queue_ms=1.1, decode_ms=1.1, tail_ms=1.1, cpu_ms=1.1, process_cpu_ms=1e7, sample_ms=1.1)
    assert wire_bytes(len(encode_server(StepReply(step=100_000, token_id=200_000, timing=timing)))) <= 64


@pytest.mark.parametrize("message", [OpenSession(sampling=Sampling(top_p=0.3)), CloseSession()])
def test_messages_return(message: Any) -> None:
    """What is encoded is decoded the same."""
    assert decode_client(encode_client(message)) == message


def test_step_without_frames() -> None:
    """A step of nothing is answered by its number."""
    answer = decode_client(encode_client(Step(step=7, frames=())))
    assert isinstance(answer, Failure)
    assert answer.request_id == 7


def test_a_refused_session_is_told_why(tail: LoadedDecoder, plan: Plan, open_stream: Any) -> None:
    """The reason arrives before the stream ends, though nothing else is under way."""
    with Server(tail, [CUT], config=ServerConfig(max_sessions=1)) as server:
        open_session(open_stream, server.address, plan)
        wait = open_stream(GrpcTransport(server.address))
        wait.greet(plan)
        refused = wait.ask(OpenSession(sampling=Sampling()))
        assert isinstance(refused, Failure)
        assert isinstance(refused.error, ServerBusy)


def test_table_of_sessions() -> None:
    """Sessions are limited in number, and one without steps is idle."""
    table = SessionTable(max_sessions=1, max_kv_bytes=10, idle_s=5)
    table.add("a", 0.0, 9)
    with pytest.raises(ServerBusy):
        table.add("b", 0.0, 9)
    table.touch("a", 3.0)
    assert table.idle(7.0) == []
    assert table.idle(8.5) == ["a"]


@pytest.mark.parametrize("num_kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_servers(
    server: Server,
    start_process: Any,
    tiny_llama: str,
    head: LoadedDecoder,
    tail: LoadedDecoder,
    plan: Plan,
    num_kills: int,
) -> None:
    """A server killed at any moment of a generation, with another standing by, changes no token."""
    sampling = Sampling(repetition_penalty=1.3)  # a new server has to learn which tokens there were
    expected = DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=60, sampling=sampling)
    chance, num_recoveries = random.Random(num_kills), 0
    for _ in range(num_kills):
        victim, at = start_process(tiny_llama, CUT), chance.randrange(1, 59)
        heard: list[int] = []

        def hear(token: int, heard: list[int] = heard, at: int = at, victim: Any = victim) -> None:
            heard.append(token)
            if len(heard) == at:
                threading.Timer(chance.uniform(0, 0.003), victim.process.kill).start()

        client = DecoderClient([victim.address, server.address], plan=plan, head=head)
        made = client.generate(PROMPT, max_new_tokens=60, sampling=sampling, on_token=hear)
        victim.kill()
        assert made.token_ids == expected == tuple(heard)
        num_recoveries += made.num_recoveries
    assert num_recoveries, "every kill came too late to matter"


def test_no_server_left(tail: LoadedDecoder, head: LoadedDecoder, plan: Plan) -> None:
    """Where nobody can go on, the tokens so far are in the error; where nobody could begin, the reason is."""
    server = Server(tail, [CUT]).start()
    client = DecoderClient([server.address], plan=plan, head=head, recovery_s=0.2, timeout_s=0.5)
    heard: list[int] = []

    def hear(token: int) -> None:
        heard.append(token)
        if len(heard) == 5:
            server.drain(0)

    with pytest.raises(GenerationInterrupted) as caught:
        client.generate(PROMPT, max_new_tokens=20, on_token=hear)
    assert caught.value.token_ids == tuple(heard)
    with pytest.raises(PeerUnavailable):
        client.generate(PROMPT, max_new_tokens=20)


def test_stories_over_a_socket(shared_data: pathlib.Path) -> None:
    """A trained Llama with halves across the cut writes 200 tokens as the uncut model does."""
    path = shared_data / "lm" / "stories260K_llama"
    if not path.is_dir():
        pytest.skip("needs lm/stories260K_llama of the shared data")
    model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    ids = transformers.AutoTokenizer.from_pretrained(path)("Once upon a time", return_tensors="pt").input_ids
    expected = model.generate(
        ids,
        do_sample=False,
        max_new_tokens=200,
        min_new_tokens=200,
        attention_mask=torch.ones_like(ids),
        pad_token_id=0,
    )[0, ids.shape[1] :].tolist()
    head = LoadedDecoder.head(str(path), CUT, dtype=torch.float32)
    plan = Plan(model=head.name, revision=head.revision, cut=CUT, codec=CodecConfig(profile="fp16"))
    with Server(LoadedDecoder.tail(str(path), CUT, dtype=torch.float32), [CUT]) as server:
        made = DecoderClient([server.address], plan=plan, head=head).generate(ids[0].tolist(), max_new_tokens=200)
    assert list(made.token_ids) == expected
