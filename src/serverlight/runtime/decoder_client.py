"""The device's side of a language model: prompt in chunks, then a step a token, and over to another server when one dies."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Collection, Generator, Sequence
from dataclasses import dataclass

import torch

from serverlight.codec import warm_up
from serverlight.errors import ConfigError, GenerationInterrupted, PlanMismatch, ProtocolError, ServerlightError
from serverlight.frontier import Frontier
from serverlight.generation import (
    CHUNK_TOKENS,
    Likelihood,
    LoadedDecoder,
    check_length,
    check_same_model,
    chunks,
    layer_of,
    scored_chunks,
)
from serverlight.partition.decoder import DecoderHead, DecoderTail
from serverlight.plan import TOKEN_IDS, Plan
from serverlight.runtime.adapt import Change, Rules
from serverlight.runtime.credentials import Credentials
from serverlight.runtime.device import Device, Footprint
from serverlight.runtime.exits import Caps, Exit
from serverlight.runtime.following import Follower, check_frontier, deepest_layer
from serverlight.runtime.heartbeat import Heartbeat
from serverlight.runtime.messages import Timing, piece_bytes
from serverlight.runtime.moving import Mover
from serverlight.runtime.pace import Observed
from serverlight.runtime.resolver import Resolver, resolver_of
from serverlight.runtime.sequence import Link, RemoteSequence, Replies
from serverlight.sampling import Choice, Sampling, Score

__all__ = ["Caps", "DecoderClient", "Exit", "Generation", "StepCost", "Token"]


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
    """Bytes of the replies."""

    server: Timing
    """Where the server's time went, for the last frame."""

    device_tail_ms: float = 0.0
    """Running the tail and choosing the token, where the device does that."""

    frame_bytes: int = 0
    """Encoded hidden states among the bytes sent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Token(Choice):
    """One token of an answer."""

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

    exits: tuple[Exit, ...] = ()
    """How the cut moved on the way; where the last has no ``to_cut``, the device stopped there."""


class DecoderClient:
    """One device: the head of a language model and servers that have its tail. One generation at a time.

    Args:
        addresses: ``HOST:PORT`` of servers, in the order of preference; all should serve the same cuts. Also
            ``ray+http://HOST:PORT`` of directories, which are asked again when a server is lost, or a resolver.
        plan: which model, cut where, compressed how.
        head: the front of the plan's model.
        timeout_s: how long connecting may take, each time.
        step_timeout_s: how long a step may take before its server counts as lost.
        recovery_s: how long to look for a server in mid-sequence before giving up; at the start each is tried once.
        heartbeat: how long a server may be silent before it counts as lost.
        frontier: choices that the sequence moves along as its link changes, with its deadline in ``rules``; each step can have
            other settings of the codec, and the cut moves where that pays.
        rules: what the frontier's choices are to keep; needed with a frontier.
        on_change: hears of each change of choice; the logger ``serverlight.adapt`` does, too.
        caps: what the device can spare; when that is not enough, the cut moves in mid-sequence, or the answer stops.
        tail: of a plan with a second cut the rest of the model, which makes the device choose the tokens: then neither
            prompt nor answer leaves it.
        credentials: whom to trust and who the client is; by default nothing is encrypted.

    Raises:
        ConfigError: a part does not reach its cut.
        PlanMismatch: a part is another model's, or there is a tail without a second cut, or the other way round.
    """

    def __init__(
        self,
        addresses: Sequence[str] | Resolver,
        *,
        plan: Plan,
        head: LoadedDecoder,
        timeout_s: float = 5.0,
        step_timeout_s: float = 60.0,
        recovery_s: float = 30.0,
        heartbeat: Heartbeat | None = None,
        caps: Caps | None = None,
        tail: LoadedDecoder | None = None,
        credentials: Credentials | None = None,
        frontier: Frontier | None = None,
        rules: Rules | None = None,
        on_change: Callable[[Change], None] | None = None,
    ) -> None:
        resolver = resolver_of(addresses)
        for part in (head, *([tail] if tail else [])):
            check_same_model(plan, part)
        if not isinstance(head.part, DecoderHead):
            raise ConfigError("head", f"a client runs the head of a language model, got a {type(head.part).__name__}")
        tail_part = None if tail is None else tail.part
        if not isinstance(tail_part, DecoderTail | None):
            raise ConfigError("tail", f"what runs behind a second cut is a tail, got a {type(tail_part).__name__}")
        if (plan.return_cut is not None) != (tail is not None):
            raise PlanMismatch("return_cut", plan.return_cut, "a tail" if tail else "no tail")
        warm_up()
        self.plan, self._head, self._tail = plan, head.part, tail_part
        deepest = plan
        if (frontier is None) != (rules is None):
            raise ConfigError("rules", "a frontier needs rules with the deadline, and rules a frontier; give both")
        if frontier is not None:
            check_frontier(frontier)
            if any(choice.plan and choice.plan.sends for choice in frontier.choices):  # the server is told at the start
                self.plan = dataclasses.replace(plan, sends=TOKEN_IDS)
            caps = dataclasses.replace(caps or Caps(), step_deadline_ms=None)  # the rules have one
            deepest = dataclasses.replace(plan, cut=f"layers.{max(layer_of(plan.cut), deepest_layer(frontier))}")
        self._caps, self._frontier, self._rules, self._on_change = caps, frontier, rules, on_change
        self._new_device(deepest)  # a part that is too short is found out now
        self._footprint = Footprint.measure(self._head, self._tail, deepest) if caps else Footprint(head=())
        self._link = Link(
            resolver, timeout_s, step_timeout_s, recovery_s, heartbeat or Heartbeat(), credentials or Credentials()
        )

    @property
    def head(self) -> DecoderHead:
        """The device's front part."""
        return self._head

    def generate(
        self,
        token_ids: list[int],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        stop_ids: Collection[int] = (),
        on_token: Callable[[int], None] | None = None,
        on_exit: Callable[[Exit], None] | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
    ) -> Generation:
        """The tokens that follow the prompt; ``on_token`` hears each as it comes, ``on_exit`` how the cut moves. Raises
        what :meth:`stream` raises.
        """
        made, exits = list[Token](), list[Exit]()

        def hear(exit: Exit) -> None:
            exits.append(exit)
            if on_exit is not None:
                on_exit(exit)

        stream = self.stream(
            token_ids,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            stop_ids=stop_ids,
            on_exit=hear,
            chunk_tokens=chunk_tokens,
        )
        with contextlib.closing(stream):
            for token in stream:
                made.append(token)
                if on_token is not None:
                    on_token(token.token_id)
        return Generation(
            token_ids=tuple(token.token_id for token in made),
            costs=tuple(token.cost for token in made),
            num_recoveries=made[-1].num_recoveries if made else 0,
            exits=tuple(exits),
        )

    def stream(
        self,
        token_ids: list[int],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        stop_ids: Collection[int] = (),
        on_exit: Callable[[Exit], None] | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
    ) -> Generator[Token, None, None]:
        """The tokens that follow the prompt, one by one; a stop token is the last. Closing the generator ends the session.

        ``on_exit`` hears how the cut moves to keep the caps. Where it cannot, or must not, the tokens end.

        Raises:
            ContextExceeded: prompt and answer are longer than the model's context; nothing was sent.
            GenerationInterrupted: no server could go on with it; the error holds the tokens so far.
            ServerlightError: the first step was refused, for the reason that its class names.
        """
        check_length(self._head, token_ids, max_new_tokens)
        run = self._begin(token_ids, sampling or Sampling())
        made = list[int]()
        pieces = list(chunks(token_ids, chunk_tokens))
        try:
            while len(made) < max_new_tokens and not (made and made[-1] in stop_ids):
                if exit := run.exit(len(made), pieces, max_new_tokens - len(made)):
                    if on_exit is not None:
                        on_exit(exit)
                    if exit.to_cut is None:
                        return
                token = run.step(pieces)
                made.append(token.token_id)
                yield token
                pieces = [(torch.tensor([made[-1:]]), False)]
        except ServerlightError as error:
            if not made:
                raise
            raise GenerationInterrupted(tuple(made), str(error)) from error
        finally:
            run.sequence.close()

    def likelihood(self, token_ids: list[int], num_targets: int, *, chunk_tokens: int = CHUNK_TOKENS) -> Likelihood:
        """How likely the last ``num_targets`` tokens of a text are after those before them.

        The text crosses as a prompt does. Who has the tail is told these tokens, as it is when it chooses tokens itself; with
        a second cut that is the device, and none leaves it. Caps play no part.

        Raises:
            ConfigError: there is nothing to ask, or nothing before it.
            ContextExceeded: the text is longer than the model's context; nothing was sent.
            ServerlightError: what :meth:`stream` raises for its first step.
        """
        pieces = list(scored_chunks(token_ids, num_targets, chunk_tokens))
        check_length(self._head, token_ids[:-1], max_new_tokens=1)
        run = self._begin(token_ids, Sampling())
        try:
            return run.likelihood(pieces, num_tokens=len(token_ids) - 1)
        finally:
            run.sequence.close()

    def _new_device(self, plan: Plan, prompt_ids: Sequence[int] = ()) -> Device:
        return Device(plan, self._head, self._tail, prompt_ids)

    def _begin(self, prompt_ids: Sequence[int], sampling: Sampling) -> _Run:
        device = self._new_device(self.plan, prompt_ids)
        # A server that chooses no tokens need not know how they are chosen.
        sequence = RemoteSequence(self._link, self.plan, Sampling() if self._tail else sampling, device)
        mover = None
        if self._caps is not None:
            mover = Mover(self._caps, self._footprint, device, sequence, self._head.num_layers)
        return _Run(device, sequence, mover, sampling, self._follow if self._frontier else None)

    def _follow(self, mover: Mover, device: Device, served: tuple[str, ...]) -> Follower:
        assert self._frontier is not None
        assert self._rules is not None
        return Follower(
            self._frontier, self._rules, mover=mover, device=device, served=served, on_change=self._on_change
        )


@dataclass(slots=True)
class _Run:
    """One generation."""

    device: Device
    sequence: RemoteSequence
    mover: Mover | None
    sampling: Sampling
    follow: Callable[[Mover, Device, tuple[str, ...]], Follower] | None = None
    follower: Follower | None = None

    def exit(self, num_made: int, pieces: list[tuple[torch.Tensor, bool]], num_left: int) -> Exit | None:
        """Keeps the caps, and else follows the link."""
        if self.mover is None:
            return None
        if not num_made:
            self.sequence.begin()
        num_next = sum(piece.shape[1] for piece, _ in pieces)
        exit = self.mover.exit(num_made, num_next)
        if self.follow is not None and self.follower is None:
            self.follower = self.follow(self.mover, self.device, self.sequence.cuts)
        elif self.follower is not None and exit is not None:
            self.follower.stay(exit.reason)
        if exit is not None or self.follower is None:
            return exit
        return self.follower.follow(num_made, num_next, num_left)

    def step(self, pieces: list[tuple[torch.Tensor, bool]]) -> Token:
        """Sends tokens and gets the one that follows."""
        head_ms = encode_ms = 0.0
        uplink_bytes = frame_bytes = 0
        for piece, more in pieces:
            made = self.device.run(piece)
            head_ms, encode_ms = head_ms + made.head_ms, encode_ms + made.encode_ms
            sent_bytes, sent_s = self.sequence.send((made.piece,), more=more), time.perf_counter()
            uplink_bytes += sent_bytes
            frame_bytes += piece_bytes(made.piece)
        replies = self.sequence.wait()
        wait_ms = (time.perf_counter() - sent_s) * 1e3
        reply = replies[-1][0]
        tail_s = time.perf_counter()
        choice = self._choose(replies)
        self.device.note(choice.token_id)
        tail_ms = (time.perf_counter() - tail_s) * 1e3
        cost = StepCost(
            head_ms=head_ms,
            encode_ms=encode_ms,
            wait_ms=wait_ms,
            uplink_bytes=uplink_bytes,
            downlink_bytes=sum(num_bytes for _, num_bytes in replies),
            server=reply.timing,
            device_tail_ms=tail_ms if self.device.has_tail else 0.0,
            frame_bytes=frame_bytes,
        )
        self._observe(cost, pieces, sent_bytes)
        return Token(*choice, cost=cost, num_recoveries=self.sequence.num_recoveries)

    def likelihood(self, pieces: list[tuple[torch.Tensor, tuple[int, ...]]], *, num_tokens: int) -> Likelihood:
        """Sends a text and gets the scores of its targets."""
        frame_bytes = uplink_bytes = 0
        for piece, targets in pieces:
            made = self.device.run(piece).piece
            asked = () if self.device.has_tail else targets
            uplink_bytes += self.sequence.send((made,), more=True, targets=asked)
            frame_bytes += piece_bytes(made)
        replies, wanted = self.sequence.wait(), [targets for _, targets in pieces]
        scores = self._score(replies, wanted)
        return Likelihood(scores=scores, num_tokens=num_tokens, frame_bytes=frame_bytes, uplink_bytes=uplink_bytes)

    def _score(self, replies: Replies, targets: list[tuple[int, ...]]) -> tuple[Score, ...]:
        if self.device.has_tail:
            return self.device.score([frame for reply, _ in replies for frame in reply.frames], targets)
        if [len(reply.scores) for reply, _ in replies] != list(map(len, targets)):
            raise ProtocolError("a reply has no scores; is the server of the same version?")
        return tuple(score for reply, _ in replies for score in reply.scores)

    def _choose(self, replies: Replies) -> Choice:
        if self.device.has_tail:
            return self.device.choose([frame for reply, _ in replies for frame in reply.frames], self.sampling)
        reply = replies[-1][0]
        if reply.token_id is None:
            raise ProtocolError(f"the reply to step {reply.step} has no token; is the server of the same version?")
        return Choice(reply.token_id, reply.logprob, reply.top_logprobs)

    def _observe(self, cost: StepCost, pieces: list[tuple[torch.Tensor, bool]], last_bytes: int) -> None:
        if self.mover is None:
            return
        num_tokens, server = sum(piece.shape[1] for piece, _ in pieces), cost.server
        self.mover.sent(cost.uplink_bytes, num_tokens)
        observed = Observed(
            layer=self.device.layer,
            num_tokens=num_tokens,
            head_ms=cost.head_ms,
            total_ms=cost.head_ms + cost.encode_ms + cost.wait_ms + cost.device_tail_ms,
            last_tokens=pieces[-1][0].shape[1],
            last_bytes=last_bytes,
            wait_ms=cost.wait_ms,
            server_ms=server.total_ms,
            tail_ms=server.tail_ms,
        )
        self.mover.pace.observe(observed)
        if self.follower is not None:
            self.follower.observe(observed, cost.encode_ms)
