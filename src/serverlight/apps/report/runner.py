"""Runs what has not been measured yet, each part in a process of its own, and keeps each as soon as it is done."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from serverlight import __version__
from serverlight.apps.report.children import Children
from serverlight.apps.report.keys import ROOT, code_digest, digest_of, key_of, machine
from serverlight.apps.report.parts import Part, Stage
from serverlight.apps.report.records import Record, Shelf, Status
from serverlight.apps.report.settings import Settings
from serverlight.environment import describe_environment

__all__ = ["NOT_ASKED", "Entry", "Say", "look", "run_stages"]

Say = Callable[[str], None]
"""Is told what begins, and what is left."""

NOT_ASKED = "not asked for; leave out --stages, or name it there"

SHIPPED = ROOT / "models" / "data"
"""What comes with the package counts for every part."""

REFUSED = 2
"""Exit code of a command that cannot do what it was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """A part as it stands before the run."""

    stage: Stage
    part: Part
    key: str = ""
    record: Record | None = None
    """``None`` where it is to be run."""

    minutes: float = 0.0
    """About how long that will take."""

    @property
    def name(self) -> str:
        """Stage and part."""
        return f"{self.stage.name}/{self.part.name}"


def look(stages: Iterable[Stage], settings: Settings, shelf: Shelf, chosen: Sequence[str] = ()) -> list[Entry]:
    """All parts of the stages, with what is known of them; ``chosen`` has names of stages, or of parts behind a slash."""
    return [_look(stage, part, settings, shelf, chosen) for stage in stages for part in stage.parts(settings)]


def run_stages(
    stages: Sequence[Stage], settings: Settings, *, chosen: Sequence[str] = (), say: Say = lambda line: None
) -> list[Record]:
    """A record for each part, in order; what was measured before under the same key is not measured again.

    Where the run is stopped, what is done by then is kept.
    """
    shelf, children = Shelf(settings.out), Children()
    progress = _Progress(look(stages, settings, shelf, chosen), settings.jobs, say)
    records = list[Record]()

    def work(entry: Entry) -> Record:
        progress.begin(entry)
        record = _run(entry, settings, shelf, children)
        progress.end(entry, record)
        return record

    with children.ended_with_us():
        for is_timed, row in itertools.groupby(stages, lambda stage: stage.is_timed):
            entries = look(row, settings, shelf, chosen)
            waiting = [entry for entry in entries if entry.record is None]
            if not is_timed:  # the long ones first, so that in the end no core waits long for the last one
                waiting.sort(key=lambda entry: -entry.minutes)
            done = _in_turn(work, waiting, 1 if is_timed else settings.jobs)
            found = dict(zip((entry.name for entry in waiting), done, strict=True))
            records += [entry.record or found[entry.name] for entry in entries]
    return records


def _look(stage: Stage, part: Part, settings: Settings, shelf: Shelf, chosen: Sequence[str]) -> Entry:
    told = settings.told(part.work.told)
    if part.missing:
        return Entry(stage=stage, part=part, record=_not_run(stage, part, settings.told(part.missing), told))
    key = key_of(
        work=told,
        files=digest_of([SHIPPED, *part.files]),
        code=code_digest(part.work.modules),
        version=__version__,
        machine=machine(),
    )
    record = shelf.find(stage.name, part.name, key)
    if record is None and chosen and not {stage.name, f"{stage.name}/{part.name}"} & {*chosen}:
        record = _not_run(stage, part, NOT_ASKED, told)
    seconds = shelf.seconds(stage.name, part.name)
    minutes = part.minutes if seconds is None else seconds / 60
    return Entry(stage=stage, part=part, key=key, record=record, minutes=minutes)


def _not_run(stage: Stage, part: Part, reason: str, told: str) -> Record:
    return Record(stage=stage.name, part=part.name, status="not run", reason=reason, told=told)


def _in_turn(work: Callable[[Entry], Record], entries: Sequence[Entry], jobs: int) -> list[Record]:
    """So many at a time; where it is stopped, those that have not begun do not begin."""
    if jobs == 1 or len(entries) < 2:
        return [work(entry) for entry in entries]
    with ThreadPoolExecutor(jobs) as pool:
        try:
            return list(pool.map(work, entries))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _run(entry: Entry, settings: Settings, shelf: Shelf, children: Children) -> Record:
    work, names = entry.part.work, (entry.stage.name, entry.part.name)
    target = shelf.target(*names, entry.key)
    started = time.perf_counter()
    code, errors = children.run(work.argv(target))
    told = settings.told(work.told)
    if code:
        reason = settings.told(_last_line(errors)) or f"it ended with code {code}"
        status: Status = "not run" if code == REFUSED else "failed"
        return Record(stage=names[0], part=names[1], status=status, reason=reason.removeprefix("error: "), told=told)
    environment = describe_environment()
    shelf.keep(
        Record(
            stage=names[0], part=names[1], status="done", key=entry.key, told=told, date=environment["date"],
            cpu=environment["cpu"], seconds=time.perf_counter() - started,
            file=target.relative_to(settings.out).as_posix(),
        )
    )  # fmt: skip
    record = shelf.find(*names, entry.key)
    assert record is not None
    return record


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""


class _Progress:
    """Lines that say what begins and how much is left."""

    def __init__(self, entries: Sequence[Entry], jobs: int, say: Say) -> None:
        self._say = say
        self._left = {e.name: e.minutes / (1 if e.stage.is_timed else jobs) for e in entries if e.record is None}
        self._total, self._begun = len(self._left), 0
        if self._left:
            say(f"{self._total} of {len(entries)} parts to measure, about {sum(self._left.values()):.0f} minutes")

    def begin(self, entry: Entry) -> None:
        self._begun += 1
        left = sum(self._left.values())
        self._say(
            f"{self._begun} of {max(self._total, self._begun)}: {entry.name}, about {entry.minutes:.1f} minutes; "
            f"{left:.0f} minutes left in all"
        )

    def end(self, entry: Entry, record: Record) -> None:
        self._left.pop(entry.name, None)
        if record.status != "done":
            self._say(f"{entry.name}: {record.status}: {record.reason}")
