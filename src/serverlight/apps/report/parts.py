"""What there is to do: stages, their parts, and how each part is run."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from serverlight.apps.report.settings import Settings

__all__ = ["Command", "Function", "Part", "Stage", "Work"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """A command of this package that writes JSON."""

    words: tuple[str, ...]
    """After ``serverlight``, but for where the JSON goes."""

    modules: tuple[str, ...]
    """With the command, and with what it starts; what they import is what the figures depend on."""

    resumes: bool = False
    """Whether it goes on with a file that it began earlier."""

    def argv(self, target: pathlib.Path) -> list[str]:
        """What to start after ``python -m``."""
        return ["serverlight", *self.words, "--json", str(target), *(["--resume"] if self.resumes else [])]

    @property
    def told(self) -> str:
        """How to say it."""
        return " ".join(["serverlight", *self.words])


@dataclass(frozen=True, kw_only=True, slots=True)
class Function:
    """A function of this package that returns what JSON can hold, called in a process of its own."""

    module: str
    name: str
    arguments: Mapping[str, Any]

    def argv(self, target: pathlib.Path) -> list[str]:
        """What to start after ``python -m``."""
        return ["serverlight.apps.report.child", self.module, self.name, json.dumps(self.arguments), str(target)]

    @property
    def modules(self) -> tuple[str, ...]:
        """Whose imports are what the figures depend on."""
        return (self.module,)

    @property
    def told(self) -> str:
        """How to say it."""
        given = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.module.removeprefix('serverlight.')}.{self.name}({given})"


Work = Command | Function


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """A piece of a stage that is measured, kept and resumed by itself."""

    name: str
    work: Work
    minutes: float
    """About how long it takes on two cores of 2023."""

    files: tuple[pathlib.Path, ...] = ()
    """Whose contents it depends on."""

    missing: str = ""
    """Why it cannot be run, and what to do about it; empty where it can."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """Parts that make one kind of figures."""

    name: str
    title: str
    parts: Callable[[Settings], Iterable[Part]]
    """From the settings; asked when the stage's turn comes, since it may need files of earlier ones."""

    is_timed: bool = False
    """Whether it measures time: then its parts have the machine to themselves."""

    budget: Callable[[Settings], str] = field(default=lambda settings: "")
    """From the settings: what it is limited to, in words."""
