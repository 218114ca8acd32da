"""Options for faults on purpose, and the plan that they make."""

from __future__ import annotations

from typing import Annotated

import typer

from serverlight.faults import FaultPlan

__all__ = ["InjectOption", "InjectSeedOption", "read_faults"]

InjectOption = Annotated[
    list[str] | None,
    typer.Option(
        "--inject",
        metavar="FAULT",
        help="For drills: a fault as KIND:WHEN or KIND:WHEN:MORE that strikes messages of clients; may be repeated. `kill:0.001`, "
        "`stall:0.01:500ms`, `drop:0.001:up`, `corrupt:0.01` (a bit of a frame), `crash:@90s`; see `serverlight chaos --help`.",
    ),
]

InjectSeedOption = Annotated[
    int, typer.Option("--inject-seed", help="The same seed gives the same faults for the same messages.")
]


def read_faults(inject: list[str] | None, seed: int) -> FaultPlan | None:
    """The plan, or ``None`` where nobody wants faults; raises :class:`ConfigError`."""
    return FaultPlan.parse(inject, seed=seed) if inject else None
