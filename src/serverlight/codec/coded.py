"""What profile ``serverlight`` makes of a tensor, before it is bytes; and its quantiser's rules that all backends share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serverlight.codec import trellis
from serverlight.codec.config import CodecConfig
from serverlight.codec.layout import Grid, Layout, grid_of, segment_bounds
from serverlight.codec.tables import ONE_SIDED_PLANES, SIGNED_PLANES, TOKENS, TRELLIS, Ints

__all__ = [
    "Coded",
    "Segment",
    "Streams",
    "default_shifts",
    "has_fixed_shifts",
    "has_half_escapes",
    "is_short",
    "kind_of",
    "lanes_for",
    "layout_of_kind",
    "needs_raw_bit",
    "segments_of",
    "settled_shifts",
    "shift_classes",
    "step_of",
    "takes_trellis",
    "trellis_step",
]

NUM_SHIFTS = 10
DEFAULT_SHIFTS = np.array(
    [
        [12, 0, 0, 0, 0, 3, 0, 0, 1, 1],
        [12, 0, 0, 0, 0, 3, 0, 0, 1, 1],
        [11, 23, 28, 30, 30, 0, 6, 14, -4, -5],
        [0, 7, 12, 15, 17, -7, -4, 8, -5, -5],
        [0, 0, 0, 0, 0, 10, 0, 0, 5, 5],
    ]
)
"""By kind and class: the shifts of a short section that carries none. In planes they are near the means over features of several
networks; the others are as :func:`has_fixed_shifts` says."""

WORTH_OF_SHIFT = 5000
"""What the byte of a shift must save, in squared 64ths of a step: about 0.15 squared steps a bit, the trade at useful rates."""

FLAT_RUN = 256
SHIFT_UNIT = 64
"""Reconstruction shifts are in 64ths of the step."""

SAMPLE_ELEMENTS = 1 << 13
"""About as many elements are enough to measure ten means by."""

LARGEST_NUMBER = 1 << 28
"""Largest magnitude of a number: four times as much still fits 32 bits, and nothing in a network is 2^28 thresholds large."""

ROUNDING = np.float32(0.4)
"""Added before a quotient is floored: below one half, since magnitudes within a cell lean to its lower end."""

STEP_IN_ERRORS = 4
"""A uniform cell of one step has a mean absolute error of a quarter step."""

AUTO_DISTORTION = (0.44, 0.44, 0.3125, 0.4167)
"""Budget of the mean error, as a share of the threshold, by kind: steps of 1.76, 1.76, 1.25 and 1.67 thresholds. In sweeps at equal
KL divergence the best step lay there on language models and sentence encoders, on ReLU networks and on linear bottlenecks, within a
few percent."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """One independently coded part of a tensor."""

    words: npt.NDArray[np.uint16]
    """Lane states, then the words of the entropy coder, in the order of reading."""

    escapes: npt.NDArray[np.uint8]
    """Bits of the pairs that no symbol stands for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Streams:
    """The segments of a tensor as a frame has them: the words of all, then the escapes of all. S = segments."""

    num_words: Ints
    """Shape (S,)."""

    num_escapes: Ints
    """Bytes; shape (S,)."""

    words: npt.NDArray[np.uint16]
    escapes: npt.NDArray[np.uint8]

    @classmethod
    def joined(cls, segments: Sequence[Segment]) -> Streams:
        """Segments one after the other."""
        return cls(
            num_words=np.array([len(segment.words) for segment in segments]),
            num_escapes=np.array([len(segment.escapes) for segment in segments]),
            words=np.concatenate([segment.words for segment in segments]),
            escapes=np.concatenate([segment.escapes for segment in segments]),
        )

    def segments(self) -> list[Segment]:
        """Each on its own."""
        words = np.split(self.words, np.cumsum(self.num_words)[:-1])
        escapes = np.split(self.escapes, np.cumsum(self.num_escapes)[:-1])
        return [Segment(words=w, escapes=e) for w, e in zip(words, escapes, strict=True)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Coded:
    """All that a frame of profile ``serverlight`` says beside shape and dtype (docs/wire-format.md, section 6)."""

    kind: int
    """Family of contexts; see :mod:`serverlight.codec.tables`."""

    one_sided: bool
    """Whether no element is negative."""

    lanes: int
    """Entropy coder states that take turns: 1, 2, 4 or 8."""

    step: float
    """Width of a quantiser cell, a bfloat16 number; along a trellis, half of one."""

    activity: int
    """Tokens only: the index of the starting activity."""

    raw_bits: int
    """Low bits of each magnitude that are sent as they are."""

    half_escapes: bool
    """Whether pairs with one number too large for a nibble have symbols."""

    is_short: bool
    """Whether the section is in short; the model is packed accordingly. Along a trellis it always is."""

    model: bytes
    """Parameters of the probability model, packed."""

    levels: Ints
    """The levels that they stand for, by context: shape (C, 5)."""

    shifts: Ints
    """Reconstruction shifts by class, in 64ths of the step, -127 to 127; shape (10,)."""

    streams: Streams

    raw: npt.NDArray[np.uint8]
    """The low bits, packed."""


def kind_of(layout: Layout, one_sided: bool) -> int:
    """The family of contexts that a writer uses."""
    return (ONE_SIDED_PLANES if one_sided else SIGNED_PLANES) if layout is Layout.PLANES else int(layout)


def layout_of_kind(kind: int) -> Layout:
    """The layout that a family of contexts is for."""
    return Layout.TOKENS if kind == TRELLIS else Layout(min(kind, Layout.PLANES))


def is_one_sided_kind(kind: int) -> bool:
    """Whether nibbles are plain magnitudes (otherwise they are zigzag codes of signed numbers)."""
    return kind == ONE_SIDED_PLANES


def shift_classes(kind: int, one_sided: bool) -> tuple[int, ...]:
    """Classes whose shift a frame carries; the others are zero (section 6.7)."""
    if layout_of_kind(kind) is Layout.PLANES:
        return tuple(range(0 if one_sided else 1, NUM_SHIFTS))
    return (0, 5, 8, 9) if one_sided else (5, 8, 9)


def sample_stride(num_elements: int) -> int:
    """Every so-manieth row is looked at for the shifts."""
    return max(1, num_elements // SAMPLE_ELEMENTS)


def sample_run(grid: Grid) -> int:
    """What counts as a row there."""
    return grid.columns if grid.layout is not Layout.FLAT else FLAT_RUN


def default_shifts(kind: int, one_sided: bool) -> Ints:
    """The shifts of a short section that carries none."""
    shifts = np.zeros(NUM_SHIFTS, np.int64)
    classes = list(shift_classes(kind, one_sided))
    shifts[classes] = DEFAULT_SHIFTS[kind][classes]
    return shifts


def has_fixed_shifts(config: CodecConfig, kind: int, one_sided: bool) -> bool:
    """Whether writers take the default shifts whatever the means are: along a trellis, and without a budget for signed tokens and
    flat runs.

    The means would give the least squared error. But what is dropped takes energy with it, and a network that normalises its
    features does better with what is kept a little too large: two to four percent fewer bits at equal divergence on sentence
    encoders, as many on language models. Along a trellis the means are near zero, and the default ones save sentence encoders
    one to two percent beside these, and cost language models a quarter of one.
    """
    if kind == TRELLIS:
        return True
    return config.distortion is None and layout_of_kind(kind) is not Layout.PLANES and not one_sided


def settled_shifts(sums: Ints, counts: Ints, num_elements: int, kind: int, *, one_sided: bool, short: bool) -> Ints:
    """Means by class, rounded to 64ths of the step and held within a byte; a class that was not seen has none.

    In a ``short`` section the default ones, if the error that these save is not worth their bytes.
    """
    shifts = np.clip((2 * sums + counts) // np.maximum(2 * counts, 1), -127, 127)
    if not one_sided:
        shifts[0] = 0
    shifts = np.where(counts > 0, shifts, 0)
    defaults = default_shifts(kind, one_sided)
    saved = int((counts * (shifts - defaults) ** 2).sum()) * sample_stride(num_elements)
    is_worth_it = saved > WORTH_OF_SHIFT * len(shift_classes(kind, one_sided))
    return shifts if is_worth_it or not short else defaults


def floor_rank(num_nonzero: int) -> int:
    """Rank, among the magnitudes that are not zero, below which no threshold sets the step: nine tenths of them, rounded up.

    A ReLU feature may have more zeros than the filter is to drop. Then all other elements are kept, and the least of them, which
    can be as small as it likes, must not make the step tiny.
    """
    return -(-9 * num_nonzero // 10)


def step_of(threshold: np.float32, config: CodecConfig, kind: int) -> np.float32:
    """The step that a threshold and the distortion budget give, rounded to bfloat16, at least the smallest normal number."""
    budget = AUTO_DISTORTION[kind] if config.distortion is None else config.distortion
    step = np.float32(min(float(threshold) * STEP_IN_ERRORS * budget, 3.0e38))
    bits = (step.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)
    return max(bits.view(np.float32), np.float32(2.0**-126))


def trellis_step(step: np.float32) -> np.float32:
    """The step along a trellis, whose quantisers have twice as much, by what it would be without; still a bfloat16 number."""
    return max(step * np.float32(0.5), np.float32(2.0**-126))


def is_short(num_segments: int, raw_bits: int, kind: int) -> bool:
    """Whether writers write a section in short: one segment, without raw bits; or along a trellis."""
    return (num_segments == 1 and raw_bits == 0) or kind == TRELLIS


def takes_trellis(config: CodecConfig, kind: int, one_sided: bool, rows: int, raw_bits: int, largest: int) -> bool:
    """Whether writers lead numbers along a trellis: where they are asked to, and signed tokens have nothing extreme."""
    is_in_place = kind == TOKENS and not one_sided and rows >= trellis.LEAST_ROWS
    return config.trellis and is_in_place and raw_bits == 0 and largest <= trellis.MOST_STEPS


def needs_raw_bit(num_large: int, num_kept: int, kind: int) -> bool:
    """Whether so many numbers too large for a nibble call for one more raw bit: over one in 12 of those not zero.

    One in 64 in one-sided planes: there a nibble ends at 14, and contexts that see larger numbers make the raw bit cheaper.
    """
    return (64 if kind == ONE_SIDED_PLANES else 12) * num_large > num_kept


def has_half_escapes(num_large: int, num_kept: int) -> bool:
    """Whether so many call for half escapes: over one in 256. Fewer are not worth the frequencies that others lose to them."""
    return 256 * num_large > num_kept


def segments_of(shape: tuple[int, ...], kind: int) -> tuple[Grid, list[int]]:
    """The grid of a frame and its segments' bounds."""
    grid = grid_of(shape, layout_of_kind(kind))
    return grid, segment_bounds(grid)


def lanes_for(payload_bits: int, num_segments: int) -> int:
    """As many lanes as cost at most about one percent: four bytes each, beside the bytes that the symbols will take.

    The last four, with which a segment is read twice as fast, may cost more in a tensor of several, which takes long.
    """
    segment_bytes, many = payload_bits // (8 * num_segments), 3000 if num_segments == 1 else 2000
    return 1 if segment_bytes < 400 else (2 if segment_bytes < 1000 else (4 if segment_bytes < many else 8))
