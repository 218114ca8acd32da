"""One decode step of many sequences at once: a single pass over the layers, each sequence's row joining at its own cut.

Rows are sorted by cut, so those that a layer runs come first, and to join is to append. The model's own forward drives
the pass, as in :mod:`serverlight.partition.driver`; at each layer the arguments that have a row per sequence are cut to
the rows that run, and the mask is replaced by one that lets each row see its own keys alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from serverlight.errors import ConfigError, ContextExceeded, InputMismatch, NotBatchable
from serverlight.huggingface import new_cache, set_token_count, sliding_window
from serverlight.partition.decoder import DecoderMiddle, DecoderTail
from serverlight.partition.driver import Stop, hidden_of
from serverlight.partition.kv_cache import KVCache
from serverlight.partition.kv_pool import Pools, Seating

__all__ = ["Sweep"]

MASK = "attention_mask"

SHARED_BY_ROWS = frozenset({"position_bias"})
"""Arguments whose first axis is not the batch; MPT's has one entry for each head."""


class Sweep:
    """Steps of a tail or a middle for many sequences together; one call at a time, on the thread that runs the part.

    Raises :class:`NotBatchable` where the model attends in a way that takes no masks.
    """

    def __init__(self, part: DecoderTail | DecoderMiddle) -> None:
        self._part = part
        self._pools = Pools()
        config = part.model.config.get_text_config(decoder=True)
        attention = config._attn_implementation
        if attention not in ("sdpa", "eager"):
            raise NotBatchable(type(part.model).__name__, f"a batch needs masks, which {attention} does not take")
        self._takes_bool = attention == "sdpa"
        self._scratch = new_cache(part.model.config)

    @property
    def num_seated(self) -> int:
        """Layers of sequences that share tensors with others now."""
        return len(self._pools)

    @torch.inference_mode()
    def __call__(self, hidden: Sequence[Tensor], caches: Sequence[KVCache]) -> Tensor:
        """Goes on by one token of each sequence; a call that fails leaves all of them as they were.

        Args:
            hidden: What the head of each returned, ``[1, 1, hidden]``.
            caches: Theirs, each with its own cut and with at least one token.

        Returns:
            A tail's logits ``[sequences, 1, vocabulary]``, a middle's hidden states ``[sequences, 1, hidden]``; in the
            order given.

        Raises:
            ConfigError: a cache is empty, or holds a batch of its own, or covers layers that the part does not have.
            ContextExceeded: a sequence is full.
            InputMismatch: a hidden state is not that of one token.
        """
        for state, cache in zip(hidden, caches, strict=True):
            self._check(state, cache)
        # Sorted the same way each time, however they come: only then do they stay in their pools.
        order = sorted(range(len(caches)), key=lambda row: (caches[row].first, id(caches[row])))
        rows = _Rows(self._part, self._pools, self._takes_bool, [caches[row] for row in order])
        output = rows.run(torch.cat([hidden[row] for row in order]).to(self._part.device), self._scratch)
        rows.commit()
        places = torch.empty(len(order), dtype=torch.int64)
        places[torch.tensor(order)] = torch.arange(len(order))
        return output[places.to(output.device)]

    def _check(self, state: Tensor, cache: KVCache) -> None:
        part = self._part
        if tuple(state.shape) != (1, 1, part.hidden_size):
            raise InputMismatch(f"a hidden state of shape {list(state.shape)}; expected [1, 1, {part.hidden_size}]")
        if not cache.num_tokens or cache.batch_size != 1:
            raise ConfigError("caches", "each must hold one sequence that has begun; run its prompt alone")
        if not part.first <= cache.first <= cache.last == part.last:
            raise ConfigError(
                "caches", f"one has layers {cache.first} to {cache.last} of this part's {part.first} to {part.last}"
            )
        if part.context_length is not None and cache.num_tokens >= part.context_length:
            raise ContextExceeded(cache.num_tokens + 1, part.context_length)


class _Rows:
    """One pass over the layers."""

    def __init__(
        self, part: DecoderTail | DecoderMiddle, pools: Pools, takes_bool: bool, caches: Sequence[KVCache]
    ) -> None:
        self._part, self._pools, self._takes_bool, self._caches = part, pools, takes_bool, caches
        self._width = max(cache.num_tokens for cache in caches) + 1
        self._seatings: dict[int, Seating] = {}
        self._masks: dict[object, Tensor] = {}

    def run(self, received: Tensor, scratch: Any) -> Tensor:
        """Runs all layers; returns what leaves them, row by row."""
        part, self._received = self._part, received.to(self._part.dtype)
        if not part.finishes and self._num_rows(part.last - 1) == 0:
            return received
        for layer in scratch.layers:
            set_token_count(layer, self._width - 1)
        self._scratch = scratch
        driver = part.driver
        wanted: dict[str, Any] = {"attention_mask": None, "past_key_values": scratch}
        if "position_ids" in driver.layout.arguments:
            positions = [[cache.num_tokens] for cache in self._caches]
            wanted["position_ids"] = torch.tensor(positions, device=received.device)
        try:
            return driver.call(self, inputs_embeds=driver.stand_in(self._received), **wanted)
        finally:
            for layer in scratch.layers:
                vars(layer).pop("update", None)  # or it would keep the pool of this pass alive

    def commit(self) -> None:
        """Hands each cache what its layers have gathered."""
        for row, cache in enumerate(self._caches):
            cache.grow([self._seatings[index].row(row) for index in range(cache.first, cache.last)])
        for index, seating in self._seatings.items():
            self._pools.settle(seating, self._layers(index))

    def at(self, index: int, run: Callable[..., Any], hidden: Tensor, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Runs a layer for the rows that have come to it."""
        part = self._part
        before, count = self._num_rows(index - 1), self._num_rows(index)
        is_last = index == part.last - 1
        if count:
            joining = self._received[before:count]
            hidden = torch.cat([hidden[:before], joining]) if before else joining
            hidden = hidden_of(run(hidden, **self._arguments(index, args, kwargs)))
        if is_last:
            hidden = torch.cat([hidden[:count], self._received[count:]])
            if not part.finishes:
                raise Stop(hidden)
        return part.driver.layout.returned(hidden)

    def _num_rows(self, index: int) -> int:
        return sum(cache.first <= index for cache in self._caches)

    def _layers(self, index: int) -> list[Any]:
        return [cache.raw.layers[index] for cache in self._caches[: self._num_rows(index)]]

    def _arguments(self, index: int, args: tuple[Any, ...], kwargs: Any) -> dict[str, Any]:
        layers = self._layers(index)
        window = sliding_window(layers[0])
        seating = self._pools.seat(layers, self._width if window is None else 0)
        self._seatings[index] = seating
        # Bound to the instance: the layer keeps its type, which masks are made by.
        self._scratch.layers[index].update = lambda keys, values, *_, **__: seating.write(keys, values)
        named = dict(zip(self._part.driver.argument_names, args, strict=False)) | kwargs
        own_mask = named.get(MASK)
        batch, count = len(self._caches), len(layers)
        cut = {
            name: value if name in SHARED_BY_ROWS else _rows_of(value, batch, count) for name, value in named.items()
        }
        cut[MASK] = self._mask(seating, window, own_mask)
        return cut

    def _mask(self, seating: Seating, window: int | None, own: Tensor | None) -> Tensor:
        key = (seating.starts, seating.ends, seating.width, window)
        if key not in self._masks:
            self._masks[key] = self._make_mask(seating, window, own)
        return self._masks[key]

    def _make_mask(self, seating: Seating, window: int | None, own: Tensor | None) -> Tensor:
        """``[rows, 1, 1, width]``, in the form that the model's attention takes.

        Scaled dot products take a bool where True is seen. Attention written out adds a float; where the model itself
        makes a bool for it (MPT), True is hidden.
        """
        device = self._received.device
        keys = torch.arange(seating.width, device=device)
        ends = torch.tensor(seating.ends, device=device)[:, None]
        starts = torch.tensor(seating.starts, device=device)[:, None]
        seen = (keys >= starts) & (keys <= ends)
        if window is not None:
            seen &= keys > ends - window
        seen = seen[:, None, None]
        if self._takes_bool:
            return seen
        if own is not None and own.dtype == torch.bool:
            return ~seen
        dtype = self._received.dtype
        return torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill_(~seen, torch.finfo(dtype).min)


def _rows_of(value: Any, batch: int, count: int) -> Any:
    """The part of a layer's argument that belongs to the first ``count`` of ``batch`` rows.

    ALiBi's comes as ``[batch x heads, ...]``; the rows of a sequence lie together.
    """
    match value:
        case Tensor() if value.ndim and value.shape[0] and value.shape[0] % batch == 0:
            return value[: value.shape[0] // batch * count]
        case tuple():
            return tuple(_rows_of(item, batch, count) for item in value)
        case _:
            return value
