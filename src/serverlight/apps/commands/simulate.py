"""``serverlight simulate``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serverlight.apps.fleet_options import AskedOptions, CutsOptions, ServersOptions
from serverlight.apps.option_groups import takes_options
from serverlight.apps.options import JsonOption
from serverlight.apps.terminal import (
    STDOUT,
    check_writable,
    format_bytes,
    print_lines,
    print_table,
    progress_bar,
    write_json,
)

if TYPE_CHECKING:
    from serverlight.apps.fleet_files import Kind
    from serverlight.search.profile import Profile
    from serverlight.simulation import Crossing, Fleet, Group, SystemRow

__all__ = ["simulate"]


@takes_options(asked=AskedOptions, servers=ServersOptions, cuts=CutsOptions)
def simulate(
    profile: Annotated[
        str,
        typer.Argument(metavar="PROFILE", help="What the model costs on a server, as `serverlight profile` wrote it."),
    ],
    asked: AskedOptions,
    servers: ServersOptions,
    cuts: CutsOptions,
    fleet: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Kinds of devices (docs/simulation.md); by default three made-up ones."),
    ] = None,
    frontier: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Plans for every kind, as `serverlight search --frontier` wrote them."),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="The same number, the same run.")] = 0,
    json: JsonOption = None,
    plot: Annotated[
        str | None, typer.Option(metavar="PATH", help="Draw the table, as PNG or SVG by the name's end.")
    ] = None,
) -> None:
    """Simulate a fleet of devices and its servers: a full server, a cut in plain halves and SLICER side by side.

    From profiles, by discrete events: latencies, the servers that a 95th percentile needs, their load, the uplink and the cost
    of a million requests. 100,000 devices for an hour take minutes.
    Example: `serverlight simulate here.json --devices 100000 --p95 200 --price 0.5`
    """
    check_writable("json", json)
    check_writable("plot", plot)
    from serverlight.apps.fleet_files import read_kinds
    from serverlight.frontier import Frontier
    from serverlight.search.profile import Profile

    measured = Profile.load(profile)
    kinds = read_kinds(fleet, measured, Frontier.load(frontier) if frontier else None)
    run, rows = _run(measured, kinds, asked, servers, cuts, seed)
    if json:
        write_json(json, _as_dict(rows, run, asked.rate_per_s(measured)))
    if json != STDOUT:
        _print(rows, run)
    if plot:
        from serverlight.apps.fleet_plots import plot_fleet

        plot_fleet(rows, plot)


def _run(
    profile: Profile,
    kinds: Sequence[Kind],
    asked: AskedOptions,
    servers: ServersOptions,
    cuts: CutsOptions,
    seed: int,
) -> tuple[Fleet, Sequence[SystemRow]]:
    """The fleet, and a row for each system, with a bar."""
    from serverlight.simulation import Arrivals, Fleet, compare
    from serverlight.simulation.comparison import FP16, FULL, SLICER
    from serverlight.simulation.plans import frontier_crossings, full_server

    raw, found = full_server(profile, input_bytes=cuts.input_bytes), {kind.name: kind.frontier for kind in kinds}
    seconds = asked.hours * 3600
    fleet = Fleet(
        groups=_groups(
            kinds,
            asked.devices,
            raw,
            rate_per_s=asked.rate_per_s(profile),
            prompt_tokens=(asked.prompt_tokens,),
            new_tokens=asked.new_tokens,
        ),
        server=servers.model(profile),
        duration_s=seconds,
        warmup_s=min(60.0, seconds / 10),
        seed=seed,
        arrivals=Arrivals(process=asked.arrivals),  # type: ignore[arg-type]
    )

    def ours(group: Group) -> Sequence[Crossing]:
        frontier = found[group.name]
        return frontier_crossings(frontier) if frontier else cuts.coded(group)

    with progress_bar("counting servers", 1) as (bar, task):
        rows = compare(
            fleet,
            {FULL: lambda group: [raw], FP16: cuts.halves, SLICER: ours},
            p95_ms=servers.p95,
            servers=servers.servers,
            price_per_hour=servers.price,
            memory_bytes={kind.name: kind.memory_mib * 2**20 for kind in kinds if kind.memory_mib is not None},
            on_server=lambda system, done, total: bar.update(task, completed=done, total=total, description=system),
        )
    return fleet, rows


def _groups(kinds: Sequence[Kind], devices: int, crossing: Crossing, **load: Any) -> tuple[Group, ...]:
    """All devices, by the kinds' shares; what is left over from rounding goes to the first."""
    from serverlight.simulation import Group

    total = sum(kind.share for kind in kinds)
    counts = [int(devices * kind.share / total) for kind in kinds]
    counts[0] += devices - sum(counts)
    return tuple(
        Group(name=kind.name, devices=count, device=kind.device, link=kind.link, crossing=crossing, **load)
        for kind, count in zip(kinds, counts, strict=True)
    )


def _as_dict(rows: Sequence[SystemRow], fleet: Fleet, rate: float | None) -> dict[str, Any]:
    from serverlight.environment import measured_document

    settings = {
        "model": fleet.server.profile.model,
        "devices": {group.name: group.devices for group in fleet.groups},
        "links": {group.name: str(group.link) for group in fleet.groups},
        "rate_per_s": rate,
        "hours": fleet.duration_s / 3600,
        "arrivals": fleet.arrivals.process,
        "seed": fleet.seed,
    }
    return measured_document(settings, [row.to_dict() for row in rows])


def _print(rows: Sequence[SystemRow], fleet: Fleet) -> None:
    is_language = fleet.server.profile.kind == "language-model"
    item, request = ("token", "sequence") if is_language else ("request", "request")
    columns = [
        "system", "cuts", "servers", f"{item}s/s", "p50 ms", "p95 ms", "p99 ms", *(["first p95"] if is_language else []),
        "wait ms", "load", "batch", f"bytes/{item}", "Mbit/s up", f"per million {request}s",
    ]  # fmt: skip
    print_table(columns, [_cells(row, is_language) for row in rows], left=2)
    kinds = ", ".join(f"{group.devices:,} {group.name} ({group.link})" for group in fleet.groups)
    print_lines(f"{fleet.server.profile.model}: {kinds}; {fleet.duration_s / 3600:g} h, {fleet.arrivals.process}.")
    for row in rows:
        if not row.keeps_cap:
            print_lines(
                f"{row.system}: no number of servers keeps the cap; counted for {row.p95_cap_ms:.0f} ms, twice what its "
                "slowest kind has alone."
            )
        if row.figures.refused:
            print_lines(
                f"{row.system}: servers were too busy {row.figures.refused:,} times, {row.figures.lost:,} were lost."
            )


def _cells(row: SystemRow, is_language: bool) -> list[str]:
    figures, latency = row.figures, row.figures.latency
    first = figures.first_token
    return [
        row.system,
        ", ".join(dict.fromkeys(row.cuts.values())),
        f"{row.servers:,}",
        f"{figures.items_per_s:,.1f}",
        f"{latency.p50:,.1f}",
        f"{latency.p95:,.1f}",
        f"{latency.p99:,.1f}",
        *([f"{first.p95:,.1f}"] if is_language and first else []),
        f"{figures.wait_ms:,.1f}",
        f"{100 * figures.utilisation:.0f} %",
        f"{figures.mean_batch:.1f}",
        format_bytes(figures.uplink_bytes_per_item),
        f"{figures.uplink_mbit_per_s:,.1f}",
        f"{row.cost_per_million:,.3f}",
    ]
