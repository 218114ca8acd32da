"""``serverlight report``."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from serverlight.apps.options import JsonOption
from serverlight.apps.terminal import STDOUT, check_writable, print_lines, print_table, write_json
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.apps.report.records import Record
    from serverlight.apps.report.runner import Entry
    from serverlight.apps.report.settings import Settings, Subject

__all__ = ["report"]

RESNET, IMAGES = "vision_cifar10/resnet56.safetensors", "vision_cifar10/cifar10_test_first1000.npz"
"""The larger model of images, where the data folder has it."""

EXIT_FAILED = 1


def report(
    out: Annotated[
        pathlib.Path, typer.Option(metavar="FOLDER", help="Where the page goes, and what has been measured.")
    ] = pathlib.Path("out/report"),
    data: Annotated[
        pathlib.Path | None,
        typer.Option(
            envvar="SERVERLIGHT_SHARED",
            metavar="FOLDER",
            help="Models and data of the tasks; without it only what is shipped.",
        ),
    ] = None,
    models: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Models to load, profile and simulate, each MODEL or MODEL=DATA with labelled images or a text. Default: "
            "ResNet-56 where the data folder has it, else `demo-vision`; and `demo-lm`.",
        ),
    ] = None,
    stages: Annotated[
        str | None, typer.Option(metavar="LIST", help="Measure only these, such as `rates,load` or `rates/R56-mid`.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A look in minutes: few samples, coarse grids, short turns.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--list", help="Show what there is to measure and what has been, and end.")
    ] = False,
    json: JsonOption = None,
) -> None:
    """Write one page with every table and figure of the paper, on the models at hand.

    Measures what is missing, part by part, each in a process of its own; a run that was stopped goes on where it was, and what has
    been measured with the same code, data and settings is not measured again. The page is `report.html`, one file without a script,
    and `report.md`. With the shared data it takes three quarters of an hour on two cores.
    Example: `serverlight report --quick --out look`
    """
    from serverlight.apps.report.compose import write
    from serverlight.apps.report.found import Found
    from serverlight.apps.report.records import Shelf
    from serverlight.apps.report.runner import look, run_stages
    from serverlight.apps.report.settings import FULL, QUICK, Settings, Subject
    from serverlight.apps.report.stages import STAGES

    check_writable("json", json)
    if data is not None and not data.is_dir():
        raise ConfigError(
            "data", f"no folder {str(data)!r}; name the one with the tasks' models and data, or leave it out"
        )
    folder = data and data.resolve()
    subjects = tuple(map(Subject.parse, models.split(","))) if models else _default_models(folder)
    settings = Settings(out=out.resolve(), data=folder, subjects=subjects, budget=QUICK if quick else FULL)
    chosen = _chosen(stages, [stage.name for stage in STAGES])
    if show:
        _show(look(STAGES, settings, Shelf(settings.out), chosen), json)
        return
    settings.out.mkdir(parents=True, exist_ok=True)
    records = run_stages(STAGES, settings, chosen=chosen, say=_say)
    write(Found(settings=settings, records=records))
    _tell(records, settings, out, json)


def _default_models(data: pathlib.Path | None) -> tuple[Subject, ...]:
    from serverlight.apps.report.settings import Subject

    has_resnet = data is not None and (data / RESNET).is_file() and (data / IMAGES).is_file()
    larger = (
        Subject.read(str(data / RESNET), str(data / IMAGES)) if data and has_resnet else Subject.read("demo-vision")
    )
    return larger, Subject.read("demo-lm")


def _chosen(text: str | None, names: Sequence[str]) -> list[str]:
    chosen = [word.strip() for word in text.split(",")] if text else []
    for word in chosen:
        if word.partition("/")[0] not in names:
            raise ConfigError(
                "stages", f"there is no {word!r}; choose from {', '.join(names)}, or --list for their parts"
            )
    return chosen


def _say(line: str) -> None:
    print(f"report: {line}", file=sys.stderr, flush=True)


def _show(entries: Sequence[Entry], json: str | None) -> None:
    rows = [
        {
            "part": entry.name,
            "state": entry.record.status if entry.record else "to do",
            "minutes": round(entry.minutes, 1),
            "why": entry.record.reason if entry.record else "",
        }
        for entry in entries
    ]
    if json:
        write_json(json, {"parts": rows})
    if json != STDOUT:
        print_table(["part", "state", "minutes", "why"], [[str(cell) for cell in row.values()] for row in rows], left=2)


def _tell(records: Sequence[Record], settings: Settings, out: pathlib.Path, json: str | None) -> None:
    """Where the page is, and what is not on it; a part that failed for no reason of the user's makes the run one that failed."""
    import dataclasses

    counts = {status: sum(record.status == status for record in records) for status in ("done", "not run", "failed")}
    if json:
        write_json(
            json,
            {"page": "report.html", **_head(settings), "parts": [dataclasses.asdict(record) for record in records]},
        )
    if json != STDOUT:
        told = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
        print_lines(f"Wrote {out / 'report.html'} and report.md: {told}. Why, the page says at its end.")
    if counts["failed"]:
        raise typer.Exit(EXIT_FAILED)


def _head(settings: Settings) -> dict[str, Any]:
    import dataclasses

    from serverlight.environment import describe_environment

    return {
        **describe_environment(),
        "budget": dataclasses.asdict(settings.budget),
        "models": [subject.name for subject in settings.subjects],
    }
