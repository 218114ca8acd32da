"""A loss that was only predicted is measured before a plan rests on it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from serverlight.codec.config import CodecConfig
from serverlight.search.optimise import SearchResult
from serverlight.search.quality import QualityTable

__all__ = ["settle"]

MOST = 16
"""Full runs at most."""


def settle(
    table: QualityTable,
    choose: Callable[[QualityTable], SearchResult],
    measure: Callable[[str, CodecConfig], QualityTable],
    *,
    most: int = MOST,
) -> tuple[SearchResult, QualityTable]:
    """Chooses, measures the chosen row if it is a predicted one, and chooses again, until the plan rests on a measured row.

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
        chosen = result.best.candidate
        if chosen.is_measured or chosen.cut is None or chosen.codec is None:
            return result, table
        found = {(row.cut, row.codec): row for row in measure(chosen.cut, chosen.codec).rows}
        # A row that cannot be measured must not be asked for again.
        rows = tuple(found.get((row.cut, row.codec), row) for row in table.rows)
        table = dataclasses.replace(table, rows=rows)
        if (chosen.cut, chosen.codec) not in found:
            break
    measured = dataclasses.replace(table, rows=tuple(row for row in table.rows if row.is_measured))
    return choose(measured), table
