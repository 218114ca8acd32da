"""Faults on purpose: what goes wrong, and when. Pure: chance comes from a seed, and the clock is an argument.

A fault is written ``KIND:WHEN`` or ``KIND:WHEN:MORE``. WHEN is a chance from 0 to 1 for each piece that crosses (of a
relay a piece of TCP, of a server a message), or a moment: ``@90s`` after the start, or ``/30s``, which is every 30 s. A
moment strikes all connections that are open then.
"""

from __future__ import annotations

import dataclasses
import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from serverlight.errors import ConfigError
from serverlight.link import LinkConfig

__all__ = ["DIRECTIONS", "KINDS", "Fault", "FaultPlan", "Roll", "Strike", "flip_bit"]

KINDS = ("kill", "stall", "drop", "slow", "corrupt", "crash")
"""``kill`` ends the connection; ``stall`` holds everything on it for a while; ``drop`` swallows one direction from then on,
as a half-open connection does; ``slow`` gives it a worse link for a while; ``corrupt`` alters a bit; ``crash`` ends the process."""

DIRECTIONS = ("up", "down")
"""Towards the server, and back."""

_TIMES_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0}
_TIME = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s|min)")
_HINT = (
    "write it like kill:0.001, stall:0.01:500ms, drop:0.001:up, slow:0.01:64kbit,20ms:5s, corrupt:0.001 or kill:@90s"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """One kind of fault and when it strikes.

    >>> Fault.parse("stall:0.01:500ms")
    Fault(kind='stall', chance=0.01, at_s=None, every_s=None, for_s=0.5, link=None, direction=None)
    """

    kind: str
    """One of :data:`KINDS`."""

    chance: float = 0.0
    """Probability for each piece that crosses."""

    at_s: float | None = None
    """Strikes once, so many seconds after the start."""

    every_s: float | None = None
    """Strikes again and again, so many seconds apart."""

    for_s: float = 0.0
    """How long a stall or a slow link lasts, in seconds."""

    link: LinkConfig | None = None
    """What the link is like while it is slow."""

    direction: str | None = None
    """The one of :data:`DIRECTIONS` that it strikes; ``None`` for either."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError("fault", f"{self.kind!r} is none of {', '.join(KINDS)}; {_HINT}")
        if not 0 <= self.chance <= 1:
            raise ConfigError("fault", f"a chance is from 0 to 1, got {self.chance}; {_HINT}")
        if self.every_s is not None and not self.every_s > 0:
            raise ConfigError("fault", f"must be more than 0 seconds apart, got {self.every_s}; {_HINT}")
        if (self.kind in ("stall", "slow")) != (self.for_s > 0) or (self.kind == "slow") != (self.link is not None):
            raise ConfigError(
                "fault", f"a stall needs a time, a slow link its link and a time, nothing else does; {_HINT}"
            )

    @classmethod
    def parse(cls, text: str) -> Fault:
        """Reads one fault; raises :class:`ConfigError`.

        >>> Fault.parse("drop:@1.5s:up").at_s, Fault.parse("kill:/30s").every_s
        (1.5, 30.0)
        >>> Fault.parse("explode:1")
        Traceback (most recent call last):
        ...
        serverlight.errors.ConfigError: fault: 'explode' is none of kill, stall, drop, slow, corrupt, crash; write it like \
kill:0.001, stall:0.01:500ms, drop:0.001:up, slow:0.01:64kbit,20ms:5s, corrupt:0.001 or kill:@90s
        """
        kind, _, rest = text.strip().partition(":")
        when, *more = rest.split(":")
        fields: dict[str, Any] = {"kind": kind, **(_read_when(when) if kind in KINDS else {})}
        for part in more:
            if part in DIRECTIONS and "direction" not in fields:
                fields["direction"] = part
            elif kind == "slow" and "link" not in fields:
                fields["link"] = LinkConfig.parse(part)
            else:
                fields["for_s"] = _read_time(part)
        return cls(**fields)


def _read_when(text: str) -> dict[str, float]:
    if text[:1] in ("@", "/"):
        return {"at_s" if text[0] == "@" else "every_s": _read_time(text[1:])}
    try:
        chance = float(text)
    except ValueError:
        raise ConfigError("fault", f"cannot read {text!r} as a chance or a moment; {_HINT}") from None
    return {"chance": chance}


def _read_time(text: str) -> float:
    if not (match := _TIME.fullmatch(text)):
        raise ConfigError("fault", f"cannot read the time {text!r}; {_HINT}")
    return float(match[1]) * _TIMES_S[match[2]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Strike:
    """A fault that has struck."""

    at_s: float
    """Seconds since the start."""

    kind: str
    """As :attr:`Fault.kind`."""

    connection: int
    """Which one, counted from 0 in the order in which they came."""

    direction: str = ""
    """Towards the server or back; empty where it strikes both."""

    for_s: float = 0.0
    """How long it lasts, where it does."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON, rounded to milliseconds."""
        return {**dataclasses.asdict(self), "at_s": round(self.at_s, 3)}

    def __str__(self) -> str:
        lasts = f" for {self.for_s:g} s" if self.for_s else ""
        way = f" {self.direction}" if self.direction else ""
        return f"{self.at_s:8.2f} s  connection {self.connection}{way}: {self.kind}{lasts}"


class FaultPlan:
    """Which faults strike when; the same seed gives the same faults.

    >>> plan = FaultPlan.parse(["kill:0.5", "drop:@3s"], seed=1)
    >>> roll = plan.roll(connection=0, direction="up")
    >>> [fault and fault.kind for fault in (roll.next(), roll.next(), roll.next())]
    ['kill', 'kill', None]
    >>> plan.next_moment(0.0)
    (3.0, (Fault(kind='drop', chance=0.0, at_s=3.0, every_s=None, for_s=0.0, link=None, direction=None),))
    """

    def __init__(self, faults: Sequence[Fault], *, seed: int = 0) -> None:
        self.faults, self.seed = tuple(faults), seed

    @classmethod
    def parse(cls, texts: Sequence[str], *, seed: int = 0) -> FaultPlan:
        """Reads one fault from each text; raises :class:`ConfigError`."""
        return cls([Fault.parse(text) for text in texts], seed=seed)

    def roll(self, connection: int, direction: str = "") -> Roll:
        """What chance brings for one direction of a connection, or for both together; it depends on nothing that happens on
        others.
        """
        chancy = [
            fault for fault in self.faults if fault.chance and (not direction or fault.direction in (None, direction))
        ]
        return Roll(chancy, random.Random(f"{self.seed}/{connection}/{direction}"))

    def next_moment(self, after_s: float) -> tuple[float, tuple[Fault, ...]] | None:
        """The first moment after ``after_s`` for which faults are planned, and which those are; ``None`` for no more."""
        planned = [(when_s, fault) for fault in self.faults for when_s in _next_time(fault, after_s)]
        if not planned:
            return None
        first_s = min(when_s for when_s, _ in planned)
        return first_s, tuple(fault for when_s, fault in planned if when_s == first_s)


class Roll:
    """One direction of one connection: asked for each piece, in order."""

    def __init__(self, faults: Sequence[Fault], chance: random.Random) -> None:
        self._faults, self._chance = faults, chance

    def next(self) -> Fault | None:
        """What strikes the next piece; the first of those planned where several would."""
        struck = [fault for fault in self._faults if self._chance.random() < fault.chance]
        return struck[0] if struck else None

    def flip(self, data: bytes) -> bytes:
        """The data with one bit altered."""
        return flip_bit(data, self._chance)


def flip_bit(data: bytes, chance: random.Random) -> bytes:
    """The data with one bit altered; nothing stays nothing.

    >>> flip_bit(b"", random.Random(0)), len(flip_bit(b"abc", random.Random(0)))
    (b'', 3)
    """
    if not data:
        return data
    altered = bytearray(data)
    altered[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    return bytes(altered)


def _next_time(fault: Fault, after_s: float) -> Iterator[float]:
    if fault.at_s is not None and fault.at_s > after_s:
        yield fault.at_s
    if fault.every_s is not None:
        turn = math.floor(after_s / fault.every_s) + 1
        # Division may round so that the product is not later.
        yield turn * fault.every_s if turn * fault.every_s > after_s else (turn + 1) * fault.every_s
