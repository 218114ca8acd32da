"""Options of a server's limits, and the config that they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from serverlight.runtime.core import ServerConfig

__all__ = ["LimitOptions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitOptions:
    """How much a server takes on at a time."""

    max_sessions: Annotated[int, typer.Option(min=1, help="Sequences of a language model at a time.")] = 64
    kv_memory: Annotated[
        float, typer.Option(metavar="MIB", min=1, help="Keys and values of all of them together, in MiB.")
    ] = 1024
    max_batch_requests: Annotated[
        int, typer.Option(metavar="N", min=1, help="Requests that run together at most; 1 runs one after the other.")
    ] = 64
    max_batch_delay: Annotated[
        float, typer.Option(metavar="MS", min=0.0, help="Longest that a request waits for others to run with.")
    ] = 15.0

    def read(self) -> ServerConfig:
        """The config; raises :class:`ConfigError`."""
        from serverlight.runtime.core import ServerConfig

        return ServerConfig(
            max_sessions=self.max_sessions,
            max_kv_bytes=int(self.kv_memory * 2**20),
            max_batch_requests=self.max_batch_requests,
            max_batch_delay_ms=self.max_batch_delay,
        )
