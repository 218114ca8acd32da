"""The device's side of a language model: prompt in chunks, then a step a token, and over to another server when one dies."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Collection, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

import torch

from serverlight.codec import Codec, warm_up
from serverlight.errors import (
    ConfigError,
    ConnectTimeout,
    DeadlineExceeded,
    GenerationInterrupted,
    PeerUnavailable,
    ProtocolError,
    ServerBusy,
    ServerlightError,
)
from serverlight.generation import CHUNK_TOKENS, LoadedDecoder, check_length, chunks, layer_of
from serverlight.partition.decoder import DecoderHead
from serverlight.plan import Plan
from serverlight.runtime.grpc_transport import GrpcTransport
from serverlight.runtime.messages import Step, StepReply, Timing
from serverlight.runtime.stream import ClientStream
from serverlight.sampling import Sampling

__all__ = ["DecoderClient", "Generation", "StepCost", "Token"]

_RECOVERABLE = (ConnectTimeout, DeadlineExceeded, PeerUnavailable, ServerBusy)
_REPLAY_FRAMES = 32
"""Frames in one step of a replay: few enough for the limit on messages, even where each is a chunk of a prompt."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepCost:
    """What one token cost; for the first one, with all of the prompt."""

    head_ms: float
    """Running the head."""

    encode_ms: float
    """Encoding the hidden states."""

    wait_ms: float
    """From the last frame's sending until the token was there, recovery included."""

    uplink_bytes: int
    """Bytes sent, gRPC and HTTP/2 framing included; what recovery sends again is not in it."""

    downlink_bytes: int
    """Bytes of the last reply."""

    server: Timing
    """Where the server's time went, for the last frame."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """One token of an answer."""

    token_id: int
    """Its number in the vocabulary."""

    cost: StepCost
    """What it took."""

    num_recoveries: int
    """How often the sequence has moved to a new stream so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """The tokens that follow a prompt, and what they cost."""

    token_ids: tuple[int, ...]
    """A stop token included."""

    costs: tuple[StepCost, ...]
    """One for each token."""

    num_recoveries: int
    """How often the sequence moved to a new stream."""


class DecoderClient:
    """One device: the head of a language model and servers that have its tail. One generation at a time.

    Args:
        addresses: ``HOST:PORT`` of servers, in the order of preference.
        plan: which model, cut where, compressed how.
        head: the front of the plan's model.
        timeout_s: how long connecting may take, each time.
        step_timeout_s: how long a step may take before its server counts as lost.
        recovery_s: how long to look for a server before giving up.

    Raises:
        PlanMismatch: the head is another model's.
        CutNotFound: the head does not reach the cut.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        *,
        plan: Plan,
        head: LoadedDecoder,
        timeout_s: float = 5.0,
        step_timeout_s: float = 60.0,
        recovery_s: float = 30.0,
    ) -> None:
        if not addresses:
            raise ConfigError("addresses", "give at least one HOST:PORT")
        plan.check_compatible(Plan(model=head.name, revision=head.revision, cut=plan.cut))
        if not isinstance(head.part, DecoderHead):
            raise ConfigError("head", f"a client runs the head of a language model, got a {type(head.part).__name__}")
        warm_up()
        self.plan, self._head, self._layer = plan, head.part, layer_of(plan.cut)
        self._head.new_cache(last=self._layer)  # a head that is too short is found out now
        self._link = _Link(addresses, plan, timeout_s, step_timeout_s, recovery_s)
        self._codec = Codec(plan.codec)

    def generate(
        self,
        token_ids: list[int],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        stop_ids: Collection[int] = (),
        on_token: Callable[[int], None] | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
    ) -> Generation:
        """The tokens that follow the prompt; ``on_token`` hears each as it comes. Raises what :meth:`stream` raises."""
        made = list[Token]()
        stream = self.stream(
            token_ids, max_new_tokens=max_new_tokens, sampling=sampling, stop_ids=stop_ids, chunk_tokens=chunk_tokens
        )
        with contextlib.closing(stream):
            for token in stream:
                made.append(token)
                if on_token is not None:
                    on_token(token.token_id)
        return Generation(
            token_ids=tuple(token.token_id for token in made),
            costs=tuple(token.cost for token in made),
            num_recoveries=made[-1].num_recoveries,
        )

    def stream(
        self,
        token_ids: list[int],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        stop_ids: Collection[int] = (),
        chunk_tokens: int = CHUNK_TOKENS,
    ) -> Generator[Token, None, None]:
        """The tokens that follow the prompt, one by one; a stop token is the last. Closing the generator ends the session.

        Raises:
            ContextExceeded: prompt and answer are longer than the model's context; nothing was sent.
            GenerationInterrupted: no server could go on with it; the error holds the tokens so far.
            ServerlightError: the first step was refused, for the reason that its class names.
        """
        check_length(self._head, token_ids, max_new_tokens)
        cache = self._head.new_cache(last=self._layer)
        sequence = _Sequence(self._link, sampling or Sampling())
        made = list[int]()
        pieces = list(chunks(token_ids, chunk_tokens))
        try:
            while len(made) < max_new_tokens and not (made and made[-1] in stop_ids):
                token = self._step(sequence, cache, pieces)
                made.append(token.token_id)
                yield token
                pieces = [(torch.tensor([made[-1:]]), False)]
        except ServerlightError as error:
            if not made:
                raise
            raise GenerationInterrupted(tuple(made), str(error)) from error
        finally:
            sequence.close()

    def _step(self, sequence: _Sequence, cache: object, pieces: list[tuple[torch.Tensor, bool]]) -> Token:
        head_s = encode_s = 0.0
        uplink_bytes = 0
        for piece, more in pieces:
            started_s = time.perf_counter()
            with torch.inference_mode():
                hidden = self._head(piece, cache)
            head_done_s = time.perf_counter()
            frame = self._codec.encode(hidden)
            encoded_s = time.perf_counter()
            head_s, encode_s = head_s + head_done_s - started_s, encode_s + encoded_s - head_done_s
            uplink_bytes += sequence.send(frame, more=more)
        reply, downlink_bytes = sequence.wait()
        wait_ms = (time.perf_counter() - encoded_s) * 1e3
        if reply.token_id is None:
            raise ProtocolError(f"the reply to step {reply.step} has no token; is the server of the same version?")
        cost = StepCost(
            head_ms=head_s * 1e3,
            encode_ms=encode_s * 1e3,
            wait_ms=wait_ms,
            uplink_bytes=uplink_bytes,
            downlink_bytes=downlink_bytes,
            server=reply.timing,
        )
        return Token(token_id=reply.token_id, cost=cost, num_recoveries=sequence.num_recoveries)


@dataclass(frozen=True, slots=True)
class _Link:
    addresses: Sequence[str]
    plan: Plan
    timeout_s: float
    step_timeout_s: float
    recovery_s: float


@dataclass(slots=True)
class _Sequence:
    """The frames of one sequence, and the stream that it is on; without one, the next wait finds one."""

    link: _Link
    sampling: Sampling
    num_recoveries: int = 0
    _frames: list[bytes] = field(default_factory=list)
    _stream: ClientStream | None = None
    _pending: list[Future[tuple[StepReply, int]]] = field(default_factory=list)
    _num_steps: int = 0
    _next_address: int = 0
    _has_begun: bool = False

    def send(self, frame: bytes, *, more: bool) -> int:
        """Keeps the frame and sends it without waiting; returns its bytes on the wire, 0 where no server is there."""
        self._frames.append(frame)
        try:
            if not self._has_begun:
                self._has_begun = True
                self._connect()
            if self._stream is not None:
                return self._post((frame,), more=more)
        except _RECOVERABLE:
            self._drop()
        return 0

    def wait(self) -> tuple[StepReply, int]:
        """The reply to the last frame, from this server or another."""
        give_up_s, pause_s = time.monotonic() + self.link.recovery_s, _FIRST_PAUSE_S
        while True:
            try:
                if self._stream is None:
                    self._connect()
                    self._replay()
                    self.num_recoveries += 1
                return self._collect()
            except _RECOVERABLE as error:
                self._drop()
                if isinstance(error, ServerBusy):
                    pause_s = max(pause_s, error.retry_after_ms / 1e3)
                # Clients that lost the same server must not all come back at the same moment.
                pause_s = pause_s * random.uniform(0.5, 1.0)
                if time.monotonic() + pause_s > give_up_s:
                    raise
            time.sleep(pause_s)
            pause_s = min(4 * pause_s, _LONGEST_PAUSE_S)

    def close(self) -> None:
        """Ends the stream, and with it the server's memory of the sequence."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _connect(self) -> None:
        address = self.link.addresses[self._next_address % len(self.link.addresses)]
        stream = ClientStream(GrpcTransport(address))
        stream.greet(self.link.plan, self.link.timeout_s)
        self._stream, self._num_steps, self._pending = stream, 0, []
        stream.open_session(self.sampling)

    def _replay(self) -> None:
        for start in range(0, len(self._frames), _REPLAY_FRAMES):
            end = start + _REPLAY_FRAMES
            self._post(tuple(self._frames[start:end]), more=end < len(self._frames))

    def _post(self, frames: tuple[bytes, ...], *, more: bool) -> int:
        assert self._stream is not None
        self._num_steps += 1
        future, num_bytes = self._stream.post(Step(step=self._num_steps, frames=frames, more=more))
        self._pending.append(future)
        return num_bytes

    def _collect(self) -> tuple[StepReply, int]:
        """Replies in the order of their steps, so that the first failure is the true one."""
        for future in self._pending:
            try:
                reply = future.result(self.link.step_timeout_s)
            except TimeoutError:
                raise DeadlineExceeded(f"no reply within {self.link.step_timeout_s} s; is the server alive?") from None
        self._pending = []
        return reply

    def _drop(self) -> None:
        self.close()
        self._next_address += 1
