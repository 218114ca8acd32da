"""What a simulation is made of: servers, groups of like devices, and what crosses between them."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from serverlight.errors import ConfigError
from serverlight.frontier import Way
from serverlight.link import LinkConfig
from serverlight.search.profile import Profile

__all__ = ["Crossing", "Group", "ServerModel"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerModel:
    """A server of one compute thread, measured, with its limits; the defaults are those of ``runtime/server_config.py``."""

    profile: Profile
    max_batch: int = 64
    max_delay_ms: float = 15.0
    max_waiting: int = 64
    max_sessions: int = 64
    prefill_tokens: int = 64
    """Tokens of a prompt that run between two batches."""

    message_share: float = 0.45
    """Of the processor's time for a message that comes alone, what it takes in company; the rest is once for each batch
    that the server has waited for.

    A profile sees messages one at a time, each of which wakes the threads that handle it. The default is what batches of 14 cost
    beside the same batches without a server (``benchmarks/results/runtime_vision_*``).
    """

    spread: float = 0.0
    """How far times of tails and messages spread above those of the profiles, which are lower quartiles: an exponential's tail with
    this share of them as its mean. 0.1 makes a 95th percentile of about 1.2 times the median.
    """

    def __post_init__(self) -> None:
        for name in ("message_share", "spread"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(name, f"must be from 0 to 1, got {getattr(self, name)!r}")
        for name in ("max_batch", "max_waiting", "max_sessions", "prefill_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"must be at least 1, got {getattr(self, name)!r}")
        if not 0 <= self.max_delay_ms < math.inf:
            raise ConfigError("max_delay_ms", f"must be zero or more, got {self.max_delay_ms!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """Where a model is cut, and what crosses there: a plan, as far as time and bytes go."""

    way: Way = "split"
    cut: str = ""
    """``input`` (``layers.0``) for a full server; of no meaning where the device does it all."""

    request_bytes: float = 0.0
    """Of the message of a request or a step."""

    prompt_token_bytes: float = 0.0
    """Of a language model, for each token of a prompt."""

    reply_bytes: float = 0.0

    encode_ms: float | None = None
    """Of a request or a token; ``None``: by the curve of our codec."""

    decode_ms: float | None = None

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and not 0 <= value < math.inf:
                raise ConfigError(field.name, f"must be zero or more, got {value!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Group:
    """Devices that are alike in all but when they ask."""

    name: str
    devices: int
    device: Profile
    crossing: Crossing
    link: LinkConfig = dataclasses.field(default_factory=LinkConfig)

    rate_per_s: float | None = None
    """Requests of a device in a second, of a language model sequences; ``None``: the next as soon as the last is answered."""

    think_ms: float = 0.0
    """Of a closed loop, between an answer and the next request or step; it is no part of the latency."""

    works: bool = True
    """Whether devices take time for head and codec; those of a load generator do not."""

    prompt_tokens: tuple[int, ...] = (64,)
    """Of a language model; devices have these lengths in turn."""

    new_tokens: int = 128

    def __post_init__(self) -> None:
        if self.devices < 0:
            raise ConfigError("devices", f"must be zero or more, got {self.devices!r}")
        if self.rate_per_s is not None and not 0 < self.rate_per_s < math.inf:
            raise ConfigError(
                "rate_per_s", f"must be positive, got {self.rate_per_s!r}; leave it out for a closed loop"
            )
        if not self.prompt_tokens or min(self.prompt_tokens) < 1:
            raise ConfigError("prompt_tokens", f"must be at least 1, got {self.prompt_tokens!r}")
        if self.new_tokens < 1:
            raise ConfigError("new_tokens", f"must be at least 1, got {self.new_tokens!r}")
        if not 0 <= self.think_ms < math.inf:
            raise ConfigError("think_ms", f"must be zero or more, got {self.think_ms!r}")
        if self.crossing.way != "all-device":
            self.device.cut(self.crossing.cut)
