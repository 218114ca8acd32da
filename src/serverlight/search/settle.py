"""A loss that was only predicted is measured before a plan rests on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from serverlight.codec.config import CodecConfig
from serverlight.search.prediction import Candidate
from serverlight.search.quality import QualityTable

__all__ = ["settle"]

MOST = 16
"""Full runs at most."""


class Chosen(Protocol):
    """What a search, of one device or of many, comes to."""

    @property
    def chosen(self) -> Sequence[Candidate]:
        """What is to be run."""


Result = TypeVar("Result", bound=Chosen)


def settle(
    table: QualityTable,
    choose: Callable[[QualityTable], Result],
    measure: Callable[[str, CodecConfig], QualityTable],
    *,
    most: int = MOST,
) -> tuple[Result, QualityTable]:
    """Chooses, measures a chosen row that is a predicted one, and chooses again, until all plans rest on measured rows.

    Of many predicted losses the search takes those that are too good to be true first, so that one full run or two for
    each choice are worth more than many elsewhere.

    Args:
        table: measured and predicted rows.
        choose: the search.
        measure: runs one setting at one cut on all samples; returns a table with its row.
        most: how often to measure; then only measured rows are chosen from.

    Returns:
        The result, and the table with what was measured.
    """
    for _ in range(most):
        result = choose(table)
        keys = [(one.cut, one.codec) for one in result.chosen if not one.is_measured]
        cut, codec = next(iter(keys), (None, None))
        if cut is None or codec is None:
            return result, table
        found = {(row.cut, row.codec): row for row in measure(cut, codec).rows}
        # A row that cannot be measured must not be asked for again.
        rows = tuple(found.get((row.cut, row.codec), row) for row in table.rows)
        table = dataclasses.replace(table, rows=rows)
        if (cut, codec) not in found:
            break
    measured = dataclasses.replace(table, rows=tuple(row for row in table.rows if row.is_measured))
    return choose(measured), table
