"""Options of a server's limits, and the config that they make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import typer

from serverlight.runtime.server_config import ServerConfig

__all__ = ["LimitOptions"]

_DEFAULTS = ServerConfig()
_MIB = 2**20


@dataclass(frozen=True, kw_only=True, slots=True)
class LimitOptions:
    """How much a server takes on at a time."""

    max_sessions: Annotated[int, typer.Option(min=1, help="Sequences of a language model at a time.")] = (
        _DEFAULTS.max_sessions
    )
    kv_memory: Annotated[
        float, typer.Option(metavar="MIB", min=1, help="Keys and values of all of them together, in MiB.")
    ] = _DEFAULTS.max_kv_bytes / _MIB
    max_batch_requests: Annotated[
        int, typer.Option(metavar="N", min=1, help="Requests that run together at most; 1 runs one after the other.")
    ] = _DEFAULTS.max_batch_requests
    max_batch_delay: Annotated[
        float, typer.Option(metavar="MS", min=0.0, help="Longest that a request waits for others to run with.")
    ] = _DEFAULTS.max_batch_delay_ms

    def read(self) -> ServerConfig:
        """The config; raises :class:`ConfigError`."""
        return ServerConfig(
            max_sessions=self.max_sessions,
            max_kv_bytes=int(self.kv_memory * _MIB),
            max_batch_requests=self.max_batch_requests,
            max_batch_delay_ms=self.max_batch_delay,
        )
