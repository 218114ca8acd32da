"""``serverlight simulate``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

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
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.apps.fleet_files import Kind
    from serverlight.simulation import Crossing, Fleet, Group, SystemRow

__all__ = ["simulate"]

MAX_DEVICES = 1_000_000


def simulate(
    profile: Annotated[
        str,
        typer.Argument(metavar="PROFILE", help="What the model costs on a server, as `serverlight profile` wrote it."),
    ],
    fleet: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Kinds of devices (docs/simulation.md); by default three made-up ones."),
    ] = None,
    devices: Annotated[int, typer.Option(metavar="N", min=1, max=MAX_DEVICES, help="All kinds together.")] = 1000,
    hours: Annotated[float, typer.Option(metavar="H", help="Simulated.")] = 1.0,
    rate: Annotated[
        float | None,
        typer.Option(
            metavar="HZ",
            help="Requests of each device in a second, in the mean; of a language model, sequences. Default 0.1, 0.01.",
        ),
    ] = None,
    closed: Annotated[
        bool, typer.Option("--closed", help="Each device asks again as soon as it is answered, whatever the rate.")
    ] = False,
    arrivals: Annotated[str, typer.Option(metavar="PROCESS", help="`poisson`, `diurnal` or `bursts`.")] = "poisson",
    p95: Annotated[
        float | None, typer.Option("--p95", metavar="MS", help="Count the servers that keep this 95th percentile.")
    ] = None,
    servers: Annotated[int | None, typer.Option(metavar="N", min=1, help="Take so many servers instead.")] = None,
    price: Annotated[float, typer.Option(metavar="X", min=0.0, help="Of a server's hour, in any currency.")] = 1.0,
    frontier: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Plans for every kind, as `serverlight search --frontier` wrote them."),
    ] = None,
    bits: Annotated[
        float, typer.Option(metavar="B", help="Without a frontier: bits an element of a frame, at every cut.")
    ] = 2.0,
    cut: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Without a frontier: cut only here.")] = None,
    fp16_cut: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Cut halves only here.")] = None,
    input_bytes: Annotated[
        float | None, typer.Option(metavar="N", help="Of a raw input, such as a JPEG; by default a byte an element.")
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Of a language model.")] = 64,
    new_tokens: Annotated[int, typer.Option(metavar="N", min=1, help="Of a language model.")] = 128,
    max_batch: Annotated[int, typer.Option(metavar="N", min=1, help="As of `serve --max-batch-requests`.")] = 64,
    max_batch_delay: Annotated[float, typer.Option(metavar="MS", min=0.0, help="As of `serve`.")] = 15.0,
    max_waiting: Annotated[int, typer.Option(metavar="N", min=1, help="Requests that wait at a server.")] = 64,
    max_sessions: Annotated[int, typer.Option(metavar="N", min=1, help="Sequences at a server.")] = 64,
    spread: Annotated[
        float, typer.Option(metavar="X", help="How far times spread above a profile's, as a share of them.")
    ] = 0.1,
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
    if not 0 < hours < math.inf:
        raise ConfigError("hours", f"must be positive, got {hours!r}")
    if (p95 is None) == (servers is None):
        raise ConfigError("p95", "and --servers: give one of them, a cap in milliseconds or a number of servers")
    from serverlight.apps.fleet_files import read_kinds
    from serverlight.frontier import Frontier
    from serverlight.search.profile import Profile
    from serverlight.simulation import Arrivals, Fleet, ServerModel, compare
    from serverlight.simulation.comparison import FP16, FULL, SLICER
    from serverlight.simulation.plans import FP16_BITS, cut_crossings, frontier_crossings, full_server

    measured = Profile.load(profile)
    is_language = measured.kind == "language-model"
    kinds = read_kinds(fleet, measured, Frontier.load(frontier) if frontier else None)
    server = ServerModel(
        profile=measured, max_batch=max_batch, max_delay_ms=max_batch_delay, max_waiting=max_waiting,
        max_sessions=max_sessions, spread=spread,
    )  # fmt: skip
    raw = full_server(measured, input_bytes=input_bytes)
    asked = None if closed else rate if rate is not None else 0.01 if is_language else 0.1
    groups = _groups(kinds, devices, raw, rate_per_s=asked, prompt_tokens=(prompt_tokens,), new_tokens=new_tokens)
    by_name = {kind.name: kind for kind in kinds}

    def ours(group: Group) -> Sequence[Crossing]:
        found = by_name[group.name].frontier
        return frontier_crossings(found) if found else cut_crossings(group.device, bits=bits, cuts=cut or ())

    systems = {
        FULL: lambda group: [raw],
        FP16: lambda group: cut_crossings(group.device, bits=FP16_BITS, cuts=fp16_cut or ()),
        SLICER: ours,
    }
    seconds = hours * 3600
    run = Fleet(
        groups=groups, server=server, duration_s=seconds, warmup_s=min(60.0, seconds / 10), seed=seed,
        arrivals=Arrivals(process=arrivals),  # type: ignore[arg-type]
    )  # fmt: skip
    memory = {kind.name: kind.memory_mib * 2**20 for kind in kinds if kind.memory_mib is not None}
    with progress_bar("counting servers", 1) as (bar, task):
        rows = compare(
            run, systems, p95_ms=p95, servers=servers, price_per_hour=price, memory_bytes=memory,
            on_server=lambda system, done, total: bar.update(task, completed=done, total=total, description=system),
        )  # fmt: skip
    if json:
        write_json(json, _as_dict(rows, run, asked))
    if json != STDOUT:
        _print(rows, run)
    if plot:
        from serverlight.apps.fleet_plots import plot_fleet

        plot_fleet(rows, plot)


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
