"""How tokens are chosen and what the device can spare: options of commands that write text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from serverlight.runtime.exits import Caps
    from serverlight.sampling import Sampling

__all__ = ["CapOptions", "SamplingOptions"]

MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class SamplingOptions:
    """How tokens are chosen."""

    greedy: Annotated[bool, typer.Option("--greedy", help="Always the likeliest token.")] = False
    temperature: Annotated[float, typer.Option(help="Above 1 flatter, below 1 surer.")] = 0.8
    top_k: Annotated[int, typer.Option(help="Only so many of the likeliest tokens; 0 is all.")] = 0
    top_p: Annotated[float, typer.Option(help="Only the likeliest tokens that together have this probability.")] = 1.0
    min_p: Annotated[float, typer.Option(help="Only tokens at least so likely beside the likeliest.")] = 0.05
    repetition_penalty: Annotated[float, typer.Option(help="Above 1 tokens that occurred are less likely.")] = 1.0
    seed: Annotated[int, typer.Option(help="Equal seeds write equal text.")] = 0

    def read(self) -> Sampling:
        """Raises :class:`ConfigError` for what cannot be."""
        from serverlight.sampling import Sampling

        return Sampling(
            temperature=0.0 if self.greedy else self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class CapOptions:
    """What the device can spare."""

    device_memory: Annotated[
        float | None, typer.Option(metavar="MIB", help="Keys and values on this device, at most, in MiB.")
    ] = None
    step_deadline: Annotated[float | None, typer.Option(metavar="MS", help="How long a token may take.")] = None
    on_limit: Annotated[str, typer.Option(help="Then: a `shallower` cut, all to the `server`, or `stop`.")] = (
        "shallower"
    )

    def read(self) -> Caps | None:
        """``None`` where there is no limit; raises :class:`ConfigError` for what cannot be."""
        from serverlight.runtime.exits import Caps

        memory = None if self.device_memory is None else int(self.device_memory * MIB)
        caps = Caps(device_memory_bytes=memory, step_deadline_ms=self.step_deadline, on_limit=self.on_limit)
        return None if memory is None and self.step_deadline is None else caps
