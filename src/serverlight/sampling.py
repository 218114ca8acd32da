"""From logits to the next token: pure functions, so that a sequence that is replayed gets the same tokens again."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverlight.errors import ConfigError

__all__ = ["MAX_LOGPROBS", "Choice", "Sampling", "Score", "choose_token", "score_tokens"]

MAX_LOGPROBS = 20
"""Likeliest tokens that may be asked for with each one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How the next token is chosen; greedy by default.

    >>> Sampling(temperature=0.8, top_p=0.95, seed=7).is_greedy
    False
    """

    temperature: float = 0.0
    """Divides the logits; 0 takes the likeliest token."""

    top_k: int = 0
    """Only so many of the likeliest tokens; 0 is all."""

    top_p: float = 1.0
    """Only the fewest likeliest tokens whose probabilities sum to this, in (0, 1]."""

    min_p: float = 0.0
    """Only tokens at least so likely as this share of the likeliest one's probability, in [0, 1]."""

    seed: int = 0
    """Equal seeds give equal tokens; below 2^64."""

    repetition_penalty: float = 1.0
    """Divides the positive logits of tokens that occurred before, in prompt or answer, and multiplies negative ones; 1 is none.
    From CTRL (Keskar et al. 2019, section 4.1). Who chooses the tokens has to know those that occurred."""

    logprobs: int | None = None
    """How many of the likeliest tokens are reported beside the chosen one, with logarithms of the probabilities that the
    model gave them before anything above; ``None`` reports none at all."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ConfigError("temperature", f"must be zero or more, got {self.temperature}")
        if not 0 <= self.top_k < 2**32:
            raise ConfigError("top_k", f"must be zero (all) or more, got {self.top_k}")
        if not 0 < self.top_p <= 1:
            raise ConfigError("top_p", f"must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            raise ConfigError("min_p", f"must be from 0 to 1, got {self.min_p}")
        if not 0 <= self.seed < 2**64:
            raise ConfigError("seed", f"must be from 0 to 2^64 - 1, got {self.seed}")
        if not (math.isfinite(self.repetition_penalty) and self.repetition_penalty > 0):
            raise ConfigError("repetition_penalty", f"must be above 0 (1 is none), got {self.repetition_penalty}")
        if self.logprobs is not None and not 0 <= self.logprobs <= MAX_LOGPROBS:
            raise ConfigError("logprobs", f"must be from 0 to {MAX_LOGPROBS}, or None, got {self.logprobs}")

    @property
    def is_greedy(self) -> bool:
        """Whether chance plays no part."""
        return self.temperature == 0

    @property
    def weighs_repetition(self) -> bool:
        """Whether it matters which tokens occurred before."""
        return self.repetition_penalty != 1


@dataclass(frozen=True, slots=True)
class Choice:
    """A token, and how likely the model found it."""

    token_id: int
    """Its number in the vocabulary."""

    logprob: float | None = None
    """Natural logarithm of its probability; ``None`` where nobody asked."""

    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with theirs, likeliest first, as many as were asked for."""

    def __iter__(self) -> Iterator[Any]:
        """The three, in order, for tokens that are more than a choice."""
        return iter((self.token_id, self.logprob, self.top_logprobs))


def choose_token(logits: NDArray[np.float32], sampling: Sampling, position: int, seen: Collection[int] = ()) -> Choice:
    """The token that follows ``position`` tokens.

    Chance depends on seed and position alone, so that a sequence that is rebuilt elsewhere goes on as it would have.

    Args:
        logits: float32 ``[vocabulary]``.
        sampling: how to choose.
        position: how many tokens came before.
        seen: the tokens that occurred before, for the repetition penalty.

    >>> choose_token(np.float32([0, 3, 1]), Sampling(), position=5)
    Choice(token_id=1, logprob=None, top_logprobs=())
    >>> choose_token(np.float32([0, 3, 1]), Sampling(repetition_penalty=9), position=5, seen={1}).token_id
    2
    """
    token_id = _draw(_penalised(logits, sampling, seen), sampling, position)
    if sampling.logprobs is None:
        return Choice(token_id)
    return _reported(logits.astype(np.float64), token_id, sampling.logprobs)


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a model found a token that is given."""

    logprob: float
    """Natural logarithm of its probability, a float32."""

    is_likeliest: bool
    """Whether it is the one that greedy choice takes."""


def score_tokens(logits: NDArray[np.float32], targets: Sequence[int]) -> tuple[Score, ...]:
    """How likely each target is; ``logits`` is float32 ``[targets, vocabulary]``.

    >>> score_tokens(np.float32([[0, 0], [0, 40]]), [1, 1])
    (Score(logprob=-0.6931471824645996, is_likeliest=False), Score(logprob=0.0, is_likeliest=True))
    """
    exact = logits.astype(np.float64)
    largest = exact.max(-1)
    chosen = exact[np.arange(len(targets)), np.asarray(targets, np.intp)]
    sums = np.exp(exact - largest[:, None]).sum(-1)
    # Rounded as they are sent, so that it does not matter where they come from.
    logprobs = (chosen - largest - np.log(sums)).astype(np.float32).tolist()
    return tuple(map(Score, logprobs, (logits.argmax(-1) == targets).tolist()))


def _penalised(logits: NDArray[np.float32], sampling: Sampling, seen: Collection[int]) -> NDArray[np.float32]:
    if not (sampling.weighs_repetition and seen):
        return logits
    ids, weighed = np.fromiter(seen, np.intp, len(seen)), logits.copy()
    penalty = np.float32(sampling.repetition_penalty)
    weighed[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
    return weighed


def _reported(logits: NDArray[np.float64], token_id: int, num_top: int) -> Choice:
    largest = logits.max()
    # Rounded as they are sent, so that it does not matter where they come from.
    logprobs = (logits - largest - math.log(np.exp(logits - largest).sum())).astype(np.float32)
    top = np.argsort(-logprobs, kind="stable")[:num_top]
    return Choice(token_id, float(logprobs[token_id]), tuple((int(i), float(logprobs[i])) for i in top))


def _draw(logits: NDArray[np.float32], sampling: Sampling, position: int) -> int:
    if sampling.is_greedy:
        return int(logits.argmax())
    order, weights = _candidates(logits.astype(np.float64), sampling)
    cumulative = weights.cumsum()
    drawn = np.searchsorted(cumulative, _chance(sampling.seed, position) * cumulative[-1], side="right")
    return int(order[min(int(drawn), len(order) - 1)])


def _chance(seed: int, position: int) -> float:
    """Evenly spread in [0, 1); a hash, since NumPy's generators take a tenth of a millisecond to begin for a single number."""
    digest = hashlib.blake2b(struct.pack("<QQ", seed, position), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def _candidates(logits: NDArray[np.float64], sampling: Sampling) -> tuple[NDArray[np.intp], NDArray[Any]]:
    """The tokens that may be chosen, likeliest first, and their probabilities, not normalised again."""
    if 0 < sampling.top_k < len(logits):  # sorting all of a large vocabulary takes milliseconds
        least = np.partition(logits, -sampling.top_k)[-sampling.top_k]
        likely = np.flatnonzero(logits >= least)
        order = likely[np.argsort(-logits[likely], kind="stable")][: sampling.top_k]
    else:
        order = np.argsort(-logits, kind="stable")
    with np.errstate(over="ignore"):  # a temperature next to zero: all but the likeliest come out as impossible
        weights = np.exp((logits[order] - logits[order[0]]) / sampling.temperature)
    weights /= weights.sum()
    before = weights.cumsum() - weights
    kept = (before < sampling.top_p) & (weights >= sampling.min_p * weights[0])
    return order[kept], weights[kept]
