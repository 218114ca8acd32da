"""Options of a simulated fleet: what devices ask for, what servers are like, and which plans there are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from serverlight.errors import ConfigError
from serverlight.runtime.server_config import ServerConfig

if TYPE_CHECKING:
    from serverlight.search.profile import Profile
    from serverlight.simulation import Crossing, Group, ServerModel

__all__ = ["AskedOptions", "CutsOptions", "ServersOptions"]

_LIMITS = ServerConfig()
_MAX_DEVICES = 1_000_000
_REQUESTS_PER_S, _SEQUENCES_PER_S = 0.1, 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class AskedOptions:
    """What devices ask for."""

    devices: Annotated[int, typer.Option(metavar="N", min=1, max=_MAX_DEVICES, help="All kinds together.")] = 1000
    hours: Annotated[float, typer.Option(metavar="H", help="Simulated.")] = 1.0
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="HZ",
            help="Requests of each device in a second, in the mean; of a language model, sequences. Default 0.1, 0.01.",
        ),
    ] = None
    closed: Annotated[
        bool, typer.Option("--closed", help="Each device asks again as soon as it is answered, whatever the rate.")
    ] = False
    arrivals: Annotated[str, typer.Option(metavar="PROCESS", help="`poisson`, `diurnal` or `bursts`.")] = "poisson"
    prompt_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Of a language model.")] = 64
    new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Of a language model.")] = 128

    def __post_init__(self) -> None:
        if not 0 < self.hours < math.inf:
            raise ConfigError("hours", f"must be positive, got {self.hours!r}")

    def rate_per_s(self, profile: Profile) -> float | None:
        """Of each device; ``None`` for a closed loop."""
        if self.closed or self.rate is not None:
            return None if self.closed else self.rate
        return _SEQUENCES_PER_S if profile.kind == "language-model" else _REQUESTS_PER_S


@dataclass(frozen=True, kw_only=True, slots=True)
class ServersOptions:
    """What servers are like, and how many there are."""

    p95: Annotated[
        float | None, typer.Option("--p95", metavar="MS", help="Count the servers that keep this 95th percentile.")
    ] = None
    servers: Annotated[int | None, typer.Option(metavar="N", min=1, help="Take so many servers instead.")] = None
    price: Annotated[float, typer.Option(metavar="X", min=0.0, help="Of a server's hour, in any currency.")] = 1.0
    max_batch: Annotated[int, typer.Option(metavar="N", min=1, help="As of `serve --max-batch-requests`.")] = (
        _LIMITS.max_batch_requests
    )
    max_batch_delay: Annotated[float, typer.Option(metavar="MS", min=0.0, help="As of `serve`.")] = (
        _LIMITS.max_batch_delay_ms
    )
    max_waiting: Annotated[int, typer.Option(metavar="N", min=1, help="Requests that wait at a server.")] = (
        _LIMITS.max_waiting
    )
    max_sessions: Annotated[int, typer.Option(metavar="N", min=1, help="Sequences at a server.")] = _LIMITS.max_sessions
    spread: Annotated[
        float, typer.Option(metavar="X", help="How far times spread above a profile's, as a share of them.")
    ] = 0.1

    def __post_init__(self) -> None:
        if (self.p95 is None) == (self.servers is None):
            raise ConfigError("p95", "and --servers: give one of them, a cap in milliseconds or a number of servers")

    def model(self, profile: Profile) -> ServerModel:
        """One of them; raises :class:`ConfigError`."""
        from serverlight.simulation import ServerModel

        return ServerModel(
            profile=profile,
            max_batch=self.max_batch,
            max_delay_ms=self.max_batch_delay,
            max_waiting=self.max_waiting,
            max_sessions=self.max_sessions,
            spread=self.spread,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CutsOptions:
    """Which plans there are where no search has found any."""

    bits: Annotated[
        float, typer.Option(metavar="B", help="Without a frontier: bits an element of a frame, at every cut.")
    ] = 2.0
    cut: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Without a frontier: cut only here.")] = None
    fp16_cut: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Cut halves only here.")] = None
    input_bytes: Annotated[
        float | None, typer.Option(metavar="N", help="Of a raw input, such as a JPEG; by default a byte an element.")
    ] = None

    def coded(self, group: Group) -> Sequence[Crossing]:
        """Frames of the codec."""
        from serverlight.simulation.plans import cut_crossings

        return cut_crossings(group.device, bits=self.bits, cuts=self.cut or ())

    def halves(self, group: Group) -> Sequence[Crossing]:
        """Plain halves."""
        from serverlight.simulation.plans import FP16_BITS, cut_crossings

        return cut_crossings(group.device, bits=FP16_BITS, cuts=self.fp16_cut or ())
