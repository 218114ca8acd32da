"""Profiles that were measured before, in the user's cache folder: one for each model, machine and version of the software."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

from serverlight.errors import ConfigError
from serverlight.search.profile import Profile

__all__ = ["CACHE_VARIABLE", "ProfileCache", "cache_folder"]

CACHE_VARIABLE = "SERVERLIGHT_CACHE"
"""Names another folder than the user's cache."""


class ProfileCache:
    """Files named by the model and by a digest of all that a profile depends on."""

    def __init__(self, folder: pathlib.Path | None = None) -> None:
        self._folder = folder or cache_folder() / "profiles"

    def path(self, key: Mapping[str, Any]) -> pathlib.Path:
        """Where the profile with this key is kept."""
        digest = hashlib.sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
        name = re.sub(r"[^\w.-]+", "-", str(key.get("model", "model"))).strip("-.")[-48:]
        return self._folder / f"{name}-{digest}.json"

    def find(self, key: Mapping[str, Any]) -> Profile | None:
        """What was stored under this key; a file that cannot be read is as good as none."""
        with contextlib.suppress(ConfigError, TypeError):
            return Profile.load(self.path(key))
        return None

    def store(self, key: Mapping[str, Any], profile: Profile) -> None:
        """Keeps a profile; a folder that cannot be written to costs only the next measurement."""
        path = self.path(key)
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(f".{os.getpid()}")
            profile.save(unfinished)
            unfinished.replace(path)  # whoever reads meanwhile reads the old one or the new one


def cache_folder() -> pathlib.Path:
    """Where what was measured and chosen on this machine is kept."""
    if named := os.environ.get(CACHE_VARIABLE):
        return pathlib.Path(named)
    caches = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or pathlib.Path.home() / ".cache"
    return pathlib.Path(caches) / "serverlight"
