"""What sections are written from: the records of a run, and a place for figures."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serverlight.apps.report.blocks import Picture, Text
from serverlight.apps.report.records import Record
from serverlight.apps.report.settings import Settings

__all__ = ["Found", "interval", "listed", "number"]

NONE = "-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """All records, and where figures go."""

    settings: Settings
    records: Sequence[Record]

    def done(self, stage: str) -> Mapping[str, Any]:
        """Results of a stage by its parts' names."""
        return {r.part: r.result for r in self.records if r.stage == stage and r.status == "done"}

    def gaps(self, *stages: str) -> list[Text]:
        """What is missing, a line for each reason."""
        reasons = dict[tuple[str, str], list[str]]()
        for record in self.records:
            if record.stage in stages and record.status != "done":
                reasons.setdefault((record.status, record.reason), []).append(record.part)
        return [
            Text(text=f"**{status.capitalize()}:** {listed(parts)}. {_sentence(reason)}", is_gap=True)
            for (status, reason), parts in reasons.items()
        ]

    def draw(self, name: str, plot: Callable[[str], Any], title: str) -> Picture:
        """Has a figure drawn into a file; ``name`` has its ending."""
        folder = self.settings.out / "figures"
        folder.mkdir(parents=True, exist_ok=True)
        plot(str(folder / name))
        return Picture(file=f"figures/{name}", title=title)

    @property
    def out(self) -> pathlib.Path:
        """The page's folder."""
        return self.settings.out


def number(value: float | None, digits: int = 3) -> str:
    """So many significant digits, without an exponent where that is short; a dash for none.

    >>> number(12345.6), number(0.012345), number(7.0), number(None)
    ('12,346', '0.0123', '7', '-')
    """
    if value is None or value != value:
        return NONE
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def interval(low: float, high: float, digits: int = 1) -> str:
    """Both ends, with their signs.

    >>> interval(-1.25, 0.5)
    '-1.2 to +0.5'
    """
    return f"{low:+.{digits}f} to {high:+.{digits}f}"


def listed(words: Iterable[str]) -> str:
    """With commas between them.

    >>> listed(["a", "b"])
    'a, b'
    """
    return ", ".join(words)


def _sentence(text: str) -> str:
    text = text.strip()
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}" if text else ""
