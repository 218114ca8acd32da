"""``serverlight bench codec``."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from serverlight.apps.bench_tables import as_markdown, check_sections, print_sections, rate_sections, speed_sections
from serverlight.apps.options import JsonOption, ThreadsOption
from serverlight.apps.terminal import STDOUT, check_writable, write_json
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.apps.bench_run import Results
    from serverlight.codec.rivals import Family

__all__ = ["bench", "bench_codec"]

REFERENCE = "serverlight"
QUICK_SAMPLES = 100

LONGER_FORMS = ("slicer", "slicer-bitmap", "slicer-csr")
"""What sends the values of `slicer-rans` in more bytes."""

bench = typer.Typer(no_args_is_help=True)


@bench.callback()
def _bench() -> None:
    """Measure a part of the system beside what else there is.

    Example: `serverlight bench codec --quick`
    """


@bench.command("codec")
def bench_codec(
    tasks: Annotated[
        str,
        typer.Option(
            metavar="LIST",
            help="Features to measure on; `all` for every one that is not held out and whose data is there.",
        ),
    ] = "all",
    codecs: Annotated[str, typer.Option(metavar="LIST", help="Codecs to measure; `all` for every one.")] = "all",
    reference: Annotated[
        str, typer.Option(metavar="CODEC", help="Compare the others at the divergence of this one's best setting.")
    ] = REFERENCE,
    max_loss: Annotated[float, typer.Option(metavar="PP", min=0.0, help="Percentage points that may be lost.")] = 1.0,
    data: Annotated[
        pathlib.Path | None,
        typer.Option(
            envvar="SERVERLIGHT_SHARED",
            metavar="FOLDER",
            help="Models and data of the tasks; without it only `demo` runs, on the shipped model.",
        ),
    ] = None,
    uplink: Annotated[
        bool,
        typer.Option(
            "--uplink",
            help="Measure for the table of uplink reductions: six models at an early, a middle and a late cut, no times, and "
            "of plain SLICER only its shortest form and no basis, unless --tasks and --codecs say otherwise.",
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(metavar="N", min=2, help="Samples of each task at most.")] = None,
    speed: Annotated[bool, typer.Option(help="Time the codecs, too.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer samples, coarser grids, fewer sizes.")] = False,
    threads: ThreadsOption = 1,
    json: JsonOption = None,
    plot: Annotated[
        str | None, typer.Option(metavar="PATH", help="Draw the curves, as PNG or SVG by the name's end.")
    ] = None,
    markdown: Annotated[str | None, typer.Option(metavar="PATH", help="Write the tables as Markdown, too.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what the file of --json has, and measure only what is missing.")
    ] = False,
) -> None:
    """Compare the codec with its rivals on features of real models: bits at equal quality, and speed.

    Every figure counts the real bytes of one message for each image, sentence or window of tokens. Example:
    `serverlight bench codec --data ../shared/data --tasks R56-mid,ST-3 --json c.json --plot c.png`
    """
    import torch

    from serverlight.apps.bench_run import Results, measure_rates, measure_speed
    from serverlight.evaluation.tasks import check_task, load_task

    for field, path in (("json", json), ("plot", plot), ("markdown", markdown)):
        check_writable(field, path)
    if resume and json in (None, STDOUT):
        raise ConfigError("resume", "needs the file of an earlier run; give it with --json PATH")
    torch.set_num_threads(threads)
    samples = limit or (QUICK_SAMPLES if quick else None)
    names = _task_names(tasks, data, uplink)
    for name in names:
        check_task(name, data)
    loaders = {name: functools.partial(load_task, name, data, limit=samples) for name in names}
    chosen = _families(codecs, uplink)
    settings = {
        "codecs": [family.name for family in chosen], "reference": reference, "max_loss_pp": max_loss,
        "samples": samples, "quick": quick, "threads": threads,
    }  # fmt: skip
    results = Results.read(json, settings) if resume and json else Results(settings)
    results.save_to = json if json != STDOUT else None
    measure_rates(results, loaders, chosen, rounds=0 if quick else 2)
    if speed and not uplink:
        measure_speed(results, quick=quick)
    _tell(results, names, uplink=uplink, json=json, markdown=markdown, plot=plot)


def _tell(
    results: Results, names: Sequence[str], *, uplink: bool, json: str | None, markdown: str | None, plot: str | None
) -> None:
    """Writes what was asked for."""
    from serverlight.apps.uplink_tables import uplink_sections
    from serverlight.evaluation.uplink import uplink_rows

    reports, max_loss = [results.reports[name] for name in names], results.settings["max_loss_pp"]
    if json:
        write_json(json, results.to_dict())
    sections = [
        *uplink_sections(uplink_rows(reports), max_loss, _not_among(names) if uplink else ()),
        *rate_sections(reports, max_loss),
        *speed_sections(results.speed),
        *check_sections(results.checks),
    ]
    if json != STDOUT:
        print_sections(sections)
    if markdown:
        pathlib.Path(markdown).write_text(as_markdown(sections, results.heading()))
    if plot:
        from serverlight.apps.bench_plots import plot_codecs

        plot_codecs(reports, results.speed, plot)


def _task_names(text: str, data: pathlib.Path | None, uplink: bool) -> Sequence[str]:
    from serverlight.evaluation.tasks import UPLINK_TASKS, available_tasks

    if text != "all":
        return [name.strip() for name in text.split(",")]
    return UPLINK_TASKS if uplink else available_tasks(data)


def _not_among(names: Sequence[str]) -> Sequence[str]:
    """The tasks of the table of uplink reductions that were left out."""
    from serverlight.evaluation.tasks import UPLINK_TASKS

    return [name for name in UPLINK_TASKS if name not in names]


def _families(text: str, uplink: bool) -> Sequence[Family]:
    from serverlight.codec.rivals import families, family

    if text != "all":
        return [family(name.strip()) for name in text.split(",")]
    return [
        found
        for found in families()
        if not (uplink and (found.takes_basis or found.only_for is not None or found.name in LONGER_FORMS))
    ]
