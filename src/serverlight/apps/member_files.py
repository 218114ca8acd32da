"""Files that describe the devices of a fleet whose plans are searched together (docs/search.md, "A fleet")."""

from __future__ import annotations

import dataclasses
import pathlib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from serverlight.apps.search_options import CapOptions
from serverlight.errors import ConfigError
from serverlight.json_files import load_json
from serverlight.link import LinkConfig
from serverlight.search.constraints import Constraints
from serverlight.search.fleet import Member
from serverlight.search.profile import Profile

__all__ = ["FleetFile", "read_fleet"]

DEFAULT_BUDGET = 0.7
"""Share of the server's time; the rest is for when many ask at once."""

MAX_DEVICES = 1_000_000

_HINT = "a fleet file has `devices`, a list with a name for each kind, and perhaps `budget`; docs/search.md shows one"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,63}")
_CAPS = tuple(field.name for field in dataclasses.fields(CapOptions) if field.name != "minimise")
_FIELDS = ("name", "count", "rate", "link", "speed", "profile", *_CAPS)


@dataclass(frozen=True, kw_only=True, slots=True)
class FleetFile:
    """What such a file says."""

    members: tuple[Member, ...]
    budget: float
    """Share of the server's time that all may take together."""


def read_fleet(path: str, *, device: Profile, link: LinkConfig, caps: Constraints, requests_per_s: float) -> FleetFile:
    """Reads TOML, or JSON where the name ends so. Raises :class:`ConfigError` with the field and whose it is.

    Args:
        path: the file; the profiles that it names lie beside it, or where their absolute paths say.
        device: of those kinds that name no profile; their ``speed`` is against it.
        link: of those that name none.
        caps: that hold where a kind has none of its own in that respect.
        requests_per_s: of each device of those that name no ``rate``.
    """
    found = _load(path)
    if not isinstance(found, dict) or (unknown := sorted(found.keys() - {"budget", "devices"})):
        raise ConfigError(
            "fleet", f"{path} has {unknown[0]!r}; {_HINT}" if isinstance(found, dict) else f"{path}: {_HINT}"
        )
    entries = found.get("devices")
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError("devices", f"must be a list of tables, one for each kind; {_HINT}")
    budget = _number("budget", found.get("budget", DEFAULT_BUDGET), "budget")
    if budget >= 1:
        raise ConfigError("budget", f"must be below 1, a share of the server's time, got {budget:g}")
    reader = _Reader(folder=pathlib.Path(path).parent, device=device, link=link, caps=caps, rate=requests_per_s)
    members = tuple(reader.member(index, entry) for index, entry in enumerate(entries, start=1))
    if len({member.name.lower() for member in members}) != len(members):
        raise ConfigError("name", "two kinds of devices have the same; give each its own")
    return FleetFile(members=members, budget=budget)


def _load(path: str) -> Any:
    if pathlib.Path(path).suffix.lower() == ".json":
        return load_json(path, "fleet", _HINT)
    try:
        return tomllib.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError("fleet", f"cannot read {path}: {error}; {_HINT}") from None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reader:
    """What holds where a kind says nothing."""

    folder: pathlib.Path
    device: Profile
    link: LinkConfig
    caps: Constraints
    rate: float

    def member(self, index: int, entry: Mapping[str, Any]) -> Member:
        name = entry.get("name")
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigError(
                "name",
                f"of kind {index} must be 1 to 64 of A-Z a-z 0-9 space . _ - that begin with a letter or digit, got {name!r}",
            )
        if unknown := sorted(entry.keys() - set(_FIELDS)):
            raise ConfigError(unknown[0], f"of {name!r} is no field of a kind; there are {', '.join(_FIELDS)}")
        count = _number("count", entry.get("count", 1), name)
        if count != int(count) or count > MAX_DEVICES:
            raise ConfigError("count", f"of {name!r} must be a whole number up to {MAX_DEVICES:,}, got {count:g}")
        return Member(
            name=name,
            device=self._profile(name, entry),
            link=self._link(name, entry),
            constraints=self._caps(name, entry),
            requests_per_s=_number("rate", entry.get("rate", self.rate), name),
            count=int(count),
        )

    def _profile(self, name: str, entry: Mapping[str, Any]) -> Profile:
        speed = _number("speed", entry.get("speed", 1.0), name)
        device = self.device
        if "profile" in entry:
            try:
                device = Profile.load(self.folder / _text("profile", entry["profile"], name))
            except ConfigError as error:
                raise ConfigError("profile", f"of {name!r}: {error}") from None
        return device if speed == 1.0 else device.scaled(speed=speed, name=name)

    def _link(self, name: str, entry: Mapping[str, Any]) -> LinkConfig:
        if "link" not in entry:
            return self.link
        try:
            return LinkConfig.parse(_text("link", entry["link"], name))
        except ConfigError as error:
            raise ConfigError("link", f"of {name!r}: {str(error).removeprefix('link: ')}") from None

    def _caps(self, name: str, entry: Mapping[str, Any]) -> Constraints:
        words = {field: _text(field, entry[field], name) for field in _CAPS if field in entry}
        try:
            own, _ = CapOptions(**words).read()
        except ConfigError as error:
            raise ConfigError(error.field, f"of {name!r} {str(error).removeprefix(f'{error.field}: ')}") from None
        fields = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
        return dataclasses.replace(self.caps, **{field: value for field, value in fields.items() if value is not None})


def _number(field: str, value: object, whose: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ConfigError(field, f"of {whose!r} must be a positive number, got {value!r}")
    return float(value)


def _text(field: str, value: object, whose: str) -> str:
    if not isinstance(value, str):
        raise ConfigError(field, f"of {whose!r} must be text in quotes, got {value!r}")
    return value
