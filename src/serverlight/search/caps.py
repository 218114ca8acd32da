"""Which caps a prediction breaks, by how much, and what a plan is worth by an objective."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from serverlight.errors import ConfigError
from serverlight.search.constraints import Constraints, Objective
from serverlight.search.prediction import Prediction, Scene

__all__ = [
    "LINK_CAPS",
    "LOAD",
    "Broken",
    "broken_caps",
    "cap_values",
    "check_caps",
    "objective_value",
    "set_caps",
    "share_of",
]

LOAD = "requests_per_s"
"""Stands among the caps: a plan must keep up with what is asked."""

LINK_CAPS = {"latency_ms", "first_token_ms", LOAD}
"""What changes with the link."""

_SLACK = 1e-9
_LEAST_LOSS_PP = 0.1
"""A cap of no loss at all is measured against so much."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Broken:
    """A cap that a plan does not keep."""

    field: str
    value: float
    cap: float

    @property
    def excess(self) -> float:
        """How far above, as a share of the cap."""
        return share_of(self.cap, self.value - self.cap)

    def __str__(self) -> str:
        return f"{self.field} {self.value:.4g} (cap {self.cap:.4g})"


def share_of(cap: float, value: float) -> float:
    """A value as a share of a cap."""
    return value / max(cap, _LEAST_LOSS_PP)


def set_caps(constraints: Constraints) -> Mapping[str, float]:
    """The caps that there are."""
    fields = {field.name: getattr(constraints, field.name) for field in dataclasses.fields(constraints)}
    return {name: value for name, value in fields.items() if value is not None}


def cap_values(prediction: Prediction) -> Mapping[str, float | None]:
    """What each cap is compared with. Of a plan with an early exit each step counts, so the worse of its stages."""

    def worst(of: Callable[[Prediction], float | None]) -> float | None:
        values = [value for stage in prediction.stages or (prediction,) if (value := of(stage)) is not None]
        return max(values, default=None)

    return {
        "latency_ms": worst(lambda p: p.latency_ms),
        "first_token_ms": prediction.first_token_ms,
        "device_memory_mib": prediction.device_memory_mib,
        "uplink_bytes": worst(lambda p: p.uplink_bytes),
        "max_quality_loss": prediction.loss_pp,
        "server_ms": worst(lambda p: p.server_busy_ms),
        "energy_mj": worst(lambda p: p.energy_mj),
    }


def broken_caps(prediction: Prediction, constraints: Constraints, scene: Scene) -> tuple[Broken, ...]:
    """In the order of the caps."""
    return tuple(_broken(prediction, constraints, scene))


def _broken(prediction: Prediction, constraints: Constraints, scene: Scene) -> Iterator[Broken]:
    values = cap_values(prediction)
    if math.isinf(prediction.latency_ms):
        yield Broken(field=LOAD, value=math.inf, cap=scene.workload.requests_per_s or math.inf)
    for name, cap in set_caps(constraints).items():
        value = values[name]
        if value is not None and value > cap * (1 + _SLACK) + _SLACK:
            yield Broken(field=name, value=value, cap=cap)


def check_caps(constraints: Constraints, objective: Objective, scene: Scene) -> None:
    """Raises :class:`ConfigError` for caps and weights of what is not known or does not exist here."""
    if constraints.first_token_ms is not None and not scene.is_text:
        raise ConfigError("first_token_ms", "is for language models; give latency_ms for any other")
    if scene.device.watts is None and (constraints.energy_mj is not None or objective.energy_mj):
        raise ConfigError(
            "energy_mj", "the device's profile does not say what it draws; write `watts` into its file, or leave it out"
        )


def objective_value(prediction: Prediction, objective: Objective) -> float:
    """The weighted sum."""
    parts = (
        (objective.server_ms, prediction.server_busy_ms),
        (objective.latency_ms, prediction.latency_ms),
        (objective.uplink_kib, prediction.uplink_bytes / 1024),
        (objective.energy_mj, prediction.energy_mj or 0.0),
    )
    return sum(weight * value for weight, value in parts if weight)
