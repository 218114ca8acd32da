"""A sequence whose plan follows its link: settings change from step to step, and the cut where that pays for its price."""

from __future__ import annotations

import math
from collections.abc import Callable

from serverlight.errors import ConfigError
from serverlight.frontier import Choice, Frontier
from serverlight.generation import layer_of
from serverlight.runtime.adapt import Adapter, Change, Observation, Rules
from serverlight.runtime.device import Device
from serverlight.runtime.exits import Exit
from serverlight.runtime.moving import Mover
from serverlight.runtime.pace import Observed

__all__ = ["Follower", "check_frontier", "deepest_layer"]


def check_frontier(frontier: Frontier) -> None:
    """Raises :class:`ConfigError` for a choice that a sequence cannot go over to."""
    for choice in frontier.choices:
        if choice.plan is None:
            raise ConfigError(
                "frontier", "a sequence that a server runs cannot go all on the device; leave the choice out"
            )
        layer_of(choice.plan.cut)
        if choice.plan.basis is not None or choice.plan.return_cut is not None:
            raise ConfigError("frontier", "a sequence cannot change basis or second cut; leave choices with one out")


def deepest_layer(frontier: Frontier) -> int:
    """How many layers the device needs to have at most."""
    return max(_layer(choice) for choice in frontier.choices)


class Follower:
    """The choices of one sequence. The link's estimate is that of the mover's pace.

    Args:
        frontier: the choices; of those at cuts that the server does not serve none is taken.
        rules: the deadline of a decode step, and caps.
        mover: moves the cut and knows what that costs.
        device: the sequence on the device.
        served: the cuts that the server serves.
        on_change: hears of each change.
    """

    def __init__(
        self,
        frontier: Frontier,
        rules: Rules,
        *,
        mover: Mover,
        device: Device,
        served: tuple[str, ...],
        on_change: Callable[[Change], None] | None,
    ) -> None:
        choices = tuple(choice for choice in frontier.choices if f"layers.{_layer(choice)}" in served)
        if not choices:
            raise ConfigError(
                "frontier", f"none of its cuts is served, but {', '.join(served)}; serve others, or search anew"
            )
        self._mover, self._device = mover, device
        self._num_next = 1
        self._adapter = Adapter(Frontier(choices=choices), rules, price_ms=self._price_ms, on_change=on_change)
        self.stay("start")

    def stay(self, reason: str) -> None:
        """Takes the best choice at the cut where the sequence is, for a reason of the caller's."""
        here = [choice for choice in self._adapter.choices if _layer(choice) == self._device.layer]
        if here:
            self._adapter.stand_at(here[0], reason)
            self._use(here[0])

    def follow(self, num_made: int, num_next: int, num_left: int) -> Exit | None:
        """Gets ready for the next step, of ``num_next`` tokens with ``num_left`` steps to come; reports a moved cut."""
        self._num_next = num_next
        if not num_made and self._adapter.choice is not None:  # before the prompt nothing is known of the link
            return None
        choice = self._adapter.choose(horizon=num_left)
        self._use(choice)
        # After an exit to a cut without a choice the one in use is another cut's, to which memory may not let it return.
        if _layer(choice) == self._device.layer or not self._mover.keeps_memory(_layer(choice), num_next):
            return None
        return self._mover.move("link", _layer(choice), num_made)

    def observe(self, step: Observed, encode_ms: float) -> None:
        """Takes note of a step."""
        if self._adapter.choice is None:
            return
        is_decode = step.num_tokens == 1
        seen = Observation(
            elapsed_s=step.total_ms / 1e3,
            head_ms=step.head_ms + encode_ms if is_decode else None,
            num_bytes=step.last_bytes,
            way_ms=step.way_ms,
            server_ms=step.server_ms if is_decode else None,
        )
        self._adapter.observe(seen, link=self._mover.pace.link)

    def _use(self, choice: Choice) -> None:
        assert choice.plan is not None
        self._device.use(choice.plan)

    def _price_ms(self, choice: Choice) -> float:
        """Of a cut that would not keep the device's memory cap: more than anything is worth."""
        layer = _layer(choice)
        if not self._mover.keeps_memory(layer, self._num_next):
            return math.inf
        return self._mover.price(layer).time_ms


def _layer(choice: Choice) -> int:
    assert choice.plan is not None
    return layer_of(choice.plan.cut)
