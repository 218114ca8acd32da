"""How sure one may be of the fewest bits at which a codec keeps the quality: a bootstrap that chooses the setting anew each time.

The cheapest setting within a loss is a choice made on the samples that it is then quoted on, and the loss of a setting is less
certain than its neighbours in the grid are apart. So the samples are drawn anew (Efron and Tibshirani 1993, An Introduction to the
Bootstrap, chapters 8 and 13), and in each draw every codec gets the cheapest of its settings that keeps the quality in that draw.
All codecs see the same draws, so ratios between them are paired. Only settings that were measured on all samples take part; the
search measures those around the border.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from serverlight.evaluation.tasks.task import Floats, Ints, resamples

__all__ = ["Draws", "bits_in_resamples", "cheapest_bits"]

TINY_PP = 1e-9
"""A loss of exactly the limit may come out a rounding error above it."""


@dataclass(frozen=True, eq=False, slots=True)
class Draws:
    """One setting in each of a task's resamples, which are the same for all settings."""

    bits: Floats
    """Bits per element (resamples,)."""

    deltas_pp: Floats
    """The figure less that of the uncut model, in percentage points (resamples,)."""


def bits_in_resamples(sizes: Ints, elements: Ints, num_samples: int) -> Floats:
    """Bits per element in each resample, (resamples,).

    Args:
        sizes: bytes of each message, (messages,).
        elements: elements of each message, (messages,).
        num_samples: samples, each of as many messages in a row.
    """
    chosen = resamples(num_samples)
    sent, needed = (values.reshape(num_samples, -1).sum(1)[chosen].sum(1) for values in (sizes, elements))
    return np.asarray(8 * sent / needed)


def cheapest_bits(settings: Sequence[Draws], max_loss_pp: float) -> Floats:
    """In each resample the bits of the cheapest setting that keeps the quality there, (resamples,).

    In a resample where none does, the one with the least loss stands for the codec.

    >>> coarse, fine = Draws(np.array([1.0, 1.0]), np.array([-0.5, -2.0])), Draws(np.array([3.0, 3.0]), np.zeros(2))
    >>> cheapest_bits([coarse, fine], 1.0)
    array([1., 3.])
    """
    bits, deltas = (np.stack([getattr(one, field) for one in settings]) for field in ("bits", "deltas_pp"))
    keeps = deltas >= -max_loss_pp - TINY_PP
    least = np.where(keeps, bits, np.inf).min(0)
    spare = np.take_along_axis(bits, deltas.argmax(0)[None], 0)[0]
    return np.asarray(np.where(keeps.any(0), least, spare))
