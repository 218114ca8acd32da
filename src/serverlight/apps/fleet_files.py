"""Files that describe a fleet: kinds of devices with their shares, speeds, links and plans."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serverlight.errors import ConfigError
from serverlight.frontier import Frontier
from serverlight.json_files import load_json
from serverlight.link import LinkConfig
from serverlight.search.profile import Profile

__all__ = ["DEFAULT_KINDS", "Kind", "read_kinds"]

DEFAULT_KINDS: tuple[dict[str, Any], ...] = (
    {"name": "small board", "share": 0.3, "speed": 0.1, "link": "4mbit,40ms,20ms"},
    {"name": "phone", "share": 0.5, "speed": 0.4, "link": "20mbit,25ms,10ms"},
    {"name": "laptop", "share": 0.2, "speed": 1.0, "link": "50mbit,5ms,2ms"},
)
"""Where no file is given; speeds are against the machine of the profile."""

_HINT = "a fleet is a JSON list of kinds, each with name, share, link, speed or profile, and perhaps memory_mib and frontier"
_FIELDS = frozenset({"name", "share", "speed", "profile", "link", "memory_mib", "frontier"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """Devices of one kind."""

    name: str
    share: float
    """Of all devices, against the other kinds' shares."""

    device: Profile
    link: LinkConfig
    memory_mib: float | None = None
    frontier: Frontier | None = None
    """What a search has found for it."""


def read_kinds(path: str | None, profile: Profile, frontier: Frontier | None) -> tuple[Kind, ...]:
    """The kinds of a file, or the default ones; ``frontier`` is for those that name none. Raises :class:`ConfigError`."""
    if path is None:
        return tuple(_kind(fields, profile, frontier, pathlib.Path()) for fields in DEFAULT_KINDS)
    found = load_json(path, "fleet", _HINT)
    if not isinstance(found, list) or not found or not all(isinstance(fields, dict) for fields in found):
        raise ConfigError("fleet", f"{path} is something else; {_HINT}")
    kinds = tuple(_kind(fields, profile, frontier, pathlib.Path(path).parent) for fields in found)
    if len({kind.name for kind in kinds}) != len(kinds):
        raise ConfigError("fleet", "two kinds of one name; give each its own")
    return kinds


def _kind(fields: Mapping[str, Any], profile: Profile, frontier: Frontier | None, folder: pathlib.Path) -> Kind:
    name = str(fields.get("name", ""))
    if unknown := sorted(fields.keys() - _FIELDS):
        raise ConfigError("fleet", f"{name!r} has an unknown field {unknown[0]!r}; {_HINT}")
    if "name" not in fields or "share" not in fields:
        raise ConfigError("fleet", f"a kind lacks its name or share; {_HINT}")
    numbers = {field: _number(fields, name, field) for field in ("share", "speed", "memory_mib") if field in fields}
    if "profile" in fields:
        device = Profile.load(folder / str(fields["profile"]))
    else:
        device = profile.scaled(speed=numbers.get("speed", 1.0), name=name)
    if "frontier" in fields:
        frontier = Frontier.load(folder / str(fields["frontier"]))
    return Kind(
        name=name,
        share=numbers["share"],
        device=device,
        link=LinkConfig.parse(str(fields["link"])) if "link" in fields else LinkConfig(),
        memory_mib=numbers.get("memory_mib"),
        frontier=frontier,
    )


def _number(fields: Mapping[str, Any], name: str, field: str) -> float:
    value = fields[field]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigError("fleet", f"{field} of {name!r} must be a positive number, got {value!r}")
    return float(value)
