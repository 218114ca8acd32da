"""The device's side of one sequence: the parts of the model that it has, and what they remember."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass

import torch

from serverlight.codec import Codec, decode
from serverlight.errors import ProtocolError
from serverlight.generation import CHUNK_TOKENS, layer_of, score_hidden
from serverlight.partition.decoder import DecoderHead, DecoderTail
from serverlight.partition.kv_cache import LayerSize, LayerState
from serverlight.plan import TOKEN_IDS, Plan
from serverlight.runtime.messages import Piece
from serverlight.sampling import Choice, Sampling, Score, choose_token

__all__ = ["Device", "Footprint", "HeadRun"]


@dataclass(frozen=True, kw_only=True, slots=True)
class HeadRun:
    """What the head made of some tokens."""

    piece: Piece
    """What goes up: their hidden states, encoded, or their ids."""

    head_ms: float
    """Running the head."""

    encode_ms: float
    """Encoding."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Footprint:
    """What keys and values take on the device."""

    head: tuple[LayerSize, ...]
    """One for each layer of the head."""

    tail: tuple[LayerSize, ...] = ()
    """One for each layer behind a second cut."""

    @classmethod
    def measure(cls, head: DecoderHead, tail: DecoderTail | None, plan: Plan) -> Footprint:
        """Runs one token through the plan's parts."""
        head_cache = head.new_cache(last=layer_of(plan.cut))
        with torch.inference_mode():
            head(torch.zeros(1, 1, dtype=torch.int64), head_cache)
            if tail is None:
                return cls(head=head_cache.layer_sizes())
            tail_cache = tail.new_cache(first=layer_of(plan.return_cut or ""))
            tail(torch.zeros(1, 1, tail.hidden_size, dtype=tail.dtype), tail_cache)
        return cls(head=head_cache.layer_sizes(), tail=tail_cache.layer_sizes())

    def num_bytes(self, layer: int, num_tokens: int) -> int:
        """Keys and values of a sequence of so many tokens that is cut at ``layer``."""
        return sum(size.num_bytes(num_tokens) for size in (*self.head[:layer], *self.tail))

    def num_elements(self, first: int, last: int, num_tokens: int) -> int:
        """Elements of keys and values in the head's layers from ``first`` up to ``last``."""
        return sum(size.num_bytes(num_tokens) // size.dtype.itemsize for size in self.head[first:last])


class Device:
    """One sequence on the device; it remembers the token ids, from which everything can be made again."""

    def __init__(self, plan: Plan, head: DecoderHead, tail: DecoderTail | None, prompt_ids: Sequence[int] = ()) -> None:
        self._head, self._tail = head, tail
        self._codec, self._sends = Codec(plan.codec), plan.sends
        self._cache = head.new_cache(last=layer_of(plan.cut))
        self._tail_cache = None if tail is None else tail.new_cache(first=layer_of(plan.return_cut or ""))
        self._ids: list[int] = []
        self._seen = set(prompt_ids)
        self._sizes: list[int] = []

    @property
    def layer(self) -> int:
        """How many layers the head runs."""
        return self._cache.last

    @property
    def num_tokens(self) -> int:
        """Tokens that the head has run."""
        return len(self._ids)

    @property
    def seen(self) -> Set[int]:
        """The tokens that occur in prompt and answer, also where they have not been run yet."""
        return self._seen

    @property
    def num_frames(self) -> int:
        """Frames that hold them."""
        return len(self._sizes)

    @property
    def has_tail(self) -> bool:
        """Whether hidden states come back, and the token is chosen here."""
        return self._tail is not None

    def run(self, piece: torch.Tensor) -> HeadRun:
        """Goes on by some tokens, int64 ``[1, tokens]``."""
        ids: list[int] = piece[0].tolist()
        made = self._pass_on(ids) if self._sends_ids else self._encode(piece)
        self._ids += ids
        self._sizes.append(len(ids))
        return made

    @property
    def _sends_ids(self) -> bool:
        return self._sends == TOKEN_IDS and self.layer == 0

    def _pass_on(self, ids: list[int]) -> HeadRun:
        self._cache.skip(len(ids))
        return HeadRun(piece=tuple(ids), head_ms=0.0, encode_ms=0.0)

    def _encode(self, piece: torch.Tensor) -> HeadRun:
        started_s = time.perf_counter()
        with torch.inference_mode():
            hidden = self._head(piece, self._cache)
        head_done_s = time.perf_counter()
        frame = self._codec.encode(hidden)
        encode_ms = (time.perf_counter() - head_done_s) * 1e3
        return HeadRun(piece=frame, head_ms=(head_done_s - started_s) * 1e3, encode_ms=encode_ms)

    def choose(self, frames: Sequence[bytes], sampling: Sampling) -> Choice:
        """The next token, from the hidden states of all tokens that the tail has not seen yet.

        Raises:
            FrameError: a frame is damaged, or claims too many elements.
            ProtocolError: the frames hold other hidden states than those that were asked for.
        """
        assert self._tail is not None
        parts = self._read(frames)
        with torch.inference_mode():
            for part in parts:
                logits = self._tail(part, self._tail_cache, num_logits=1)[0, -1]
        return choose_token(logits.float().cpu().numpy(), sampling, len(self._ids), self.seen)

    def score(self, frames: Sequence[bytes], targets: Sequence[Sequence[int]]) -> tuple[Score, ...]:
        """How likely the tokens are that follow the last ones of each frame, which are as :meth:`choose` has them."""
        assert self._tail is not None
        assert self._tail_cache is not None
        scores = list[Score]()
        with torch.inference_mode():
            for part, following in zip(self._read(frames), targets, strict=True):
                scores += score_hidden(self._tail, part, self._tail_cache, following)
        return tuple(scores)

    def _read(self, frames: Sequence[bytes]) -> list[torch.Tensor]:
        assert self._tail is not None
        assert self._tail_cache is not None
        due = len(self._ids) - self._tail_cache.num_tokens
        parts = [decode(frame, max_elements=due * self._tail.hidden_size) for frame in frames]
        shapes = [tuple(part.shape) for part in parts]
        wanted = self._sizes[-len(frames) :] if frames else []
        if shapes != [(1, size, self._tail.hidden_size) for size in wanted] or sum(wanted) != due:
            raise ProtocolError(
                f"hidden states of shapes {shapes} came back, those of {due} tokens are due; "
                "is the server of the same version?"
            )
        return parts

    def note(self, token_id: int) -> None:
        """Counts a token of the answer as seen, before it is run: a cut that moves now must not forget it."""
        self._seen.add(token_id)

    def give(self, layer: int) -> tuple[LayerState, ...]:
        """Moves the cut to ``layer``; returns what the layers behind it remember, and forgets it."""
        return self._cache.release(layer, self._cache.last, stays_at_front=True)

    def take(self, layer: int) -> None:
        """Moves the cut to a deeper ``layer``; what the head remembers is to be made :meth:`again`."""
        self._cache = self._head.new_cache(last=layer)

    def use(self, plan: Plan) -> None:
        """Sends what that plan says from now on, at whichever cut; frames describe themselves."""
        self._sends = plan.sends
        if plan.codec != self._codec.config:
            self._codec = Codec(plan.codec)

    def again(self) -> Iterator[tuple[Piece, ...]]:
        """Runs the head over all tokens anew, at the cut where it is now; what goes up of all tokens, some at a time.

        A piece for each that there was, of the same tokens. To be read to the end: the cache is made anew too, so that
        memory never holds it twice.
        """
        self._cache = self._head.new_cache(last=self._cache.last)
        start = 0
        for sizes in _batches(self._sizes, CHUNK_TOKENS):
            ids = self._ids[start : start + sum(sizes)]
            start += sum(sizes)
            yield self._pieces(ids, sizes)

    def _pieces(self, ids: list[int], sizes: list[int]) -> tuple[Piece, ...]:
        if self._sends_ids:
            self._cache.skip(len(ids))
            left = iter(ids)
            return tuple(tuple(itertools.islice(left, size)) for size in sizes)
        with torch.inference_mode():
            hidden = self._head(torch.tensor([ids]), self._cache)
        return tuple(self._codec.encode(part) for part in hidden.split(sizes, dim=1))


def _batches(sizes: Sequence[int], limit: int) -> Iterator[list[int]]:
    """Sizes in order, as many at a time as sum to ``limit`` at most, but one at least.

    >>> list(_batches([4, 1, 1, 1], limit=5))
    [[4, 1], [1, 1]]
    """
    ends = itertools.accumulate(sizes)
    batch, before = list[int](), 0
    for size, end in zip(sizes, ends, strict=True):
        if batch and end - before > limit:
            yield batch
            batch, before = [], end - size
        batch.append(size)
    if batch:
        yield batch
