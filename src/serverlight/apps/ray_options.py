"""Options of a server that Ray Serve runs many times."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from serverlight.apps.replicas import read_ports
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.apps.watch_options import WatchOptions

__all__ = ["RayOptions"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RayOptions:
    """What the user wrote."""

    ray: Annotated[
        bool,
        typer.Option("--ray", help="Many servers under Ray Serve; --host and --port are those of their directory."),
    ] = False
    replicas: Annotated[int, typer.Option(metavar="N", min=1, help="With --ray: servers, at least.")] = 1
    max_replicas: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="With --ray: servers at most, as queue and memory need them.")
    ] = None
    replica_ports: Annotated[
        str | None, typer.Option(metavar="FIRST-LAST", help="With --ray: where servers listen; by default anywhere.")
    ] = None

    def check(self, watch: WatchOptions) -> None:
        """Raises :class:`ConfigError` for what cannot be."""
        if self.ray and (watch.http is not None or watch.log_json or watch.trace):
            raise ConfigError(
                "http", "with --ray the directory has /replicas instead; leave --http, --log-json and --trace away"
            )
        given = {
            "replicas": self.replicas != 1,
            "max_replicas": self.max_replicas is not None,
            "replica_ports": self.replica_ports is not None,
        }
        for field in (name for name, is_given in given.items() if is_given and not self.ray):
            raise ConfigError(field, "is for servers under Ray Serve; give --ray too, or leave it away")
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ConfigError("max_replicas", f"must be at least the {self.replicas} replicas, got {self.max_replicas}")
        read_ports(self.replica_ports)
