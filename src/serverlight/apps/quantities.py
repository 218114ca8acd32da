"""Times, sizes and shares as people write them: 200ms, 2GiB, 1pp."""

from __future__ import annotations

import re
from collections.abc import Mapping

from serverlight.errors import ConfigError

__all__ = ["read_bytes", "read_energy_mj", "read_ms", "read_pp"]

_QUANTITY = re.compile(r"([+-]?\d+(?:\.\d+)?(?:e[+-]?\d+)?)\s*([a-zA-Z%]*)")

_TIMES = {"us": 1e-3, "ms": 1.0, "s": 1e3}
_SIZES = {
    "b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30,
}  # fmt: skip
_SHARES = {"pp": 1.0, "%": 1.0}
_ENERGIES = {"uj": 1e-3, "mj": 1.0, "j": 1e3}


def read_ms(field: str, text: str) -> float:
    """Milliseconds; raises :class:`ConfigError`.

    >>> read_ms("latency", "0.2s")
    200.0
    """
    return _read(field, text, _TIMES, "a time like 200ms or 1.5s")


def read_bytes(field: str, text: str) -> float:
    """Bytes; raises :class:`ConfigError`.

    >>> read_bytes("device_memory", "2GiB") / 2**20
    2048.0
    """
    return _read(field, text, _SIZES, "a size like 4kB, 512MiB or 2GiB")


def read_pp(field: str, text: str) -> float:
    """Percentage points; raises :class:`ConfigError`.

    >>> read_pp("max_loss", "1pp")
    1.0
    """
    return _read(field, text, _SHARES, "percentage points like 1pp or 0.5pp", zero=True)


def read_energy_mj(field: str, text: str) -> float:
    """Millijoules; raises :class:`ConfigError`.

    >>> read_energy_mj("energy", "0.5J")
    500.0
    """
    return _read(field, text, _ENERGIES, "an energy like 20mJ")


def _read(field: str, text: str, units: Mapping[str, float], wanted: str, *, zero: bool = False) -> float:
    match = _QUANTITY.fullmatch(text.strip())
    unit = units.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(field, f"cannot read {text!r}; give {wanted}")
    value = float(match[1]) * unit
    if not (0 < value < float("inf") or (zero and value == 0)):
        least = "zero or more" if zero else "above zero"
        raise ConfigError(field, f"must be {least}, got {text!r}; leave it out for no cap")
    return value
