"""Every stage and its inverse in plain NumPy: the definition that other backends are judged by.

Section numbers refer to docs/wire-format.md. Shapes: n = elements of the tensor, K = elements kept, M = groups.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from serverlight.codec.allocate import REFERENCE_BITS, integer_guard
from serverlight.codec.backends import Float32, Survivors
from serverlight.codec.config import CodecConfig

__all__ = [
    "SlicerKernels",
    "budgets_by_sign",
    "filter_by_sign",
    "filter_top_k",
    "group_sizes",
    "kept_positions",
    "reference_codes",
    "scores_of",
    "split_by_magnitude",
]

AUTO_DISTORTION = 0.05
LARGEST_CODE = np.float32(2**REFERENCE_BITS - 1)


class SlicerKernels:
    """The stages of profile ``slicer`` in NumPy."""

    def encode_slicer(self, values: Float32, config: CodecConfig) -> Survivors:
        """Section 7, in order."""
        budget = AUTO_DISTORTION if config.distortion is None else config.distortion
        positions = kept_positions(values, config)
        kept = values[positions]
        magnitudes = np.abs(kept)
        labels, sizes = split_by_magnitude(magnitudes, config.num_groups)
        low, high = _group_ranges(magnitudes, labels, len(sizes))
        codes = reference_codes(magnitudes, low[labels], high[labels])
        bits = integer_guard(_code_errors(codes, labels, len(sizes)), sizes, budget)
        return Survivors(
            positions=positions,
            negative=kept < 0,
            labels=labels,
            codes=codes >> (REFERENCE_BITS - bits[labels].astype(np.uint32)),
            low=low,
            high=high,
            bits=bits,
        )

    def decode_slicer(self, survivors: Survivors, num_elements: int) -> Float32:
        """Section 5.7."""
        labels = survivors.labels
        low, high = survivors.low[labels], survivors.high[labels]
        # (2q + 1) / 2^(Q + 1) has at most 17 significant bits: exact in binary32.
        middle = np.ldexp((2 * survivors.codes + 1).astype(np.float32), -1 - survivors.bits[labels].astype(np.int32))
        magnitudes = np.where(low == high, low, low + (high - low) * middle)
        values = np.zeros(num_elements, np.float32)
        values[survivors.positions] = np.where(survivors.negative, -magnitudes, magnitudes)
        return values


def kept_positions(values: Float32, config: CodecConfig) -> npt.NDArray[np.int64]:
    """Asymmetric top-K filter (ATKF, section 7) as configured: flat indices of the kept elements, ascending."""
    if config.asymmetry_mode == "budget":
        return filter_by_sign(values, *budgets_by_sign(values, config))
    return filter_top_k(values, config.num_kept(len(values)), config.asymmetry)


def budgets_by_sign(values: Float32, config: CodecConfig) -> tuple[int, int]:
    """How many positive and how many negative elements mode ``budget`` keeps."""
    num_positive, num_negative = (int(np.count_nonzero(side)) for side in (values > 0, values < 0))
    return config.num_kept_by_sign(num_positive, num_negative, len(values))


def filter_by_sign(values: Float32, num_positive: int, num_negative: int) -> npt.NDArray[np.int64]:
    """The largest of the positive elements and the largest of the negative ones, of equal ones those with the lowest index."""
    positive = filter_top_k(np.maximum(values, np.float32(0)), num_positive, 1.0)
    negative = filter_top_k(np.maximum(-values, np.float32(0)), num_negative, 1.0)
    return np.sort(np.concatenate([positive, negative]))


def filter_top_k(values: Float32, num_kept: int, asymmetry: float) -> npt.NDArray[np.int64]:
    """The filter in mode ``score``: flat indices of the kept elements, ascending.

    Of equal scores at the threshold those with the lowest index are kept; zeros never are.
    """
    num_kept = min(num_kept, int(np.count_nonzero(values)))
    if num_kept == 0:
        return np.zeros(0, np.int64)
    scores = scores_of(values, asymmetry)
    threshold = np.partition(scores, len(scores) - num_kept)[len(scores) - num_kept]
    above = scores > threshold
    ties = np.flatnonzero(scores == threshold)[: num_kept - int(np.count_nonzero(above))]
    above[ties] = True
    return np.flatnonzero(above)


def scores_of(values: Float32, asymmetry: float) -> Float32:
    """What the filter compares: ``x``, or ``lambda |x|`` for negative ``x``; at least the least subnormal unless ``x`` is zero."""
    with np.errstate(over="ignore"):  # infinite scores are ties like any other
        scores = np.where(values < 0, -values * np.float32(asymmetry), values)
    return np.where((scores == 0) & (values != 0), np.float32(1e-45), scores)


def group_sizes(num_kept: int, num_groups: int) -> npt.NDArray[np.int64]:
    """Members of each group (section 5.2): equal, but for one more in the lowest ``K mod M``.

    >>> group_sizes(11, 4)
    array([3, 3, 3, 2])
    """
    num_groups = min(num_groups, num_kept)
    if num_groups == 0:
        return np.zeros(0, np.int64)
    quotient, rest = divmod(num_kept, num_groups)
    return np.where(np.arange(num_groups) < rest, quotient + 1, quotient).astype(np.int64)


def split_by_magnitude(magnitudes: Float32, num_groups: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Magnitude split (MS, section 7): the group of each element, shape (K,), and the group sizes, shape (M,)."""
    sizes = group_sizes(len(magnitudes), num_groups)
    labels = np.empty(len(magnitudes), np.uint8)
    labels[np.argsort(magnitudes, kind="stable")] = np.repeat(np.arange(len(sizes), dtype=np.uint8), sizes)
    return labels, sizes


def reference_codes(magnitudes: Float32, low: Float32, high: Float32) -> npt.NDArray[np.uint32]:
    """Codes at the reference width Q0 (section 7); all arguments have shape (K,)."""
    span = high - low
    share = (magnitudes - low) / np.where(span > 0, span, np.float32(1))
    return np.minimum(np.floor(share * np.float32(2**REFERENCE_BITS)), LARGEST_CODE).astype(np.uint32)


def _group_ranges(magnitudes: Float32, labels: npt.NDArray[np.uint8], num_groups: int) -> tuple[Float32, Float32]:
    low, high = np.full(num_groups, np.inf, np.float32), np.zeros(num_groups, np.float32)
    np.minimum.at(low, labels, magnitudes)
    np.maximum.at(high, labels, magnitudes)
    return low, high


def _code_errors(
    codes: npt.NDArray[np.uint32], labels: npt.NDArray[np.uint8], num_groups: int
) -> npt.NDArray[np.int64]:
    """``g[m, Q]`` of section 7: the bits that a shift to width Q drops, summed over the group."""
    errors = np.zeros((num_groups, REFERENCE_BITS + 1), np.int64)
    for width in range(REFERENCE_BITS + 1):
        dropped_bits = codes & ((1 << (REFERENCE_BITS - width)) - 1)
        # The sums stay far below 2^53, so the float64 of bincount holds them exactly.
        errors[:, width] = np.bincount(labels, weights=dropped_bits, minlength=num_groups)
    return errors
