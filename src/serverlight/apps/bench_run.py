"""A run of ``serverlight bench codec``: what is measured, kept in a file after each part, so that a run can be taken up again."""

from __future__ import annotations

import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serverlight.apps.terminal import progress_bar, write_json
from serverlight.codec.rivals import Family
from serverlight.errors import ConfigError
from serverlight.evaluation import describe_environment
from serverlight.evaluation.checks import Check, rate_checks, speed_checks
from serverlight.evaluation.codec_bench import TaskReport, bench_task
from serverlight.evaluation.contenders import OURS, contenders
from serverlight.evaluation.extras import extra_checks
from serverlight.evaluation.speed import SHAPES, SWEEP_BYTES, SpeedRow, sweep_shape, time_codecs
from serverlight.evaluation.tasks import CodecTask
from serverlight.evaluation.uplink import uplink_rows

__all__ = ["Results", "measure_rates", "measure_speed"]

SECONDS, QUICK_SECONDS = 0.5, 0.1
"""Spent on each codec and shape."""

DESCRIPTION_WIDTH = 70


class Results:
    """What has been measured so far, with the settings that it was measured with."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = dict(settings)
        self.reports: dict[str, TaskReport] = {}
        self.speed: list[SpeedRow] = []
        self.extras: list[Check] = []
        self.seconds: dict[str, float] = {}
        self.save_to: str | None = None

    @classmethod
    def read(cls, path: str, settings: Mapping[str, Any]) -> Results:
        """What the file has; nothing where there is no file yet.

        Raises:
            ConfigError: the file is of another kind, or was measured with other settings or on another machine.
        """
        results = cls(settings)
        if not pathlib.Path(path).exists():
            return results
        try:
            fields = json.loads(pathlib.Path(path).read_text())
            earlier, cpu = fields["settings"], fields["cpu"]
            results.reports = {task["task"]: TaskReport.from_dict(task, fields["rows"]) for task in fields["tasks"]}
            results.speed = [SpeedRow.from_dict(row) for row in fields["speed"]]
            results.extras = [Check.from_dict(check) for check in fields["extras"]]
            results.seconds = fields["seconds"]
        except (ValueError, KeyError, TypeError) as exc:
            raise ConfigError("resume", f"{path!r} is not of an earlier run ({exc}); give another --json") from None
        here = describe_environment()["cpu"]
        changed = [name for name, value in settings.items() if earlier.get(name) != value]
        changed += ["cpu"] if cpu != here else []
        if changed:
            raise ConfigError("resume", f"{path!r} was measured with another {', '.join(changed)}; give another --json")
        return results

    @property
    def checks(self) -> list[Check]:
        """What is claimed: of rates, of speed, and the rest."""
        found = rate_checks(list(self.reports.values()), self.settings["max_loss_pp"])
        return [*found, *speed_checks(self.speed, OURS), *self.extras]

    def save(self) -> None:
        """Writes what is there, should the run be stopped later."""
        if self.save_to:
            write_json(self.save_to, self.to_dict())

    def to_dict(self) -> dict[str, Any]:
        """All that is there, ready for JSON."""
        return {
            **describe_environment(),
            "settings": self.settings,
            "max_loss_pp": self.settings["max_loss_pp"],
            "seconds": self.seconds,
            "tasks": [report.to_dict() for report in self.reports.values()],
            "rows": [row.to_dict() for report in self.reports.values() for row in report.rows],
            "uplink": [row.to_dict() for row in uplink_rows(list(self.reports.values()))],
            "speed": [row.to_dict() for row in self.speed],
            "checks": [check.to_dict() for check in self.checks],
            "extras": [check.to_dict() for check in self.extras],
        }

    def heading(self) -> str:
        """A title, and a line of where and with what it was measured."""
        about = describe_environment()
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        return (
            f"The codec beside its rivals\n\n{about['date']}, {about['cpu']}, {about['torch_threads']} thread(s), "
            f"Python {about['python']}, {versions}; {sum(self.seconds.values()) / 60:.0f} minutes. "
            "Made by `serverlight bench codec`."
        )


def measure_rates(
    results: Results, tasks: Mapping[str, Callable[[], CodecTask]], families: Sequence[Family], *, rounds: int
) -> None:
    """Adds the report of each task that is not there yet."""
    settings = results.settings
    for name, load in tasks.items():
        if name in results.reports:
            continue
        started = time.perf_counter()
        with progress_bar(name, len(families)) as (bar, job):

            def show(done: int, text: str, name: str = name) -> None:
                bar.update(job, completed=done, description=f"{name} {text}"[:DESCRIPTION_WIDTH])

            results.reports[name] = bench_task(
                load(), families, reference=settings["reference"], max_loss_pp=settings["max_loss_pp"], rounds=rounds,
                progress=show,
            )  # fmt: skip
        results.seconds[name] = time.perf_counter() - started
        results.save()


def measure_speed(results: Results, *, quick: bool) -> None:
    """Adds the times for each shape that is not there yet, and then the other costs."""
    shapes: list[tuple[int, ...]] = list(SHAPES)
    if not quick:
        shapes += [sweep_shape(size) for size in SWEEP_BYTES if sweep_shape(size) not in SHAPES]
    missing = [shape for shape in shapes if shape not in {row.shape for row in results.speed}]
    with progress_bar("timing", len(missing)) as (bar, job):
        for done, shape in enumerate(missing):
            started = time.perf_counter()
            bar.update(job, completed=done, description=f"timing {' x '.join(map(str, shape))}")
            results.speed += time_codecs(contenders(), shape, seconds=QUICK_SECONDS if quick else SECONDS)
            results.seconds["speed"] = results.seconds.get("speed", 0.0) + time.perf_counter() - started
            results.save()
    if not results.extras:
        results.extras = extra_checks(results.speed, OURS)
        results.save()
