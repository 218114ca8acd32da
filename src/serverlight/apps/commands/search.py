"""``serverlight search``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from serverlight.apps.kept_search import keep
from serverlight.apps.option_groups import takes_options
from serverlight.apps.options import JsonOption, ModelArgument
from serverlight.apps.search_options import CapOptions, LoadOptions
from serverlight.apps.terminal import STDOUT, check_writable, print_lines, print_table, write_json
from serverlight.errors import ConfigError, Infeasible

if TYPE_CHECKING:
    from serverlight.apps.search_inputs import Measured
    from serverlight.link import LinkConfig
    from serverlight.search.constraints import Workload
    from serverlight.search.optimise import SearchResult
    from serverlight.search.quality import QualityTable

__all__ = ["search"]


@takes_options(caps=CapOptions, load=LoadOptions)
def search(
    model: ModelArgument,
    caps: CapOptions,
    load: LoadOptions,
    uplink: Annotated[
        str | None, typer.Option(metavar="LINK", help="Rate, and one-way delay: `2mbit` or `2mbit,10ms`.")
    ] = None,
    device_profile: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="The device, as `serverlight profile` wrote it; else this machine."),
    ] = None,
    server_profile: Annotated[str | None, typer.Option(metavar="FILE", help="The server, likewise.")] = None,
    quality: Annotated[
        str | None, typer.Option(metavar="FILE", help="What settings lose, as `serverlight calibrate` wrote it.")
    ] = None,
    data: Annotated[
        str | None, typer.Option("--data", metavar="SPEC", help="Samples to calibrate on, where no --quality is given.")
    ] = None,
    fleet: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Unlike devices that share the server, as TOML or JSON: a plan for each (docs/search.md).",
        ),
    ] = None,
    save: Annotated[
        str | None, typer.Option(metavar="FILE", help="Write the plan; of a fleet a folder, with a plan for each kind.")
    ] = None,
    frontier: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Write the plans that no other beats, for a device to move along."),
    ] = None,
    plot: Annotated[
        str | None, typer.Option(metavar="PATH", help="Draw the frontier, and the times against the cut's depth.")
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Tell what each cap costs, and the whole frontier.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Choose where to cut a model and how to compress what crosses, under caps, and say why.

    All on the device, and the raw input to a full server, are among the choices. Profiles and qualities that are not given
    are measured on this machine first, which takes minutes. Exit code 3: no plan keeps all caps. What was chosen is kept, and
    is where `run`, `generate` and `edge` cut unless they are told.

    Example: `serverlight search demo-vision --latency 200ms --device-memory 2GiB --uplink 2mbit --max-loss 1pp`
    """
    from serverlight.apps.search_inputs import gather
    from serverlight.search.optimise import optimise

    for field, path in (("json", json), ("save", save), ("frontier", frontier), ("plot", plot)):
        check_writable(field, path)
    (constraints, objective), workload, link = caps.read(), load.read(), _link(uplink)
    if fleet:
        _check_alone(load, frontier=frontier, plot=plot, explain=explain)
    measured = gather(model, device=device_profile, server=server_profile, quality=quality, data=data)
    if fleet:
        _search_fleet(fleet, measured, caps, workload, link, save, json)
        return

    def choose(table: QualityTable) -> SearchResult:
        return optimise(
            device=measured.device,
            server=measured.server,
            table=table,
            link=link,
            workload=workload,
            constraints=constraints,
            objective=objective,
        )

    try:
        result = measured.settle(choose)
    except Infeasible as error:
        _show_infeasible(error, json)
        raise
    keep(model, result)
    _show(result, measured, explain=explain, json=json)
    _write(result, save, frontier, plot)


def _check_alone(load: LoadOptions, **given: object) -> None:
    """Raises :class:`ConfigError` for what is for one kind of devices only."""
    if load.devices != LoadOptions().devices:
        raise ConfigError("devices", "stand in the fleet's file, as `count` of each kind; leave the option away")
    for field, value in given.items():
        if value:
            raise ConfigError(field, "is for one kind of devices; leave it away, or search for one without --fleet")


def _search_fleet(
    path: str,
    measured: Measured,
    caps: CapOptions,
    workload: Workload,
    link: LinkConfig,
    save: str | None,
    json: str | None,
) -> None:
    from serverlight.apps import fleet_search as tables
    from serverlight.apps.member_files import read_fleet
    from serverlight.search.fleet import FleetPlan, plan_fleet

    constraints, objective = caps.read()
    fleet = read_fleet(
        path, device=measured.device, link=link, caps=constraints, requests_per_s=workload.requests_per_s or 1.0
    )

    def choose(table: QualityTable) -> FleetPlan:
        return plan_fleet(
            fleet.members,
            server=measured.server,
            table=table,
            budget=fleet.budget,
            workload=workload,
            objective=None if caps.minimise is None else objective,
        )

    try:
        found = measured.settle(choose)
    except Infeasible as error:
        _show_infeasible(error, json)
        raise
    if json:
        write_json(json, tables.fleet_dict(fleet, found))
    if json != STDOUT:
        print_table(tables.COLUMNS, tables.fleet_rows(fleet, found), left=4)
        print_lines(*tables.fleet_lines(fleet, found), *measured.notes)
    if save:
        tables.save_plans(fleet, found, save)


def _link(text: str | None) -> LinkConfig:
    from serverlight.link import LinkConfig

    try:
        return LinkConfig() if text is None else LinkConfig.parse(text)
    except ConfigError as error:
        raise ConfigError("uplink", str(error).removeprefix("link: ")) from None


def _show(result: SearchResult, measured: Measured, *, explain: bool, json: str | None) -> None:
    from serverlight.apps import search_tables as tables

    if json:
        write_json(json, tables.as_dict(result))
    if json == STDOUT:
        return
    told = list(tables.reasons(result))
    print_lines(told[0])
    print_table(tables.PLAN_COLUMNS, tables.plan_rows(tables.all_plans(result)), left=3)
    print_lines(*told[1:], *measured.notes)
    if explain:
        print_table(tables.CAP_COLUMNS, tables.cap_rows(result), title="Caps")
        print_table(
            tables.PLAN_COLUMNS[:-1], [row[:-1] for row in tables.frontier_rows(result)], left=3, title="Frontier"
        )


def _show_infeasible(error: Infeasible, json: str | None) -> None:
    from serverlight.apps import search_tables as tables

    if json:
        write_json(json, tables.infeasible_dict(error))
    if json != STDOUT and error.nearest:
        named = [(str(i), rival.prediction, rival.broken) for i, rival in enumerate(error.nearest, 1)]
        print_table(tables.PLAN_COLUMNS, tables.plan_rows(named), left=3, title="No plan keeps all caps; the nearest:")


def _write(result: SearchResult, save: str | None, frontier: str | None, plot: str | None) -> None:
    if frontier:
        result.frontier.save(frontier)
    if plot:
        from serverlight.apps.search_plots import plot_search

        plot_search(result, plot)
    if save:
        result.save(save)
