"""``serverlight bench codec``."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serverlight.apps.bench_tables import print_rates, print_speed
from serverlight.apps.options import JsonOption, ThreadsOption
from serverlight.apps.terminal import STDOUT, check_writable, progress_bar, write_json

if TYPE_CHECKING:
    from serverlight.codec.rivals import Family
    from serverlight.evaluation.codec_bench import TaskReport
    from serverlight.evaluation.speed import SpeedRow
    from serverlight.evaluation.tasks import CodecTask

__all__ = ["bench", "bench_codec"]

OURS = "serverlight"
QUICK_SAMPLES = 100
SECONDS, QUICK_SECONDS = 0.5, 0.1
"""Spent on each codec and shape."""

DESCRIPTION_WIDTH = 70


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
    ] = OURS,
    max_loss: Annotated[float, typer.Option(metavar="PP", min=0.0, help="Percentage points that may be lost.")] = 1.0,
    data: Annotated[
        pathlib.Path | None,
        typer.Option(
            envvar="SERVERLIGHT_SHARED",
            metavar="FOLDER",
            help="Models and data of the tasks; without it only `demo` runs, on the shipped model.",
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(metavar="N", min=2, help="Samples of each task at most.")] = None,
    speed: Annotated[bool, typer.Option(help="Time the codecs, too.")] = True,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer samples, coarser grids, fewer sizes.")] = False,
    threads: ThreadsOption = 1,
    json: JsonOption = None,
    plot: Annotated[
        str | None, typer.Option(metavar="PATH", help="Draw the curves, as PNG or SVG by the name's end.")
    ] = None,
) -> None:
    """Compare the codec with its rivals on features of real models: bits at equal quality, and speed.

    Every figure counts the real bytes of one message for each image, sentence or window of tokens. Example:
    `serverlight bench codec --data ../shared/data --tasks R56-mid,ST-3 --json c.json --plot c.png`
    """
    import torch

    from serverlight.evaluation.tasks import load_task

    check_writable("json", json)
    check_writable("plot", plot)
    torch.set_num_threads(threads)
    families = _families(codecs)
    samples = limit or (QUICK_SAMPLES if quick else None)
    chosen = [load_task(name, data, limit=samples) for name in _task_names(tasks, data)]
    reports: list[TaskReport] = []
    for task in chosen:
        reports.append(_measure(task, families, reference=reference, max_loss_pp=max_loss, rounds=0 if quick else 2))
        if json and json != STDOUT:  # a run takes long: what is done stays, should it be stopped
            write_json(json, _as_json(reports, [], max_loss))
    timed = _time(quick=quick) if speed else []
    if json:
        write_json(json, _as_json(reports, timed, max_loss))
    if json != STDOUT:
        print_rates(reports, max_loss, reference)
        print_speed(timed)
    if plot:
        from serverlight.apps.bench_plots import plot_codecs

        plot_codecs(reports, timed, plot)


def _as_json(reports: Sequence[TaskReport], timed: Sequence[SpeedRow], max_loss_pp: float) -> dict[str, Any]:
    from serverlight.evaluation import describe_environment

    return {
        **describe_environment(),
        "max_loss_pp": max_loss_pp,
        "tasks": [report.to_dict() for report in reports],
        "rows": [row.to_dict() for report in reports for row in report.rows],
        "speed": [row.to_dict() for row in timed],
    }


def _task_names(text: str, data: pathlib.Path | None) -> Sequence[str]:
    from serverlight.evaluation.tasks import available_tasks

    return available_tasks(data) if text == "all" else [name.strip() for name in text.split(",")]


def _families(text: str) -> Sequence[Family]:
    from serverlight.codec.rivals import families, family

    return families() if text == "all" else [family(name.strip()) for name in text.split(",")]


def _measure(
    task: CodecTask, families: Sequence[Family], *, reference: str, max_loss_pp: float, rounds: int
) -> TaskReport:
    from serverlight.evaluation.codec_bench import bench_task

    with progress_bar(task.name, len(families)) as (bar, job):

        def show(done: int, text: str) -> None:
            bar.update(job, completed=done, description=f"{task.name} {text}"[:DESCRIPTION_WIDTH])

        return bench_task(task, families, reference=reference, max_loss_pp=max_loss_pp, rounds=rounds, progress=show)


def _time(*, quick: bool) -> list[SpeedRow]:
    from serverlight.evaluation.contenders import contenders
    from serverlight.evaluation.speed import SHAPES, SWEEP_BYTES, sweep_shape, time_codecs

    shapes: list[tuple[int, ...]] = list(SHAPES)
    if not quick:
        shapes += [sweep_shape(size) for size in SWEEP_BYTES if sweep_shape(size) not in SHAPES]
    rows: list[SpeedRow] = []
    with progress_bar("timing", len(shapes)) as (bar, job):
        for done, shape in enumerate(shapes):
            bar.update(job, completed=done, description=f"timing {' x '.join(map(str, shape))}")
            rows += time_codecs(contenders(), shape, seconds=QUICK_SECONDS if quick else SECONDS)
    return rows
