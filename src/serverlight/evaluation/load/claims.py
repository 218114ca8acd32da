"""What is claimed of a server with many devices, beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from serverlight.evaluation.checks import Check
from serverlight.evaluation.load.figures import IN_PROCESS, OURS, SERIAL, LoadRow

__all__ = ["MIN_OVER_IN_PROCESS", "MIN_OVER_ONE_BY_ONE", "load_checks"]

MIN_OVER_ONE_BY_ONE = {"lm": 4.0, "vision": None}
"""Throughput over that of the same server with one request at a time; of images it is only told."""

MIN_OVER_IN_PROCESS = 0.9
"""Throughput over that of the same batches in one process, without a network."""


def load_checks(rows: Sequence[LoadRow]) -> list[Check]:
    """Our rows beside those of the server without batches and of the process without a server, where both are there."""
    found = list[Check]()
    for workload in dict.fromkeys(row.workload for row in rows):
        for rival, limit in ((SERIAL, MIN_OVER_ONE_BY_ONE[workload]), (IN_PROCESS, MIN_OVER_IN_PROCESS)):
            found += _beside(rows, workload, rival, limit)
    return found


def _beside(rows: Sequence[LoadRow], workload: str, system: str, limit: float | None) -> list[Check]:
    by = {(row.system, row.clients): row for row in rows if row.workload == workload and row.rate_per_s is None}
    found = list[Check]()
    for (name, clients), row in by.items():
        ours = by.get((OURS, clients))
        if name != system or ours is None or not (row.throughput_per_s and ours.server_cpu_s_per_item):
            continue
        title, ratio = f"{workload}, {clients} clients", _ratio(ours, row)
        saved = row.server_cpu_s_per_item / ours.server_cpu_s_per_item
        found += [
            Check(name=f"{title}: throughput over {system}", value=ratio, unit="x", bound=">=", limit=limit),
            # Told beside it: other jobs on the machine take throughput away, and leave this as it is.
            Check(name=f"{title}: CPU time of {system} over ours", value=saved, unit="x", bound=">="),
        ]
    return found


def _ratio(ours: LoadRow, theirs: LoadRow) -> float:
    """Of the throughputs: the median over pairs that were measured one right after the other, since a machine that is shared is
    faster in one minute than in the next. Ours has more turns where another rival ran in between; then some of them make one.
    """
    if not (ours.turns_per_s and theirs.turns_per_s):
        return ours.throughput_per_s / theirs.throughput_per_s
    own = _in_groups(ours.turns_per_s, len(theirs.turns_per_s))
    return statistics.median(our / their for our, their in zip(own, theirs.turns_per_s, strict=False) if their)


def _in_groups(values: Sequence[float], count: int) -> list[float]:
    """Means of as many groups of neighbours.

    >>> _in_groups([1.0, 3.0, 5.0, 7.0], 2), _in_groups([1.0, 3.0], 2)
    ([2.0, 6.0], [1.0, 3.0])
    """
    size = max(1, len(values) // count)
    return [statistics.fmean(values[first : first + size]) for first in range(0, len(values), size)]
