"""Links as people write them in a command."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from serverlight.errors import ConfigError
from serverlight.link.config import RATES, TIMES_MS, LinkConfig
from serverlight.link.models import FixedLink, GilbertElliott, LinkModel, Rayleigh
from serverlight.link.trace import LinkTrace

__all__ = ["parse_link_model"]

_HINT = (
    "write 10mbit,20ms, or rayleigh:bandwidth=5mhz,snr=15db,block=100ms,delay=20ms, or "
    "ge:good=50mbit,bad=500kbit,good_for=9s,bad_for=1s,delay=20ms, or the path of a .csv file"
)
_QUANTITY = re.compile(r"(-?\d+(?:\.\d+)?)([a-z]+)")
_HERTZ = {"khz": 1e3, "mhz": 1e6, "ghz": 1e9}
_SECONDS = {unit: ms / 1e3 for unit, ms in TIMES_MS.items()}

_RAYLEIGH = {  # word -> field, units
    "bandwidth": ("bandwidth_hz", _HERTZ),
    "snr": ("snr_db", {"db": 1.0}),
    "block": ("block_s", _SECONDS),
    "delay": ("delay_ms", TIMES_MS),
    "jitter": ("jitter_ms", TIMES_MS),
}
_GILBERT_ELLIOTT = {
    "good": ("good", RATES),
    "bad": ("bad", RATES),
    "good_for": ("good_for_s", _SECONDS),
    "bad_for": ("bad_for_s", _SECONDS),
    "delay": ("delay_ms", TIMES_MS),
    "jitter": ("jitter_ms", TIMES_MS),
}


def parse_link_model(text: str) -> LinkModel:
    """Reads a fixed link, ``rayleigh:...``, ``ge:...`` or the path of a CSV file; raises :class:`ConfigError`.

    >>> parse_link_model("rayleigh:bandwidth=5mhz,snr=15db").bandwidth_hz
    5000000.0
    >>> parse_link_model("ge:good=50mbit,bad=cut,good_for=9s,bad_for=500ms,delay=5ms").typical(0.2).delay_ms
    5.0
    """
    kind, colon, rest = text.strip().partition(":")
    if text.strip().endswith(".csv"):
        return LinkTrace.load(text.strip())
    if colon and kind in _KINDS:
        return _KINDS[kind](rest)
    if colon:
        raise ConfigError("model", f"{kind!r} is none of {', '.join(_KINDS)}; {_HINT}")
    return FixedLink(link=LinkConfig.parse(text))


def _rayleigh(text: str) -> LinkModel:
    return _build(Rayleigh, _read_fields(text, _RAYLEIGH))


def _gilbert_elliott(text: str) -> LinkModel:
    fields = _read_fields(text, _GILBERT_ELLIOTT)
    times = {name: fields.pop(name) for name in ("delay_ms", "jitter_ms") if name in fields}
    for name in {"good", "bad"} & set(fields):
        fields[name] = None if fields[name] is None else LinkConfig(rate_bits_per_s=fields[name], **times)
    if fields.get("good", ...) is None:
        raise ConfigError("good", f"needs a rate; {_HINT}")
    return _build(GilbertElliott, fields)


_KINDS: dict[str, Callable[[str], LinkModel]] = {"rayleigh": _rayleigh, "ge": _gilbert_elliott}


def _build(kind: Callable[..., LinkModel], fields: Mapping[str, Any]) -> LinkModel:
    try:
        return kind(**fields)
    except TypeError as error:
        raise ConfigError("model", f"{str(error).partition('()')[2].strip()}; {_HINT}") from None


def _read_fields(text: str, known: Mapping[str, tuple[str, Mapping[str, float]]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for part in text.lower().split(","):
        word, _, value = (piece.strip() for piece in part.partition("="))
        if word not in known or known[word][0] in fields:
            raise ConfigError("model", f"{word!r} is given twice, or none of {', '.join(known)}; {_HINT}")
        field, units = known[word]
        match = _QUANTITY.fullmatch(value)
        if value == "cut" and word == "bad":
            fields[field] = None
        elif match and match[2] in units:
            fields[field] = float(match[1]) * units[match[2]]
        else:
            raise ConfigError(word, f"cannot read {value!r}, the units are {', '.join(units)}; {_HINT}")
    return fields
