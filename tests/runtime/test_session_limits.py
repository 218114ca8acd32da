"""What sessions of language models promise at their limits: room, idleness, clients that do not read, windows and halves."""

from __future__ import annotations

import itertools
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
import torch

transformers = pytest.importorskip("transformers")

from serverlight.codec import Codec, CodecConfig  # noqa: E402
from serverlight.errors import PeerUnavailable, QuotaExceeded, ServerBusy, Unauthenticated  # noqa: E402
from serverlight.generation import DecoderLoopback, LoadedDecoder  # noqa: E402
from serverlight.plan import Plan  # noqa: E402
from serverlight.runtime.conversion import encode_client  # noqa: E402
from serverlight.runtime.core import ServerConfig  # noqa: E402
from serverlight.runtime.credentials import Credentials  # noqa: E402
from serverlight.runtime.decoder_client import DecoderClient  # noqa: E402
from serverlight.runtime.decoders import DecoderWorker  # noqa: E402
from serverlight.runtime.grpc_transport import SERVICE, GrpcTransport  # noqa: E402
from serverlight.runtime.messages import Failure, Hello, OpenSession, Step, StepReply  # noqa: E402
from serverlight.runtime.scheduler import Job  # noqa: E402
from serverlight.runtime.security import Security  # noqa: E402
from serverlight.runtime.server import Server  # noqa: E402
from serverlight.runtime.sessions import SessionTable  # noqa: E402
from serverlight.runtime.tokens import add_client  # noqa: E402
from serverlight.runtime.transport import InProcessTransport  # noqa: E402
from serverlight.sampling import Sampling  # noqa: E402

CUT = "layers.2"
PROMPT = [1, 17, 40, 9, 33, 71, 5]
NO_PROXY = [("grpc.enable_http_proxy", 0)]


@pytest.fixture(scope="module")
def plan(head: LoadedDecoder) -> Plan:
    return plan_of(head)


@pytest.fixture
def frame(head: LoadedDecoder) -> bytes:
    return bytes(Codec(CodecConfig(profile="fp16")).encode(head.part(torch.tensor([PROMPT]))))


def plan_of(head: LoadedDecoder) -> Plan:
    return Plan(model=head.name, revision=head.revision, cut=CUT, codec=CodecConfig(profile="fp16"))


def test_idle_session_ends(tail: Any, head: Any, plan: Plan, frame: bytes, open_stream: Any, until: Any) -> None:
    """A session without steps is told so and forgotten; a client whose own was forgotten goes on with the same tokens."""
    expected = DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=6)
    with Server(tail, [CUT], config=ServerConfig(session_idle_s=1.5)) as server:
        stream = open_stream(GrpcTransport(server.address))
        stream.greet(plan)
        stream.say(OpenSession(sampling=Sampling()))
        assert isinstance(stream.ask(Step(step=1, frames=(frame,))), StepReply)
        forgotten = stream.inbox.next()
        assert isinstance(forgotten, Failure)
        assert forgotten.request_id == 0
        assert isinstance(forgotten.error, PeerUnavailable)
        assert "idle" in str(forgotten.error)
        until(lambda: server.core.kv_bytes == 0)
        pauses = iter([0.0, 4.0])
        client = DecoderClient([server.address], plan=plan, head=head)
        made = client.generate(PROMPT, max_new_tokens=6, on_token=lambda _: time.sleep(next(pauses, 0.0)))
        assert made.token_ids == expected
        assert made.num_recoveries >= 1


def test_client_that_does_not_read(tail: Any, head: Any, plan: Plan, frame: bytes) -> None:
    """Replies that nobody reads hold up the stream that they are for, and no other."""
    expected = DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=20)
    opened = OpenSession(sampling=Sampling(logprobs=20))
    again = encode_client(Step(step=1, frames=(frame,)))
    said = 0

    def say() -> Iterator[bytes]:
        nonlocal said
        yield encode_client(Hello(plan_json=plan.to_json()))
        yield encode_client(opened)
        for said in itertools.count():  # noqa: B007 - counts for the outer scope
            yield again

    with Server(tail, [CUT]) as server, grpc.insecure_channel(server.address, NO_PROXY) as channel:
        call = channel.stream_stream(f"/{SERVICE}/Connect", None, None)(say())
        made = DecoderClient([server.address], plan=plan, head=head).generate(PROMPT, max_new_tokens=20)
        assert made.token_ids == expected
        assert server.core.num_waiting <= server.core.config.max_in_flight
        call.cancel()
    assert said > 0


def test_step_that_was_given_up_never_was(tail: Any, head: Any, plan: Plan, frame: bytes) -> None:
    """A step that was read before its turn, and then given up for another client's, has no part in what comes instead."""
    worker = DecoderWorker(tail, [CUT], max_tokens=64, max_kv_bytes=1 << 20)
    session = worker.open_session(plan, OpenSession(sampling=Sampling()))
    other = bytes(Codec(CodecConfig(profile="fp16")).encode(head.part(torch.tensor([PROMPT[:3]]))))
    reserved = list[int]()
    given_up, instead = Step(step=1, frames=(frame,)), Step(step=1, frames=(other,))
    first = session.begin(given_up, reserved.append, arrived_s=0.0)
    assert session.begin(given_up, reserved.append, arrived_s=0.0) is first
    turn = session.begin(instead, reserved.append, arrived_s=0.0)
    assert turn.hidden.shape[1] == 3
    assert [num_bytes // reserved[-1] for num_bytes in reserved] == [len(PROMPT) // 3, 0, 1]


class Held:
    """A session that has a hundred bytes for each step, and notes what it gave up."""

    def __init__(self) -> None:
        self.given_up: list[Any] = []

    def least_bytes(self, message: Any) -> int:
        return 100 * message.step

    def give_up(self, message: Any) -> None:
        self.given_up.append(message)


def test_step_that_gives_way_gives_back(
    make_core: Any, open_stream: Any, runner: Any, frame: bytes, until: Any
) -> None:
    """What a waiting step had reserved is there again as soon as the step gives way to another client's."""
    core, session = make_core(max_waiting=2), Held()
    runner.open_session = lambda plan, opened: session
    flood, other = (open_stream(InProcessTransport(core, client=name)) for name in ("flood", "other"))
    for stream in (flood, other):
        stream.greet()
    flood.say(OpenSession(sampling=Sampling()))
    runner.may_run.clear()
    other.say_infer(1)
    assert runner.has_begun.acquire(timeout=20)
    steps = [Step(step=number, frames=(frame,)) for number in (1, 2)]
    for step in steps:
        flood.say(step)
    other.say_infer(2)
    refused = flood.inbox.next()
    assert (refused.request_id, type(refused.error)) == (2, ServerBusy)
    assert session.given_up == []  # it is the compute thread's, which is held
    runner.may_run.set()
    until(lambda: session.given_up == [steps[1]])


def test_no_room_is_told_on_arrival(make_core: Any, connect_to: Any, runner: Any, frame: bytes) -> None:
    """A step for which there is no room is refused while the compute thread is held by another's."""

    def hold(job: Job) -> None:
        job.reserve(100)
        runner.has_begun.release()
        assert runner.may_run.wait(20)
        raise PeerUnavailable("enough")

    runner.answer = hold
    runner.open_session = lambda plan, opened: Held()
    core = make_core(max_kv_bytes=150)
    first, second = connect_to(core), connect_to(core)
    for stream in (first, second):
        stream.greet()
        stream.say(OpenSession(sampling=Sampling()))
    runner.may_run.clear()
    first.say(Step(step=1, frames=(frame,)))
    assert runner.has_begun.acquire(timeout=20)
    assert isinstance(second.ask(Step(step=1, frames=(frame,))).error, ServerBusy)
    runner.may_run.set()
    assert isinstance(first.inbox.next().error, PeerUnavailable)


def test_check_reserves_nothing() -> None:
    """What is only asked for is not taken, and an owner that is gone is asked for nothing."""
    table = SessionTable(max_sessions=1, max_kv_bytes=10, idle_s=5)
    table.add("a", 0.0, 9)
    table.check("a", 10, 9)
    assert table.kv_bytes == 0
    with pytest.raises(ServerBusy):
        table.check("a", 11, 9)
    table.check("gone", 11, 9)


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Mistral of random weights whose layers see 8 tokens."""
    path = tmp_path_factory.mktemp("models") / "tiny-mistral"
    config = transformers.MistralConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, sliding_window=8,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformers.MistralForCausalLM(config).save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model", ["tiny_llama", "windowed"])
def test_windows_and_halves(model: str, dtype: torch.dtype, request: Any) -> None:
    """Of models with windows and in bfloat16 too, a session gives the loopback's tokens; in float32 also after a replay."""
    folder = request.getfixturevalue(model)
    head, tail = LoadedDecoder.head(folder, CUT, dtype=dtype), LoadedDecoder.tail(folder, CUT, dtype=dtype)
    plan, prompt = plan_of(head), PROMPT * 3
    expected = DecoderLoopback(plan, head, tail).generate(prompt, max_new_tokens=20)
    with Server(tail, [CUT]) as first, Server(tail, [CUT]) as second:
        heard: list[int] = []

        def hear(token: int) -> None:
            heard.append(token)
            if len(heard) == 12 and dtype == torch.float32:  # in bfloat16 many tokens at once round in other places
                first.drain(0)

        client = DecoderClient([first.address, second.address], plan=plan, head=head)
        made = client.generate(prompt, max_new_tokens=20, on_token=hear)
    assert made.token_ids == expected
    assert (made.num_recoveries >= 1) == (dtype == torch.float32)


QUOTAS = {
    "requests": "requests_per_s = 50\nburst_s = 0.04\n",
    "bytes": "bytes_per_s = 10_000\nburst_s = 0.05\n",
}


@pytest.mark.parametrize("quota", QUOTAS.values(), ids=QUOTAS)
def test_client_keeps_to_its_quota(tail: Any, head: Any, plan: Plan, tmp_path: pathlib.Path, quota: str) -> None:
    """A sequence that is faster than its client's quota goes on in its place when it may, with the same tokens."""
    prompt = PROMPT + PROMPT[:6]
    wanted = {"max_new_tokens": 12, "chunk_tokens": 6}  # two long frames and a short one, for which there may be room
    expected = DecoderLoopback(plan, head, tail).generate(prompt, **wanted)
    path = tmp_path / "tokens.toml"
    token = add_client(str(path), "phone")
    path.write_text(path.read_text() + quota)
    with Server(tail, [CUT], security=Security(tokens=str(path))) as server:
        client = DecoderClient([server.address], plan=plan, head=head, credentials=Credentials(token=token))
        refused = count_refusals(server)
        made = client.generate(prompt, **wanted)
    assert made.token_ids == expected
    assert made.num_recoveries == 0
    assert refused


def count_refusals(server: Server) -> list[QuotaExceeded]:
    """The refusals of this server from now on."""
    refused, charge = list[QuotaExceeded](), server.core._quotas.charge

    def note(*what: Any) -> None:
        try:
            charge(*what)
        except QuotaExceeded as error:
            refused.append(error)
            raise

    server.core._quotas.charge = note  # type: ignore[method-assign]
    return refused


def test_session_over_quota_waits_for_the_first(tail: Any, head: Any, plan: Plan, tmp_path: pathlib.Path) -> None:
    """A client with one session gets no second one at a time, and is told which quota; when the first ends, it goes on."""
    path = tmp_path / "tokens.toml"
    token = add_client(str(path), "phone")
    path.write_text(path.read_text() + "max_sessions = 1\n")
    with Server(tail, [CUT], security=Security(tokens=str(path))) as server:
        client = DecoderClient(
            [server.address], plan=plan, head=head, credentials=Credentials(token=token), recovery_s=0.2
        )
        first = client.stream(PROMPT, max_new_tokens=4)
        next(first)
        with pytest.raises(QuotaExceeded, match="max_sessions"):
            client.generate(PROMPT, max_new_tokens=1)
        first.close()
        assert len(client.generate(PROMPT, max_new_tokens=2).token_ids) == 2


def test_wrong_token_ends_a_generation_at_once(tail: Any, head: Any, plan: Plan, tmp_path: pathlib.Path) -> None:
    """A token that a server does not know is not tried again for as long as a lost server would be."""
    add_client(str(tmp_path / "tokens.toml"), "phone")
    with Server(tail, [CUT], security=Security(tokens=str(tmp_path / "tokens.toml"))) as server:
        client = DecoderClient([server.address], plan=plan, head=head, recovery_s=3600)
        with pytest.raises(Unauthenticated):
            client.generate(PROMPT, max_new_tokens=2)
