"""A device on an event loop: it has a gRPC stream of its own and sends what was prepared for it, when it may."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from serverlight.errors import ConnectTimeout, ProtocolError, ServerBusy
from serverlight.evaluation.load.figures import Sample, Turn, arrivals
from serverlight.evaluation.load.scripts import Requests, Script, Text
from serverlight.plan import Plan
from serverlight.runtime.grpc_stream import AsyncGrpcStream
from serverlight.runtime.messages import (
    CloseSession,
    Failure,
    Hello,
    InferReply,
    InferRequest,
    OpenSession,
    ServerMessage,
    Step,
    StepReply,
    Timing,
    Welcome,
)
from serverlight.sampling import Sampling

__all__ = ["Device", "Pace", "TurnState"]

GREETING_S = 30.0
LATE_S = 5.0
"""How long an open loop waits for late answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """How long, and how fast."""

    warmup_s: float
    """From when each device has had an answer."""

    duration_s: float
    rate_per_s: float | None = None
    """Requests due in a second, all devices together, at random times; ``None`` for one after the other."""

    thinks: bool = False
    """Whether a device takes the time of its own work between an answer and its next request."""

    seed: int = 0


class TurnState:
    """What all devices of a turn write to, and whether they may ask."""

    def __init__(self, pace: Pace, num_devices: int) -> None:
        self.pace, self.turn, self.num_devices = pace, Turn(), num_devices
        self.begun = asyncio.Event()
        """All devices are connected, and ``begun_s`` tells when the last one was."""
        self.begun_s = 0.0
        self.pending: dict[tuple[int, int], float] = {}
        """Of an open loop: device and request without an answer -> when it was due."""
        self._connected, self._answered = set[int](), set[int]()
        self._ready = asyncio.Event()
        self._gate, self._answered_all = asyncio.Event(), asyncio.Event()
        self._gate.set()
        self._num_under_way = 0

    def connected(self, device: int) -> None:
        """A device may begin; the last one lets all begin."""
        self._connected.add(device)
        if len(self._connected) == self.num_devices:
            self.begun_s = time.perf_counter()
            self.begun.set()
            if self.pace.rate_per_s is not None:
                self._ready.set()

    def add(self, sample: Sample) -> None:
        """Takes an answer."""
        self.turn.samples.append(sample)
        self._answered.add(sample.client)
        if len(self._answered) == self.num_devices:
            self._ready.set()

    async def may_ask(self) -> None:
        """Of a closed loop: until a device may send its next request."""
        await self._gate.wait()

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """While a request has no answer."""
        self._num_under_way += 1
        self._answered_all.clear()
        try:
            yield
        finally:
            self._num_under_way -= 1
            if not self._num_under_way:
                self._answered_all.set()

    async def stand_still(self) -> None:
        """Lets no device ask any more, and waits until all have their answers."""
        self._gate.clear()
        while self._num_under_way:  # a prompt in pieces has several answers
            await self._answered_all.wait()

    async def go_on(self) -> None:
        """Lets devices ask again, in a new turn, which begins when each of them has had an answer: until then the server does
        not know for whom to wait.
        """
        self.turn = turn = Turn()
        self._answered.clear()
        self._ready.clear()
        self._gate.set()
        await self.wait_ready()
        turn.begin_s = time.perf_counter()

    async def wait_ready(self) -> None:
        """Until every device has had an answer, or of an open loop is connected."""
        await self._ready.wait()

    async def wait_answered(self) -> None:
        """Of an open loop: until all that was due has an answer, for a while."""
        due_s = self.turn.end_s
        give_up_s = due_s + LATE_S
        while (late := [s for s in self.pending.values() if s < due_s]) and time.perf_counter() < give_up_s:
            await asyncio.sleep(0.01)
        now_s = time.perf_counter()
        self.turn.unanswered_ms = [(now_s - since_s) * 1e3 for since_s in late if since_s >= self.turn.begin_s]


class Device:
    """One device and its stream."""

    def __init__(self, number: int, address: str, shared: TurnState) -> None:
        self._number, self._shared = number, shared
        self._stream = AsyncGrpcStream(address)
        self._sent_bytes = 0

    async def close(self) -> None:
        """Hangs up."""
        await self._stream.close()

    async def run(self, script: Script) -> None:
        """Talks until it is cancelled."""
        try:
            await asyncio.wait_for(self._greet(script.plan), GREETING_S)
        except TimeoutError:
            raise ConnectTimeout(f"no answer within {GREETING_S:.0f} s; is the server overloaded?") from None
        self._shared.connected(self._number)
        await self._shared.begun.wait()
        if isinstance(script, Text):
            await self._write(script)
        elif self._shared.pace.rate_per_s is None:
            await self._infer(script)
        else:
            await asyncio.gather(self._infer_when_due(script), self._take_answers())

    async def _greet(self, plan: Plan) -> None:
        await self._stream.send(Hello(plan_json=plan.to_json()))
        answer = await self._receive()
        if not isinstance(answer, Welcome):
            raise _unexpected(answer)

    # -- single-shot models ----------------------------------------------------------------------

    async def _infer(self, script: Requests) -> None:
        """One request after the other."""
        numbers, payloads = itertools.count(1), _from(script.payloads, self._number)
        while True:
            await self._shared.may_ask()
            due_s, content = time.perf_counter(), next(payloads)
            num_bytes, reply = await self._insist(
                lambda content=content: InferRequest(request_id=next(numbers), payloads=content)
            )
            if not isinstance(reply, InferReply):
                raise _unexpected(reply)
            self._add(due_s, num_bytes, reply.timing)
            await self._think(script)

    async def _infer_when_due(self, script: Requests) -> None:
        """Requests at their times, however many have no answer yet."""
        pace, shared = self._shared.pace, self._shared
        rate = (pace.rate_per_s or 0.0) / shared.num_devices
        times = arrivals(rate, pace.warmup_s + pace.duration_s, seed=pace.seed * shared.num_devices + self._number)
        payloads = _from(script.payloads, self._number)
        for number, after_s in enumerate(times, start=1):
            due_s = shared.begun_s + after_s
            await asyncio.sleep(due_s - time.perf_counter())
            shared.pending[self._number, number] = due_s
            self._sent_bytes = await self._stream.send(InferRequest(request_id=number, payloads=next(payloads)))
        await asyncio.Event().wait()

    async def _take_answers(self) -> None:
        while True:
            reply = await self._receive()
            if isinstance(reply, Failure) and isinstance(reply.error, ServerBusy):
                self._shared.turn.num_refused += 1  # an open loop does not ask again
                self._shared.pending.pop((self._number, reply.request_id))
            elif isinstance(reply, InferReply):
                due_s = self._shared.pending.pop((self._number, reply.request_id))
                self._add(due_s, self._sent_bytes, reply.timing)
            else:
                raise _unexpected(reply)

    # -- language models -------------------------------------------------------------------------

    async def _write(self, script: Text) -> None:
        """One text after the other, the same again."""
        while True:
            await self._shared.may_ask()
            await self._stream.send(OpenSession(sampling=Sampling()))
            numbers, due_s, num_bytes = itertools.count(1), time.perf_counter(), 0
            for i, frame in enumerate(script.prompt):
                size, reply = await self._step(next(numbers), frame, more=i + 1 < len(script.prompt))
                num_bytes += size
            self._add_token(script, due_s, num_bytes, reply, is_first=True)
            for frame in script.steps:
                await self._think(script)
                await self._shared.may_ask()
                due_s = time.perf_counter()
                num_bytes, reply = await self._step(next(numbers), frame)
                self._add_token(script, due_s, num_bytes, reply)
            await self._stream.send(CloseSession())

    async def _step(self, number: int, frame: bytes, *, more: bool = False) -> tuple[int, StepReply]:
        num_bytes, reply = await self._insist(lambda: Step(step=number, frames=(frame,), more=more))
        if not isinstance(reply, StepReply):
            raise _unexpected(reply)
        return num_bytes, reply

    def _add_token(
        self, script: Text, due_s: float, num_bytes: int, reply: StepReply, *, is_first: bool = False
    ) -> None:
        if script.bytes_per_token is not None:
            num_bytes = script.bytes_per_token * (script.prompt_tokens if is_first else 1)
        self._add(due_s, num_bytes, reply.timing, is_first=is_first)

    # -- both ------------------------------------------------------------------------------------

    async def _insist(self, make: Any) -> tuple[int, ServerMessage]:
        """Sends what ``make`` makes until the server takes it; the bytes of all attempts, and the answer."""
        num_bytes = 0
        with self._shared.asking():
            while True:
                num_bytes += await self._stream.send(make())
                reply = await self._receive()
                if not (isinstance(reply, Failure) and reply.request_id and isinstance(reply.error, ServerBusy)):
                    return num_bytes, reply
                self._shared.turn.num_refused += 1
                await asyncio.sleep(reply.error.retry_after_ms / 1e3)

    async def _receive(self) -> ServerMessage:
        return await self._stream.receive()

    async def _think(self, script: Script) -> None:
        if self._shared.pace.thinks:
            await asyncio.sleep(script.device_ms / 1e3)

    def _add(self, due_s: float, num_bytes: int, timing: Timing, *, is_first: bool = False) -> None:
        self._shared.add(
            Sample(
                client=self._number,
                due_s=due_s,
                done_s=time.perf_counter(),
                uplink_bytes=num_bytes,
                batch_size=max(1, timing.batch_size),
                process_cpu_ms=timing.process_cpu_ms,
                is_first=is_first,
            )
        )


def _from(items: Sequence[Any], start: int) -> itertools.cycle[Any]:
    """All in turn for ever; devices do not send the same at the same time."""
    return itertools.cycle([*items[start % len(items) :], *items[: start % len(items)]])


def _unexpected(message: ServerMessage) -> Exception:
    if isinstance(message, Failure):
        return message.error
    return ProtocolError(f"a {type(message).__name__} came out of turn; is the server of the same version?")
