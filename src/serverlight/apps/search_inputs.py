"""Profiles and qualities for a search, from files or measured now."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from serverlight.apps.terminal import progress_bar
from serverlight.errors import ConfigError

if TYPE_CHECKING:
    from serverlight.search.profile import Profile
    from serverlight.search.quality import QualityTable
    from serverlight.search.settle import Chosen

__all__ = ["Measured", "gather"]

_T = TypeVar("_T")
_R = TypeVar("_R", bound="Chosen")

SHIPPED = ("demo-vision", "demo-lm")
"""Models with data of their own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What a search goes by."""

    device: Profile
    server: Profile
    table: QualityTable
    data: str | None
    """Where the table's samples are to be had, as the user said."""

    def settle(self, choose: Callable[[QualityTable], _R]) -> _R:
        """The search, on measured losses as far as there is something to measure them on."""
        from serverlight.apps.commands.calibrate import measure_table
        from serverlight.search.settle import settle

        model = self.device.model
        if self.data is None and model not in SHIPPED:
            return choose(self.table)
        return settle(
            self.table, choose, lambda cut, codec: measure_table(model, self.data, [cut], configs=[codec], budget=1)
        )[0]

    @property
    def notes(self) -> list[str]:
        """Where the figures come from, and how good they are."""
        table = self.table
        quality = f"Quality: {table.metric} on {table.num_samples} samples, {len(table.rows)} settings"
        if table.held_out_error_pp is not None:
            quality += f", a part of them predicted (*) to {table.held_out_error_pp:.2f} pp"
        sides = " and ".join(
            f"{_machine(profile)} as {side}" for side, profile in (("device", self.device), ("server", self.server))
        )
        return [f"{quality}. Times: {sides}."]


def gather(model: str, *, device: str | None, server: str | None, quality: str | None, data: str | None) -> Measured:
    """Raises :class:`ConfigError` with the option's name for a file that cannot be read, or is of another model."""
    from serverlight.search.profile import Profile
    from serverlight.search.quality import QualityTable

    given = {
        side: None if path is None else _read(side, Profile.load, path)
        for side, path in (("device_profile", device), ("server_profile", server))
    }
    table = None if quality is None else _read("quality", QualityTable.load, quality)
    here = _profile_here(model) if None in given.values() else None
    one, other = (profile or here for profile in given.values())
    assert one is not None
    assert other is not None
    return Measured(device=one, server=other, table=table or _calibrate_here(one, data), data=data)


def _read(field: str, load: Callable[[str], _T], path: str) -> _T:
    try:
        return load(path)
    except ConfigError as error:
        raise ConfigError(field, str(error)) from None


def _profile_here(model: str) -> Profile:
    from serverlight.search.measure import profile_model

    with progress_bar("profiling", 1) as (bar, task):
        return profile_model(model, progress=lambda done, total: bar.update(task, completed=done, total=total))


def _calibrate_here(profile: Profile, data: str | None) -> QualityTable:
    """Measured once for each model and data, and kept."""
    from serverlight import __version__
    from serverlight.apps.commands.calibrate import measure_table
    from serverlight.search.profile_cache import cache_folder
    from serverlight.search.quality import QualityTable

    words = "\n".join((profile.model, profile.revision, str(data), __version__))
    path = cache_folder() / "qualities" / f"{hashlib.sha256(words.encode()).hexdigest()[:16]}.json"
    with contextlib.suppress(ConfigError):
        return QualityTable.load(path)
    table = measure_table(profile.model, data, None)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        table.save(path)
    return table


def _machine(profile: Profile) -> str:
    machine = profile.machine
    return str(machine.get("name") or machine.get("cpu") or "a machine described by hand")
