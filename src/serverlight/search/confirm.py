"""A chosen plan is measured before it is believed; what that shows corrects the predictions of the others."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from serverlight.search.caps import broken_caps, cap_values, objective_value, set_caps, share_of
from serverlight.search.optimise import SearchResult
from serverlight.search.prediction import Prediction

__all__ = ["ALIKE", "Confirmed", "Observed", "confirm"]

ALIKE = 0.02
"""No prediction tells plans apart whose objectives differ by less; of such plans the one with the most room is tried first."""

UNCERTAIN_CAPS = ("latency_ms", "first_token_ms", "max_quality_loss", "server_ms", "energy_mj")
"""What only a measurement knows; a plan's bytes and memory are known."""


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
    of all. A plan that sends no more than a measured one at the same cut loses no less, and one that sends so many times more
    is taken to lose so many times less at best: what follows a plan that lost too much is not its twin. A plan that breaks a cap
    when it is measured is out.

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
        least = min((value(corrected[id(p)]) for p in hopeful), default=math.inf)
        alike = [p for p in hopeful if value(corrected[id(p)]) <= least * (1 + ALIKE)]
        following: Prediction | None = None
        if alike and least * (1 + ALIKE) < known:
            following = min(alike, key=lambda p: (_tightness(corrected[id(p)], result), value(corrected[id(p)])))
        elif not alike and known == math.inf:  # by the predictions nothing fits; what is nearest may
            following = min(left, key=lambda p: excess(corrected[id(p)]), default=None)
        if following is None:
            break
        left.remove(following)
        seen = measure(following)
        observed.append((following, seen))
        measured.append(_as_observed(following, seen))
    return Confirmed(best=min(filter(is_allowed, measured), key=value, default=None), observed=tuple(observed))


def _tightness(prediction: Prediction, result: SearchResult) -> float:
    """How much of its caps a plan takes, of those that it may turn out to break."""
    caps, values = set_caps(result.constraints), cap_values(prediction)
    return sum(share_of(caps[name], values[name] or 0.0) for name in UNCERTAIN_CAPS if name in caps)


def _corrected(prediction: Prediction, observed: list[tuple[Prediction, Observed]]) -> Prediction:
    if not observed:
        return prediction
    at_cut = [pair for pair in observed if pair[0].candidate.cut == prediction.candidate.cut]
    own = at_cut or observed
    factor = statistics.median(seen.server_ms / p.server_busy_ms if p.server_busy_ms else 1.0 for p, seen in own)
    later_ms = statistics.median(seen.latency_ms - p.latency_ms for p, seen in own)
    changed = _changed(prediction, server_ms=factor * prediction.server_busy_ms, later_ms=later_ms)
    sent = max(1, prediction.uplink_bytes)
    losses = [seen.loss_pp * min(1.0, p.uplink_bytes / sent) for p, seen in at_cut]
    return dataclasses.replace(changed, loss_pp=max([prediction.loss_pp, *losses]))


def _as_observed(prediction: Prediction, seen: Observed) -> Prediction:
    later_ms = seen.latency_ms - prediction.latency_ms
    figures: Mapping[str, float] = {"uplink_bytes": round(seen.uplink_bytes), "loss_pp": seen.loss_pp}
    changed = _changed(prediction, server_ms=seen.server_ms, later_ms=later_ms)
    return dataclasses.replace(changed, **figures)  # type: ignore[arg-type]


def _changed(prediction: Prediction, *, server_ms: float, later_ms: float) -> Prediction:
    message_ms = prediction.message_ms + later_ms
    return dataclasses.replace(prediction, server_busy_ms=server_ms, message_ms=message_ms, stages=())
