"""What a search says on one screen: the plan, its rivals, and the reasons; and the same as plain data."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

from serverlight.errors import Infeasible
from serverlight.search.caps import Broken
from serverlight.search.optimise import Relief, Rival, SearchResult
from serverlight.search.prediction import Candidate, Prediction

__all__ = [
    "as_dict",
    "cap_rows",
    "frontier_rows",
    "infeasible_dict",
    "plan_rows",
    "prediction_dict",
    "reasons",
    "settings",
]

PLAN_COLUMNS = (
    "plan", "cut", "settings", "device ms", "link ms", "server ms", "latency ms", "busy ms", "bytes up", "MiB", "loss pp",
    "breaks",
)  # fmt: skip
CAP_COLUMNS = ("cap", "allowed", "the plan's", "binds", "a tenth more buys")

_UNITS = {
    "latency_ms": "ms", "first_token_ms": "ms", "device_memory_mib": "MiB", "uplink_bytes": "bytes",
    "max_quality_loss": "pp", "server_ms": "ms", "energy_mj": "mJ", "requests_per_s": "/s",
}  # fmt: skip
_TOLD = {
    "latency_ms": "latency", "first_token_ms": "first token", "device_memory_mib": "device memory",
    "uplink_bytes": "bytes up", "max_quality_loss": "quality loss", "server_ms": "server time", "energy_mj": "energy",
    "requests_per_s": "load",
}  # fmt: skip
_NOTICEABLE = 1e-3


def plan_rows(named: Sequence[tuple[str, Prediction, Sequence[Broken]]]) -> list[list[str]]:
    """One row for each plan."""
    return [
        [
            what,
            _where(p.candidate),
            settings(p.candidate),
            f"{p.head_ms + p.encode_ms:.2f}",
            f"{p.uplink_ms + p.rtt_ms + p.downlink_ms:.1f}",
            f"{p.server_ms:.2f}",
            f"{p.latency_ms:.1f}",
            f"{p.server_busy_ms:.3f}",
            f"{p.uplink_bytes:,}",
            f"{p.device_memory_mib:.1f}",
            f"{p.loss_pp:.2f}{'' if p.candidate.is_measured else '*'}",
            ", ".join(_TOLD[b.field] for b in broken) or "-",
        ]
        for what, p, broken in named
    ]


def all_plans(result: SearchResult) -> list[tuple[str, Prediction, Sequence[Broken]]]:
    """The chosen one and its rivals."""
    rivals = [(rival.what, rival.prediction, rival.broken) for rival in result.rivals]
    return [("chosen", result.best, ()), *rivals]


def frontier_rows(result: SearchResult) -> list[list[str]]:
    """The plans that no other beats, best first."""
    return plan_rows([(str(i), point, ()) for i, point in enumerate(result.points, 1)])


def cap_rows(result: SearchResult) -> list[list[str]]:
    """What each cap costs."""
    return [
        [
            _TOLD[relief.field],
            _amount(relief.field, relief.cap),
            _amount(relief.field, relief.value),
            "yes" if relief.is_binding else "no",
            _buys(relief, result),
        ]
        for relief in result.reliefs
    ]


def reasons(result: SearchResult) -> Iterator[str]:
    """Sentences: what won, against what, and which caps stand in the way of better."""
    best, device = result.best, result.scene.device
    yield _headline(result)
    yield from _against_rivals(result)
    binding = [relief for relief in result.reliefs if relief.is_binding]
    if not result.reliefs:
        yield "No caps were given."
    elif not binding:
        yield "No cap binds: without them the plan would be the same."
    for relief in binding:
        cap = f"{_TOLD[relief.field]} binds ({_amount(relief.field, relief.cap)})"
        yield f"The cap on {cap}: a tenth more would buy {_buys(relief, result)}."
    if best.candidate.then is not None:
        yield (
            f"The device's memory is full after {best.candidate.tokens} new tokens; then the cut moves to "
            f"{best.candidate.then.cut}. Give the device that cap, so that it does."
        )
    if result.scene.workload.devices > 1:
        yield (
            f"{result.scene.workload.devices} devices: {best.throughput_per_s:.1f} answers a second together, the server busy "
            f"{best.server_utilisation:.0%} of the time, {best.batch_size:.1f} in a batch."
        )
    if best.energy_mj is not None:
        yield f"The device's processor takes {best.energy_mj:.3g} mJ."
    if best.first_token_ms is not None:
        yield f"The first token comes after {best.first_token_ms:.0f} ms, for a prompt of {result.scene.workload.prompt_tokens}."
    yield (
        "Device: head and encoding; server: waiting, decoding, tail, messages; busy: what a request takes from others there; "
        "MiB: on the device."
    )
    yield f"{len(result.predictions)} plans at {len(device.cuts)} cuts were predicted; {len(result.points)} are beaten by no other."


def _headline(result: SearchResult) -> str:
    best, model = result.best, result.scene.device.model
    if best.way == "all-device":
        return f"Run all of {model} on the device: {best.latency_ms:.1f} ms, and nothing crosses the link."
    what = f"frames of about {best.candidate.frame_bytes:,.0f} bytes"
    if best.candidate.is_raw:
        what = "the input as a file" if best.candidate.is_file else "token ids"
    if best.way == "full-server":
        return f"Send {what} and let the server run all of {model}: {best.latency_ms:.1f} ms."
    return f"Cut {model} at {best.candidate.cut} ({settings(best.candidate)}): {best.latency_ms:.1f} ms, {what}."


def _against_rivals(result: SearchResult) -> Iterator[str]:
    for rival in result.rivals:
        if rival.what not in ("raw input to a full server", "all on the device"):
            continue
        if rival.broken:
            yield f"{rival.what.capitalize()} is ruled out: {', '.join(map(_excess, rival.broken))}."
        else:
            times = (
                f"{rival.prediction.server_busy_ms:.3g} ms of the server, {rival.prediction.latency_ms:.1f} ms in all"
            )
            worse = result.value(rival.prediction) - result.value(result.best)
            yield f"{rival.what.capitalize()} is allowed, and worse: {times} (the aim's value is {worse:.3g} higher)."


def settings(candidate: Candidate) -> str:
    """What crosses, in words.

    >>> settings(Candidate(way="all-device"))
    '-'
    """
    if candidate.cut is None:
        return "-"
    if candidate.is_raw:
        return "file" if candidate.is_file else "token ids"
    codec = candidate.codec
    if codec is None or codec.profile == "fp16":
        return "fp16"
    knobs = [f"s {codec.sparsity:g}"]
    knobs += [f"lambda {codec.asymmetry:g}"] if codec.asymmetry != 1 else []
    knobs += [f"M {codec.num_groups}"] if codec.profile == "slicer" else []
    knobs += [f"delta {codec.distortion:g}"] if codec.distortion is not None else []
    knobs += [codec.transform] if codec.transform != "none" else []
    knobs += ["corrected"] if codec.bias_correction else []
    return f"{codec.profile} {' '.join(knobs)}"


def as_dict(result: SearchResult) -> dict[str, Any]:
    """Everything, ready for JSON."""
    return {
        "model": result.scene.device.model,
        "revision": result.scene.device.revision,
        "feasible": True,
        "way": result.best.way,
        "plan": None if result.plan is None else result.plan.to_dict(),
        "chosen": prediction_dict(result.best),
        "constraints": dataclasses.asdict(result.constraints),
        "objective": dataclasses.asdict(result.objective),
        "workload": dataclasses.asdict(result.scene.workload),
        "link": dataclasses.asdict(result.scene.link),
        "binding": list(result.binding),
        "reliefs": [_relief(relief) for relief in result.reliefs],
        "rivals": [_rival(rival) for rival in result.rivals],
        "frontier": [prediction_dict(point) for point in result.points],
        "num_predicted": len(result.predictions),
    }


def infeasible_dict(error: Infeasible) -> dict[str, Any]:
    """What is known where no plan keeps all caps."""
    return {"feasible": False, "binding": list(error.binding), "nearest": [_rival(rival) for rival in error.nearest]}


def prediction_dict(prediction: Prediction) -> dict[str, Any]:
    """Candidate and figures, ready for JSON; ``None`` for what has no end."""
    fields = {f.name: getattr(prediction, f.name) for f in dataclasses.fields(prediction)}
    del fields["stages"]
    candidate = dataclasses.asdict(fields.pop("candidate"))
    finite = {name: value if value is None or math.isfinite(value) else None for name, value in fields.items()}
    totals = {"latency_ms": prediction.latency_ms, "server_ms": prediction.server_ms}
    return {**candidate, **finite, **{name: v if math.isfinite(v) else None for name, v in totals.items()}}


def _rival(rival: Rival) -> dict[str, Any]:
    broken = [
        {"field": b.field, "value": b.value if math.isfinite(b.value) else None, "cap": b.cap} for b in rival.broken
    ]
    return {"what": rival.what, "breaks": broken, **prediction_dict(rival.prediction)}


def _relief(relief: Relief) -> dict[str, Any]:
    fields = {f.name: getattr(relief, f.name) for f in dataclasses.fields(relief)}
    return {**fields, "relaxed": prediction_dict(relief.relaxed)}


def _where(candidate: Candidate) -> str:
    if candidate.cut is None:
        return "-"
    if candidate.then is None:
        return candidate.cut
    return f"{candidate.cut}, {candidate.then.cut} after {candidate.tokens}"


def _excess(broken: Broken) -> str:
    if math.isinf(broken.value):
        return "cannot keep up"
    return f"{_TOLD[broken.field]} {_amount(broken.field, broken.value)} over {_amount(broken.field, broken.cap)}"


def _amount(field: str, value: float) -> str:
    unit = _UNITS[field]
    return f"{value:,.0f} {unit}" if value >= 1000 else f"{value:.3g} {unit}"


def _buys(relief: Relief, result: SearchResult) -> str:
    before = result.value(result.best)
    if relief.gain <= _NOTICEABLE * abs(before):
        return "nothing"
    share = relief.gain / before
    return f"{share:.0%} of the aim ({before:.3g} to {before - relief.gain:.3g}), by {_where(relief.relaxed.candidate)}"
