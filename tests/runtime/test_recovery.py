"""Generations that go on: frames that arrive damaged, servers that leave while somebody writes, memory that runs out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from serverlight.codec import Codec, CodecConfig  # noqa: E402
from serverlight.errors import FrameError, PeerUnavailable, ServerBusy  # noqa: E402
from serverlight.faults import FaultPlan, Strike  # noqa: E402
from serverlight.generation import DecoderLoopback, LoadedDecoder  # noqa: E402
from serverlight.plan import Plan  # noqa: E402
from serverlight.runtime.decoder_client import DecoderClient  # noqa: E402
from serverlight.runtime.grpc_transport import GrpcTransport  # noqa: E402
from serverlight.runtime.messages import Failure, OpenSession, Step, StepReply  # noqa: E402
from serverlight.runtime.server import Server  # noqa: E402
from serverlight.sampling import Sampling  # noqa: E402

CUT = "layers.2"
PROMPT = [1, 17, 40, 9, 33, 71, 5]


@pytest.fixture(scope="module")
def plan(head: LoadedDecoder) -> Plan:
    return Plan(model=head.name, revision=head.revision, cut=CUT, codec=CodecConfig(profile="fp16"))


@pytest.fixture(scope="module")
def expected(plan: Plan, head: LoadedDecoder, tail: LoadedDecoder) -> tuple[int, ...]:
    """What is written where nothing goes wrong."""
    return DecoderLoopback(plan, head, tail).generate(PROMPT, max_new_tokens=40)


# -- damaged frames ---------------------------------------------------------------------------------


def test_damaged_frames_are_sent_again(
    head: Any, tail: Any, plan: Plan, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One message in five arrives with a bit altered, prompts in chunks too; the text is as it would have been."""
    told: list[Strike] = []
    monkeypatch.setattr("serverlight.runtime.injection._log_strike", told.append)
    with Server(tail, [CUT], faults=FaultPlan.parse(["corrupt:0.2"], seed=1)) as server:
        client = DecoderClient([server.address], plan=plan, head=head)
        made = [client.generate(PROMPT, max_new_tokens=40, chunk_tokens=2) for _ in range(3)]
        assert {generation.token_ids for generation in made} == {expected}
        assert sum(generation.num_recoveries for generation in made) >= 3
    assert told


def test_a_frame_that_is_always_damaged(head: Any, tail: Any, plan: Plan) -> None:
    """Where the way destroys every frame, the error is the server's complaint, soon and not after the time for recovery."""
    with Server(tail, [CUT], faults=FaultPlan.parse(["corrupt:1"])) as server:
        client = DecoderClient([server.address], plan=plan, head=head, recovery_s=1000)
        with pytest.raises(FrameError):
            client.generate(PROMPT, max_new_tokens=4)


# -- drain ------------------------------------------------------------------------------------------


def test_drain_while_somebody_writes(tiny_llama: str, tail: Any, plan: Plan, expected: Any) -> None:
    """A server that leaves in mid-generation hands its writers over to another; nobody sees an error, all tokens are right."""
    with Server(tail, [CUT]) as leaving, Server(tail, [CUT]) as staying:
        under_way = threading.Barrier(4, timeout=20)

        def write(head: LoadedDecoder) -> Any:
            heard: list[int] = []

            def hear(token: int) -> None:
                heard.append(token)
                if len(heard) == 5:
                    under_way.wait()

            client = DecoderClient([leaving.address, staying.address], plan=plan, head=head)
            return client.generate(PROMPT, max_new_tokens=40, on_token=hear), heard

        with ThreadPoolExecutor(3) as pool:
            writing = [pool.submit(write, LoadedDecoder.head(tiny_llama, CUT, dtype=torch.float32)) for _ in range(3)]
            under_way.wait()
            assert leaving.drain() == 0
            for future in writing:
                made, heard = future.result()
                assert made.token_ids == expected == tuple(heard)
                assert made.num_recoveries == 1
        assert leaving.core.num_streams == leaving.core.kv_bytes == 0


def test_drain_tells_where_a_session_stood(tail: Any, head: Any, plan: Plan, open_stream: Any) -> None:
    """A session that waits between two steps is told the last that counts, and what to do; it need not ask first."""
    frame = Codec(plan.codec).encode(head.part(torch.tensor([PROMPT])))
    with Server(tail, [CUT]) as server:
        stream = open_stream(GrpcTransport(server.address))
        stream.greet(plan)
        stream.say(OpenSession(sampling=Sampling()))
        for number in (1, 2):
            assert isinstance(stream.ask(Step(step=number, frames=(frame,))), StepReply)
        server.drain()
        farewell = stream.inbox.next()
        assert isinstance(farewell, Failure)
        assert farewell.request_id == 0
        assert isinstance(farewell.error, PeerUnavailable)
        assert "step 2 was the last" in str(farewell.error)


# -- memory -----------------------------------------------------------------------------------------

GREEDY_TOKENS = 3 * len(PROMPT)
"""Of the step for which there is no memory."""


def cpu_allocator() -> None:
    torch.empty(2**60, dtype=torch.uint8)


def device_allocator() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def python_allocator() -> None:
    raise MemoryError


@pytest.fixture(params=[cpu_allocator, device_allocator, python_allocator])
def short_of_memory(request: pytest.FixtureRequest, tail: LoadedDecoder) -> Iterator[None]:
    """The last layer runs out of memory for a step of so many tokens."""

    def run_out(_module: Any, args: tuple[torch.Tensor, ...]) -> None:
        if args[0].shape[1] == GREEDY_TOKENS:
            request.param()

    layer = tail.part.model.get_submodule("model.layers.3")
    hook = layer.register_forward_pre_hook(run_out)
    yield
    hook.remove()


@pytest.mark.usefixtures("short_of_memory")
def test_out_of_memory_is_one_sessions_error(
    head: LoadedDecoder, tail: LoadedDecoder, plan: Plan, open_stream: Any, expected: Any, caplog: Any
) -> None:
    """A step without memory is refused as busy and leaves its session as it was, reserved bytes too; others go on."""

    def opened(address: str) -> Any:
        stream = open_stream(GrpcTransport(address))
        stream.greet(plan)
        stream.say(OpenSession(sampling=Sampling()))
        return stream

    frame = Codec(plan.codec).encode(head.part(torch.tensor([PROMPT])))
    with Server(tail, [CUT]) as server:
        greedy, modest = opened(server.address), opened(server.address)
        first = greedy.ask(Step(step=1, frames=(frame,)))
        assert modest.ask(Step(step=1, frames=(frame,))).token_id == first.token_id == expected[0]
        reserved = server.core.kv_bytes
        refused = greedy.ask(Step(step=2, frames=(frame,) * 3))
        assert isinstance(refused.error, ServerBusy)
        assert "memory" in caplog.text.lower()
        assert server.core.kv_bytes == reserved
        again = [stream.ask(Step(step=2, frames=(frame,))) for stream in (greedy, modest)]
        assert again[0].token_id == again[1].token_id is not None


@pytest.mark.usefixtures("short_of_memory")
def test_a_writer_goes_where_there_is_memory(
    tiny_llama: str, head: LoadedDecoder, tail: LoadedDecoder, plan: Plan
) -> None:
    """A prompt that one server has no memory for is written to at another, and nobody sees an error."""
    roomy = LoadedDecoder.tail(tiny_llama, CUT, dtype=torch.float32)
    expected = DecoderLoopback(plan, head, roomy).generate(PROMPT * 3, max_new_tokens=5)
    with Server(tail, [CUT]) as narrow, Server(roomy, [CUT]) as other:
        client = DecoderClient([narrow.address, other.address], plan=plan, head=head)
        made = client.generate(PROMPT * 3, max_new_tokens=5)
    assert (made.token_ids, made.num_recoveries) == (expected, 1)
