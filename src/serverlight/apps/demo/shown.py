"""Which cuts the demo shows where the user names none: the one that a search chose, else those that are built in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from serverlight.apps.kept_search import AUTO, find_choice
from serverlight.codec import CodecConfig

__all__ = ["Shown", "what_to_show"]

_WAYS = {"all-device": "all on the device", "full-server": "the raw input to a full server"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """Where to cut, and why there."""

    source: Literal["given", "search", "built-in"]
    """Whose choice it is."""

    reason: str
    """The same in words."""

    cuts: Sequence[str] = ()
    """Names; none: those that are built in."""

    codec: CodecConfig | None = None
    """Settings that the search chose, shown in place of the demo's own of that profile."""


def what_to_show(model: str, wanted: Sequence[str]) -> Shown:
    """The cuts that were asked for; else, or for ``auto``, what the last search of the model chose here."""
    if wanted and list(wanted) != [AUTO]:
        return Shown(source="given", reason="cut as asked for", cuts=wanted)
    choice = find_choice(model)
    if choice is None:
        hint = (
            f"no search of {model} was made here; `serverlight search {model}` finds the best for a device and a link"
        )
        return Shown(source="built-in", reason=f"cut as built in: {hint}")
    if choice.way != "split" or choice.plan is None:
        return Shown(
            source="built-in", reason=f"cut as built in: the search chose {_WAYS[choice.way]}, which is among the rows"
        )
    return Shown(
        source="search", reason="cut where the last search chose", cuts=[choice.plan.cut], codec=choice.plan.codec
    )
