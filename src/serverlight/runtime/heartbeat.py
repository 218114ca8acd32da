"""How long a server may be silent before it counts as lost."""

from __future__ import annotations

from dataclasses import dataclass

from serverlight.errors import ConfigError

__all__ = ["Heartbeat"]

SLOWEST_BYTES_PER_S = 10_000
"""A ping goes behind what was sent before it; a link that is slower than this looks dead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Heartbeat:
    """Pings a server that is long in answering. While steps are answered at once there is no ping.

    >>> Heartbeat(interval_s=2, max_missed=3).patience_s(num_bytes=20_000)
    8.0
    """

    interval_s: float = 2.0
    """Seconds of waiting before a ping, and between pings."""

    max_missed: int = 3
    """So many intervals of silence, and the server counts as lost."""

    def __post_init__(self) -> None:
        if not 0 < self.interval_s < float("inf"):
            raise ConfigError("interval_s", f"must be more than 0 seconds, got {self.interval_s}")
        if self.max_missed < 1:
            raise ConfigError("max_missed", f"must be at least 1, got {self.max_missed}")

    def patience_s(self, num_bytes: int) -> float:
        """How long a server may be silent with ``num_bytes`` on their way to it."""
        return self.interval_s * self.max_missed + num_bytes / SLOWEST_BYTES_PER_S
