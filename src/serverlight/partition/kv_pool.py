"""Keys and values of several sequences in one tensor, so that a layer attends for all of them at once."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Pools", "Seating"]

SPARE_TOKENS = 64
"""Room for tokens to come: after so many steps a pool is built anew, which copies it once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Seating:
    """Where one layer's rows lie in their pool, and where each one's next token goes."""

    pool: _Pool
    starts: tuple[int, ...]
    """Index of each row's first key."""

    ends: tuple[int, ...]
    """Index of the key that each row is about to get."""

    width: int
    """Keys to attend to, counted from index 0; each row masks those that are not its own."""

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Puts one token of each row, ``[rows, heads, 1, size]``, in its place; returns all, ``[rows, heads, width, size]``."""
        rows = torch.arange(len(self.ends), device=keys.device)
        ends = torch.tensor(self.ends, device=keys.device)
        self.pool.keys[rows, :, ends] = keys[:, :, 0]
        self.pool.values[rows, :, ends] = values[:, :, 0]
        return self.pool.keys[:, :, : self.width], self.pool.values[:, :, : self.width]

    def row(self, row: int) -> tuple[Tensor, Tensor]:
        """Keys and values of one row, the new token's too, as views ``[1, heads, kept, size]``."""
        kept = slice(self.starts[row], self.ends[row] + 1)
        return self.pool.keys[row : row + 1, :, kept], self.pool.values[row : row + 1, :, kept]


class _Pool:
    """Zeros where nothing was written: a masked key must still be a number."""

    def __init__(self, layers: Sequence[Any], capacity: int) -> None:
        self.layers = [weakref.ref(layer) for layer in layers]
        keys, values = layers[0].keys, layers[0].values
        self.keys = keys.new_zeros(len(layers), keys.shape[1], capacity, keys.shape[3])
        self.values = values.new_zeros(len(layers), values.shape[1], capacity, values.shape[3])

    @property
    def capacity(self) -> int:
        """The most tokens of a row."""
        return int(self.keys.shape[2])


@dataclass(kw_only=True, slots=True)
class _Seat:
    pool: _Pool
    row: int
    start: int
    keys: Tensor
    """What the layer's keys were when they were last known to lie here."""


class Pools:
    """Seats layers of transformers caches in pools, and keeps them there as long as the same ones come together.

    A seated layer's keys and values are views of its pool, so it can be used alone at any time; what it then gathers by
    itself is copied back when it comes again. A layer has one row, of one sequence, and at least one token.
    """

    def __init__(self) -> None:
        self._seats: weakref.WeakKeyDictionary[Any, _Seat] = weakref.WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._seats)

    def seat(self, layers: Sequence[Any], width: int = 0) -> Seating:
        """Seats layers, one for each row, in this order; with ``width`` keys to attend to, by default those of the longest."""
        seats = [self._seats.get(layer) for layer in layers]
        if not self._sit_together(seats) or not self._fit(layers, width):
            self._move(layers, width)
        starts, ends = [], []
        for layer in layers:
            seat = self._seats[layer]
            if seat.keys is not layer.keys:
                _copy_in(seat, layer)
            starts.append(seat.start)
            ends.append(seat.start + layer.keys.shape[2])
        pool = self._seats[layers[0]].pool
        return Seating(pool=pool, starts=tuple(starts), ends=tuple(ends), width=width or max(ends) + 1)

    def settle(self, seating: Seating, layers: Sequence[Any]) -> None:
        """Notes that the layers have taken the rows of a seating, or the end of them, as their own."""
        for layer, end in zip(layers, seating.ends, strict=True):
            seat = self._seats[layer]
            seat.keys, seat.start = layer.keys, end + 1 - layer.keys.shape[2]

    def _sit_together(self, seats: Sequence[_Seat | None]) -> bool:
        first = seats[0]
        if first is None or len(first.pool.layers) != len(seats):
            return False
        return all(seat is not None and seat.pool is first.pool and seat.row == row for row, seat in enumerate(seats))

    def _fit(self, layers: Sequence[Any], width: int) -> bool:
        capacity = self._seats[layers[0]].pool.capacity
        most = max(self._start(layer) + layer.keys.shape[2] + 1 for layer in layers)
        return bool(max(most, width) <= capacity)

    def _start(self, layer: Any) -> int:
        seat = self._seats[layer]
        return seat.start if seat.keys is layer.keys else 0

    def _move(self, layers: Sequence[Any], width: int) -> None:
        """Builds a pool; what stays behind in old ones gets tensors of its own, or one row would keep all alive."""
        left = {seat.pool for layer in layers if (seat := self._seats.get(layer))}
        pool = _Pool(layers, max(width, *(layer.keys.shape[2] + 1 for layer in layers), 0) + SPARE_TOKENS)
        for row, layer in enumerate(layers):
            seat = self._seats[layer] = _Seat(pool=pool, row=row, start=0, keys=layer.keys)
            _copy_in(seat, layer)
        for layer in (ref() for old in left for ref in old.layers):
            if layer is not None and (seat_left := self._seats.get(layer)) and seat_left.pool in left:
                layer.keys, layer.values = layer.keys.clone(), layer.values.clone()
                del self._seats[layer]


def _copy_in(seat: _Seat, layer: Any) -> None:
    """Brings what the layer holds to the start of its row, and makes the layer hold it there."""
    count = layer.keys.shape[2]
    pool = seat.pool
    # They may be views of the very row that is written.
    keys, values = (layer.keys, layer.values) if seat.keys is layer.keys else (layer.keys.clone(), layer.values.clone())
    pool.keys[seat.row, :, :count], pool.values[seat.row, :, :count] = keys[0], values[0]
    layer.keys, layer.values = (
        pool.keys[seat.row : seat.row + 1, :, :count],
        pool.values[seat.row : seat.row + 1, :, :count],
    )
    seat.keys, seat.start = layer.keys, 0
