"""Profile ``serverlight`` in NumPy: values and signed numbers of steps (docs/wire-format.md, sections 6.2, 6.7 and 7)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serverlight.codec.backends import Float32
from serverlight.codec.backends.slicer import scores_of
from serverlight.codec.coded import (
    LARGEST_NUMBER,
    NUM_SHIFTS,
    ROUNDING,
    SHIFT_UNIT,
    Coded,
    floor_rank,
    has_half_escapes,
    is_one_sided_kind,
    needs_raw_bit,
    sample_run,
    sample_stride,
    settled_shifts,
)
from serverlight.codec.config import CodecConfig
from serverlight.codec.layout import Grid, Layout
from serverlight.codec.tables import Ints
from serverlight.errors import InconsistentFrame

__all__ = [
    "choose_raw_bits",
    "join_raw",
    "measure_shifts",
    "quantise",
    "reconstruct",
    "split_raw",
    "step_threshold",
]

LARGEST_QUOTIENT = np.float32(LARGEST_NUMBER)


def step_threshold(values: Float32, kept: npt.NDArray[np.int64], config: CodecConfig) -> np.float32:
    """The magnitude that the step follows from: the least kept, or that reaches the least score kept, but not too small a one."""
    magnitudes = np.abs(values)
    if config.asymmetry_mode == "budget":
        least = magnitudes[kept].min()
    else:
        scores = scores_of(values, config.asymmetry)
        least = magnitudes[scores >= scores[kept].min()].min()
    nonzero = np.sort(magnitudes[magnitudes > 0])
    threshold: np.float32 = max(least, nonzero[-floor_rank(len(nonzero))])
    return threshold


def quantise(values: Float32, kept: npt.NDArray[np.int64], step: np.float32) -> Ints:
    """Signed numbers of steps, shape (n,): zero for what is dropped, at least one in magnitude for what is kept."""
    with np.errstate(over="ignore"):  # beyond the largest quotient infinity is as good as any
        scaled = np.abs(values[kept]) * (np.float32(1) / step)
    quotients = np.floor(np.minimum(scaled, LARGEST_QUOTIENT) + ROUNDING)
    quantised = np.zeros(len(values), np.int64)
    quantised[kept] = np.maximum(quotients.astype(np.int64), 1) * np.where(values[kept] < 0, -1, 1)
    return quantised


def choose_raw_bits(quantised: Ints, kind: int) -> tuple[int, bool]:
    """The number of raw bits, and whether half escapes pay: what numbers too large for a nibble call for (section 7)."""
    magnitudes, bits = np.abs(quantised), 0
    num_kept, largest = int(np.count_nonzero(magnitudes)), 14 if is_one_sided_kind(kind) else 7
    while needs_raw_bit(num_large := int((magnitudes > largest << bits).sum()), num_kept, kind):
        bits += 1
    return bits, has_half_escapes(num_large, num_kept)


def split_raw(quantised: Ints, raw_bits: int) -> tuple[Ints, npt.NDArray[np.uint8]]:
    """High parts, signed and zero where the number is zero; and the low bits of the others, packed (section 6.6)."""
    if raw_bits == 0:
        return quantised, np.zeros(0, np.uint8)
    magnitudes = np.abs(quantised)
    high = (magnitudes + (1 << raw_bits) - 1) >> raw_bits
    low = (magnitudes[magnitudes > 0] - 1) & ((1 << raw_bits) - 1)
    bits = (low[:, None] >> np.arange(raw_bits)) & 1
    return np.where(quantised < 0, -high, high), np.packbits(bits.astype(np.uint8), bitorder="little")


def join_raw(high: Ints, raw: npt.NDArray[np.uint8], raw_bits: int) -> Ints:
    """The inverse of :func:`split_raw`; raises :class:`InconsistentFrame` unless the raw section has just the bits needed."""
    nonzero = np.flatnonzero(high)
    num_bits = raw_bits * len(nonzero)
    bits = np.unpackbits(raw, bitorder="little")
    if len(raw) != (num_bits + 7) // 8 or bits[num_bits:].any():
        raise InconsistentFrame(
            f"raw bits: {len(raw)} bytes for {len(nonzero)} numbers of {raw_bits} bits, or dirty padding"
        )
    if raw_bits == 0:
        return high
    low = (bits[:num_bits].reshape(-1, raw_bits).astype(np.int64) << np.arange(raw_bits)).sum(axis=1)
    quantised = np.zeros_like(high)
    magnitudes = ((np.abs(high[nonzero]) - 1) << raw_bits) + low + 1
    quantised[nonzero] = np.where(high[nonzero] < 0, -magnitudes, magnitudes)
    return quantised


def reconstruction_classes(high: Ints, kind: int, one_sided: bool, grid: Grid) -> tuple[Ints, Ints]:
    """Class, and the sign with which the class's shift is added, of each element (section 6.7)."""
    magnitude, sign = np.abs(high), np.sign(high)
    larger = np.where(magnitude == 2, 8, 9)
    if grid.layout is not Layout.PLANES:
        return np.where(magnitude == 0, 0, np.where(magnitude == 1, 5, larger)), np.ones_like(
            high
        ) if one_sided else sign
    around = neighbour_sum(high, grid)
    if one_sided:
        ones, direction = np.minimum(around >> 1, 2), np.ones_like(high)
    else:
        ones = np.clip((around * sign + 4) >> 2, 0, 2)
        direction = np.where(magnitude == 0, np.sign(around), sign)
    zeros = np.minimum(np.abs(around), 4)
    return np.where(magnitude == 0, zeros, np.where(magnitude == 1, 5 + ones, larger)), direction


def neighbour_sum(high: Ints, grid: Grid) -> Ints:
    """Sum of the four neighbours in the plane; beyond the border there are zeros."""
    padded = np.pad(high.reshape(grid.planes, grid.rows, grid.columns), ((0, 0), (1, 1), (1, 1)))
    around = padded[:, :-2, 1:-1] + padded[:, 2:, 1:-1] + padded[:, 1:-1, :-2] + padded[:, 1:-1, 2:]
    return around.reshape(-1)


def measure_shifts(
    values: Float32, quantised: Ints, high: Ints, step: np.float32, kind: int, one_sided: bool, grid: Grid, short: bool
) -> Ints:
    """The mean distance of each class from its cell's nominal value, in 64ths of the step, shape (10,) (section 7).

    In a ``short`` section the default ones, if it is not worth to carry these.
    """
    with np.errstate(over="ignore"):
        quotients = np.clip(values * (np.float32(1) / step), -LARGEST_QUOTIENT, LARGEST_QUOTIENT)
    scaled = np.rint(quotients * np.float32(SHIFT_UNIT))
    classes, direction = reconstruction_classes(high, kind, one_sided, grid)
    looked_at = np.arange(len(values)) // sample_run(grid) % sample_stride(len(values)) == 0
    distance = ((scaled.astype(np.int64) - SHIFT_UNIT * quantised) * direction)[looked_at]
    sums, counts = np.zeros(NUM_SHIFTS, np.int64), np.bincount(classes[looked_at], minlength=NUM_SHIFTS)
    np.add.at(sums, classes[looked_at], distance)
    return settled_shifts(sums, counts, len(values), kind, one_sided=one_sided, short=short)


def reconstruct(quantised: Ints, high: Ints, coded: Coded, grid: Grid) -> Float32:
    """Values in float32 (section 6.7): an exact integer, one conversion, one product."""
    classes, direction = reconstruction_classes(high, coded.kind, coded.one_sided, grid)
    units = SHIFT_UNIT * quantised + coded.shifts[classes] * direction
    with np.errstate(over="ignore"):
        return units.astype(np.float32) * (np.float32(coded.step) * np.float32(1 / SHIFT_UNIT))
