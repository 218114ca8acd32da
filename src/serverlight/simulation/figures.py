"""What a run comes to: counts, latencies from histograms, utilisation and bytes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from serverlight.simulation.records import BINS_PER_E, COUNTS, LEAST_S, Outcome

if TYPE_CHECKING:
    from serverlight.simulation.parts import Group

__all__ = ["Figures", "Latencies", "figures_of", "percentile_ms"]

PERCENTILES = (50, 95, 99)


@dataclass(frozen=True, kw_only=True, slots=True)
class Latencies:
    """In milliseconds, from when a request is due until its answer is there; one that was refused for good counts as endless."""

    count: int
    mean: float
    p50: float
    p95: float
    p99: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Figures:
    """Of all servers together, from the end of the warm-up to the end; an item is a sample or a token."""

    asked: int
    """Requests, of a language model sequences, over the whole run; likewise the next two."""

    answered: int
    refused: int
    """Times that a server was too busy; a closed loop and a sequence come again, the requests of others are lost."""

    lost: int
    items: int
    items_per_s: float
    requests_per_s: float
    """Samples, or sequences that ended."""

    latency: Latencies
    """Of an item; of a language model a token after the first."""

    first_token: Latencies | None
    by_group: dict[str, Latencies]
    wait_ms: float
    """Of that, at the server until its batch begins, in the mean."""

    utilisation: float
    """Share of the time in which a server computes."""

    mean_batch: float
    """Requests that a tail runs together."""

    uplink_bytes_per_item: float
    uplink_mbit_per_s: float
    """Of all devices together."""

    trace: NDArray[np.float64]
    """``[item, 6]``: group, device of its server, and the seconds when it was due, arrived, begun and answered."""

    def to_dict(self) -> dict[str, Any]:
        """All but the trace, ready for JSON; endless is ``None``."""
        fields = dataclasses.asdict(dataclasses.replace(self, trace=np.zeros(0)))
        del fields["trace"]
        cleaned: dict[str, Any] = _finite(fields)
        return cleaned


def percentile_ms(histogram: NDArray[np.int64], percent: float, lost: int = 0) -> float:
    """The latency that so many percent do not exceed, to a quarter of a percent; ``inf`` where lost ones are among them.

    >>> counts = np.zeros(4600, np.int64)
    >>> counts[[1000, 2000]] = 95, 5
    >>> round(percentile_ms(counts, 95), 3), percentile_ms(counts, 95, lost=10) > 20, percentile_ms(counts, 99, lost=10)
    (0.149, True, inf)
    """
    total = int(histogram.sum()) + lost
    if not total:
        return 0.0
    place = int(np.searchsorted(np.cumsum(histogram), math.ceil(total * percent / 100)))
    if place >= len(histogram):
        return math.inf
    return LEAST_S * math.exp((place + 0.5) / BINS_PER_E) * 1e3


def figures_of(groups: Sequence[Group], outcomes: Sequence[Outcome], *, seconds: float) -> Figures:
    """Adds up what servers have counted in so many seconds."""
    counts = {name: sum(outcome.groups[name] for outcome in outcomes) for name in COUNTS.names or ()}
    total = {name: float(values.sum()) for name, values in counts.items()}
    histogram = np.sum([outcome.histogram for outcome in outcomes], axis=0)
    busy_s, batches, in_batches = map(float, np.sum([outcome.server for outcome in outcomes], axis=0))
    items, is_language = int(total["items"]), groups[0].device.kind == "language-model"
    steps, firsts = histogram[0::2], histogram[1::2]
    return Figures(
        asked=int(total["asked"]),
        answered=int(total["answered"]),
        refused=int(total["refused"]),
        lost=int(total["asked"] - total["answered"]),
        items=items,
        items_per_s=items / seconds,
        requests_per_s=total["ended" if is_language else "items"] / seconds,
        latency=_latencies(steps.sum(axis=0), int(total["lost"])),
        first_token=_latencies(firsts.sum(axis=0), 0) if is_language else None,
        by_group={group.name: _latencies(steps[i], int(counts["lost"][i])) for i, group in enumerate(groups)},
        wait_ms=total["wait_s"] / max(1, total["measured"]) * 1e3,
        utilisation=busy_s / (seconds * len(outcomes)),
        mean_batch=in_batches / max(1.0, batches),
        uplink_bytes_per_item=total["bytes"] / max(1, items),
        uplink_mbit_per_s=total["bytes"] * 8e-6 / seconds,
        trace=np.concatenate([outcome.trace[: outcome.traced[0]] for outcome in outcomes]),
    )


def _latencies(histogram: NDArray[np.int64], lost: int) -> Latencies:
    middles_ms = LEAST_S * np.exp((np.arange(len(histogram)) + 0.5) / BINS_PER_E) * 1e3
    count = int(histogram.sum())
    return Latencies(
        count=count + lost,
        mean=float(histogram @ middles_ms) / max(1, count),
        **{f"p{percent}": percentile_ms(histogram, percent, lost) for percent in PERCENTILES},
    )


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
