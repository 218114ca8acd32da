"""The keys and values of one sequence, or batch of sequences, on one side of a cut."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serverlight.errors import ConfigError, InputMismatch
from serverlight.huggingface import new_cache, set_token_count, sliding_window

__all__ = ["ROLLBACK_TOKENS", "KVCache", "LayerSize", "LayerState", "Saved", "move_cut"]

ROLLBACK_TOKENS = 64
"""How many tokens beyond its window a windowed layer remembers, so that they can be taken back."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerState:
    """What one layer remembers of a sequence; it may go to another part, or to another machine."""

    index: int
    """Which layer of the model."""

    num_tokens: int
    """How many tokens the layer has seen."""

    keys: Tensor
    """Keys ``[batch, heads, kept, head size]``; a windowed layer keeps only the newest tokens."""

    values: Tensor
    """Values, like the keys; their head size may be another."""

    @property
    def num_bytes(self) -> int:
        """Bytes of keys and values."""
        return int(self.keys.nbytes + self.values.nbytes)


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSize:
    """What one layer remembers of each token."""

    num_heads: int
    """Heads that have keys and values of their own."""

    key_size: int
    """Elements of a head's key."""

    value_size: int
    """Elements of a head's value."""

    dtype: torch.dtype
    """Element type of both."""

    max_tokens: int | None
    """The most tokens that are remembered; ``None`` where all are."""

    def num_kept(self, num_tokens: int) -> int:
        """How many of so many tokens are remembered."""
        return num_tokens if self.max_tokens is None else min(num_tokens, self.max_tokens)

    def num_bytes(self, num_tokens: int) -> int:
        """Bytes of keys and values after so many tokens of one sequence."""
        return self.num_kept(num_tokens) * self.num_heads * (self.key_size + self.value_size) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """What a cache remembered at one moment."""

    num_tokens: int
    """How many tokens had been seen."""

    states: tuple[tuple[Tensor | None, Tensor | None], ...]
    """Keys and values of each layer of the range; ``None`` before the first token."""


class KVCache:
    """Remembers a sequence for the layers from :attr:`first` up to :attr:`last`; made by ``part.new_cache()``.

    The range may change in mid-sequence: one side releases layers at the cut and the other adopts them, and so the cut
    moves. The model's masks are sized by asking any layer for its length, so the layers of the other side are there
    too, and count without remembering.
    """

    def __init__(self, config: Any, first: int, last: int, *, rollback_tokens: int = ROLLBACK_TOKENS) -> None:
        if rollback_tokens < 0:
            raise ConfigError("rollback_tokens", f"must be zero or more, got {rollback_tokens}")
        self._config = config
        self._rollback_tokens = rollback_tokens
        self.first, self.last = first, last
        """The layers that are remembered: from ``first`` up to, but without, ``last``."""
        self.num_tokens = 0
        """How many tokens were seen, padding included."""
        self.batch_size: int | None = None
        """How many sequences there are; ``None`` before the first step."""
        self.raw = new_cache(config)
        """The cache as transformers takes it."""

    def __repr__(self) -> str:
        return f"KVCache(layers {self.first} to {self.last}, {self.num_tokens} tokens, {self.num_bytes} bytes)"

    @property
    def num_bytes(self) -> int:
        """Bytes of all keys and values."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.held if layer.keys is not None)

    @contextlib.contextmanager
    def step(self, batch_size: int, num_tokens: int) -> Iterator[Any]:
        """Lends the transformers cache to one run of the model; a run that fails leaves everything as it was.

        Raises:
            InputMismatch: the batch is not that of the steps before.
        """
        if self.batch_size not in (None, batch_size):
            raise InputMismatch(f"a batch of {batch_size}, but this cache has {self.batch_size}; make a new cache")
        before = self.save()
        try:
            yield self.raw
        except BaseException:
            self.restore(before)
            raise
        self.batch_size = batch_size
        self._count(num_tokens)

    def save(self) -> Saved:
        """What is remembered now; it takes memory only once more tokens have come."""
        return Saved(num_tokens=self.num_tokens, states=tuple((layer.keys, layer.values) for layer in self.held))

    def restore(self, saved: Saved) -> None:
        """Forgets all that came after; the range must still be that of then."""
        for layer, (keys, values) in zip(self.held, saved.states, strict=True):
            _fill(layer, keys, values, saved.num_tokens)
        self.num_tokens = saved.num_tokens
        self._count_foreign()

    def grow(self, states: Sequence[tuple[Tensor, Tensor]]) -> None:
        """Takes what a step of one token, run elsewhere, made of each layer's keys and values, old and new in one."""
        for layer, (keys, values) in zip(self.held, states, strict=True):
            _fill(layer, keys, values, self.num_tokens + 1)
        self._count(1)

    def skip(self, num_tokens: int) -> None:
        """Counts tokens that went elsewhere; raises :class:`ConfigError` where there are layers that would have to see them."""
        if self.first != self.last:
            raise ConfigError("layers", f"{self.first} to {self.last} are to remember every token; run them")
        self._count(num_tokens)

    def crop(self, num_tokens: int) -> None:
        """Takes back the last ``num_tokens`` tokens.

        Raises:
            ConfigError: there are not so many, or a windowed layer has forgotten what came before them.
        """
        if not 0 <= num_tokens <= self.num_tokens:
            raise ConfigError("num_tokens", f"must be 0 to {self.num_tokens}, as many as were seen; got {num_tokens}")
        left = self.num_tokens - num_tokens
        for layer in self.held:
            if (window := sliding_window(layer)) is not None and self.num_tokens:
                possible = layer.keys.shape[-2] - min(window - 1, left)
                if possible < num_tokens:
                    raise ConfigError(
                        "num_tokens", f"{num_tokens} is too many, a window of {window} tokens has moved on; "
                        "make the cache with more rollback_tokens"
                    )  # fmt: skip
        for layer in self.held:
            if num_tokens:
                _fill(layer, layer.keys[..., :-num_tokens, :], layer.values[..., :-num_tokens, :], left)
        self.num_tokens = left
        self._count_foreign()

    def release(self, first: int, last: int, *, stays_at_front: bool = False) -> tuple[LayerState, ...]:
        """Hands over the layers from ``first`` up to ``last``, at either end of the range, and forgets them.

        Where all of them go the empty range lies behind them, or with ``stays_at_front`` before them: so the cache of a
        head that keeps only the embeddings still ends at the cut.

        Raises:
            ConfigError: they are not at an end of the range.
        """
        inside = self.first <= first <= last <= self.last
        if not inside or (first != self.first and last != self.last):
            raise ConfigError(
                "layers", f"{first} to {last} are not at an end of the cache's {self.first} to {self.last}; "
                "release the layers next to the cut"
            )  # fmt: skip
        states = tuple(self._state(index) for index in range(first, last)) if self.num_tokens else ()
        if last == self.last and (first != self.first or stays_at_front):
            self.last = first
        else:
            self.first = last
        empty = new_cache(self._config).layers
        self.raw.layers[first:last] = empty[first:last]
        self._count_foreign()
        return states

    def adopt(self, first: int, last: int, states: Sequence[LayerState]) -> None:
        """Takes over the layers from ``first`` up to ``last``, next to the own ones, as another cache released them.

        Raises:
            ConfigError: the layers are not next to the range.
            InputMismatch: a state is missing, or is not that of this sequence.
        """
        if last != self.first and first != self.last:
            raise ConfigError("layers", f"{first} to {last} are not next to the cache's {self.first} to {self.last}")
        expected = range(first, last) if self.num_tokens else range(0)
        if [state.index for state in states] != list(expected):
            raise InputMismatch(
                f"the states of layers {first} to {last} were expected in order, got those of "
                f"{[state.index for state in states]}; hand over what release returned"
            )
        for state in states:
            self._check(state)
        fresh = new_cache(self._config).layers
        for state in states:
            _fill(fresh[state.index], state.keys, state.values, state.num_tokens)
        self.raw.layers[first:last] = fresh[first:last]
        self.first, self.last = min(self.first, first), max(self.last, last)

    def layer_sizes(self) -> tuple[LayerSize, ...]:
        """What each layer of the range remembers of a token; raises :class:`ConfigError` before there is one."""
        if not self.num_tokens:
            raise ConfigError("num_tokens", "no token was seen, so sizes are not known; run one first")
        return tuple(
            LayerSize(
                num_heads=layer.keys.shape[1],
                key_size=layer.keys.shape[3],
                value_size=layer.values.shape[3],
                dtype=layer.keys.dtype,
                max_tokens=self._max_tokens(layer),
            )
            for layer in self.held
        )

    def _max_tokens(self, layer: Any) -> int | None:
        window = sliding_window(layer)
        return None if window is None else max(window - 1 + self._rollback_tokens, 1)

    @property
    def held(self) -> list[Any]:
        """The layers of the range, as transformers keeps them."""
        held: list[Any] = self.raw.layers[self.first : self.last]
        return held

    def _count(self, num_tokens: int) -> None:
        self.num_tokens += num_tokens
        for layer in self.held:
            if (kept := self._max_tokens(layer)) is not None:
                layer.keys, layer.values = layer.keys[..., -kept:, :], layer.values[..., -kept:, :]
        self._count_foreign()

    def _count_foreign(self) -> None:
        for index, layer in enumerate(self.raw.layers):
            if not self.first <= index < self.last:
                set_token_count(layer, self.num_tokens)

    def _state(self, index: int) -> LayerState:
        layer = self.raw.layers[index]
        return LayerState(index=index, num_tokens=self.num_tokens, keys=layer.keys, values=layer.values)

    def _check(self, state: LayerState) -> None:
        """A state may come over the network: proves that it fits this sequence before anything is changed."""
        if state.num_tokens != self.num_tokens:
            raise InputMismatch(
                f"layer {state.index} has seen {state.num_tokens} tokens, this sequence has {self.num_tokens}; "
                "let both sides finish the step first"
            )
        window = sliding_window(self.raw.layers[state.index])
        least = self.num_tokens if window is None else min(self.num_tokens, window - 1)
        for name, tensor in (("keys", state.keys), ("values", state.values)):
            if (
                tensor.ndim != 4
                or not tensor.is_floating_point()
                or tensor.shape[:3] != state.keys.shape[:3]
                or tensor.shape[0] != self.batch_size
                or not least <= tensor.shape[2] <= self.num_tokens
            ):
                raise InputMismatch(
                    f"layer {state.index} has {name} of {tensor.dtype} and shape {list(tensor.shape)}, which do not fit "
                    f"{self.batch_size} sequences of {self.num_tokens} tokens; hand over what release returned"
                )


def move_cut(front: KVCache, back: KVCache, layer: int) -> int:
    """Moves the cut between two caches of one sequence to before ``layer``; returns the bytes that changed sides.

    Raises:
        ConfigError: the caches do not meet, or do not reach so far.
        InputMismatch: they have not seen the same tokens.
    """
    if front.last != back.first or not front.first <= layer <= back.last:
        raise ConfigError(
            "layer", f"{layer} is not within {front.first} to {front.last} and {back.first} to {back.last}; "
            "give the two caches of one sequence, and a layer that they cover"
        )  # fmt: skip
    if front.num_tokens != back.num_tokens:
        raise InputMismatch(
            f"the front has seen {front.num_tokens} tokens, the back {back.num_tokens}; let both finish the step first"
        )
    giver, taker = (front, back) if layer < front.last else (back, front)
    first, last = sorted((layer, front.last))
    states = giver.release(first, last, stays_at_front=giver is front)
    taker.adopt(first, last, states)
    return sum(state.num_bytes for state in states)


def _fill(layer: Any, keys: Tensor | None, values: Tensor | None, num_tokens: int) -> None:
    """Puts keys and values into a layer of a transformers cache, as if it had gathered them itself."""
    if keys is not None and not layer.is_initialized:
        layer.lazy_initialization(keys, values)
    layer.keys, layer.values, layer.is_initialized = keys, values, keys is not None
    if layer.is_sliding:
        layer.cumulative_length = num_tokens
