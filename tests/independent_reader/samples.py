"""A legal frame of each kind, for tests to spoil."""

from __future__ import annotations

from typing import Any

from independent_reader.model import FLAT, ONE_SIDED_PLANES, TRELLIS
from independent_reader.writer import Sections, write_model, write_sections


def good(kind: int = FLAT, **choices: Any) -> Sections:
    """A frame of two planes of 3 by 5, with an odd end, escapes (half ones if asked for), and raw bits if asked for."""
    high = [(5 * i + i // 7) % 4 - (kind != ONE_SIDED_PLANES and i % 3 == 0) for i in range(30)]
    high[4], high[17] = 20, 300
    if raw_bits := choices.get("raw_bits"):
        choices.setdefault("low", [i % (1 << raw_bits) for i, h in enumerate(high) if h])
    if choices.get("half"):  # parameters that expect large numbers, so that their symbols have a frequency
        choices.setdefault(
            "model",
            write_model(
                [(8, None)] * (1 if kind == ONE_SIDED_PLANES else 2) + [(12, None)] * 3,
                kind if choices.get("short") or kind == TRELLIS else None,
            ),
        )
    return write_sections([2, 3, 5], kind, high, **choices)
