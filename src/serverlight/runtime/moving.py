"""Carries out early exits: asks whether a cap is about to be hit, moves the cut, and reports."""

from __future__ import annotations

import time
from collections.abc import Iterator

from serverlight.codec import Codec
from serverlight.errors import CutNotFound
from serverlight.generation import layer_of
from serverlight.partition.kv_cache import LayerState
from serverlight.runtime.device import Device, Footprint
from serverlight.runtime.exits import Caps, Exit, decide
from serverlight.runtime.layer_frames import write_layer
from serverlight.runtime.pace import MoveCost, Pace, cheaper, recompute_cost, ship_cost
from serverlight.runtime.sequence import RemoteSequence

__all__ = ["Mover"]

_SHIPPED_BYTES = 2
"""Bytes of an element of keys and values on the wire, for the estimate."""


class Mover:
    """Watches one sequence for its caps, and moves its cut."""

    def __init__(
        self, caps: Caps, footprint: Footprint, device: Device, sequence: RemoteSequence, num_layers: int
    ) -> None:
        self._caps, self._footprint = caps, footprint
        self._device, self._sequence, self._num_layers = device, sequence, num_layers
        self._codec = Codec(caps.codec)
        self._frame_bytes = self._frame_tokens = 0
        self.pace = Pace(num_layers)

    def sent(self, num_bytes: int, num_tokens: int) -> None:
        """Takes note of a frame, whose like would be sent again."""
        self._frame_bytes += num_bytes
        self._frame_tokens += num_tokens

    def exit(self, num_made: int, num_next: int) -> Exit | None:
        """Moves the cut if the next step, of ``num_next`` tokens, would not keep the caps; reports if anything was done.

        An exit without a cut to go to says that the sequence has to stop.
        """
        layer, num_tokens = self._device.layer, self._device.num_tokens + num_next
        decision = decide(
            self._caps,
            layer=layer,
            served=list(_layers(self._sequence.cuts)),
            memory_bytes=lambda at: self._footprint.num_bytes(at, num_tokens),
            step_ms=None if self.pace.step_ms(layer, layer) is None else lambda at: self.pace.step_ms(layer, at) or 0.0,
        )
        return None if decision is None else self.move(decision.reason, decision.layer, num_made)

    def keeps_memory(self, layer: int, num_next: int) -> bool:
        """Whether a cut there keeps the cap on memory in the next step."""
        cap = self._caps.device_memory_bytes
        return cap is None or self._footprint.num_bytes(layer, self._device.num_tokens + num_next) <= cap

    def price(self, layer: int) -> MoveCost:
        """What a move to that cut is estimated to cost, the cheaper way."""
        ship, recompute = self._prices(layer)
        return {"shipped": ship, "recomputed": recompute}[self._way(layer)]

    def move(self, reason: str, layer: int | None, num_made: int) -> Exit:
        """Moves the cut, or stops the sequence where there is none to go to, and reports."""
        started_s, before = time.perf_counter(), self._device.layer
        way, num_bytes = (None, 0) if layer is None else self._move(layer)
        return Exit(
            token_index=num_made,
            reason=reason,
            from_cut=f"layers.{before}",
            to_cut=None if layer is None else f"layers.{layer}",
            way=way,
            num_bytes=num_bytes,
            cost_ms=(time.perf_counter() - started_s) * 1e3,
        )

    def _move(self, layer: int) -> tuple[str | None, int]:
        """Moves the cut; returns the way it went and the bytes that were sent."""
        way, cut = self._way(layer), f"layers.{layer}"
        states: tuple[LayerState, ...] = ()
        if layer > self._device.layer:
            self._device.take(layer)
        else:
            states = self._device.give(layer)
        self.pace.moved()
        if not states and not self._device.num_tokens:
            self._sequence.restart(cut)
            return None, 0
        if way == "shipped":
            # One after the other, so that the device never holds the frames of all.
            layers = ((state.index, *write_layer(state, self._codec)) for state in reversed(states))
            if (num_bytes := self._sequence.ship(cut, layers)) is not None:
                return way, num_bytes
        return "recomputed", self._recompute(cut)

    def _recompute(self, cut: str) -> int:
        self._sequence.restart(cut)
        num_bytes = 0
        for frames in self._device.again():
            num_bytes += self._sequence.send(frames, more=True, quiet=True)
        self._sequence.wait()
        return num_bytes

    def _way(self, layer: int) -> str:
        if layer > self._device.layer:  # the device cannot be given what the server remembers
            return "recomputed"
        return cheaper(*self._prices(layer)) if self._caps.way == "auto" else self._caps.way

    def _prices(self, layer: int) -> tuple[MoveCost, MoveCost]:
        num_tokens, rates = self._device.num_tokens, self.pace.rates()
        num_elements = self._footprint.num_elements(layer, self._device.layer, num_tokens)
        token_bytes = self._frame_bytes / max(1, self._frame_tokens)
        return (
            ship_cost(_SHIPPED_BYTES * num_elements, rates),
            recompute_cost(num_tokens, token_bytes, layer, self._num_layers, rates),
        )


def _layers(cuts: tuple[str, ...]) -> Iterator[int]:
    """The cuts that a server told, as numbers of layers; what is no cut of a language model is left out."""
    for cut in cuts:
        try:
            yield layer_of(cut)
        except CutNotFound:
            continue
