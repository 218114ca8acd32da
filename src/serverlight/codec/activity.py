"""Contexts of tokens: how busy a channel has been, and which way it leans (docs/wire-format.md, section 6.4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = [
    "ACTIVITY",
    "LARGEST_START",
    "MAX_SPREAD",
    "NO_SPREADS",
    "SLOW",
    "SPREAD_BITS",
    "THRESHOLDS",
    "forgetting",
    "nearest_activity",
    "spreads_of",
    "starts_for",
    "thresholds_for",
]

Spreads = npt.NDArray[np.uint8]

ACTIVITY = np.array([((8 + (v & 7)) << (v >> 3)) >> 3 for v in range(160)], np.int64)
"""Starting activities: eight steps an octave, in units of a 128th of a quantiser step a token."""

NO_SPREADS: Spreads = np.empty(0, np.uint8)
"""Stands for none: then all channels start alike."""
NO_SPREADS.setflags(write=False)  # as those of a basis: compiled functions tell such arrays apart

MAX_SPREAD = 127
"""The largest index of a spread; 64 is an even channel's."""

SPREAD_BITS = 8
"""A spread's worth is ``ACTIVITY`` of its index, in 256ths of the starting activity."""

LARGEST_START = 32640
"""A channel starts with no more, which fits 16 bits."""

SLOW = 3
"""Where channels have spreads, what they start with is worth as much as an eighth of what comes, from the first pair on."""

THRESHOLDS = np.array([64, 96, 140, 200, 280, 420, 680], np.int64)
"""Borders between the eight classes of activity, in 256ths of the starting activity."""


def nearest_activity(magnitude_sum: int, num_elements: int) -> int:
    """Index of the starting activity nearest to 128 times the mean magnitude."""
    mean = max(1, (128 * magnitude_sum) // max(num_elements, 1))
    return int(np.abs(ACTIVITY - mean).argmin())


def thresholds_for(start: int | npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
    """The seven borders for a starting activity; of many, shape (..., 1), those of each, shape (..., 7)."""
    borders: npt.NDArray[np.int32] = np.maximum(1, (start * THRESHOLDS) >> 8).astype(np.int32)
    return borders


def forgetting(pair: int, has_spreads: bool) -> int:
    """Shift by which the newest pair of tokens enters the running means: fast at first, then an eighth."""
    if has_spreads:
        return SLOW
    return 1 if pair == 0 else (2 if pair < 3 else 3)


def starts_for(start: int, spreads: Spreads) -> npt.NDArray[np.int64]:
    """The activity that each channel starts with, shape (D,); ``start`` is the index of the starting activity."""
    starts: npt.NDArray[np.int64] = np.clip(ACTIVITY[start] * ACTIVITY[spreads] >> SPREAD_BITS, 1, LARGEST_START)
    return starts


def spreads_of(magnitudes: npt.NDArray[np.float64]) -> Spreads:
    """The spreads of channels whose mean magnitudes are known, shape (D,)."""
    worth = magnitudes / max(float(magnitudes.mean()), 1e-300) * (1 << SPREAD_BITS)
    nearest: Spreads = np.abs(ACTIVITY[: MAX_SPREAD + 1] - worth[:, None]).argmin(axis=1).astype(np.uint8)
    return nearest
