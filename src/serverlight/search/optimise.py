"""The best plan under caps, the plans that no other beats, and the reasons: which caps bind, and what relaxing them would buy."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serverlight.errors import ConfigError, Infeasible
from serverlight.frontier import Choice, Frontier
from serverlight.link import LinkConfig
from serverlight.plan import Plan
from serverlight.search.candidates import candidates
from serverlight.search.caps import LINK_CAPS, Broken, broken_caps, cap_values, check_caps, objective_value, set_caps
from serverlight.search.constraints import Constraints, Objective, Workload
from serverlight.search.predict import predict
from serverlight.search.prediction import Candidate, Prediction, Scene
from serverlight.search.profile import Profile
from serverlight.search.quality import QualityTable

__all__ = ["Relief", "Rival", "SearchResult", "infeasible", "optimise"]

RELAXED_BY = 1.1
_NUM_NEAREST = 3
_LEAST_GAIN = 1e-9


@dataclass(frozen=True, kw_only=True, slots=True)
class Rival:
    """A plan that was not chosen."""

    what: str
    """Why it is worth a look: ``raw input to a full server``, ``all on the device``, ``lowest latency``, ..."""

    prediction: Prediction
    broken: tuple[Broken, ...]
    """The caps that it does not keep; none: it is allowed, and worse."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Relief:
    """What a cap costs."""

    field: str
    cap: float
    value: float
    """Of the plan that was chosen."""

    is_binding: bool
    """Whether a better plan is allowed once this cap is gone."""

    gain: float
    """By how much the objective falls where the cap is a tenth larger."""

    relaxed: Prediction
    """The best plan then."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """The plan that was chosen, and why."""

    best: Prediction
    scene: Scene
    constraints: Constraints
    objective: Objective
    points: tuple[Prediction, ...]
    """Those of :attr:`frontier`, in its order."""

    rivals: tuple[Rival, ...]
    reliefs: tuple[Relief, ...]
    """One for each cap, in their order."""

    predictions: tuple[Prediction, ...]
    """All that were made."""

    @property
    def plan(self) -> Plan | None:
        """To run; ``None`` where the device does it all."""
        return self.best.plan(self.scene.device.model, self.scene.device.revision)

    @property
    def choice(self) -> Choice:
        """The same with what it is expected to take."""
        return self.best.choice(self.scene.device.model, self.scene.device.revision)

    @property
    def frontier(self) -> Frontier:
        """What a device can move along while its link changes: all that no other beats whatever the link, best first."""
        device = self.scene.device
        return Frontier(choices=tuple(point.choice(device.model, device.revision) for point in self.points))

    @property
    def chosen(self) -> tuple[Candidate, ...]:
        """The one plan, as something to settle."""
        return (self.best.candidate,)

    @property
    def binding(self) -> tuple[str, ...]:
        """The caps that keep a better plan out."""
        return tuple(relief.field for relief in self.reliefs if relief.is_binding)

    def value(self, prediction: Prediction) -> float:
        """What is minimised."""
        return objective_value(prediction, self.objective)

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the plan, which :meth:`Plan.load` reads; raises :class:`ConfigError` where the device does it all."""
        if self.plan is None:
            raise ConfigError("plan", "the best is to run all of it on the device, and there is no plan for that")
        self.plan.save(path)


def optimise(
    *,
    device: Profile,
    server: Profile,
    table: QualityTable,
    link: LinkConfig | None = None,
    workload: Workload | None = None,
    constraints: Constraints | None = None,
    objective: Objective | None = None,
) -> SearchResult:
    """The plan with the least objective among all that keep the caps; equal ones by latency, then by bytes.

    The cut is searched outside and the settings inside, where all but the staircase of bytes against quality drop out; what is
    left is predicted without exception, so the result is that of an exhaustive search.

    Raises:
        Infeasible: no plan keeps all caps; says which bind and what comes nearest.
        PlanMismatch: profiles or table are of other weights.
        ConfigError: a cap on what is not known.
    """
    scene = Scene(device=device, server=server, link=link or LinkConfig(), workload=workload or Workload())
    constraints, objective = constraints or Constraints(), objective or Objective()
    check_caps(constraints, objective, scene)
    predictions = tuple(predict(candidate, scene) for candidate in candidates(scene, table, constraints))
    field = _Field(predictions, scene, objective)
    best = field.best(constraints)
    if best is None:
        raise infeasible(predictions, scene, constraints, objective)
    return SearchResult(
        best=best,
        scene=scene,
        constraints=constraints,
        objective=objective,
        points=_frontier(field, constraints),
        rivals=_rivals(field, best, constraints),
        reliefs=tuple(_relief(field, best, constraints, name) for name in set_caps(constraints)),
        predictions=predictions,
    )


@dataclass(frozen=True, slots=True)
class _Field:
    """All plans of one search."""

    predictions: Sequence[Prediction]
    scene: Scene
    objective: Objective

    def key(self, prediction: Prediction) -> tuple[float, ...]:
        value = objective_value(prediction, self.objective)
        return value, prediction.latency_ms, prediction.uplink_bytes, prediction.device_memory_bytes, prediction.loss_pp

    def broken(self, prediction: Prediction, constraints: Constraints) -> tuple[Broken, ...]:
        return broken_caps(prediction, constraints, self.scene)

    def best(self, constraints: Constraints) -> Prediction | None:
        allowed = (prediction for prediction in self.predictions if not self.broken(prediction, constraints))
        return min(allowed, key=self.key, default=None)


def _frontier(field: _Field, constraints: Constraints) -> tuple[Prediction, ...]:
    """Of the plans that keep the caps which no link changes, those that no other beats in everything."""
    lasting = dataclasses.replace(constraints, **dict.fromkeys(LINK_CAPS & set(set_caps(constraints)), None))
    allowed = [point for point in field.predictions if all(b.field in LINK_CAPS for b in field.broken(point, lasting))]
    costs = np.array([_costs(point) for point in allowed])
    kept = []
    for i, cost in enumerate(costs):
        no_worse, better = (costs <= cost).all(axis=1), (costs < cost).any(axis=1)
        twins = (costs[:i] == cost).all(axis=1)
        if not (no_worse & better).any() and not twins.any():
            kept.append(allowed[i])
    return tuple(sorted(kept, key=field.key))


def _costs(point: Prediction) -> tuple[float, ...]:
    """What a plan takes, apart from the link."""
    own_ms = point.head_ms + point.encode_ms + point.server_ms
    has_delay = point.way != "all-device"
    return (
        own_ms, point.uplink_bytes, has_delay, point.server_busy_ms, point.device_memory_bytes, point.energy_mj or 0.0,
        point.loss_pp,
    )  # fmt: skip


def _rivals(field: _Field, best: Prediction, constraints: Constraints) -> tuple[Rival, ...]:
    """The honest alternatives, and what is best in one respect; each plan once."""

    def rival(what: str, prediction: Prediction | None) -> Rival | None:
        if prediction is None:
            return None
        return Rival(what=what, prediction=prediction, broken=field.broken(prediction, constraints))

    allowed = [p for p in field.predictions if not field.broken(p, constraints)]
    raw = [p for p in field.predictions if p.way == "full-server"]
    elsewhere = [p for p in allowed if p.candidate.cut != best.candidate.cut]
    wanted = [
        rival("raw input to a full server", raw[0] if raw else None),
        rival("all on the device", next((p for p in field.predictions if p.way == "all-device"), None)),
        rival("next best cut", min(elsewhere, key=field.key, default=None)),
        rival("lowest latency", min(allowed, key=lambda p: p.latency_ms, default=None)),
        rival("fewest bytes up", min(allowed, key=lambda p: p.uplink_bytes, default=None)),
        rival("no cap at all", min(field.predictions, key=field.key)),
    ]
    seen, rivals = [best], list[Rival]()
    for found in wanted:
        if found is not None and not any(found.prediction is other for other in seen):
            seen.append(found.prediction)
            rivals.append(found)
    return tuple(rivals)


def _relief(field: _Field, best: Prediction, constraints: Constraints, name: str) -> Relief:
    cap = float(getattr(constraints, name))
    relaxed = field.best(dataclasses.replace(constraints, **{name: cap * RELAXED_BY})) or best
    free = field.best(dataclasses.replace(constraints, **{name: None})) or best
    before = objective_value(best, field.objective)
    return Relief(
        field=name,
        cap=cap,
        value=cap_values(best)[name] or 0.0,
        is_binding=objective_value(free, field.objective) < before - _LEAST_GAIN,
        gain=before - objective_value(relaxed, field.objective),
        relaxed=relaxed,
    )


def infeasible(
    predictions: Sequence[Prediction], scene: Scene, constraints: Constraints, objective: Objective
) -> Infeasible:
    """Says of plans none of which keeps all caps which of these are in the way, and which plans come nearest."""
    field = _Field(predictions, scene, objective)

    def excess(prediction: Prediction) -> tuple[float, ...]:
        return sum(b.excess for b in field.broken(prediction, constraints)), *field.key(prediction)

    ranked = sorted(field.predictions, key=excess)
    nearest = tuple(
        Rival(what="nearest", prediction=p, broken=field.broken(p, constraints)) for p in ranked[:_NUM_NEAREST]
    )
    caps = set_caps(constraints)
    alone = [name for name in caps if field.best(dataclasses.replace(constraints, **{name: None}))]
    binding = tuple(alone) or tuple(b.field for b in nearest[0].broken)
    breaks = " and ".join(map(str, nearest[0].broken))
    hint = "relax one of them" if len(alone) > 1 else "relax it" if alone else "relax all of them"
    cut = nearest[0].prediction.candidate.cut
    where = "all on the device" if cut is None else f"a cut at {cut}"
    return Infeasible(binding, f"no plan keeps all caps; the nearest, {where}, has {breaks}; {hint}", nearest)
