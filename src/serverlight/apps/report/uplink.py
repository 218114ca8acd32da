"""Who sends the fewest bytes at equal quality: the rows of ``bench codec`` put side by side, pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from serverlight.evaluation.rates import FP16_BITS, RAW_INPUT

__all__ = ["OURS", "Best", "Verdict", "Where", "verdict"]

OURS = "serverlight"
TIED = 0.01
"""Two codecs whose bytes differ by less share a row."""

PLACES = {"early": "early", "mid": "middle", "late": "late"}
"""Ends of tasks' names, and what they say of the cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Best:
    """A codec's cheapest setting within the loss allowed."""

    codec: str
    bits: float
    """An element, all bytes counted."""

    delta_pp: float
    interval_pp: tuple[float, float]
    bits_at_equal_kl: float | None

    @property
    def reduction(self) -> float:
        """How many times fewer bytes than plain halves."""
        return FP16_BITS / self.bits


@dataclass(frozen=True, kw_only=True, slots=True)
class Where:
    """A model cut at one place, with the best of each codec."""

    task: str
    model: str
    cut: str
    position: str
    """``early``, ``middle``, ``late``, or nothing."""

    base: float
    """The uncut model's figure, as a percentage."""

    messages: int
    elements: float
    codecs: tuple[str, ...]
    """All that were tried."""

    best: Mapping[str, Best]
    """Of those that keep the quality."""

    raw_bits: float | None
    """What the input takes, for each element of the feature."""

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> Self:
        """From what ``bench codec`` wrote of one task."""
        task, rows = document["tasks"][0], document["rows"]
        found, raw = dict[str, Best](), None
        for summary in task["best"]:
            row = next((r for r in rows if (r["codec"], r["config"]) == (summary["codec"], summary["config"])), None)
            if summary["codec"] == RAW_INPUT:
                raw = summary["bits_per_element"]
            elif row is not None:
                found[row["codec"]] = _best(row, summary)
        names = tuple(summary["codec"] for summary in task["best"] if summary["codec"] != RAW_INPUT)
        return cls(
            task=task["task"], model=task["model"], cut=task["cut"], position=task.get("position") or _place(task["task"]),
            base=task["base_metric"], messages=task["num_messages"], elements=task["elements_per_message"], codecs=names,
            best=found, raw_bits=raw,
        )  # fmt: skip

    @property
    def place(self) -> str:
        """Cut and position."""
        return f"{self.cut} ({self.position})" if self.position else self.cut

    @property
    def label(self) -> str:
        """Model, cut and position."""
        return f"{self.model}, {self.place}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Who wins a row."""

    ours: Best | None
    rival: Best | None
    """The best of the others."""

    words: str
    """Who wins, and why it is not ours where it is not."""

    winners: frozenset[str]
    """All within a percent of the best."""


def verdict(where: Where) -> Verdict:
    """The best of all codecs at one cut; inputs sent instead of features are no codecs."""
    coders = {name: best for name, best in where.best.items() if "input" not in name}
    ours = coders.get(OURS)
    others = sorted((best for name, best in coders.items() if name != OURS), key=lambda best: best.bits)
    rival = others[0] if others else None
    least = min((best.bits for best in coders.values()), default=0.0)
    winners = frozenset(name for name, best in coders.items() if best.bits <= (1 + TIED) * least)
    return Verdict(ours=ours, rival=rival, words=_words(ours, rival), winners=winners)


def _words(ours: Best | None, rival: Best | None) -> str:
    if ours is None:
        return "none within the loss" if rival is None else f"{rival.codec}: no setting of ours is within the loss"
    if rival is None or ours.bits <= rival.bits:
        return "serverlight"
    if ours.bits <= (1 + TIED) * rival.bits:
        return f"tied with {rival.codec}"
    excess = f"{rival.codec}, {100 * (ours.bits / rival.bits - 1):.0f} % fewer bytes than ours"
    at_kl = (ours.bits_at_equal_kl, rival.bits_at_equal_kl)
    if None in at_kl:
        return excess
    ratio = at_kl[0] / at_kl[1]  # type: ignore[operator]
    if ratio < 1:
        return f"{excess}; at equal divergence ours takes {100 * (1 - ratio):.0f} % fewer: of so few samples the limit is noisy"
    return f"{excess}, and {100 * (ratio - 1):.0f} % at equal divergence, too"


def _best(row: Mapping[str, Any], summary: Mapping[str, Any]) -> Best:
    low, high = row["quality_interval_pp"]
    return Best(
        codec=row["codec"], bits=row["bits_per_element"], delta_pp=row["quality_delta_pp"], interval_pp=(low, high),
        bits_at_equal_kl=summary["bits_at_equal_kl"],
    )  # fmt: skip


def _place(task: str) -> str:
    """What a task's name says of its cut.

    >>> _place("R56-mid"), _place("ST-3")
    ('middle', '')
    """
    return PLACES.get(task.rpartition("-")[2], "")


def in_order(places: Sequence[Where]) -> list[Where]:
    """Models as they come, each from its first cut to its last."""
    models = list(dict.fromkeys(where.model for where in places))
    return sorted(places, key=lambda where: (models.index(where.model), _natural(where.cut)))


def _natural(cut: str) -> list[tuple[int, str]]:
    """Numbers in names by their size.

    >>> sorted(["blocks.12", "blocks.4", "layer1"], key=_natural)
    ['blocks.4', 'blocks.12', 'layer1']
    """
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", cut)]
