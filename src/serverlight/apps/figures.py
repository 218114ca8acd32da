"""What the dashboard shows, from the sums of a server: plain data once a second, and the minutes before."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from serverlight.runtime.tally import Device, Tally

__all__ = ["Figures", "Gauges"]

HISTORY_S = 300
"""How far the charts reach back; there is a point a second."""

MAX_DEVICES = 100
"""The most devices that are listed, the busiest first."""

FP16_BYTES = 2

_NEWEST_SHARE = 0.4
"""Weight of the newest second in a device's running rates."""

_TRUSTED_SHARE = 0.95
"""Of a head that does more than this the rest says nothing about the whole."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gauges:
    """What is so now, rather than since the start."""

    status: str
    """``ok``, ``starting or draining``, ``stalled`` or ``crashed``."""

    queue: int
    """Requests that wait."""

    streams: int
    """Clients that are connected."""

    kv_bytes: int
    """Keys and values that are reserved."""


@dataclass(slots=True)
class _Sums:
    """Over all requests since the start."""

    requests: int = 0
    errors: int = 0
    tokens: int = 0
    up_bytes: int = 0
    down_bytes: int = 0
    frame_bytes: int = 0
    elements: int = 0
    timed: int = 0
    runs: float = 0.0
    queue_s: float = 0.0
    decode_s: float = 0.0
    tail_s: float = 0.0
    sample_s: float = 0.0

    @classmethod
    def of(cls, tally: Tally) -> _Sums:
        sums = cls(errors=sum(tally.errors.values()))
        for work in tally.work.values():
            sums.requests += work.requests.total()
            sums.tokens += work.tokens
            sums.up_bytes += work.up_bytes
            sums.down_bytes += work.down_bytes
            sums.frame_bytes += work.frame_bytes
            sums.elements += work.elements
            sums.timed += sum(work.queue.counts)
            sums.runs += work.runs
            sums.queue_s += work.queue.total
            sums.decode_s += work.seconds["decode"]
            sums.tail_s += work.seconds["tail"]
            sums.sample_s += work.seconds["sample"]
        return sums

    def since(self, before: _Sums) -> _Sums:
        fields = (field.name for field in dataclasses.fields(self))
        return _Sums(**{name: getattr(self, name) - getattr(before, name) for name in fields})


@dataclass(slots=True)
class _Rates:
    """One device's, running."""

    seen: Device | None = None
    up: float = 0.0
    down: float = 0.0
    requests: float = 0.0
    idle_s: float = 0.0

    def look(self, device: Device, seconds: float) -> None:
        before = self.seen or Device(number=device.number)
        weight = 1.0 if self.seen is None else _NEWEST_SHARE
        self.up += weight * ((device.up_bytes - before.up_bytes) / seconds - self.up)
        self.down += weight * ((device.down_bytes - before.down_bytes) / seconds - self.down)
        self.requests += weight * ((device.requests - before.requests) / seconds - self.requests)
        self.idle_s = self.idle_s + seconds if device.requests == before.requests else 0.0
        self.seen = dataclasses.replace(device)


class Figures:
    """Turns sums into rates; the clock is an argument.

    Args:
        tally: the sums, which keep still while :meth:`tick` runs.
        gauges: asks what is so now.
        head_shares: by model and cut the share of the model's work that the device does, where it is known; may grow.
    """

    def __init__(
        self, tally: Tally, gauges: Callable[[], Gauges], head_shares: Mapping[tuple[str, str], float]
    ) -> None:
        self._tally, self._gauges, self._head_shares = tally, gauges, head_shares
        self._sums, self._since_s = _Sums(), 0.0
        self._rates: dict[object, _Rates] = {}
        self.points: deque[dict[str, Any]] = deque(maxlen=HISTORY_S)
        """One for each second, the newest last."""

    def tick(self, now_s: float) -> dict[str, Any]:
        """The figures of the time since the tick before; the first tick only starts the clock."""
        sums, gauges = _Sums.of(self._tally), self._gauges()
        seconds = now_s - self._since_s if self._since_s else 1.0
        self.points.append(_point(sums.since(self._sums), seconds, gauges))
        self._sums, self._since_s = sums, now_s
        return {
            "status": gauges.status,
            "streams": gauges.streams,
            "sessions": sum(device.has_session for device in self._tally.devices.values()),
            "has_sessions": bool(self._tally.sessions_opened),
            "kv_bytes": gauges.kv_bytes,
            "point": self.points[-1],
            "totals": dataclasses.asdict(sums),
            "errors": _by_code(self._tally),
            "exits": self._tally.exits.total(),
            "saved": {"uplink": _saved_uplink(sums), "server": self._saved_server()},
            "devices": self._devices(max(seconds, 1e-3)),
        }

    def _devices(self, seconds: float) -> list[dict[str, Any]]:
        before, self._rates = self._rates, {}
        rows = []
        for stream, device in self._tally.devices.items():
            rates = self._rates[stream] = before.get(stream) or _Rates()
            rates.look(device, seconds)
            rows.append(_row(device, rates))
        rows.sort(key=lambda row: (-row["up_per_s"], row["idle_s"], row["number"]))
        return rows[:MAX_DEVICES]

    def _saved_server(self) -> dict[str, float] | None:
        """An estimate: what the tails took, scaled by the work that the devices did, against all that the server did."""
        ours_s = full_s = 0.0
        for series, work in self._tally.work.items():
            share = self._head_shares.get((series.model, series.cut))
            if share is not None and share <= _TRUSTED_SHARE:
                ours_s += sum(work.seconds.values())
                full_s += work.seconds["tail"] / (1 - share)
        return {"ours_s": ours_s, "full_s": full_s} if full_s else None


def _point(new: _Sums, seconds: float, gauges: Gauges) -> dict[str, Any]:
    """What happened in one second; ``None`` where nothing did, so that there is nothing to divide by."""
    timed_ms = new.timed / 1e3
    parts = {"queue": new.queue_s, "decode": new.decode_s, "tail": new.tail_s, "sample": new.sample_s}
    return {
        "requests": new.requests / seconds,
        "tokens": new.tokens / seconds,
        "errors": new.errors / seconds,
        "up": new.up_bytes / seconds,
        "down": new.down_bytes / seconds,
        "queue": gauges.queue,
        "batch": new.timed / new.runs if new.runs else None,
        "bits": 8 * new.frame_bytes / new.elements if new.elements else None,
        "ms": {part: value / timed_ms if timed_ms else None for part, value in parts.items()},
        "busy": min(1.0, (new.decode_s + new.tail_s + new.sample_s) / seconds),
    }


def _row(device: Device, rates: _Rates) -> dict[str, Any]:
    return {
        "number": device.number,
        "session": f"{device.number}.{device.num_sessions}" if device.has_session else None,
        "model": device.model,
        "cut": device.cut,
        "up_per_s": rates.up,
        "down_per_s": rates.down,
        "requests_per_s": rates.requests,
        "bits": 8 * device.frame_bytes / device.elements if device.elements else None,
        "requests": device.requests,
        "tokens": device.tokens,
        "errors": device.errors,
        "idle_s": rates.idle_s,
    }


def _saved_uplink(sums: _Sums) -> dict[str, float] | None:
    return {"ours": sums.frame_bytes, "fp16": FP16_BYTES * sums.elements} if sums.elements else None


def _by_code(tally: Tally) -> dict[str, int]:
    codes: dict[str, int] = {}
    for (_, code), count in tally.errors.items():
        codes[code] = codes.get(code, 0) + count
    return codes
