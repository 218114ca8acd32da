"""Files that hold one JSON value, which people may write by hand."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from serverlight.errors import ConfigError

__all__ = ["load_json", "save_json"]


def save_json(path: str | pathlib.Path, value: Any) -> None:
    """Writes it indented, in UTF-8."""
    pathlib.Path(path).write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")


def load_json(path: str | pathlib.Path, field: str, hint: str = "") -> Any:
    """What a file holds; raises :class:`ConfigError` on ``field`` where it cannot be read, ending in the hint."""
    try:
        return json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(field, f"cannot read {path}: {error}{'; ' if hint else ''}{hint}") from None
