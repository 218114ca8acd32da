"""Token ids to a server that runs all layers: over true sockets, the tokens are those of the uncut model."""

from __future__ import annotations

import dataclasses
import pathlib
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

TESTS = str(pathlib.Path(__file__).parents[1])
if TESTS not in sys.path:
    sys.path.append(TESTS)

from decoder_models import ARCHITECTURES, build  # noqa: E402
from serverlight.codec import Codec, CodecConfig  # noqa: E402
from serverlight.errors import ContextExceeded, PlanMismatch, ProtocolError  # noqa: E402
from serverlight.frontier import Choice, Frontier  # noqa: E402
from serverlight.generation import DecoderLoopback, LoadedDecoder  # noqa: E402
from serverlight.plan import TOKEN_IDS, Plan  # noqa: E402
from serverlight.runtime.adapt import Adapter, Rules  # noqa: E402
from serverlight.runtime.decoder_client import DecoderClient  # noqa: E402
from serverlight.runtime.grpc_transport import GrpcTransport  # noqa: E402
from serverlight.runtime.messages import OpenSession, Step, StepReply  # noqa: E402
from serverlight.runtime.server import Server  # noqa: E402
from serverlight.sampling import Sampling  # noqa: E402

CUTS = ["layers.0", "layers.2"]
PROMPT = [1, 17, 40, 9, 33, 71, 5]
HALVES = CodecConfig(profile="fp16")
NUM_TOKENS = 30


@pytest.fixture(scope="module")
def whole(tiny_llama: str) -> LoadedDecoder:
    return LoadedDecoder.whole(tiny_llama, dtype=torch.float32)


@pytest.fixture(scope="module")
def head(tiny_llama: str) -> LoadedDecoder:
    return LoadedDecoder.head(tiny_llama, "layers.2", dtype=torch.float32)


@pytest.fixture(scope="module")
def plan(whole: LoadedDecoder) -> Plan:
    return Plan(model=whole.name, revision=whole.revision, cut="layers.0", codec=HALVES, sends=TOKEN_IDS)


@pytest.fixture(scope="module")
def server(whole: LoadedDecoder) -> Iterator[Server]:
    with Server(whole, CUTS) as server:
        yield server


@pytest.fixture
def session(server: Server, plan: Plan, open_stream: Any) -> Callable[..., Any]:
    """Opens a session at a cut, message by message."""

    def session(cut: str = "layers.0") -> Any:
        stream = open_stream(GrpcTransport(server.address))
        stream.greet(plan)
        stream.say(OpenSession(sampling=Sampling(), cut=cut))
        return stream

    return session


def uncut(folder: str, num_tokens: int = NUM_TOKENS) -> tuple[int, ...]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = torch.tensor([PROMPT])
    made = model.generate(
        ids, do_sample=False, max_new_tokens=num_tokens, min_new_tokens=num_tokens, pad_token_id=0,
        attention_mask=torch.ones_like(ids),
    )  # fmt: skip
    return tuple(made[0, len(PROMPT) :].tolist())


@pytest.mark.parametrize("name", ["Llama", "GPT-2", "OPT", "Bloom", "Granite", "SmolLM3"])
def test_tokens_are_those_of_the_uncut_model(name: str, tmp_path: pathlib.Path) -> None:
    """Embeddings tied or not, scaled, normed or with positions of their own: of ids the server makes what the model does."""
    folder = str(tmp_path / "model")
    build(name).save_pretrained(folder)
    assert name in ARCHITECTURES
    server_part = LoadedDecoder.whole(folder, dtype=torch.float32)
    head = LoadedDecoder.head(folder, "layers.0", dtype=torch.float32)
    plan = Plan(model=folder, revision=head.revision, cut="layers.0", sends=TOKEN_IDS)
    with Server(server_part, CUTS) as server:
        made = DecoderClient([server.address], plan=plan, head=head).generate(
            PROMPT, max_new_tokens=NUM_TOKENS, chunk_tokens=3
        )
    assert made.token_ids == uncut(folder)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.9, top_k=20, seed=4, repetition_penalty=1.5)])
def test_socket_gives_what_the_loopback_gives(
    server: Server, head: LoadedDecoder, whole: LoadedDecoder, plan: Plan, sampling: Sampling
) -> None:
    """Greedy or drawn, token for token; and the ids are all that goes up."""
    wanted = {"max_new_tokens": NUM_TOKENS, "sampling": sampling, "chunk_tokens": 3}
    expected = list(DecoderLoopback(plan, head, whole).stream(PROMPT, **wanted))
    made = DecoderClient([server.address], plan=plan, head=head).generate(PROMPT, **wanted)
    assert made.token_ids == tuple(token.token_id for token in expected)
    assert [cost.frame_bytes for cost in made.costs] == [token.frame_bytes for token in expected] == [7, *[1] * 29]
    assert all(cost.uplink_bytes <= 64 for cost in made.costs[1:])
    assert {(cost.head_ms, cost.encode_ms) for cost in made.costs} == {(0.0, 0.0)}


def test_likelihood_is_that_of_the_uncut_model(
    server: Server, head: LoadedDecoder, plan: Plan, tiny_llama: str
) -> None:
    """A text that crosses as ids is as likely as the uncut model finds it."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    text = [(7 * i * i + 3 * i) % 96 for i in range(80)]
    with torch.inference_mode():
        logprobs = model(torch.tensor([text])).logits[0].log_softmax(-1)[:-1]
    expected = logprobs.gather(1, torch.tensor(text[1:])[:, None])[:, 0].tolist()
    found = DecoderClient([server.address], plan=plan, head=head).likelihood(text, 79, chunk_tokens=30)
    assert [score.logprob for score in found.scores] == pytest.approx(expected, abs=1e-4)


def test_another_server_goes_on(whole: LoadedDecoder, head: LoadedDecoder, plan: Plan, tiny_llama: str) -> None:
    """Ids are replayed where a server is lost, and no token changes."""
    with Server(whole, CUTS) as leaving, Server(whole, CUTS) as staying:
        heard: list[int] = []

        def hear(token: int) -> None:
            heard.append(token)
            if len(heard) == 9:
                threading.Thread(target=leaving.drain, args=(0.0,)).start()

        client = DecoderClient([leaving.address, staying.address], plan=plan, head=head)
        made = client.generate(PROMPT, max_new_tokens=100, on_token=hear)
    assert made.token_ids == uncut(tiny_llama, 100) == tuple(heard)
    assert made.num_recoveries >= 1


def test_sequences_of_both_kinds_run_together(server: Server, head: LoadedDecoder, plan: Plan, tiny_llama: str) -> None:
    """One server has clients that send ids and clients that send frames, and none notices the others."""
    halves = dataclasses.replace(plan, cut="layers.2", sends=None)
    made: dict[int, tuple[int, ...]] = {}

    def write(index: int) -> None:
        client = DecoderClient([server.address], plan=(plan, halves)[index % 2], head=head)
        made[index] = client.generate(PROMPT, max_new_tokens=NUM_TOKENS).token_ids

    threads = [threading.Thread(target=write, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert made[0] == made[2] == uncut(tiny_llama)
    assert made[1] == made[3]


def test_a_sequence_changes_between_ids_and_frames(
    server: Server, head: LoadedDecoder, whole: LoadedDecoder, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Along a frontier the cut moves from ids to hidden states and back, also at layers.0, and no token changes."""

    def choice(cut: str, sends: str | None) -> Choice:
        return Choice(
            way="split", plan=dataclasses.replace(plan, cut=cut, sends=sends), head_ms=0.5, server_ms=0.5,
            server_busy_ms=0.5, uplink_bytes=100, downlink_bytes=50, device_memory_bytes=0, loss_pp=0.0,
        )  # fmt: skip

    ids, frames, deep = choice("layers.0", TOKEN_IDS), choice("layers.0", None), choice("layers.2", None)
    script = iter([ids, ids, frames, ids, deep, deep, ids, deep, frames, ids])

    def choose(adapter: Adapter, horizon: int | None = None, *, elapsed_s: float = 0.0) -> Choice:
        chosen = next(script, ids)
        adapter.stand_at(chosen, "script")
        return chosen

    monkeypatch.setattr(Adapter, "choose", choose)
    client = DecoderClient(
        [server.address], plan=dataclasses.replace(plan, cut="layers.2", sends=None), head=head,
        frontier=Frontier(choices=(ids, frames, deep)), rules=Rules(deadline_ms=60_000.0),
    )  # fmt: skip
    made = client.generate(PROMPT, max_new_tokens=NUM_TOKENS)
    halves = dataclasses.replace(plan, cut="layers.2", sends=None)
    assert made.token_ids == DecoderLoopback(halves, head, whole).generate(PROMPT, max_new_tokens=NUM_TOKENS)
    assert [exit.to_cut for exit in made.exits] == ["layers.0", "layers.2", "layers.0", "layers.2", "layers.0"]


# -- what strangers send ----------------------------------------------------------------------------


def test_ids_that_are_none(session: Callable[..., Any]) -> None:
    """Ids beyond the vocabulary, more than the context holds, and both kinds in one step are refused; the session goes on."""
    stream = session()
    first = stream.ask(Step(step=1, token_ids=tuple(PROMPT)))
    assert isinstance(first, StepReply)
    for ids in ((96,), (5, 2**32 - 1)):
        refused = stream.ask(Step(step=2, token_ids=ids))
        assert isinstance(refused.error, ProtocolError)
        assert "same tokenizer" in str(refused.error)
    assert isinstance(stream.ask(Step(step=2, token_ids=(1,) * 122)).error, ContextExceeded)
    assert isinstance(stream.ask(Step(step=2, token_ids=(1,), frames=(b"x",))).error, ProtocolError)
    assert isinstance(stream.ask(Step(step=2)).error, ProtocolError)
    again = session()
    assert again.ask(Step(step=1, token_ids=(*PROMPT, 3))).token_id == stream.ask(Step(step=2, token_ids=(3,))).token_id


def test_ids_elsewhere(session: Callable[..., Any], plan: Plan, open_stream: Any) -> None:
    """Ids are for layers.0, and for a server that has the embeddings; a plan that names them learns so in the handshake."""
    refused = session("layers.2").ask(Step(step=1, token_ids=(1, 2)))
    assert isinstance(refused.error, ProtocolError)
    assert "layers.0" in str(refused.error)
    bare = LoadedDecoder.tail(plan.model, "layers.0", dtype=torch.float32)
    with Server(bare, CUTS) as server:
        refused = open_stream(GrpcTransport(server.address)).greet(plan)
        assert isinstance(refused.error, PlanMismatch)
        assert refused.error.field == "sends"
        stream = open_stream(GrpcTransport(server.address))
        stream.greet(dataclasses.replace(plan, sends=None))
        stream.say(OpenSession(sampling=Sampling()))
        assert isinstance(stream.ask(Step(step=1, token_ids=(1, 2))).error, ProtocolError)


def test_frames_are_welcome_too(session: Callable[..., Any], head: LoadedDecoder) -> None:
    """A session at layers.0 takes ids and frames by turns."""
    stream = session()
    assert isinstance(stream.ask(Step(step=1, token_ids=tuple(PROMPT))), StepReply)
    cache = head.part.new_cache(last=0)
    head.part(torch.tensor([PROMPT]), cache)
    frame = bytes(Codec(HALVES).encode(head.part(torch.tensor([[3]]), cache)))
    mixed = stream.ask(Step(step=2, frames=(frame,)))
    assert mixed.token_id == session().ask(Step(step=1, token_ids=(*PROMPT, 3))).token_id
