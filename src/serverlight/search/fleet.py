"""Unlike devices and links share one server: everybody's plan, such that the server's budget holds."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from serverlight.errors import ConfigError, Infeasible
from serverlight.link import LinkConfig
from serverlight.search.candidates import candidates
from serverlight.search.caps import broken_caps, check_caps, objective_value
from serverlight.search.constraints import Constraints, Objective, Workload
from serverlight.search.optimise import infeasible
from serverlight.search.predict import predict
from serverlight.search.prediction import Candidate, Prediction, Scene
from serverlight.search.profile import Profile
from serverlight.search.quality import QualityTable

__all__ = ["FleetPlan", "Member", "plan_fleet"]

_LATENCY = Objective(server_ms=0.0, latency_ms=1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One device of a fleet, or several that are alike."""

    name: str
    device: Profile
    link: LinkConfig
    constraints: Constraints = dataclasses.field(default_factory=Constraints)
    requests_per_s: float = 1.0
    """Of each; of a language model, of decode steps."""

    count: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.requests_per_s < math.inf:
            raise ConfigError("requests_per_s", f"must be positive, got {self.requests_per_s!r}")
        if self.count < 1:
            raise ConfigError("count", f"must be at least 1, got {self.count!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetPlan:
    """What each member is to run."""

    predictions: tuple[Prediction, ...]
    """In the order of the members."""

    server_load: float
    """Share of the server's time that all of them take."""

    objective: float
    """Sum over all devices, each request counted as often as it comes."""

    lower_bound: float
    """No choice of plans within the budget has less; the difference is at most one member's last improvement."""

    @property
    def chosen(self) -> tuple[Candidate, ...]:
        """All plans, as something to settle."""
        return tuple(prediction.candidate for prediction in self.predictions)

    @property
    def gap(self) -> float:
        """How far from the best this may be at most, as a share of the objective."""
        return 0.0 if self.objective == 0 else max(0.0, 1 - self.lower_bound / self.objective)


def plan_fleet(
    members: Sequence[Member],
    *,
    server: Profile,
    table: QualityTable,
    budget: float = 0.7,
    workload: Workload | None = None,
    objective: Objective | None = None,
) -> FleetPlan:
    """Chooses a plan for every member that keeps its own caps, such that all together keep the server busy for no more than
    a share ``budget`` of its time, with the least sum of objectives (by default of latencies).

    Everybody begins with the plan that takes least of the server, and whoever gains most for each bit of the server's time
    changes next, along the lower convex hull of its plans: the greedy rule for a knapsack with one choice of each class, whose
    relaxation it solves exactly. That gives the lower bound. Each is predicted as if it waited behind others that keep the
    server as busy as the budget allows (the mean wait of one server with equal work for each, M/D/1).

    Raises:
        Infeasible: a member has no plan that keeps its caps, or all together need more of the server than the budget.
        ConfigError: a budget that is not between 0 and 1.
    """
    if not 0 < budget < 1:
        raise ConfigError("budget", f"must be between 0 and 1, a share of the server's time, got {budget!r}")
    workload, objective = workload or Workload(), objective or _LATENCY
    wait = budget / (2 * (1 - budget))
    ladders = [_hull(_steps(member, server, table, workload, objective, wait)) for member in members]
    load = math.fsum(ladder[0].load for ladder in ladders)
    if load > budget * (1 + 1e-9):
        raise Infeasible(
            ("budget",),
            f"all devices together need {load:.3g} of the server's time at least, allowed is {budget:.3g}; allow more, relax their "
            "caps, or take some to another server",
        )
    return _climb(ladders, load, budget)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Step:
    """One plan of one member: all its devices together."""

    prediction: Prediction
    load: float
    value: float


def _steps(
    member: Member, server: Profile, table: QualityTable, workload: Workload, objective: Objective, wait: float
) -> list[_Step]:
    alone = dataclasses.replace(workload, devices=1, requests_per_s=None)
    scene = Scene(device=member.device, server=server, link=member.link, workload=alone)
    check_caps(member.constraints, objective, scene)
    every = [_behind_others(predict(c, scene), wait) for c in candidates(scene, table, member.constraints)]
    rate = member.requests_per_s * member.count
    steps = [
        _Step(prediction=p, load=p.server_busy_ms / 1e3 * rate, value=objective_value(p, objective) * rate)
        for p in every
        if not broken_caps(p, member.constraints, scene)
    ]
    if not steps:
        why = infeasible(every, scene, member.constraints, objective)
        reason = str(why).removeprefix(f"{', '.join(why.binding)}: ")
        raise Infeasible(why.binding, f"of {member.name!r} {reason}", why.nearest)
    return steps


def _behind_others(prediction: Prediction, wait: float) -> Prediction:
    queue_ms = prediction.queue_ms + wait * prediction.server_busy_ms
    stages = tuple(_behind_others(stage, wait) for stage in prediction.stages)
    return dataclasses.replace(prediction, queue_ms=queue_ms, stages=stages)


def _hull(steps: Sequence[_Step]) -> list[_Step]:
    """From the least load on, those on the lower convex hull of value against load; each gains less for its load than the last."""
    hull = list[_Step]()
    for step in sorted(steps, key=lambda step: (step.load, step.value)):
        if hull and step.value >= hull[-1].value:
            continue
        while len(hull) > 1 and _gain(hull[-2], hull[-1]) <= _gain(hull[-1], step):
            hull.pop()
        hull.append(step)
    return hull


def _gain(before: _Step, after: _Step) -> float:
    """For each bit of the server."""
    more = after.load - before.load
    return math.inf if more <= 0 else (before.value - after.value) / more


def _climb(ladders: Sequence[Sequence[_Step]], load: float, budget: float) -> FleetPlan:
    at, bound_open = [0] * len(ladders), True
    value = bound = math.fsum(ladder[0].value for ladder in ladders)
    rises = [(i, j) for i, ladder in enumerate(ladders) for j in range(1, len(ladder))]
    for i, j in sorted(rises, key=lambda rise: -_gain(ladders[rise[0]][rise[1] - 1], ladders[rise[0]][rise[1]])):
        if at[i] != j - 1:  # an earlier rise of this member did not fit
            continue
        before, after = ladders[i][j - 1], ladders[i][j]
        more, less = after.load - before.load, before.value - after.value
        if load + more <= budget:
            at[i], load, value = j, load + more, value - less
            bound = value if bound_open else bound
        elif bound_open:  # the relaxation takes the part of it that fits, and is done
            bound, bound_open = value - less * (budget - load) / more, False
    return FleetPlan(
        predictions=tuple(ladder[k].prediction for ladder, k in zip(ladders, at, strict=True)),
        server_load=load,
        objective=value,
        lower_bound=bound,
    )
