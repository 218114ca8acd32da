"""What one client may use: a plain state machine; the clock is an argument."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from serverlight.errors import ConfigError, QuotaExceeded

__all__ = ["RENEWED", "Bucket", "Quota", "Quotas"]

RENEWED = frozenset({"requests_per_s", "bytes_per_s"})
"""Quotas that renew themselves: whoever waits as long as he is told is let in."""

_SLACK = 1e-9
"""Share of an amount that may be missing: times and rates are floats."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Quota:
    """The share of one client, all its connections together; ``None`` leaves it to the limits for all."""

    max_streams: int | None = None
    """Streams at a time; one is enough for a vision model, a language model takes one for each sequence."""

    max_sessions: int | None = None
    """Sequences of a language model at a time."""

    max_kv_bytes: int | None = None
    """Keys and values of all of them."""

    requests_per_s: float | None = None
    """Requests, steps and new sessions, in the long run."""

    bytes_per_s: float | None = None
    """Bytes of frames, tensors and images, in the long run; what is larger than a burst passes alone, and is paid off."""

    burst_s: float = 5.0
    """So many seconds' worth of either may come at once after a rest."""

    weight: int = 1
    """Requests in one of its turns at the compute thread: where there is too much to do, three get three times as much."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            whole = str(field.type).startswith("int")
            if value is None and "None" in str(field.type):
                continue
            if (
                isinstance(value, bool)
                or not isinstance(value, int if whole else int | float)
                or not 0 < value < math.inf
            ):
                kind = "a whole number" if whole else "a number"
                raise ConfigError(field.name, f"must be {kind} above 0, got {value!r}; leave it away for no limit")


_UNLIMITED = Quota()


class Bucket:
    """Fills at a rate up to a capacity, and is full at first.

    What is larger than the capacity passes when the bucket is full, and leaves it in debt.

    >>> bucket = Bucket(rate_per_s=10, capacity=20)
    >>> bucket.take(15, now_s=0)
    >>> bucket.wait_s(15, now_s=0), bucket.wait_s(15, now_s=1)
    (1.0, 0.0)
    """

    def __init__(self, *, rate_per_s: float, capacity: float) -> None:
        self._rate_per_s, self._capacity, self._level = rate_per_s, capacity, capacity
        self._now_s: float | None = None

    def wait_s(self, amount: float, now_s: float) -> float:
        """How long until so much may be taken; 0 for at once."""
        self._fill(now_s)
        needed = min(amount, self._capacity)
        missing = needed - self._level
        return missing / self._rate_per_s if missing > _SLACK * needed else 0.0

    def take(self, amount: float, now_s: float) -> None:
        """Takes it, whatever is there."""
        self._fill(now_s)
        self._level -= amount

    def _fill(self, now_s: float) -> None:
        if self._now_s is not None:
            gained = self._rate_per_s * max(0.0, now_s - self._now_s)
            self._level = min(self._capacity, self._level + gained)
        self._now_s = now_s if self._now_s is None else max(now_s, self._now_s)


class Quotas:
    """The quotas of all clients, and what they have used of those that renew themselves.

    Args:
        quota_of: by a client's name; may change its mind at any time.

    >>> quotas = Quotas(lambda name: Quota(requests_per_s=1, burst_s=1))
    >>> quotas.charge("phone", num_bytes=100, now_s=0)
    >>> quotas.charge("phone", num_bytes=100, now_s=0.5)
    Traceback (most recent call last):
    serverlight.errors.QuotaExceeded: over the quota requests_per_s; try again in 500 ms
    """

    def __init__(self, quota_of: Callable[[str], Quota] | None = None) -> None:
        self._quota_of = quota_of
        self._meters: dict[str, _Meter] = {}
        self._streams: Counter[str] = Counter()

    def of(self, client: str | None) -> Quota:
        """What a client may use; everything, where it has no name."""
        return _UNLIMITED if client is None or self._quota_of is None else self._quota_of(client)

    def enter(self, client: str | None) -> bool:
        """Counts a stream, and says whether it is one too many; it counts until :meth:`leave` in either case."""
        if client is None:
            return False
        self._streams[client] += 1
        most = self.of(client).max_streams
        return most is not None and self._streams[client] > most

    def leave(self, client: str | None) -> None:
        """A stream is gone."""
        if client is not None:
            self._streams[client] -= 1
            if not self._streams[client]:
                del self._streams[client]

    def charge(self, client: str | None, num_bytes: int, now_s: float) -> None:
        """Counts a request; raises :class:`QuotaExceeded`, and then counts nothing."""
        quota = self.of(client)
        if client is None or (quota.requests_per_s is None and quota.bytes_per_s is None):
            return
        meter = self._meters.get(client)
        if meter is None or meter.quota != quota:
            meter = self._meters[client] = _Meter(quota)
        meter.charge(num_bytes, now_s)


class _Meter:
    """The two buckets of one client."""

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        rates = {"requests_per_s": quota.requests_per_s, "bytes_per_s": quota.bytes_per_s}
        self._buckets = {
            name: Bucket(rate_per_s=rate, capacity=max(1.0, rate * quota.burst_s))
            for name, rate in rates.items()
            if rate is not None
        }

    def charge(self, num_bytes: int, now_s: float) -> None:
        amounts = {name: num_bytes if name == "bytes_per_s" else 1 for name in self._buckets}
        waits_s = {name: bucket.wait_s(amounts[name], now_s) for name, bucket in self._buckets.items()}
        longest = max(waits_s, key=lambda name: waits_s[name])
        if waits_s[longest] > 0:
            raise QuotaExceeded(longest, math.ceil(waits_s[longest] * 1e3))
        for name, bucket in self._buckets.items():
            bucket.take(amounts[name], now_s)
