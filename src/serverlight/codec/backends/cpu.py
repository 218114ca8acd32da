"""Profile ``serverlight`` at the speed of compiled loops, on any processor that Numba knows; no compiler is needed.

The first call ever compiles for some seconds; later processes load the machine code from Numba's cache on disk.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serverlight.codec import activity, contextual, tables
from serverlight.codec.backends import Float32
from serverlight.codec.backends import cpu_coder_kernels as coder
from serverlight.codec.backends import cpu_kernels as kernels
from serverlight.codec.backends.reference import number_of
from serverlight.codec.backends.slicer import SlicerKernels
from serverlight.codec.coded import (
    NUM_SHIFTS,
    SHIFT_UNIT,
    Coded,
    Segment,
    is_one_sided_kind,
    kind_of,
    lanes_for,
    sample_run,
    sample_stride,
    segments_of,
    settled_shifts,
    step_of,
)
from serverlight.codec.config import CodecConfig
from serverlight.codec.layout import Grid, Layout, natural_layout
from serverlight.codec.tables import Ints
from serverlight.errors import InconsistentFrame

__all__ = ["NumbaKernels"]

LEAST_STATE = 1 << 15

Int32 = npt.NDArray[np.int32]


class NumbaKernels(SlicerKernels):
    """The stages of profile ``serverlight`` as compiled loops that hold no lock; the other profile as the reference has it."""

    name = "cpu"

    def unpack_model(self, data: tables.Bytes, defaults: Ints, one_sided: bool, levels: Ints) -> int:
        """See :func:`serverlight.codec.tables.unpack_model`."""
        return int(kernels.unpack_model(data, defaults, one_sided, levels))

    def encode_contextual(self, values: Float32, shape: tuple[int, ...], config: CodecConfig) -> Coded | None:
        """Filters, quantises and entropy-codes; byte for byte what the reference writes."""
        num_nonzero, has_negative = kernels.survey(values)
        num_kept = min(config.num_kept(len(values)), int(num_nonzero))
        if num_kept == 0:
            return None
        kind = kind_of(natural_layout(shape), not has_negative)
        quantised, step = _quantise(values, num_kept, config, kind)
        high, raw, raw_bits = _split_raw(quantised, kind)
        frame = _Frame.of(shape, kind, not has_negative)
        shifts = _measure_shifts(values, quantised, high, step, frame)
        return _code(high, frame, step, shifts, raw, raw_bits)

    def decode_contextual(self, coded: Coded, shape: tuple[int, ...]) -> Float32:
        """Reconstructs, bit for bit what the reference gives; raises :class:`InconsistentFrame` on streams that do not fit."""
        frame = _Frame.of(shape, coded.kind, coded.one_sided)
        high = np.empty(frame.grid.num_elements, np.int32)
        _decode_segments(coded, frame, high)
        quantised = _join_raw(high, coded.raw, coded.raw_bits)
        values = np.empty(frame.grid.num_elements, np.float32)
        unit = np.float32(coded.step) * np.float32(1 / SHIFT_UNIT)
        if frame.grid.layout is Layout.PLANES:
            turned = np.concatenate([-coded.shifts, 0 * coded.shifts, coded.shifts])
            cubes = (array.reshape(frame.cube) for array in (quantised, high))
            kernels.reconstruct_planes(*cubes, coded.one_sided, turned, unit, values.reshape(frame.cube))
        else:
            kernels.reconstruct(quantised, high, coded.one_sided, coded.shifts, unit, values)
        return values


@dataclass(frozen=True, slots=True)
class _Frame:
    """What shape and kind settle for writer and reader alike."""

    kind: int
    one_sided: bool
    grid: Grid
    bounds: list[int]

    @classmethod
    def of(cls, shape: tuple[int, ...], kind: int, one_sided: bool) -> _Frame:
        grid, bounds = segments_of(shape, kind)
        return cls(kind, one_sided, grid, bounds)

    @property
    def cube(self) -> tuple[int, int, int]:
        """The tensor's shape as planes."""
        return self.grid.planes, self.grid.rows, self.grid.columns

    @property
    def lines(self) -> int:
        """Lines of pairs: rows of tokens two by two."""
        return (self.grid.rows + 1) // 2

    @property
    def plane_pairs(self) -> int:
        """Pairs of a plane."""
        return self.grid.rows * ((self.grid.columns + 1) // 2)

    @property
    def num_pairs(self) -> int:
        """Pairs of the tensor."""
        if self.grid.layout is Layout.PLANES:
            return self.grid.planes * self.plane_pairs
        return self.grid.columns * self.lines if self.grid.layout is Layout.TOKENS else self.grid.units

    def pairs_in(self, first: int, last: int) -> int:
        """Pairs of a segment."""
        per_unit = {Layout.PLANES: self.plane_pairs, Layout.TOKENS: self.lines, Layout.FLAT: 1}
        return (last - first) * per_unit[self.grid.layout]

    @property
    def has_tail(self) -> bool:
        """Whether a line of elements ends with a single one."""
        along = self.grid.rows if self.grid.layout is Layout.TOKENS else self.grid.columns
        return along % 2 == 1


# -- writing ---------------------------------------------------------------------------------------------------


def _quantise(values: Float32, num_kept: int, config: CodecConfig, kind: int) -> tuple[Int32, np.float32]:
    scores = values
    if config.asymmetry != 1.0:
        scores = np.empty_like(values)
        kernels.weigh(values, np.float32(config.asymmetry), scores)
    work = np.empty(max(4 * kernels.SAMPLE, len(values) >> 10), np.int32)
    key = kernels.kth_largest(scores.view(np.int32), num_kept, work, np.empty(1024, np.int32))
    threshold = np.int32(key).view(np.float32)
    least = threshold if scores is values else kernels.least_kept(values, scores, threshold)
    step = step_of(np.float32(least), config, kind)
    quantised = np.empty(len(values), np.int32)
    num_reached = kernels.quantise(values, scores, threshold, np.float32(1) / step, quantised)
    if num_reached > num_kept:
        kernels.drop_ties(scores, threshold, num_reached - num_kept, quantised)
    return quantised, step


def _split_raw(quantised: Int32, kind: int) -> tuple[Int32, npt.NDArray[np.uint8], int]:
    largest, bits = 14 if is_one_sided_kind(kind) else 7, 0
    while 64 * kernels.count_above(quantised, np.int32(largest << bits)) > len(quantised):
        bits += 1
    if bits == 0:
        return quantised, np.empty(0, np.uint8), 0
    high, packed = np.empty_like(quantised), np.empty(len(quantised) * bits // 8 + 1, np.uint8)
    size = kernels.take_raw(quantised, bits, high, packed)
    return high, packed[:size], bits


def _measure_shifts(values: Float32, quantised: Int32, high: Int32, step: np.float32, frame: _Frame) -> Ints:
    sums, counts = np.zeros(3 * NUM_SHIFTS, np.int64), np.zeros(3 * NUM_SHIFTS, np.int64)
    inverse, stride, grid = np.float32(1) / step, sample_stride(len(values)), frame.grid
    if grid.layout is Layout.PLANES:
        cubes = (array.reshape(frame.cube) for array in (quantised, high))
        kernels.measure_plane_shifts(values.reshape(frame.cube), inverse, *cubes, frame.one_sided, stride, sums, counts)
    else:
        kernels.measure_shifts(
            values, inverse, quantised, high, sample_run(grid), frame.one_sided, stride, sums, counts
        )
    against, _, along = sums.reshape(3, NUM_SHIFTS)
    return settled_shifts(along - against, counts.reshape(3, NUM_SHIFTS).sum(axis=0), frame.one_sided)


def _code(
    high: Int32, frame: _Frame, step: np.float32, shifts: Ints, raw: npt.NDArray[np.uint8], raw_bits: int
) -> Coded:
    kind, one_sided = frame.kind, is_one_sided_kind(frame.kind)
    start = activity.nearest_activity(int(kernels.magnitude_sum(high)), len(high)) if kind == tables.TOKENS else 0
    index, histogram = _symbols(high, frame, start)
    counts = kernels.count_decisions(histogram, tables.NEXT[kind], tables.FLIP_NEXT[kind], one_sided)
    offsets, present, corrections = kernels.fit_levels(counts, tables.DEFAULT_LEVELS[kind], one_sided, tables.COST)
    levels = kernels.levels_of(tables.DEFAULT_LEVELS[kind], offsets, corrections)
    model = np.zeros(contextual.MAX_MODEL_BYTES, np.uint8)
    model_bytes = kernels.pack_model(offsets, present, corrections, one_sided, model)
    frequencies = _frequencies(levels, frame)
    payload_bits = kernels.payload_bits(histogram, frequencies, tables.COST_OF_FREQUENCY)
    lanes = lanes_for(int(payload_bits), len(frame.bounds) - 1)
    table = np.zeros((len(frequencies) * 256, 2), np.uint64)
    coder.encoder_table(frequencies, table)
    flags = np.empty(len(frequencies) * 256, np.bool_)
    coder.escape_flags(frequencies, flags)
    num_escapes = int(coder.count_escapes(histogram, flags))
    return Coded(
        kind=kind,
        one_sided=frame.one_sided,
        lanes=lanes,
        step=float(step),
        activity=start,
        raw_bits=raw_bits,
        model=model[:model_bytes].tobytes(),
        levels=levels,
        shifts=shifts,
        segments=tuple(
            _encode_segment(high, index, flags, table, frame, lanes, num_escapes, first, last)
            for first, last in itertools.pairwise(frame.bounds)
        ),
        raw=raw,
    )


def _symbols(high: Int32, frame: _Frame, start: int) -> tuple[npt.NDArray[np.uint16], Ints]:
    kind, grid = frame.kind, frame.grid
    num_contexts = tables.NUM_CONTEXTS[kind]
    index = np.empty(frame.num_pairs, np.uint16)
    if grid.layout is Layout.PLANES:
        pairs = index.reshape(grid.planes, grid.rows, -1)
        coder.plane_symbols(high.reshape(frame.cube), frame.one_sided, num_contexts, pairs)
    elif grid.layout is Layout.TOKENS:
        begin = int(activity.ACTIVITY[start])
        coder.token_symbols(high, grid.rows, grid.columns, begin, activity.thresholds_for(begin), num_contexts, index)
    else:
        coder.flat_symbols(high, index)
    counts = np.zeros((4, 2 * num_contexts * 256), np.uint32)
    coder.histogram_of(index, counts)
    return index, counts.sum(axis=0, dtype=np.int64).reshape(2 * num_contexts, 256)


def _encode_segment(
    high: Int32,
    index: npt.NDArray[np.uint16],
    flags: npt.NDArray[np.bool_],
    table: npt.NDArray[np.uint64],
    frame: _Frame,
    lanes: int,
    num_escapes: int,
    first: int,
    last: int,
) -> Segment:
    grid = frame.grid
    escapes = np.zeros(18 * num_escapes, np.uint8)
    words = np.empty(frame.pairs_in(first, last) + 2 * lanes + 1, np.uint16)
    states = np.full(lanes, LEAST_STATE, np.uint64)
    num_bits = 0
    if grid.layout is Layout.PLANES:
        if num_escapes:
            num_bits = coder.escape_planes(
                high, grid.rows, grid.columns, frame.one_sided, index, flags, lanes, first, last, escapes
            )
        at = coder.encode_planes(index, frame.plane_pairs, lanes, first, last, table, states, words)
    elif grid.layout is Layout.TOKENS:
        if num_escapes:
            num_bits = coder.escape_tokens(high, grid.rows, grid.columns, index, flags, first, last, escapes)
        at = coder.encode_tokens(index, frame.lines, grid.columns, lanes, first, last, table, states, words)
    else:
        if num_escapes:
            num_bits = coder.escape_flat(high, index, flags, first, last, escapes)
        at = coder.encode_tokens(index, 1, 0, lanes, first, last, table, states, words)
    return Segment(words=words[int(at) :], escapes=escapes[: (num_bits + 7) // 8])


# -- reading ---------------------------------------------------------------------------------------------------


def _decode_segments(coded: Coded, frame: _Frame, high: Int32) -> None:
    frequencies = _frequencies(coded.levels, frame)
    symbols = np.empty(len(frequencies) * tables.SCALE, np.uint8)
    entries = np.zeros(len(frequencies) * 256, np.uint32)
    coder.decoder_tables(frequencies, symbols, entries)
    for segment, (first, last) in zip(coded.segments, itertools.pairwise(frame.bounds), strict=True):
        if len(segment.words) < 2 * coded.lanes:
            raise InconsistentFrame("entropy coder: a segment needs more words than it has")
        at, num_bits, ends_well = _decode_segment(segment, coded, frame, symbols, entries, high, first, last)
        if num_bits < 0:
            raise InconsistentFrame("escapes: a code runs past the end, or is wider than 32 bits")
        if at != len(segment.words) or not ends_well:
            raise InconsistentFrame("entropy coder: a segment has more or fewer words than it needs, or dirty states")
        _check_escapes_end(segment.escapes, num_bits)


def _decode_segment(
    segment: Segment,
    coded: Coded,
    frame: _Frame,
    symbols: npt.NDArray[np.uint8],
    entries: npt.NDArray[np.uint32],
    high: Int32,
    first: int,
    last: int,
) -> tuple[int, int, bool]:
    grid, kind = frame.grid, frame.kind
    lanes, tail_row = coded.lanes, tables.NUM_CONTEXTS[kind]
    streams, lookups = (segment.words, segment.escapes), (symbols, entries, PAIR_VALUES[is_one_sided_kind(kind)])
    if grid.layout is Layout.PLANES:
        rows_of = ROW_OF[kind]
        result = coder.decode_planes(
            *streams, grid.rows, grid.columns, lanes, first, last, coded.one_sided, rows_of, *lookups, tail_row, high
        )
    elif grid.layout is Layout.TOKENS:
        start = int(activity.ACTIVITY[coded.activity])
        borders = activity.thresholds_for(start)
        result = coder.decode_tokens(
            *streams, grid.rows, grid.columns, lanes, first, last, start, borders, *lookups, tail_row, high
        )
    else:
        result = coder.decode_flat(*streams, grid.columns, lanes, first, last, *lookups, high)
    return int(result[0]), int(result[1]), bool(result[2])


def _check_escapes_end(escapes: npt.NDArray[np.uint8], num_bits: int) -> None:
    if len(escapes) != (num_bits + 7) // 8 or (num_bits % 8 and escapes[-1] >> num_bits % 8):
        raise InconsistentFrame("escapes: bits are left over")


def _join_raw(high: Int32, raw: npt.NDArray[np.uint8], raw_bits: int) -> npt.NDArray[np.int64] | Int32:
    num_bits = raw_bits * int(kernels.count_nonzero(high)) if raw_bits else 0
    if len(raw) != (num_bits + 7) // 8 or (num_bits % 8 and raw[-1] >> num_bits % 8):
        raise InconsistentFrame(f"raw bits: {len(raw)} bytes for {num_bits} bits, or dirty padding")
    if raw_bits == 0:
        return high
    quantised = np.empty(len(high), np.int64)
    kernels.give_raw(high, raw, raw_bits, quantised)
    return quantised


def _frequencies(levels: Ints, frame: _Frame) -> Ints:
    kind = frame.kind
    frequencies: Ints = kernels.build_tables(
        levels, tables.NEXT[kind], tables.FLIP_NEXT[kind], is_one_sided_kind(kind), frame.has_tail, tables.PROBABILITY
    )
    return frequencies


def _rows_of(kind: int) -> npt.NDArray[np.uint8]:
    """Context by 9 left + 3 up + up-right, classes counted from 0."""
    shift = 0 if is_one_sided_kind(kind) else 1
    places = [(i // 9 - shift, i // 3 % 3 - shift, i % 3 - shift) for i in range(27)]
    return np.array([tables.neighbour_context(kind, *place)[0] for place in places], np.uint8)


def _pair_values(one_sided: bool) -> npt.NDArray[np.uint32]:
    """What a symbol stands for, by ``256 turned + symbol``: two numbers of 8 bits; their classes as the row below sees them, and as
    it does where there is no second one, 4 bits each; and nine times the second's class."""
    values = np.zeros(512, np.uint32)
    for flip in (1, -1):
        for symbol in range(256):
            pair = [number_of(nibble, flip, one_sided) for nibble in (symbol >> 4, symbol & 15)]
            up, beside = (min(n, 2) if one_sided else (n > 0) - (n < 0) + 1 for n in pair)
            numbers = (pair[0] & 255) | (pair[1] & 255) << 8
            values[(256 if flip < 0 else 0) + symbol] = (
                numbers | (3 * up + beside) << 16 | 4 * up << 20 | 9 * beside << 24
            )
    return values


ROW_OF = {kind: _rows_of(kind) for kind in (tables.ONE_SIDED_PLANES, tables.SIGNED_PLANES)}
PAIR_VALUES = {one_sided: _pair_values(one_sided) for one_sided in (False, True)}
