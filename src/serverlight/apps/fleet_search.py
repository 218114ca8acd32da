"""``serverlight search --fleet``: everybody's plan, such that the server's budget holds, as a table, as JSON and as files."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from serverlight.apps.search_tables import prediction_dict, settings
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.apps.member_files import FleetFile
    from serverlight.search.fleet import FleetPlan

__all__ = ["COLUMNS", "fleet_dict", "fleet_lines", "fleet_rows", "save_plans"]

COLUMNS = (
    "devices", "plan", "cut", "settings", "number", "device ms", "link ms", "server ms", "latency ms", "bytes up", "MiB",
    "loss pp", "of the server",
)  # fmt: skip
_WAYS = {"split": "split", "full-server": "full server", "all-device": "all on the device"}


def fleet_rows(fleet: FleetFile, found: FleetPlan) -> list[list[str]]:
    """A row for each kind of devices."""
    return [
        [
            member.name,
            _WAYS[p.way],
            p.candidate.cut or "-",
            settings(p.candidate),
            f"{member.count:,}",
            f"{p.head_ms + p.encode_ms:.2f}",
            f"{p.uplink_ms + p.rtt_ms + p.downlink_ms:.1f}",
            f"{p.server_ms:.2f}",
            f"{p.latency_ms:.1f}",
            f"{p.uplink_bytes:,}",
            f"{p.device_memory_mib:.1f}",
            f"{p.loss_pp:.2f}{'' if p.candidate.is_measured else '*'}",
            f"{load:.1%}",
        ]
        for member, p, load in zip(fleet.members, found.predictions, _loads(fleet, found), strict=True)
    ]


def fleet_lines(fleet: FleetFile, found: FleetPlan) -> Iterator[str]:
    """What all of them take together, and how good that is."""
    number = sum(member.count for member in fleet.members)
    yield (
        f"{number:,} devices keep the server busy {found.server_load:.1%} of the time; the budget is {fleet.budget:.0%}. "
        "Waiting is predicted for a server as busy as that."
    )
    if found.gap < 1e-6:
        yield "No other choice of plans within the budget has a better sum over all requests."
    else:
        yield f"No choice of plans within the budget is better by more than {found.gap:.2%} of the sum over all requests."


def fleet_dict(fleet: FleetFile, found: FleetPlan) -> dict[str, Any]:
    """Everything, ready for JSON."""
    first = fleet.members[0].device
    return {
        "model": first.model,
        "revision": first.revision,
        "feasible": True,
        "budget": fleet.budget,
        "server_load": found.server_load,
        "objective": found.objective,
        "gap": found.gap,
        "devices": [
            {
                "name": member.name,
                "count": member.count,
                "requests_per_s": member.requests_per_s,
                "link": dataclasses.asdict(member.link),
                "constraints": dataclasses.asdict(member.constraints),
                "way": p.way,
                "plan": None if (plan := p.plan(first.model, first.revision)) is None else plan.to_dict(),
                "server_load": load,
                "chosen": prediction_dict(p),
            }
            for member, p, load in zip(fleet.members, found.predictions, _loads(fleet, found), strict=True)
        ],
    }


def save_plans(fleet: FleetFile, found: FleetPlan, folder: str) -> None:
    """Writes ``NAME.json`` for each kind that needs a server; raises :class:`ConfigError` where the folder cannot be made."""
    first = fleet.members[0].device
    try:
        pathlib.Path(folder).mkdir(exist_ok=True)
    except OSError as error:
        raise ConfigError("save", f"of a fleet is a folder, and {folder!r} cannot be one: {error.strerror}") from None
    for member, prediction in zip(fleet.members, found.predictions, strict=True):
        if (plan := prediction.plan(first.model, first.revision)) is not None:
            plan.save(pathlib.Path(folder) / f"{member.name}.json")


def _loads(fleet: FleetFile, found: FleetPlan) -> Sequence[float]:
    """Share of the server's time that each kind takes."""
    return [
        p.server_busy_ms / 1e3 * member.requests_per_s * member.count
        for member, p in zip(fleet.members, found.predictions, strict=True)
    ]
