"""Plans worth having, and what each takes: what a search hands to a running device, which moves along them as its link changes."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from serverlight.errors import ConfigError
from serverlight.json_files import load_json, save_json
from serverlight.plan import Plan

__all__ = ["Choice", "Frontier", "Way"]

Way = Literal["split", "full-server", "all-device"]
"""Who runs the model: both, after a cut; the server, which gets the raw input; the device."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """One plan and what a request (of a language model: a decode step) with it is expected to take."""

    way: Way
    plan: Plan | None
    """Cut and codec; none where the device does it all. A full server's plan has the cut ``input`` (``layers.0``, where it may
    send token ids)."""

    head_ms: float
    """Device: running the head, and encoding."""

    server_ms: float
    """Server: waiting for its turn, decoding, the tail, and handling the messages."""

    server_busy_ms: float
    """Of that, the server's compute time: what the request takes away from others."""

    uplink_bytes: int
    """All bytes of the message up."""

    downlink_bytes: int
    """All bytes of the reply."""

    device_memory_bytes: int
    """Weights, activations, keys and values on the device."""

    loss_pp: float
    """Expected loss of quality against the uncut model, in percentage points."""

    def latency_ms(self, rate_bits_per_s: float, rtt_ms: float) -> float:
        """Of one request over a link of that uplink rate and round trip; ``inf`` as a rate is a link without limit.

        >>> plan = Plan(model="m", revision="r", cut="c")
        >>> choice = Choice(way="split", plan=plan, head_ms=5.0, server_ms=3.0, server_busy_ms=2.0, uplink_bytes=1000,
        ...                 downlink_bytes=10, device_memory_bytes=0, loss_pp=0.5)
        >>> choice.latency_ms(1e6, 20.0)  # 8000 bits at 1 Mbit/s
        36.0
        """
        if self.way == "all-device":
            return self.head_ms
        return self.head_ms + self.uplink_bytes * 8e3 / rate_bits_per_s + rtt_ms + self.server_ms


@dataclass(frozen=True, kw_only=True, slots=True)
class Frontier:
    """The choices that no other beats in everything, best first by the user's objective."""

    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        if not self.choices:
            raise ConfigError("choices", "a frontier needs at least one choice")

    def to_dict(self) -> dict[str, Any]:
        """All fields, ready for JSON."""
        return {"choices": [_to_dict(choice) for choice in self.choices]}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`; raises :class:`ConfigError` for anything else."""
        try:
            return cls(choices=tuple(_from_dict(choice) for choice in fields["choices"]))
        except (KeyError, TypeError) as error:
            raise ConfigError("frontier", f"cannot be read: {error}; write it with Frontier.save") from None

    def save(self, path: str | pathlib.Path) -> None:
        """Writes JSON."""
        save_json(path, self.to_dict())

    @classmethod
    def load(cls, path: str | pathlib.Path) -> Self:
        """Reads what :meth:`save` wrote; raises :class:`ConfigError`."""
        return cls.from_dict(load_json(path, "frontier"))


def _to_dict(choice: Choice) -> dict[str, Any]:
    fields = {field.name: getattr(choice, field.name) for field in dataclasses.fields(choice)}
    return {**fields, "plan": None if choice.plan is None else choice.plan.to_dict()}


def _from_dict(fields: Mapping[str, Any]) -> Choice:
    plan = fields["plan"]
    return Choice(**{**fields, "plan": None if plan is None else Plan.from_json(json.dumps(plan))})
