"""Early exits: when a device gives layers away in the middle of a sequence, and to which cut it goes. Pure decisions."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from serverlight.codec.config import CodecConfig
from serverlight.errors import ConfigError

__all__ = ["Caps", "Decision", "Exit", "decide"]

ON_LIMIT = ("shallower", "server", "stop")
WAYS = ("auto", "shipped", "recomputed")


@dataclass(frozen=True, kw_only=True, slots=True)
class Caps:
    """What a device can spare for one sequence, and what it does when that is not enough.

    >>> Caps(device_memory_bytes=2**20).on_limit
    'shallower'
    """

    device_memory_bytes: int | None = None
    """Keys and values on the device, at most; ``None`` for no limit."""

    step_deadline_ms: float | None = None
    """How long a token may take, head, link and server together; ``None`` for no limit."""

    on_limit: str = "shallower"
    """``shallower`` moves the cut to the deepest served one that fits, ``server`` to the first one that is served (cut 0, if the
    server has it: the device keeps the embeddings only), ``stop`` ends with the tokens that there are."""

    way: str = "auto"
    """How the server gets what it needs of the past: ``shipped`` as keys and values, ``recomputed`` from hidden states
    at the new cut, or ``auto``, whichever is estimated to be cheaper."""

    codec: CodecConfig = CodecConfig(profile="fp16")  # noqa: RUF009 (it is frozen)
    """For keys and values that are shipped. Every later step reads them, so an error in them lasts: halves by default."""

    def __post_init__(self) -> None:
        memory, deadline = self.device_memory_bytes, self.step_deadline_ms
        if memory is not None and (isinstance(memory, bool) or not isinstance(memory, int) or memory < 0):
            raise ConfigError("device_memory_bytes", f"must be a whole number of zero or more bytes, got {memory!r}")
        if deadline is not None and not (math.isfinite(deadline) and deadline > 0):
            raise ConfigError("step_deadline_ms", f"must be above zero, got {deadline!r}")
        if self.on_limit not in ON_LIMIT:
            raise ConfigError("on_limit", f"must be one of {', '.join(ON_LIMIT)}, got {self.on_limit!r}")
        if self.way not in WAYS:
            raise ConfigError("way", f"must be one of {', '.join(WAYS)}, got {self.way!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Exit:
    """One early exit, as it is reported."""

    token_index: int
    """How many tokens of the answer there were before it."""

    reason: str
    """The cap that was about to be hit, ``memory`` or ``deadline``; ``link`` where the sequence follows its link."""

    from_cut: str
    """Where the sequence was cut."""

    to_cut: str | None
    """Where it is cut now; ``None`` where it was stopped."""

    way: str | None
    """``shipped`` or ``recomputed``; ``None`` where there was nothing to move."""

    num_bytes: int
    """What the move sent, framing included."""

    cost_ms: float
    """How long the sequence stood still."""

    def __str__(self) -> str:
        where = f"token {self.token_index}, {self.reason}"
        if self.to_cut is None:
            return f"{where}: stopped at {self.from_cut}, no cut that is served and allowed keeps the cap"
        how = f", {self.way}: {self.num_bytes} bytes, {self.cost_ms:.1f} ms" if self.way else ""
        return f"{where}: {self.from_cut} to {self.to_cut}{how}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """That the sequence cannot go on as it is."""

    reason: str
    """As :attr:`Exit.reason`."""

    layer: int | None
    """The cut to go to, as a number of layers; ``None`` to stop."""


def decide(
    caps: Caps,
    *,
    layer: int,
    served: Collection[int],
    memory_bytes: Callable[[int], int],
    step_ms: Callable[[int], float] | None,
) -> Decision | None:
    """What to do before the next step; ``None`` to go on.

    Where no shallower cut keeps the memory cap the sequence stops. Where none keeps the deadline it goes to the
    shallowest, and once there goes on late: a token that is late is worth more than none.

    Args:
        caps: The limits.
        layer: How many layers the device runs now.
        served: The cuts that the server serves, as numbers of layers.
        memory_bytes: Keys and values on the device after the next step, by cut.
        step_ms: Time of a step, by cut; ``None`` while it is not known.

    >>> caps = Caps(device_memory_bytes=500)
    >>> decide(caps, layer=8, served=[0, 4, 6, 8], memory_bytes=lambda layer: 100 * layer, step_ms=None)
    Decision(reason='memory', layer=4)
    """
    cuts = sorted((cut for cut in served if cut < layer), reverse=True)
    if caps.on_limit == "server":
        cuts = cuts[-1:]
    cap, deadline_ms = caps.device_memory_bytes, caps.step_deadline_ms
    if cap is not None and memory_bytes(layer) > cap:
        fitting = [] if caps.on_limit == "stop" else [cut for cut in cuts if memory_bytes(cut) <= cap]
        return Decision(reason="memory", layer=fitting[0] if fitting else None)
    if deadline_ms is not None and step_ms is not None and step_ms(layer) > deadline_ms:
        if caps.on_limit == "stop":
            return Decision(reason="deadline", layer=None)
        fitting = [cut for cut in cuts if step_ms(cut) <= deadline_ms] or cuts[-1:]
        return Decision(reason="deadline", layer=fitting[0]) if fitting else None
    return None
