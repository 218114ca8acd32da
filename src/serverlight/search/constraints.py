"""What a plan must keep to, what it should be good at, and under which load."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from serverlight.errors import ConfigError

__all__ = ["Constraints", "Objective", "Workload"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Constraints:
    """Caps; one that is ``None`` is none.

    >>> Constraints(latency_ms=-1)
    Traceback (most recent call last):
    ...
    serverlight.errors.ConfigError: latency_ms: must be a positive number, got -1; leave it out for no cap
    """

    latency_ms: float | None = None
    """Of one request; of a language model, of one decode step."""

    first_token_ms: float | None = None
    """Of a language model: from the prompt to the first token."""

    device_memory_mib: float | None = None
    uplink_bytes: float | None = None
    """Of one request or decode step."""

    max_quality_loss: float | None = None
    """In percentage points; zero allows what loses nothing."""

    server_ms: float | None = None
    """Compute time of the server for one request or step."""

    energy_mj: float | None = None
    """Millijoules of the device for one request or step."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is None:
                continue
            zero_is_fine = field.name == "max_quality_loss"
            if not isinstance(value, int | float) or not (0 < value < math.inf or (zero_is_fine and value == 0)):
                raise ConfigError(field.name, f"must be a positive number, got {value!r}; leave it out for no cap")


@dataclass(frozen=True, kw_only=True, slots=True)
class Objective:
    """What is minimised: a weighted sum; by default the server's compute time alone."""

    server_ms: float = 1.0
    latency_ms: float = 0.0
    uplink_kib: float = 0.0
    energy_mj: float = 0.0

    def __post_init__(self) -> None:
        weights = dataclasses.astuple(self)
        for field, weight in zip(dataclasses.fields(self), weights, strict=True):
            if not 0 <= weight < math.inf:
                raise ConfigError(field.name, f"a weight must be zero or more, got {weight!r}")
        if not any(weights):
            raise ConfigError("objective", "at least one weight must be above zero")


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What devices ask for."""

    devices: int = 1
    """That share the server."""

    requests_per_s: float | None = None
    """Of each device; ``None``: the next as soon as the last is answered."""

    prompt_tokens: int = 64
    """Of a language model."""

    new_tokens: int = 128
    """Of a language model: how far the cache grows (the ``w`` of the paper)."""

    input_bytes: int | None = None
    """What a raw input takes, such as a JPEG file; ``None``: as many as the input tensor."""

    input_loss_pp: float = 0.0
    """What sending the input as such a file costs in quality, in percentage points."""

    def __post_init__(self) -> None:
        for name, least in (("devices", 1), ("prompt_tokens", 1), ("new_tokens", 1)):
            if getattr(self, name) < least:
                raise ConfigError(name, f"must be at least {least}, got {getattr(self, name)!r}")
        for name in ("requests_per_s", "input_bytes"):
            if (value := getattr(self, name)) is not None and not 0 < value < math.inf:
                raise ConfigError(name, f"must be positive, got {value!r}")
        if not 0 <= self.input_loss_pp < math.inf:
            raise ConfigError("input_loss_pp", f"must be zero or more, got {self.input_loss_pp!r}")
