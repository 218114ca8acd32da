"""What runs together on a server, and that nobody notices but by the time it takes."""

from __future__ import annotations

import dataclasses
import functools
import gc
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

transformers = pytest.importorskip("transformers")

from serverlight.codec import Codec, CodecConfig  # noqa: E402
from serverlight.errors import ServerlightError  # noqa: E402
from serverlight.generation import DecoderLoopback, LoadedDecoder  # noqa: E402
from serverlight.plan import Plan  # noqa: E402
from serverlight.runtime.decoder_client import DecoderClient  # noqa: E402
from serverlight.runtime.decoders import DecoderWorker  # noqa: E402
from serverlight.runtime.messages import (  # noqa: E402
    Frame,
    InferReply,
    InferRequest,
    OpenSession,
    Step,
    StepReply,
)
from serverlight.runtime.observe import Observer  # noqa: E402
from serverlight.runtime.scheduler import Answer, Job, Scheduler  # noqa: E402
from serverlight.runtime.server import Server  # noqa: E402
from serverlight.runtime.tensors import from_raw  # noqa: E402
from serverlight.runtime.worker import Worker  # noqa: E402
from serverlight.sampling import Sampling  # noqa: E402

CODEC = Codec(CodecConfig(profile="fp16"))
CUTS = ("layers.1", "layers.2", "layers.3", "layers.2")
HIDDEN = 32
CHUNK = 4


# -- sequences --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tail(tiny_llama: str) -> LoadedDecoder:
    return LoadedDecoder.tail(tiny_llama, "layers.1", dtype=torch.float32)


class Sessions:
    """Sessions of one worker, one for each cut; runs steps of several together."""

    def __init__(self, model: LoadedDecoder, cuts: tuple[str, ...] = CUTS) -> None:
        self.worker = DecoderWorker(model, set(cuts), max_tokens=128, max_kv_bytes=2**24, prefill_tokens=CHUNK)
        self.reserved = dict.fromkeys(range(len(cuts)), 0)
        self.sessions = [
            self.worker.open_session(
                Plan(model=model.name, revision=model.revision, cut=cut), OpenSession(sampling=Sampling(logprobs=0))
            )
            for cut in cuts
        ]
        self.done = [0] * len(cuts)
        self._random = torch.Generator().manual_seed(5)

    def job(self, row: int, num_tokens: int = 1, frames: tuple[bytes, ...] | None = None) -> Job:
        state = torch.randn(1, num_tokens, HIDDEN, generator=self._random)
        step = Step(step=self.done[row] + 1, frames=frames or (CODEC.encode(state),))
        return Job(
            owner=row,
            cut=CUTS[row],
            request=step,
            reply=lambda message: None,
            arrived_s=time.monotonic(),
            session=self.sessions[row],
            reserve=functools.partial(self.reserved.__setitem__, row),
        )

    def run(self, *jobs: Job) -> dict[int, Answer]:
        answers = {}
        for job, answer in self.worker.run(jobs):
            assert isinstance(job.owner, int)
            answers[job.owner] = answer
            self.done[job.owner] += isinstance(answer, StepReply)
        assert len(answers) == len(jobs)
        return answers

    def start(self) -> None:
        for row in range(len(self.sessions)):
            self.finish(self.job(row, 3))

    def finish(self, job: Job) -> StepReply:
        """Runs one alone until it has its answer."""
        while (answer := self.run(job)[job.owner]) is None:  # type: ignore[index]
            pass
        assert isinstance(answer, StepReply), answer
        return answer


def test_steps_run_together(tail: LoadedDecoder) -> None:
    """Steps that wait at other cuts run as one batch and have the tokens that each has alone."""
    together, alone = Sessions(tail), Sessions(tail)
    together.start()
    alone.start()
    for _ in range(5):
        answers = together.run(*(together.job(row) for row in range(4)))
        for row in range(4):
            expected, answer = alone.finish(alone.job(row)), answers[row]
            assert isinstance(answer, StepReply)
            assert answer.token_id == expected.token_id
            assert answer.logprob == pytest.approx(expected.logprob, rel=1e-4)
            assert (answer.timing.batch_size, expected.timing.batch_size) == (4, 1)
    assert together.reserved == alone.reserved


def test_unlike_lengths_are_kept_apart(tail: LoadedDecoder) -> None:
    """Where padding to the longest would take more memory than all may have, sequences of like length run together, and
    each has the tokens that it has alone.
    """
    lengths = (40, 2, 3, 30)
    apart, alone = Sessions(tail), Sessions(tail)
    apart.worker._room = dataclasses.replace(apart.worker._room, max_kv_bytes=apart.worker._room.num_bytes(1, 100))
    for sessions in (apart, alone):
        for row, num_tokens in enumerate(lengths):
            sessions.finish(sessions.job(row, num_tokens))
    answers = apart.run(*(apart.job(row) for row in range(4)))
    for row in range(4):
        answer, expected = answers[row], alone.finish(alone.job(row))
        assert isinstance(answer, StepReply)
        assert (answer.token_id, answer.timing.batch_size) == (expected.token_id, 2)


def test_prompt_does_not_stall_others(tail: LoadedDecoder) -> None:
    """A long prompt runs in pieces, and in between everyone else has a token each time."""
    sessions, alone = Sessions(tail), Sessions(tail)
    sessions.start()
    alone.start()
    prompt, expected = sessions.job(0, 3 * CHUNK + 1), alone.finish(alone.job(0, 3 * CHUNK + 1))
    for _ in range(3):
        answers = sessions.run(prompt, *(sessions.job(row) for row in (1, 2, 3)))
        assert answers.pop(0) is None
        assert all(isinstance(answer, StepReply) and answer.timing.batch_size == 3 for answer in answers.values())
    answer = sessions.run(prompt)[0]
    assert isinstance(answer, StepReply)
    assert answer.token_id == expected.token_id
    assert answer.timing.queue_ms > 0


def test_steps_are_read_before_their_turn(tail: LoadedDecoder) -> None:
    """What is read while others are waited for has the same answer, also where a step is not the next one yet, is a damaged
    one, or is given up; nothing stays reserved.
    """
    early, alone = Sessions(tail), Sessions(tail)
    early.start()
    alone.start()
    damaged, first = early.job(1, frames=(b"no frame",)), early.job(0)
    early.done[0] += 1
    second = early.job(0)
    early.done[0] -= 1
    alone.job(1)  # draws what the damaged one has drawn
    for job in (second, first, damaged, second):
        early.worker.prepare(job)
    answers = early.run(first, damaged)
    assert isinstance(answers[1], ServerlightError)
    for job in (first, second):
        answer, expected = answers[0] if job is first else early.run(job)[0], alone.finish(alone.job(0))
        assert isinstance(answer, StepReply)
        assert (answer.token_id, answer.timing.decode_ms > 0) == (expected.token_id, True)
    early.worker.prepare(given_up := early.job(2))
    reserved = early.reserved[2]
    assert given_up.session is not None
    given_up.session.give_up(given_up.request)
    assert early.reserved[2] < reserved


def test_prompts_take_turns(tail: LoadedDecoder) -> None:
    """Of several prompts one goes on in each batch."""
    sessions = Sessions(tail)
    jobs = [sessions.job(0, 2 * CHUNK), sessions.job(1, CHUNK)]
    assert sessions.run(*jobs) == {0: None, 1: None}
    assert isinstance(sessions.run(*reversed(jobs))[1], StepReply)
    assert isinstance(sessions.run(jobs[0])[0], StepReply)


def test_prompt_that_is_given_up(tail: LoadedDecoder) -> None:
    """What a prompt has done by its deadline is taken back, with its memory, and the sequence goes on."""
    sessions, alone = Sessions(tail), Sessions(tail)
    sessions.start()
    alone.start()
    before = sessions.reserved[0]
    prompt = sessions.job(0, 2 * CHUNK)
    assert sessions.run(prompt) == {0: None}
    assert sessions.reserved[0] > before
    sessions.sessions[0].give_up(dataclasses.replace(prompt.request))  # another that is like it
    assert sessions.reserved[0] > before
    sessions.sessions[0].give_up(prompt.request)
    assert sessions.reserved[0] == before
    alone.job(0, 2 * CHUNK)  # draws as many random numbers
    assert sessions.finish(sessions.job(0)).token_id == alone.finish(alone.job(0)).token_id


def test_one_bad_step_hurts_itself(tail: LoadedDecoder) -> None:
    """A damaged frame, a wrong size and a request that is no step leave the others of their batch alone."""
    sessions = Sessions(tail)
    sessions.start()
    wrong = Job(
        owner=3,
        cut=CUTS[3],
        request=InferRequest(request_id=1, payloads=()),
        reply=lambda message: None,
        arrived_s=0.0,
    )
    junk, narrow = sessions.job(0, frames=(b"junk",)), sessions.job(1, frames=(CODEC.encode(torch.zeros(1, 1, 8)),))
    answers = sessions.run(junk, narrow, sessions.job(2), wrong)
    assert all(isinstance(answers[row], ServerlightError) for row in (0, 1, 3))
    assert isinstance(answers[2], StepReply)


def test_batch_that_fails_runs_alone(tail: LoadedDecoder, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """When the layers raise for a batch its rows run one after the other."""
    sessions = Sessions(tail)
    sessions.start()

    def fail(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(sessions.worker, "_sweep", fail)
    answers = sessions.run(*(sessions.job(row) for row in range(4)))
    assert all(isinstance(answer, StepReply) and answer.timing.batch_size == 1 for answer in answers.values())
    assert "a batch of 4 steps failed" in caplog.text


def test_many_devices_have_their_own_text(tiny_llama: str) -> None:
    """Eight devices at two cuts generate at once over true sockets, in batches, what each generates in one process."""
    cuts = ("layers.1", "layers.3")
    plans = {cut: Plan(model="x", revision="x", cut=cut, codec=CodecConfig(profile="fp16")) for cut in cuts}
    tail = LoadedDecoder.tail(tiny_llama, cuts[0], dtype=torch.float32)
    texts: dict[int, list[int]] = {}
    sizes: list[int] = []

    heads = [LoadedDecoder.head(tiny_llama, cuts[device % 2], dtype=torch.float32) for device in range(8)]

    def generate(device: int, address: str) -> None:
        head = heads[device]
        plan = Plan(model=head.name, revision=head.revision, cut=cuts[device % 2], codec=plans[cuts[device % 2]].codec)
        client = DecoderClient([address], plan=plan, head=head)
        texts[device] = client.generate([1, 5 + device, 9], max_new_tokens=25).token_ids

    with Server(tail, cuts) as server:
        server.core.observer = Batches(sizes)
        threads = [threading.Thread(target=generate, args=(device, server.address)) for device in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for device, text in texts.items():
        cut = cuts[device % 2]
        head = LoadedDecoder.head(tiny_llama, cut, dtype=torch.float32)
        plan = Plan(model=head.name, revision=head.revision, cut=cut, codec=plans[cut].codec)
        loopback = DecoderLoopback(plan, head, LoadedDecoder.tail(tiny_llama, cut, dtype=torch.float32))
        assert text == loopback.generate([1, 5 + device, 9], max_new_tokens=25)
    assert len(texts) == 8
    assert max(sizes) > 1


# -- requests ---------------------------------------------------------------------------------------


def vision_jobs(worker_cut: str, batches: list[torch.Tensor]) -> list[Job]:
    return [
        Job(
            owner=number,
            cut=worker_cut,
            request=InferRequest(request_id=1, payloads=(Frame(data=CODEC.encode(batch)),)),
            reply=lambda message: None,
            arrived_s=time.monotonic(),
        )
        for number, batch in enumerate(batches)
    ]


def test_requests_run_together(residual: Any) -> None:
    """Requests at one cut run once, at most so many samples at a time; each has its own rows of the outputs."""
    model, parts = residual
    head, tail = parts.split(parts.cut("stem"))
    worker = Worker(model, parts, ["stem"], max_batch=8)
    features = [head(torch.randn(size, 3, 16, 16))[0] for size in (1, 3, 2, 7)]
    answers = dict(worker.run(jobs := vision_jobs("stem", features)))
    for job, feature, together in zip(jobs, features, (3, 3, 3, 1), strict=True):
        reply = answers[job]
        assert isinstance(reply, InferReply)
        assert reply.timing.batch_size == together
        expected = tail.flat(feature.half().float())[0]
        torch.testing.assert_close(from_raw(reply.outputs[0]), expected, rtol=1e-4, atol=1e-5)


def test_requests_are_read_before_their_turn(residual: Any) -> None:
    """What is read while others are waited for has the same answer; what is damaged has its error when its turn comes."""
    model, parts = residual
    head, tail = parts.split(parts.cut("stem"))
    worker = Worker(model, parts, ["stem"], max_batch=8)
    feature = head(torch.randn(2, 3, 16, 16))[0]
    good, damaged = vision_jobs("stem", [feature, torch.zeros(1, 2)])
    for job in (good, damaged):
        worker.prepare(job)
    assert list(worker._begun) == [good]
    answers = dict(worker.run([good, damaged]))
    assert isinstance(answers[damaged], ServerlightError)
    reply = answers[good]
    assert isinstance(reply, InferReply)
    expected = tail.flat(feature.half().float())[0]
    torch.testing.assert_close(from_raw(reply.outputs[0]), expected, rtol=1e-4, atol=1e-5)


def test_large_requests_run_in_pieces(residual: Any) -> None:
    """Where the thread is shared a request of many samples is answered after several batches, with the same outputs, and a
    small one that came with it at once; what is given up half way is forgotten.
    """
    model, parts = residual
    head, tail = parts.split(parts.cut("stem"))
    worker = Worker(model, parts, ["stem"], max_batch=8)
    large, given_up = (head(torch.randn(size, 3, 16, 16))[0] for size in (5, 7))
    jobs = vision_jobs("stem", [large, given_up, head(torch.randn(1, 3, 16, 16))[0]])
    answers = dict(worker.run(jobs, is_shared=True))
    assert [type(answers[job]) for job in jobs] == [type(None), type(None), InferReply]
    assert len(worker._begun) == 2
    del answers, jobs[1]
    gc.collect()
    assert len(worker._begun) == 1
    assert dict(worker.run(jobs[:1], is_shared=True)) == {jobs[0]: None}
    reply = dict(worker.run(jobs[:1], is_shared=True))[jobs[0]]
    assert isinstance(reply, InferReply)
    expected = tail.flat(large.half().float())[0]
    torch.testing.assert_close(from_raw(reply.outputs[0]), expected, rtol=1e-4, atol=1e-5)


def test_a_large_request_is_alone_again(residual: Any) -> None:
    """A request that has begun in pieces runs to its end at once when nobody else has work."""
    model, parts = residual
    head, tail = parts.split(parts.cut("stem"))
    worker = Worker(model, parts, ["stem"], max_batch=8)
    feature = head(torch.randn(8, 3, 16, 16))[0]
    (job,) = vision_jobs("stem", [feature])
    assert dict(worker.run([job], is_shared=True)) == {job: None}
    reply = dict(worker.run([job], is_shared=False))[job]
    assert isinstance(reply, InferReply)
    expected = tail.flat(feature.half().float())[0]
    torch.testing.assert_close(from_raw(reply.outputs[0]), expected, rtol=1e-4, atol=1e-5)


def test_one_bad_request_hurts_itself(residual: Any) -> None:
    """A frame that does not fit is answered by its error; the rest of the batch runs."""
    model, parts = residual
    head, _ = parts.split(parts.cut("stem"))
    feature = head(torch.randn(1, 3, 16, 16))[0]
    jobs = vision_jobs("stem", [feature, torch.zeros(1, 2), feature])
    answers = dict(Worker(model, parts, ["stem"], max_batch=8).run(jobs))
    assert isinstance(answers[jobs[1]], ServerlightError)
    assert all(isinstance(answers[jobs[number]], InferReply) for number in (0, 2))


def test_vision_batch_that_fails_runs_alone(residual: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the tail raises for a batch its requests run one after the other."""
    model, parts = residual
    head, _ = parts.split(parts.cut("stem"))
    worker = Worker(model, parts, ["stem"], max_batch=8)
    run: Callable[[Any], Any] = worker._run_tail

    def fail_for_many(batch: Any) -> Any:
        if len(batch) > 1:
            raise MemoryError
        return run(batch)

    monkeypatch.setattr(worker, "_run_tail", fail_for_many)
    answers = dict(worker.run(vision_jobs("stem", [head(torch.randn(1, 3, 16, 16))[0]] * 3)))
    assert [answer.timing.batch_size for answer in answers.values()] == [1, 1, 1]  # type: ignore[union-attr]


# -- what is taken together -------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=30), st.integers(1, 8))
def test_a_batch_has_one_step_of_a_session(sent: list[tuple[int, bool]], limit: int) -> None:
    """Batches lose nothing, are as large as they may be, keep each owner's order, and never hold two steps of a session."""
    scheduler, waiting = Scheduler(max_waiting=100), dict[int, list[Job]]()
    session: Any = object()
    for number, (owner, is_step) in enumerate(sent):
        owner = 2 * owner + is_step  # a stream has either a session or requests
        request = InferRequest(request_id=number + 1, payloads=())
        job = Job(
            owner=owner,
            cut="c",
            request=request,
            reply=lambda message: None,
            arrived_s=number,
            session=session if is_step else None,
        )
        scheduler.admit(job)
        waiting.setdefault(owner, []).append(job)
    while batch := scheduler.take_batch(limit):
        possible = sum(min(len(jobs), 1) if owner % 2 else len(jobs) for owner, jobs in waiting.items())
        assert len(batch) == min(limit, possible)
        for job in batch:
            assert waiting[job.owner].pop(0) is job  # type: ignore[index]
        steps = [job.owner for job in batch if job.session is not None]
        assert len(steps) == len(set(steps))
    assert not any(waiting.values())


def test_what_is_put_back_comes_first() -> None:
    """A prompt that is not through goes on before what its stream sent since, after others had a turn."""
    scheduler = Scheduler(max_waiting=10)
    jobs = [
        Job(owner=owner, cut="c", request=InferRequest(request_id=1, payloads=()), reply=print, arrived_s=0.0)
        for owner in ("a", "a", "b")
    ]
    for job in jobs:
        scheduler.admit(job)
    assert scheduler.take() is jobs[0]
    scheduler.put_back(jobs[0])
    taken = [scheduler.take() for _ in range(3)]
    assert taken.index(jobs[0]) < taken.index(jobs[1])


class Batches(Observer):
    """Keeps the sizes of batches."""

    def __init__(self, sizes: list[int]) -> None:
        self._sizes = sizes

    def answered(self, job: Job, message: Any) -> None:
        if isinstance(message, StepReply):
            self._sizes.append(message.timing.batch_size)
