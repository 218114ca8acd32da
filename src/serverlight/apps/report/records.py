"""What has been measured, a file for each part."""

from __future__ import annotations

import json
import pathlib
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from serverlight.apps.report.keys import LENGTH

__all__ = ["Record", "Shelf", "Status"]

Status = Literal["done", "not run", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """A part and what became of it."""

    stage: str
    part: str
    status: Status
    key: str = ""
    """Of what it depends on (:mod:`serverlight.apps.report.keys`)."""

    reason: str = ""
    """Why there is no result."""

    told: str = ""
    """How it was made."""

    date: str = ""
    cpu: str = ""
    seconds: float = 0.0
    file: str = ""
    """What the work wrote, within the folder of the report."""

    result: Any = field(default=None, repr=False)
    """The same, read."""

    @property
    def name(self) -> str:
        """Stage and part."""
        return f"{self.stage}/{self.part}"


class Shelf:
    """The files of a report that hold what was measured."""

    def __init__(self, out: pathlib.Path) -> None:
        self._out = out
        self._folder = out / "measured"

    def find(self, stage: str, part: str, key: str) -> Record | None:
        """What was measured under this key, if it is there and whole."""
        try:
            fields = json.loads(self._path(stage, part).read_text("utf-8"))
            if fields["key"] != key:
                return None
            result = json.loads((self._out / fields["file"]).read_text("utf-8"))
            return Record(**fields, status="done", result=result)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def seconds(self, stage: str, part: str) -> float | None:
        """How long it took the last time, under whatever key."""
        try:
            return float(json.loads(self._path(stage, part).read_text("utf-8"))["seconds"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def target(self, stage: str, part: str, key: str) -> pathlib.Path:
        """Where the work is to write; what it left under another key goes."""
        stem = _file_name(stage, part)
        path = self._folder / f"{stem}.{key}.json"
        self._folder.mkdir(parents=True, exist_ok=True)
        for other in self._folder.glob(f"{stem}.{'[0-9a-f]' * LENGTH}.json"):
            if other != path:
                other.unlink()
        return path

    def keep(self, record: Record) -> None:
        """Notes that it is done, all or nothing."""
        fields = {
            name: getattr(record, name)
            for name in ("stage", "part", "key", "told", "date", "cpu", "seconds", "file")
        }  # fmt: skip
        path = self._path(record.stage, record.part)
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
        unfinished.replace(path)

    def _path(self, stage: str, part: str) -> pathlib.Path:
        return self._folder / f"{_file_name(stage, part)}.record.json"


def _file_name(stage: str, part: str) -> str:
    """Two parts of a stage whose names differ have files that differ as far as their letters, digits, dots and dashes do."""
    return re.sub(r"[^\w.-]+", "-", f"{stage}-{part}")
