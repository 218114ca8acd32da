"""Caps, load and aim of a search, as options and as what they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from serverlight.apps.quantities import read_bytes, read_energy_mj, read_ms, read_pp
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.search.constraints import Constraints, Objective, Workload

__all__ = ["CapOptions", "LoadOptions"]

_AIMS = {"server": "server_ms", "latency": "latency_ms", "bytes": "uplink_kib", "energy": "energy_mj"}


@dataclass(frozen=True, kw_only=True, slots=True)
class CapOptions:
    """What a plan must keep to, and what it should be good at; ``None`` is no cap."""

    latency: Annotated[
        str | None, typer.Option(metavar="TIME", help="Of one request, or of a step of a language model: 200ms.")
    ] = None
    first_token: Annotated[
        str | None, typer.Option(metavar="TIME", help="Of a language model, from the prompt on: 1s.")
    ] = None
    device_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Weights, activations and cache on the device: 2GiB.")
    ] = None
    max_loss: Annotated[
        str | None, typer.Option(metavar="PP", help="Quality that may be lost, in percentage points: 1pp.")
    ] = None
    max_uplink: Annotated[str | None, typer.Option(metavar="SIZE", help="Bytes up for one request or step: 4kB.")] = (
        None
    )
    server_time: Annotated[
        str | None, typer.Option(metavar="TIME", help="The server's compute time for one request or step: 5ms.")
    ] = None
    energy: Annotated[
        str | None, typer.Option(metavar="ENERGY", help="Of the device for one request or step: 20mJ.")
    ] = None
    minimise: Annotated[
        str | None,
        typer.Option(
            metavar="AIM",
            help="`server` (its compute time; the default), `latency` (that of a fleet), `bytes` or `energy`; several with "
            "weights for each ms, KiB and mJ: `server=1,latency=0.1`.",
        ),
    ] = None

    def read(self) -> tuple[Constraints, Objective]:
        """Raises :class:`ConfigError` with the option's name."""
        from serverlight.search.constraints import Constraints

        memory = None if self.device_memory is None else read_bytes("device_memory", self.device_memory) / 2**20
        caps = Constraints(
            latency_ms=None if self.latency is None else read_ms("latency", self.latency),
            first_token_ms=None if self.first_token is None else read_ms("first_token", self.first_token),
            device_memory_mib=memory,
            uplink_bytes=None if self.max_uplink is None else read_bytes("max_uplink", self.max_uplink),
            max_quality_loss=None if self.max_loss is None else read_pp("max_loss", self.max_loss),
            server_ms=None if self.server_time is None else read_ms("server_time", self.server_time),
            energy_mj=None if self.energy is None else read_energy_mj("energy", self.energy),
        )
        return caps, self._objective()

    def _objective(self) -> Objective:
        from serverlight.search.constraints import Objective

        weights = dict.fromkeys(_AIMS.values(), 0.0)
        for part in (self.minimise or "server").split(","):
            name, equals, number = part.strip().partition("=")
            try:
                weights[_AIMS[name.strip()]] = float(number) if equals else 1.0
            except (KeyError, ValueError):
                raise ConfigError(
                    "minimise", f"cannot read {part.strip()!r}; give {', '.join(_AIMS)}, with weights like latency=0.1"
                ) from None
        try:
            return Objective(**weights)
        except ConfigError as error:
            raise ConfigError("minimise", str(error)) from None


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadOptions:
    """What devices ask for."""

    devices: Annotated[int, typer.Option(metavar="N", help="Devices that share the server.")] = 1
    rate: Annotated[
        float | None,
        typer.Option(metavar="PER_S", help="Requests of each a second; without it the next follows the last answer."),
    ] = None
    prompt_tokens: Annotated[int, typer.Option(metavar="N", help="Of a language model.")] = 64
    new_tokens: Annotated[int, typer.Option(metavar="N", help="Of a language model: how far the cache grows.")] = 128
    input_bytes: Annotated[
        str | None, typer.Option(metavar="SIZE", help="What an input takes as a file, such as a JPEG: 3kB.")
    ] = None
    input_loss: Annotated[str, typer.Option(metavar="PP", help="What sending it as such a file loses.")] = "0pp"

    def read(self) -> Workload:
        """Raises :class:`ConfigError` with the option's name."""
        from serverlight.search.constraints import Workload

        if self.rate is not None and not 0 < self.rate < float("inf"):
            raise ConfigError(
                "rate", f"must be above zero, got {self.rate!r}; leave it out for as fast as answers come"
            )
        return Workload(
            devices=self.devices,
            requests_per_s=self.rate,
            prompt_tokens=self.prompt_tokens,
            new_tokens=self.new_tokens,
            input_bytes=None if self.input_bytes is None else round(read_bytes("input_bytes", self.input_bytes)),
            input_loss_pp=read_pp("input_loss", self.input_loss),
        )
