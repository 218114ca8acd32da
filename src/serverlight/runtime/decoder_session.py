"""One sequence on the server: its keys and values, its steps in order, and the last answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from serverlight.codec import Codec, decode
from serverlight.errors import ContextExceeded, CutNotFound, InputMismatch, ProtocolError
from serverlight.generation import layer_of
from serverlight.partition.decoder import DecoderMiddle, DecoderTail, DecoderWhole
from serverlight.partition.kv_cache import KVCache, LayerSize
from serverlight.plan import Plan
from serverlight.runtime.clock import Clock
from serverlight.runtime.layer_frames import read_layer
from serverlight.runtime.messages import MoveCut, OpenSession, Step, StepReply
from serverlight.sampling import Choice, Score, choose_token, score_tokens

__all__ = ["DecoderSession", "Room", "Turn"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Room:
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
    scores: tuple[Score, ...] = ()


class DecoderSession:
    """Keys and values of one sequence, and the last answer, which is given again when its step comes again."""

    def __init__(self, part: DecoderTail | DecoderMiddle, plan: Plan, opened: OpenSession, room: Room) -> None:
        self.part, self._sampling, self._room = part, opened.sampling, room
        self._seen = set(opened.seen)
        self.cache = part.new_cache(first=layer_of(plan.cut))
        self._codec = Codec(plan.codec)
        self._last: StepReply | None = None
        self._turn: Turn | None = None

    def least_bytes(self, message: Step | MoveCut) -> int:
        """A frame has a token at least; how many, and what a layer brings, is found out when its turn comes."""
        num_tokens = self.cache.num_tokens
        if isinstance(message, Step):
            num_tokens += len(message.frames) + len(message.token_ids)
        # One that the sequence is too long for has another error, which comes with its turn.
        if (
            message.step <= self._num_done
            or isinstance(message, MoveCut)
            or num_tokens > self._room.num_tokens(self.cache.first)
        ):
            return 0
        return self._room.num_bytes(self.cache.first, num_tokens)

    def begin(self, message: Step | MoveCut, reserve: Callable[[int], None], *, arrived_s: float) -> Turn | StepReply:
        """Reads a step, or takes over a layer; gives the turn that runs it, the same again until it is through, or the
        answer. What fails leaves the sequence as it was.

        Raises:
            ContextExceeded: more tokens than the server or the model takes.
            CutNotFound: the layer is not on this server.
            FrameError: a frame is damaged.
            InputMismatch: a frame holds no hidden state of this model, or no keys or values of this sequence.
            ProtocolError: a step is missing before this one, it is an old one, another layer's turn is first, or token ids are
                not for this cut or not of the vocabulary.
            ServerBusy: there is no memory for more keys and values.
        """
        done = self._num_done
        if self._last is not None and message.step == done:
            return self._last
        if message.step != done + 1:
            raise ProtocolError(f"step {message.step} came, step {done + 1} was expected; send the steps in order")
        if self._turn is not None and self._turn.step is not message:
            self.drop()  # read before its turn, and given up for another client's while it waited
        if self._turn is None:
            clock = Clock(arrived_s)
            if isinstance(message, MoveCut):
                self._take_over(message, reserve, clock)
                return self._note(message.step, _Answer(), clock)
            self._turn = self._read(message, reserve, clock)
        return self._turn

    def give_up(self, message: Step | MoveCut) -> None:
        """Drops the turn of a step, if it has one."""
        if self._turn is not None and self._turn.step is message:
            self.drop()

    def drop(self) -> None:
        """Drops the turn, and with it what it has done so far and had reserved."""
        if (turn := self._turn) is not None:
            self.cache.restore(turn.saved)
            self._turn = None
            turn.reserve(self._room.num_bytes(self.cache.first, self.cache.num_tokens))

    def conclude(self, turn: Turn, output: Tensor) -> StepReply:
        """Makes the answer of what the part made of a turn's tokens, and remembers it."""
        try:
            answer = self._answer(turn, output)
        except BaseException:
            self.drop()
            raise
        self._turn = None
        return self._note(turn.step.step, answer, turn.clock)

    @property
    def _num_done(self) -> int:
        return 0 if self._last is None else self._last.step

    def _note(self, step: int, answer: _Answer, clock: Clock) -> StepReply:
        timing = clock.timing()
        if (choice := answer.choice) is None:
            self._last = StepReply(step=step, token_id=None, frames=answer.frames, scores=answer.scores, timing=timing)
        else:
            self._last = StepReply(
                step=step,
                token_id=choice.token_id,
                logprob=choice.logprob,
                top_logprobs=choice.top_logprobs,
                timing=timing,
            )
        return self._last

    def _read(self, step: Step, reserve: Callable[[int], None], clock: Clock) -> Turn:
        parts = self._decode(step.frames) if step.frames else [self._embed(step.token_ids)]
        sizes = tuple(part.shape[1] for part in parts)
        self._check_targets(step.targets, sum(sizes))
        reserve(self._room.num_bytes(self.cache.first, self.cache.num_tokens + sum(sizes)))
        hidden = torch.cat(parts, dim=1)
        clock.lap("decode")
        return Turn(self, step, hidden, sizes, clock, reserve)

    def _answer(self, turn: Turn, output: Tensor) -> _Answer:
        if isinstance(self.part, DecoderMiddle):
            if turn.step.quiet:
                return _Answer()
            return _Answer(frames=self._encode(torch.split(output, list(turn.sizes), dim=1)))
        if turn.step.targets:
            return _Answer(scores=tuple(turn.scores))
        if turn.step.more:
            return _Answer()
        logits = output[0, -1]
        # Each call gives up the interpreter's lock, also where there is nothing to do.
        logits = logits if logits.dtype == torch.float32 else logits.float()
        logits = logits if logits.device.type == "cpu" else logits.cpu()
        choice = choose_token(logits.numpy(), self._sampling, self.cache.num_tokens, self._seen)
        if self._sampling.weighs_repetition:
            self._seen.add(choice.token_id)
        return _Answer(choice=choice)

    def _check_targets(self, targets: Sequence[int], num_tokens: int) -> None:
        if targets and isinstance(self.part, DecoderMiddle):
            raise ProtocolError("targets, but the plan's second cut leaves no logits here; score where the tail is")
        if len(targets) > num_tokens:
            raise ProtocolError(f"{len(targets)} targets for {num_tokens} tokens; send one for each at most")
        if targets and max(targets) >= self.part.vocab_size:
            raise ProtocolError(f"token {max(targets)} of {self.part.vocab_size}; is it the same tokenizer?")

    def _encode(self, returned: Sequence[Tensor]) -> tuple[bytes, ...]:
        return tuple(self._codec.encode(part) for part in returned)

    def _take_over(self, move: MoveCut, reserve: Callable[[int], None], clock: Clock) -> None:
        first, num_tokens = self.cache.first, self.cache.num_tokens
        if not num_tokens:
            raise ProtocolError("a layer before the first token; open the session at the cut that it is to have")
        if move.layer != first - 1:
            raise ProtocolError(f"layer {move.layer} came, layer {first - 1} is next; move one layer after the other")
        if move.layer < self.part.first:
            raise CutNotFound(f"layers.{move.layer}", (f"layers.{self.part.first}",))
        if num_tokens > (most := self._room.num_tokens(move.layer)):
            raise ContextExceeded(num_tokens, most)
        reserve(self._room.num_bytes(move.layer, num_tokens))
        try:
            size = self._room.sizes[move.layer - self._room.first]
            state = read_layer(move, size, num_tokens, self.part.device)
            clock.lap("decode")
            self.cache.adopt(move.layer, first, [state])
        except BaseException:
            reserve(self._room.num_bytes(first, num_tokens))
            raise

    def _decode(self, frames: Sequence[bytes]) -> list[torch.Tensor]:
        most = self._room.num_tokens(self.cache.first)
        left, parts = most - self.cache.num_tokens, list[torch.Tensor]()
        for frame in frames:
            if left < 1:
                raise ContextExceeded(most + 1, most)
            tensor: torch.Tensor = decode(frame, max_elements=left * self.part.hidden_size)
            fits = tensor.ndim == 3 and tensor.shape[0] == 1 and tensor.shape[2] == self.part.hidden_size
            if not fits or not tensor.shape[1]:
                raise InputMismatch(
                    f"a frame of shape {list(tensor.shape)}; expected [1, tokens, {self.part.hidden_size}]"
                )
            parts.append(tensor)
            left -= tensor.shape[1]
        return parts

    def _embed(self, token_ids: Sequence[int]) -> Tensor:
        """The hidden states of tokens, ``[1, tokens, hidden]``, as a head without layers would have made them."""
        if not isinstance(self.part, DecoderWhole) or self.cache.first != 0:
            raise ProtocolError(
                f"token ids at layers.{self.cache.first}; send frames, or cut at layers.0 of a server that serves it"
            )
        num_tokens, most = self.cache.num_tokens + len(token_ids), self._room.num_tokens(0)
        if num_tokens > most:
            raise ContextExceeded(num_tokens, most)
        if max(token_ids) >= self.part.vocab_size:
            raise ProtocolError(f"token {max(token_ids)} of {self.part.vocab_size}; is it the same tokenizer?")
        counted = self.part.front.new_cache()
        counted.skip(self.cache.num_tokens)
        hidden: Tensor = self.part.front(torch.tensor([token_ids]), counted)
        return hidden.cpu()  # where hidden states of frames are, too


class Turn:
    """A step under way: tokens that have been read and are to run, at once or in pieces.

    ``hidden`` is what came, ``[1, tokens, hidden]``, of frames (or ids) of so many tokens as ``sizes`` says.
    """

    def __init__(
        self,
        session: DecoderSession,
        step: Step,
        hidden: Tensor,
        sizes: tuple[int, ...],
        clock: Clock,
        reserve: Callable[[int], None],
    ) -> None:
        self.reserve = reserve
        self._session, self.step, self.hidden, self.sizes, self.clock = session, step, hidden, sizes, clock
        self.cache: KVCache = session.cache
        self.saved = self.cache.save()
        self._num_done = 0
        self._outputs: list[Tensor] = []
        self.scores: list[Score] = []

    @property
    def is_row(self) -> bool:
        """Whether it may run in a batch: one token of a sequence that has begun, whose successor is wanted."""
        return self.hidden.shape[1] == 1 and self.cache.num_tokens > 0 and not self.step.targets

    def advance(self, num_tokens: int) -> StepReply | None:
        """Runs so many tokens alone; returns the answer when all are through."""
        self.clock.lap("queue")
        piece = self.hidden[:, self._num_done : self._num_done + num_tokens]
        try:
            self._outputs.append(self._run(piece))
        except BaseException:
            self._session.drop()
            raise
        self.clock.lap("tail")
        self._num_done += piece.shape[1]
        return self.finish(torch.cat(self._outputs, dim=1)) if self._num_done == self.hidden.shape[1] else None

    def finish(self, output: Tensor) -> StepReply:
        """Answers with what the part made of the tokens: a tail's logits, of the last one at least, or hidden states."""
        self.clock.lap("queue")
        return self._session.conclude(self, output)

    def _run(self, piece: Tensor) -> Tensor:
        part = self._session.part
        if isinstance(part, DecoderMiddle):
            hidden: Tensor = part(piece, self.cache)
            return hidden
        self._outputs.clear()  # a tail's last logits are all that counts
        wanted = self._targets(piece.shape[1])
        logits: Tensor = part(piece, self.cache, num_logits=max(1, len(wanted)))
        if wanted:
            self.scores += score_tokens(logits[0].float().cpu().numpy(), wanted)
        return logits[:, -1:]

    def _targets(self, num_tokens: int) -> tuple[int, ...]:
        """Those that follow the next tokens."""
        skipped = self.hidden.shape[1] - len(self.step.targets)
        start = self._num_done - skipped
        return self.step.targets[max(0, start) : max(0, start + num_tokens)]
