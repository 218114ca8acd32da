"""A chosen plan is measured before it is believed; what that shows corrects the predictions of the others."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serverlight.search.caps import broken_caps, objective_value
from serverlight.search.optimise import SearchResult
from serverlight.search.prediction import Prediction

__all__ = ["Confirmed", "Observed", "confirm"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Observed:
    """One plan, measured."""

    latency_ms: float
    uplink_bytes: float
    server_ms: float
    """The server's compute time for a request or step."""

    loss_pp: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmed:
    """The plan that held what was promised."""

    best: Prediction | None
    """As it was measured; none where no plan that was measured keeps the caps."""

    observed: tuple[tuple[Prediction, Observed], ...]
    """What was measured, in turn, with what had been predicted."""


def confirm(result: SearchResult, measure: Callable[[Prediction], Observed], *, most: int) -> Confirmed:
    """Measures the plan that seems best, corrects the others by what was off, and goes on until the best is a measured one.

    The server's time of a cut is off by a factor, its latency by an amount: those of the cut's own measurements, else the medians
    of all. A plan that breaks a cap when it is measured is out.

    Args:
        result: what was predicted.
        measure: takes a prediction, runs its plan and says how it went.
        most: measurements to make at most.
    """
    left, measured, observed = list(result.predictions), list[Prediction](), list[tuple[Prediction, Observed]]()

    def is_allowed(prediction: Prediction) -> bool:
        return not broken_caps(prediction, result.constraints, result.scene)

    def value(prediction: Prediction) -> float:
        return objective_value(prediction, result.objective)

    def excess(prediction: Prediction) -> float:
        return sum(broken.excess for broken in broken_caps(prediction, result.constraints, result.scene))

    while len(observed) < most:
        corrected = {id(p): _corrected(p, observed) for p in left}
        hopeful = [p for p in left if is_allowed(corrected[id(p)])]
        known = min((value(p) for p in measured if is_allowed(p)), default=math.inf)
        following = min(hopeful, key=lambda p: value(corrected[id(p)]), default=None)
        if following is None and known == math.inf:  # by the predictions nothing fits; what is nearest may
            following = min(left, key=lambda p: excess(corrected[id(p)]), default=None)
        elif following is not None and value(corrected[id(following)]) >= known:
            following = None
        if following is None:
            break
        left.remove(following)
        seen = measure(following)
        observed.append((following, seen))
        measured.append(_as_observed(following, seen))
    return Confirmed(best=min(filter(is_allowed, measured), key=value, default=None), observed=tuple(observed))


def _corrected(prediction: Prediction, observed: list[tuple[Prediction, Observed]]) -> Prediction:
    if not observed:
        return prediction
    own = [pair for pair in observed if pair[0].candidate.cut == prediction.candidate.cut] or observed
    factor = statistics.median(seen.server_ms / p.server_busy_ms if p.server_busy_ms else 1.0 for p, seen in own)
    later_ms = statistics.median(seen.latency_ms - p.latency_ms for p, seen in own)
    return _changed(prediction, server_ms=factor * prediction.server_busy_ms, later_ms=later_ms)


def _as_observed(prediction: Prediction, seen: Observed) -> Prediction:
    later_ms = seen.latency_ms - prediction.latency_ms
    figures: Mapping[str, float] = {"uplink_bytes": round(seen.uplink_bytes), "loss_pp": seen.loss_pp}
    changed = _changed(prediction, server_ms=seen.server_ms, later_ms=later_ms)
    return dataclasses.replace(changed, **figures)  # type: ignore[arg-type]


def _changed(prediction: Prediction, *, server_ms: float, later_ms: float) -> Prediction:
    message_ms = prediction.message_ms + later_ms
    return dataclasses.replace(prediction, server_busy_ms=server_ms, message_ms=message_ms, stages=())
