"""Language models on the server: its part of a loaded decoder, and the sequences that it goes on with."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from serverlight.codec import Codec, decode
from serverlight.errors import ConfigError, ContextExceeded, CutNotFound, InputMismatch, ProtocolError
from serverlight.generation import LoadedDecoder, layer_of
from serverlight.partition.decoder import DecoderMiddle, DecoderTail
from serverlight.partition.kv_cache import LayerSize
from serverlight.plan import Plan
from serverlight.runtime.layer_frames import read_layer
from serverlight.runtime.messages import InferReply, InferRequest, MoveCut, OpenSession, Step, StepReply, Timing
from serverlight.runtime.sessions import Session
from serverlight.sampling import Choice, choose_token

__all__ = ["DecoderSession", "DecoderWorker", "LoadedDecoder"]


class DecoderWorker:
    """The tail of one language model at the cuts that are served, or the middle; cuts share their parameters.

    Raises :class:`ConfigError` where the part is a head, :class:`CutNotFound` for a cut that it does not reach.
    """

    def __init__(self, model: LoadedDecoder, cuts: Sequence[str], *, max_tokens: int, max_kv_bytes: int) -> None:
        part = model.part
        if not isinstance(part, DecoderTail | DecoderMiddle):
            raise ConfigError(
                "model", f"a server runs the tail or the middle of a language model, got a {type(part).__name__}"
            )
        for cut in cuts:
            if not part.first <= layer_of(cut) <= part.last:
                raise CutNotFound(cut, (f"layers.{part.first}", f"layers.{part.last}"))
        self._part, self._name = part, model.name
        most_tokens = min(max_tokens, part.context_length or max_tokens)
        self._room = _Room(sizes=self._measure(), first=part.first, max_tokens=most_tokens, max_kv_bytes=max_kv_bytes)

    def run(self, cut: str, request: InferRequest, *, queue_ms: float) -> InferReply:
        """Refuses: a language model is run in sessions."""
        raise ProtocolError(f"{self._name!r} is a language model; open a session and send steps")

    def open_session(self, plan: Plan, opened: OpenSession) -> Session:
        """Begins a sequence; raises :class:`ProtocolError` where a token is not of the vocabulary."""
        if opened.seen and max(opened.seen) >= self._part.vocab_size:
            raise ProtocolError(f"token {max(opened.seen)} of {self._part.vocab_size}; is it the same tokenizer?")
        return DecoderSession(self._part, plan, opened, self._room)

    def _measure(self) -> tuple[LayerSize, ...]:
        cache = self._part.new_cache()
        with torch.inference_mode():
            self._part(torch.zeros(1, 1, self._part.hidden_size, dtype=self._part.dtype), cache)
        return cache.layer_sizes()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Room:
    """How much a sequence may hold, by the first layer that the server runs of it."""

    sizes: tuple[LayerSize, ...]
    first: int
    max_tokens: int
    max_kv_bytes: int

    def num_bytes(self, layer: int, num_tokens: int) -> int:
        """Keys and values from ``layer`` on, without regard for windows: a step may need all of them at once."""
        return num_tokens * sum(size.num_bytes(1) for size in self.sizes[layer - self.first :])

    def num_tokens(self, layer: int) -> int:
        """The most tokens of a sequence."""
        return min(self.max_tokens, self.max_kv_bytes // max(1, self.num_bytes(layer, 1)))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Answer:
    choice: Choice | None = None
    frames: tuple[bytes, ...] = ()


class DecoderSession:
    """One sequence: keys and values, and the last answer, which is given again when its step comes again."""

    def __init__(self, part: DecoderTail | DecoderMiddle, plan: Plan, opened: OpenSession, room: _Room) -> None:
        self._part, self._sampling, self._room = part, opened.sampling, room
        self._seen = set(opened.seen)
        self._cache = part.new_cache(first=layer_of(plan.cut))
        self._codec = Codec(plan.codec)
        self._last: StepReply | None = None

    def least_bytes(self, message: Step | MoveCut) -> int:
        """A frame has a token at least; how many, and what a layer brings, is found out when its turn comes."""
        done = 0 if self._last is None else self._last.step
        num_tokens = self._cache.num_tokens + (len(message.frames) if isinstance(message, Step) else 0)
        # One that the sequence is too long for has another error, which comes with its turn.
        if (
            message.step <= done
            or isinstance(message, MoveCut)
            or num_tokens > self._room.num_tokens(self._cache.first)
        ):
            return 0
        return self._room.num_bytes(self._cache.first, num_tokens)

    def run(self, message: Step | MoveCut, reserve: Callable[[int], None], *, queue_ms: float) -> StepReply:
        """Goes on by a step, or takes over a layer; what fails leaves the sequence as it was.

        Raises:
            ContextExceeded: more tokens than the server or the model takes.
            CutNotFound: the layer is not on this server.
            FrameError: a frame is damaged.
            InputMismatch: a frame holds no hidden state of this model, or no keys or values of this sequence.
            ProtocolError: a step is missing before this one, it is an old one, or another layer's turn is first.
            ServerBusy: there is no memory for more keys and values.
        """
        done = 0 if self._last is None else self._last.step
        if self._last is not None and message.step == done:
            return self._last
        if message.step != done + 1:
            raise ProtocolError(f"step {message.step} came, step {done + 1} was expected; send the steps in order")
        clock = _Clock(queue_ms)
        with torch.inference_mode():
            if isinstance(message, MoveCut):
                self._take_over(message, reserve, clock)
                answer = _Answer()
            else:
                answer = self._go_on(message, reserve, clock)
        timing = clock.timing()
        self._last = _reply(message.step, answer, timing)
        return self._last

    def _go_on(self, step: Step, reserve: Callable[[int], None], clock: _Clock) -> _Answer:
        parts = self._decode(step.frames)
        before, num_tokens = self._cache.num_tokens, self._cache.num_tokens + sum(part.shape[1] for part in parts)
        reserve(self._room.num_bytes(self._cache.first, num_tokens))
        try:
            return self._compute(step, parts, num_tokens, clock)
        except BaseException:
            reserve(self._room.num_bytes(self._cache.first, before))
            raise

    def _compute(self, step: Step, parts: list[torch.Tensor], num_tokens: int, clock: _Clock) -> _Answer:
        clock.decoded()
        hidden = torch.cat(parts, dim=1)
        if isinstance(self._part, DecoderMiddle):
            returned = self._part(hidden, self._cache).split([part.shape[1] for part in parts], dim=1)
            clock.computed()
            return _Answer() if step.quiet else _Answer(frames=self._encode(returned))
        logits = self._part(hidden, self._cache, num_logits=1)[0, -1].float().cpu().numpy()
        clock.computed()
        if step.more:
            return _Answer()
        choice = choose_token(logits, self._sampling, num_tokens, self._seen)
        if self._sampling.weighs_repetition:
            self._seen.add(choice.token_id)
        return _Answer(choice=choice)

    def _encode(self, returned: Sequence[torch.Tensor]) -> tuple[bytes, ...]:
        try:
            return tuple(self._codec.encode(part) for part in returned)
        except BaseException:
            self._cache.crop(sum(part.shape[1] for part in returned))
            raise

    def _take_over(self, move: MoveCut, reserve: Callable[[int], None], clock: _Clock) -> None:
        first, num_tokens = self._cache.first, self._cache.num_tokens
        if not num_tokens:
            raise ProtocolError("a layer before the first token; open the session at the cut that it is to have")
        if move.layer != first - 1:
            raise ProtocolError(f"layer {move.layer} came, layer {first - 1} is next; move one layer after the other")
        if move.layer < self._part.first:
            raise CutNotFound(f"layers.{move.layer}", (f"layers.{self._part.first}",))
        if num_tokens > (most := self._room.num_tokens(move.layer)):
            raise ContextExceeded(num_tokens, most)
        reserve(self._room.num_bytes(move.layer, num_tokens))
        try:
            size = self._room.sizes[move.layer - self._room.first]
            state = read_layer(move, size, num_tokens, self._part.device)
            clock.decoded()
            self._cache.adopt(move.layer, first, [state])
        except BaseException:
            reserve(self._room.num_bytes(first, num_tokens))
            raise

    def _decode(self, frames: Sequence[bytes]) -> list[torch.Tensor]:
        most = self._room.num_tokens(self._cache.first)
        left, parts = most - self._cache.num_tokens, list[torch.Tensor]()
        for frame in frames:
            if left < 1:
                raise ContextExceeded(most + 1, most)
            tensor: torch.Tensor = decode(frame, max_elements=left * self._part.hidden_size)
            fits = tensor.ndim == 3 and tensor.shape[0] == 1 and tensor.shape[2] == self._part.hidden_size
            if not fits or not tensor.shape[1]:
                raise InputMismatch(
                    f"a frame of shape {list(tensor.shape)}; expected [1, tokens, {self._part.hidden_size}]"
                )
            parts.append(tensor)
            left -= tensor.shape[1]
        return parts


def _reply(step: int, answer: _Answer, timing: Timing) -> StepReply:
    if (choice := answer.choice) is None:
        return StepReply(step=step, token_id=None, frames=answer.frames, timing=timing)
    return StepReply(
        step=step,
        token_id=choice.token_id,
        logprob=choice.logprob,
        top_logprobs=choice.top_logprobs,
        timing=timing,
    )


class _Clock:
    """Where the time of one step goes."""

    def __init__(self, queue_ms: float) -> None:
        self._queue_ms = queue_ms
        self._started_s, self._started_cpu_s = time.perf_counter(), time.thread_time()
        self._decoded_s = self._started_s
        self._computed_s: float | None = None

    def decoded(self) -> None:
        """The tensors are there."""
        self._decoded_s = time.perf_counter()

    def computed(self) -> None:
        """The layers have run."""
        self._computed_s = time.perf_counter()

    def timing(self) -> Timing:
        """All until now."""
        now_s = time.perf_counter()
        computed_s = now_s if self._computed_s is None else self._computed_s
        return Timing(
            queue_ms=self._queue_ms,
            decode_ms=(self._decoded_s - self._started_s) * 1e3,
            tail_ms=(computed_s - self._decoded_s) * 1e3,
            sample_ms=(now_s - computed_s) * 1e3,
            cpu_ms=(time.thread_time() - self._started_cpu_s) * 1e3,
            process_cpu_ms=time.process_time() * 1e3,
        )
