"""Language models across a cut, without a network: what the runtime must reproduce, and what both share."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from dataclasses import dataclass

import torch

from serverlight.codec import Codec, CodecConfig, decode
from serverlight.errors import ConfigError, ContextExceeded, CutNotFound, PlanMismatch
from serverlight.huggingface import SETTINGS_FILES, find_folder, read_config
from serverlight.models.checkpoint import checkpoint_digest
from serverlight.partition.decoder import DecoderHead, DecoderMiddle, DecoderPart, DecoderTail
from serverlight.partition.kv_cache import KVCache
from serverlight.partition.weights import load_head, load_part, load_tail, load_whole
from serverlight.plan import TOKEN_IDS, Plan, id_bytes
from serverlight.sampling import Choice, Sampling, Score, choose_token, score_tokens

__all__ = [
    "CHUNK_TOKENS",
    "LANGUAGE_CODEC",
    "PIECE_TOKENS",
    "DecoderLoopback",
    "Likelihood",
    "LoadedDecoder",
    "LoopbackToken",
    "check_length",
    "check_same_model",
    "chunks",
    "layer_of",
    "num_layers_of",
    "score_hidden",
    "scored_chunks",
]

CHUNK_TOKENS = 128
"""Tokens of a prompt that cross at a time, so that one side computes while the other does; a frame of so many takes a bit an
element less than frames of one token, and harms no more (docs/demo-lm.md)."""

PIECE_TOKENS = 64
"""Tokens of a prompt that a server runs at a time, so that no logits of more are ever in memory."""

LANGUAGE_CODEC = CodecConfig(sparsity=0.2)
"""Settings for language models that nobody has calibrated: a mean divergence of about 0.01 nats a token from the uncut model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedDecoder:
    """One part of a language model, with what the two sides know it by."""

    name: str
    """Folder or hub id."""

    revision: str
    """Digest of the whole checkpoint, the same for every part of it."""

    part: DecoderPart
    """The head, the tail, or what lies between two cuts."""

    @property
    def return_cut(self) -> str | None:
        """The second cut, where a middle part ends; ``None`` for other parts."""
        return f"layers.{self.part.last}" if isinstance(self.part, DecoderMiddle) else None

    @classmethod
    def head(cls, spec: str, cut: str, *, dtype: torch.dtype | None = None) -> LoadedDecoder:
        """The device's part for a cut such as ``layers.8``; errors are those of :func:`load_head`."""
        part = load_head(spec, layers=layer_of(cut), dtype=dtype)
        return cls(name=spec, revision=checkpoint_digest(spec), part=part)

    @classmethod
    def tail(cls, spec: str, cut: str, *, dtype: torch.dtype | None = None) -> LoadedDecoder:
        """The server's part, for this cut and all deeper ones; errors are those of :func:`load_tail`."""
        part = load_tail(spec, layers=layer_of(cut), dtype=dtype)
        return cls(name=spec, revision=checkpoint_digest(spec), part=part)

    @classmethod
    def whole(cls, spec: str, *, dtype: torch.dtype | None = None) -> LoadedDecoder:
        """The server's part for all cuts, which takes token ids too; errors are those of :func:`load_whole`."""
        return cls(name=spec, revision=checkpoint_digest(spec), part=load_whole(spec, dtype=dtype))

    @classmethod
    def middle(cls, spec: str, cut: str, return_cut: str, *, dtype: torch.dtype | None = None) -> LoadedDecoder:
        """The server's part between two cuts, for a device with both ends; errors are those of :func:`load_part`."""
        part = load_part(spec, layer_of(cut), layer_of(return_cut), dtype=dtype)
        return cls(name=spec, revision=checkpoint_digest(spec), part=part)


def layer_of(cut: str) -> int:
    """How many layers lie before a cut of a language model; raises :class:`CutNotFound`.

    >>> layer_of("layers.8")
    8
    """
    prefix, _, number = cut.partition(".")
    if prefix != "layers" or not (number.isascii() and number.isdigit()) or len(number) > 4:
        raise CutNotFound(cut, ("layers.N",))
    return int(number)


def num_layers_of(spec: str) -> int:
    """How many layers a language model has, from its settings alone; errors are those of :func:`load_head`."""
    config = read_config(spec, find_folder(spec, SETTINGS_FILES))
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def chunks(token_ids: list[int], size: int = CHUNK_TOKENS) -> Iterator[tuple[torch.Tensor, bool]]:
    """The prompt in pieces int64 ``[1, tokens]``, each with whether more follow.

    >>> [(piece.shape[1], more) for piece, more in chunks([1, 2, 3], size=2)]
    [(2, True), (1, False)]
    """
    for start in range(0, len(token_ids), size):
        yield torch.tensor([token_ids[start : start + size]]), start + size < len(token_ids)


@dataclass(frozen=True, kw_only=True, slots=True)
class Likelihood:
    """How likely a model finds the end of a text, and what asking took."""

    scores: tuple[Score, ...]
    """One for each of the tokens asked about."""

    num_tokens: int
    """Tokens that crossed the cut: all of the text but its last."""

    frame_bytes: int
    """Their frames."""

    uplink_bytes: int
    """What was sent, gRPC and HTTP/2 framing included; in one process the frames alone."""

    @property
    def logprob(self) -> float:
        """Natural logarithm of the probability of all the tokens asked about."""
        return math.fsum(score.logprob for score in self.scores)

    @property
    def is_likeliest(self) -> bool:
        """Whether greedy choice would have written them."""
        return all(score.is_likeliest for score in self.scores)


def scored_chunks(
    token_ids: list[int], num_targets: int, size: int = CHUNK_TOKENS
) -> Iterator[tuple[torch.Tensor, tuple[int, ...]]]:
    """A text but for its last token in pieces, each with those of its last ``num_targets`` tokens that the piece predicts.

    Raises :class:`ConfigError` where there is nothing to ask, or nothing before it.

    >>> [(piece.tolist(), targets) for piece, targets in scored_chunks([1, 2, 3, 4], 2, size=2)]
    [([[1, 2]], (3,)), ([[3]], (4,))]
    """
    if not 1 <= num_targets < len(token_ids):
        raise ConfigError(
            "num_targets", f"is {num_targets} of {len(token_ids)} tokens; ask for at least one, with one before it"
        )
    first = len(token_ids) - num_targets
    for start in range(0, len(token_ids) - 1, size):
        end = min(start + size, len(token_ids) - 1)
        yield torch.tensor([token_ids[start:end]]), tuple(token_ids[max(first, start + 1) : end + 1])


def score_hidden(tail: DecoderTail, hidden: torch.Tensor, cache: KVCache, targets: Sequence[int]) -> Iterator[Score]:
    """Runs a tail over hidden states ``[1, tokens, hidden]``; how likely it finds the tokens that follow the last of them."""
    skipped = hidden.shape[1] - len(targets)
    for start in range(0, hidden.shape[1], PIECE_TOKENS):
        piece = hidden[:, start : start + PIECE_TOKENS]
        wanted = targets[max(0, start - skipped) : max(0, start + piece.shape[1] - skipped)]
        logits = tail(piece, cache, num_logits=max(1, len(wanted)))
        if wanted:
            yield from score_tokens(logits[0].float().cpu().numpy(), wanted)


def check_length(part: DecoderPart, token_ids: list[int], max_new_tokens: int) -> None:
    """Raises :class:`ConfigError` or :class:`ContextExceeded` for what can never be generated, before any work."""
    if not token_ids:
        raise ConfigError("token_ids", "an empty prompt; give at least one token")
    if max_new_tokens < 1:
        raise ConfigError("max_new_tokens", f"must be at least 1, got {max_new_tokens}")
    num_tokens = len(token_ids) + max_new_tokens - 1  # the last token is never fed back
    if part.context_length is not None and num_tokens > part.context_length:
        raise ContextExceeded(num_tokens, part.context_length)


def check_same_model(plan: Plan, model: LoadedDecoder) -> None:
    """Raises :class:`PlanMismatch` where a part is not of the plan's model; where it is cut does not matter."""
    plan.check_compatible(
        Plan(model=model.name, revision=model.revision, cut=plan.cut, return_cut=plan.return_cut, sends=plan.sends)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopbackToken(Choice):
    """One token of an answer that was made in one process."""

    frame_bytes: int
    """What would have gone up, without any message around it; for the first token with all of the prompt."""

    tail_ms: float
    """Decoding and the tail, which a server would have done, with all that lies behind a second cut."""


class DecoderLoopback:
    """Head, encode, decode and tail in one process, with a plan's second cut the middle too: the oracle of sessions.

    Raises :class:`PlanMismatch` where the plan is for another model than the parts, or for other parts.
    """

    def __init__(
        self, plan: Plan, head: LoadedDecoder, tail: LoadedDecoder, middle: LoadedDecoder | None = None
    ) -> None:
        for model in (head, tail, *([middle] if middle else [])):
            check_same_model(plan, model)
        if not isinstance(head.part, DecoderHead) or not isinstance(tail.part, DecoderTail):
            raise PlanMismatch("parts", "a head and a tail", f"{head.part!r} and {tail.part!r}")
        if (plan.return_cut is not None) != (middle is not None):
            raise PlanMismatch("return_cut", plan.return_cut, "a middle" if middle else "no middle")
        self.plan = plan
        self._head, self._middle, self._tail = head.part, middle.part if middle else None, tail.part
        self._layers = layer_of(plan.cut), layer_of(plan.return_cut or plan.cut)
        self._codec = Codec(plan.codec)
        self._sends_ids = plan.sends == TOKEN_IDS and self._layers[0] == 0

    @property
    def head(self) -> DecoderHead:
        """The device's part."""
        return self._head

    def generate(
        self,
        token_ids: list[int],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        stop_ids: Collection[int] = (),
        on_token: Callable[[int], None] | None = None,
        chunk_tokens: int = CHUNK_TOKENS,
    ) -> tuple[int, ...]:
        """The tokens that follow the prompt, a stop token included."""
        made = list[int]()
        for token in self.stream(
            token_ids, max_new_tokens=max_new_tokens, sampling=sampling, stop_ids=stop_ids, chunk_tokens=chunk_tokens
        ):
            made.append(token.token_id)
            if on_token is not None:
                on_token(token.token_id)
        return tuple(made)

    def stream(
        self,
        token_ids: list[int],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        stop_ids: Collection[int] = (),
        chunk_tokens: int = CHUNK_TOKENS,
    ) -> Generator[LoopbackToken, None, None]:
        """The tokens that follow the prompt, one by one; a stop token is the last."""
        check_length(self._head, token_ids, max_new_tokens)
        sampling, seen, num_made, token_id = sampling or Sampling(), set(token_ids), 0, -1
        caches, pieces = self._new_caches(), list(chunks(token_ids, chunk_tokens))
        while num_made < max_new_tokens and token_id not in stop_ids:
            frame_bytes, tail_s = 0, 0.0
            for piece, _ in pieces:
                crossed = self._cross(piece, caches, num_logits=1)
                frame_bytes, tail_s = frame_bytes + crossed.frame_bytes, tail_s + crossed.tail_s
            logits = crossed.logits[0, -1]
            choice = choose_token(logits.float().cpu().numpy(), sampling, caches.tail.num_tokens, seen)
            token_id, num_made = choice.token_id, num_made + 1
            seen.add(token_id)
            yield LoopbackToken(*choice, frame_bytes=frame_bytes, tail_ms=tail_s * 1e3)
            pieces = [(torch.tensor([[token_id]]), False)]

    def score(self, token_ids: list[int], *, chunk_tokens: int = CHUNK_TOKENS) -> torch.Tensor:
        """Logits ``[tokens, vocabulary]`` after each token of a given text, which crosses as a prompt does.

        Raises :class:`ConfigError` for an empty text, and :class:`ContextExceeded` for one that is too long.
        """
        check_length(self._head, token_ids, max_new_tokens=1)
        caches = self._new_caches()
        pieces = [self._cross(piece, caches).logits[0] for piece, _ in chunks(token_ids, chunk_tokens)]
        return torch.cat(pieces)

    def likelihood(self, token_ids: list[int], num_targets: int, *, chunk_tokens: int = CHUNK_TOKENS) -> Likelihood:
        """How likely the last ``num_targets`` tokens of a text are after those before them; the text crosses as a prompt does.

        Raises :class:`ConfigError` where there is nothing to ask, and :class:`ContextExceeded` for a text that is too long.
        """
        pieces = list(scored_chunks(token_ids, num_targets, chunk_tokens))
        check_length(self._head, token_ids[:-1], max_new_tokens=1)
        caches, scores, frame_bytes = self._new_caches(), list[Score](), 0
        for piece, targets in pieces:
            hidden, num_bytes = self._send(piece, caches)
            frame_bytes += num_bytes
            with torch.inference_mode():
                scores += score_hidden(self._tail, hidden, caches.tail, targets)
        return Likelihood(
            scores=tuple(scores),
            num_tokens=len(token_ids) - 1,
            frame_bytes=frame_bytes,
            uplink_bytes=frame_bytes,
        )

    @torch.inference_mode()
    def _send(self, piece: torch.Tensor, caches: _Caches) -> tuple[torch.Tensor, int]:
        """What the tail gets of some tokens, and how many bytes went up."""
        received, num_bytes = self._carry(piece, caches)
        hidden = received()
        if self._middle is None:
            return hidden, num_bytes
        returned = torch.cat(
            [self._middle(part, caches.middle) for part in torch.split(hidden, PIECE_TOKENS, dim=1)], dim=1
        )
        return decode(self._codec.encode(returned)), num_bytes

    def _new_caches(self) -> _Caches:
        first, last = self._layers
        return _Caches(
            head=self._head.new_cache(last=first),
            middle=self._middle.new_cache(first, last) if self._middle else None,
            tail=self._tail.new_cache(first=last),
        )

    @torch.inference_mode()
    def _cross(self, piece: torch.Tensor, caches: _Caches, num_logits: int | None = None) -> _Crossed:
        received, num_bytes = self._carry(piece, caches)
        started_s = time.perf_counter()
        hidden = received()
        if self._middle is not None:
            hidden = decode(self._codec.encode(self._middle(hidden, caches.middle)))
        logits = self._tail(hidden, caches.tail, num_logits=num_logits)
        return _Crossed(logits, num_bytes, time.perf_counter() - started_s)

    def _carry(self, piece: torch.Tensor, caches: _Caches) -> tuple[Callable[[], torch.Tensor], int]:
        """What is received of some tokens, to be read there, and how many bytes go up."""
        hidden = self._head(piece, caches.head)
        if self._sends_ids:  # the server's embeddings make the same of them
            return lambda: hidden, id_bytes(piece[0].tolist())
        frame = self._codec.encode(hidden)
        return lambda: decode(frame), len(frame)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Caches:
    """What the parts remember of one sequence."""

    head: KVCache
    middle: KVCache | None
    tail: KVCache


@dataclass(frozen=True, slots=True)
class _Crossed:
    """What came of some tokens."""

    logits: torch.Tensor
    frame_bytes: int
    tail_s: float
