"""How fast bytes cross a link."""

from __future__ import annotations

import re
from dataclasses import dataclass

from serverlight.errors import ConfigError

__all__ = ["RATES", "TIMES_MS", "LinkConfig"]

RATES = {"kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
"""Unit of a rate -> bits per second."""

TIMES_MS = {"us": 1e-3, "ms": 1.0, "s": 1e3}
"""Unit of a time -> milliseconds."""

_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)")
_HINT = "write it like 10mbit,20ms or 10mbit,20ms,5ms (rate, one-way delay, jitter; units kbit, mbit, gbit, us, ms, s)"


@dataclass(frozen=True, kw_only=True, slots=True)
class LinkConfig:
    """A link that is the same in both directions.

    >>> link = LinkConfig.parse("10mbit,20ms")
    >>> link.rate_bits_per_s, link.delay_ms, link.jitter_ms
    (10000000.0, 20.0, 0.0)
    """

    rate_bits_per_s: float | None = None
    """Bits per second; ``None`` for as fast as it goes."""

    delay_ms: float = 0.0
    """One-way delay in milliseconds."""

    jitter_ms: float = 0.0
    """Up to so many milliseconds more, drawn evenly for each piece; order is kept."""

    def __post_init__(self) -> None:
        if self.rate_bits_per_s is not None and not 0 < self.rate_bits_per_s < float("inf"):
            raise ConfigError("rate_bits_per_s", f"must be positive, got {self.rate_bits_per_s!r}; None is no limit")
        for name in ("delay_ms", "jitter_ms"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(name, f"must be zero or more milliseconds, got {getattr(self, name)!r}")

    @classmethod
    def parse(cls, text: str) -> LinkConfig:
        """Reads ``rate``, ``rate,delay``, ``rate,delay,jitter`` or only times; raises :class:`ConfigError`.

        >>> LinkConfig.parse("1.5gbit, 300us") == LinkConfig(rate_bits_per_s=1.5e9, delay_ms=0.3)
        True
        >>> LinkConfig.parse("fast")
        Traceback (most recent call last):
        ...
        serverlight.errors.ConfigError: link: cannot read 'fast'; write it like 10mbit,20ms or 10mbit,20ms,5ms \
(rate, one-way delay, jitter; units kbit, mbit, gbit, us, ms, s)
        """
        rates, times = [], []
        for part in text.lower().split(","):
            match = _QUANTITY.fullmatch(part.strip())
            number, unit = match.groups() if match else ("", "")
            if unit in RATES:
                rates.append(float(number) * RATES[unit])
            elif unit in TIMES_MS:
                times.append(float(number) * TIMES_MS[unit])
            else:
                raise ConfigError("link", f"cannot read {part.strip()!r}; {_HINT}")
        if len(rates) > 1 or len(times) > 2:
            raise ConfigError("link", f"too many parts in {text!r}; {_HINT}")
        delay_ms, jitter_ms = [*times, 0.0, 0.0][:2]
        return cls(rate_bits_per_s=rates[0] if rates else None, delay_ms=delay_ms, jitter_ms=jitter_ms)

    def __str__(self) -> str:
        rate = [] if self.rate_bits_per_s is None else [f"{self.rate_bits_per_s / 1e6:g}mbit"]
        jitter = [f"{self.jitter_ms:g}ms"] if self.jitter_ms else []
        return ",".join([*rate, f"{self.delay_ms:g}ms", *jitter])

    def deliver_at(self, now_s: float, free_s: float, num_bytes: int, jitter: float = 0.0) -> tuple[float, float]:
        """When the link is free again, and when the last of ``num_bytes`` handed over at ``now_s`` arrives.

        ``free_s`` is when the link has sent all that came before, ``jitter`` a number from 0 to 1. No clock is read.

        >>> LinkConfig.parse("8kbit,20ms").deliver_at(10.0, 0.0, 500)  # 1000 bytes a second
        (10.5, 10.52)
        >>> LinkConfig.parse("8kbit,20ms").deliver_at(10.0, 10.5, 500)  # behind the first
        (11.0, 11.02)
        """
        send_s = 0.0 if self.rate_bits_per_s is None else num_bytes * 8 / self.rate_bits_per_s
        free_s = max(now_s, free_s) + send_s
        return free_s, free_s + (self.delay_ms + jitter * self.jitter_ms) / 1e3
