"""Contexts of tokens: how busy a channel has been, and which way it leans (docs/wire-format.md, section 6.4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["ACTIVITY", "THRESHOLDS", "forgetting", "nearest_activity", "thresholds_for"]

ACTIVITY = np.array([((8 + (v & 7)) << (v >> 3)) >> 3 for v in range(160)], np.int64)
"""Starting activities: eight steps an octave, in units of a 128th of a quantiser step a token."""

THRESHOLDS = np.array([64, 96, 140, 200, 280, 420, 680], np.int64)
"""Borders between the eight classes of activity, in 256ths of the starting activity."""


def nearest_activity(magnitude_sum: int, num_elements: int) -> int:
    """Index of the starting activity nearest to 128 times the mean magnitude."""
    mean = max(1, (128 * magnitude_sum) // max(num_elements, 1))
    return int(np.abs(ACTIVITY - mean).argmin())


def thresholds_for(start: int) -> npt.NDArray[np.int32]:
    """The seven borders for a starting activity."""
    borders: npt.NDArray[np.int32] = np.maximum(1, (start * THRESHOLDS) >> 8).astype(np.int32)
    return borders


def forgetting(pair: int) -> int:
    """Shift by which the newest pair of tokens enters the running means: fast at first, then an eighth."""
    return 1 if pair == 0 else (2 if pair < 3 else 3)
