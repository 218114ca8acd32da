"""What `serverlight search` chose last for a model, so that other commands know where to cut it."""

from __future__ import annotations

import contextlib
import hashlib
import pathlib
import sys
from typing import TYPE_CHECKING

from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.frontier import Choice
    from serverlight.plan import Plan
    from serverlight.search.optimise import SearchResult

__all__ = ["AUTO", "find_choice", "find_plan", "is_auto", "keep", "say_built_in"]

AUTO = "auto"
"""Stands for the cut that a search chose."""


def is_auto(cut: str | None, plan: str | None) -> bool:
    """Whether neither was given, or the cut is left to the search."""
    return plan is None and cut in (None, AUTO)


def keep(model: str, result: SearchResult) -> None:
    """Remembers the choice, and the frontier behind it; a folder that cannot be written to is no error."""
    from serverlight.frontier import Frontier

    others = (choice for choice in result.frontier.choices if choice != result.choice)
    path = _path(model)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        Frontier(choices=(result.choice, *others)).save(path)


def find_choice(model: str) -> Choice | None:
    """What was chosen last; ``None`` where no search of the model was made here, or what it kept cannot be read any more."""
    from serverlight.frontier import Frontier

    if not (path := _path(model)).exists():
        return None
    try:
        return Frontier.load(path).choices[0]
    except ConfigError:  # of another version
        return None


def find_plan(model: str) -> Plan | None:
    """The plan that was chosen last; raises :class:`ConfigError` where that is to run all on the device."""
    chosen = find_choice(model)
    if chosen is None:
        return None
    if chosen.plan is None:
        raise ConfigError(
            "cut", f"the search chose to run all of {model} on the device; give --cut NAME to cut it anyway"
        )
    return chosen.plan


def say_built_in(model: str, cut: str) -> None:
    """Tells people, on standard error, that a command cuts where no search has chosen."""
    print(
        f"no search of {model} was made here, so it is cut at {cut}, as built in; `serverlight search {model}` finds the best "
        "cut for this device and link",
        file=sys.stderr,
    )


def _path(model: str) -> pathlib.Path:
    from serverlight.search.profile_cache import cache_folder

    local = pathlib.Path(model).expanduser()
    name = str(local.resolve()) if local.exists() else model
    return cache_folder() / "plans" / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.json"
