"""Profile ``serverlight`` in NumPy and plain Python: the definition that other backends are judged by, byte for byte.

Slow where the entropy coder goes pair by pair; clear everywhere. The stages are in ``quantiser.py``,
``symbols.py`` and ``coder.py``.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from serverlight.codec import activity, contextual, parameters, tables
from serverlight.codec.activity import NO_SPREADS, Spreads
from serverlight.codec.backends import Float32
from serverlight.codec.backends.reference.coder import decode_segment, encode_segment, frequencies_for
from serverlight.codec.backends.reference.quantiser import (
    choose_raw_bits,
    join_raw,
    measure_shifts,
    quantise,
    reconstruct,
    split_raw,
    step_threshold,
)
from serverlight.codec.backends.reference.symbols import Symbols, fit_levels
from serverlight.codec.backends.reference.trellis import path_of
from serverlight.codec.backends.slicer import SlicerKernels, kept_positions
from serverlight.codec.coded import (
    Coded,
    Streams,
    default_shifts,
    has_fixed_shifts,
    has_half_escapes,
    is_one_sided_kind,
    is_short,
    kind_of,
    lanes_for,
    segments_of,
    step_of,
    takes_trellis,
    trellis_step,
)
from serverlight.codec.config import CodecConfig
from serverlight.codec.layout import Layout, natural_layout
from serverlight.codec.tensors import check_finite, saturate
from serverlight.codec.trellis import steps_along
from serverlight.codec.wire import Header, Reader, Writer
from serverlight.errors import FrameError

__all__ = ["ReferenceKernels"]

LARGEST_IN_NIBBLE = 7


class ReferenceKernels(SlicerKernels):
    """The stages of both profiles, as written on the page."""

    name = "reference"

    def encode_contextual(
        self, values: Float32, shape: tuple[int, ...], config: CodecConfig, spreads: Spreads = NO_SPREADS
    ) -> bytes:
        """All stages."""
        check_finite(values)
        writer = Writer()
        contextual.write(writer, self._coded(values, shape, config, spreads))
        return writer.finish(checksum=False)

    def decode_contextual(
        self, section: memoryview, header: Header, out: Float32, spreads: Spreads = NO_SPREADS
    ) -> None:
        """Section 6 backwards; raises :class:`InconsistentFrame` on streams that do not fit."""
        reader = Reader(section)
        coded = contextual.read(reader, header)
        reader.finish()
        if coded is None:
            out[:] = 0.0
        else:
            out[:] = saturate(self._decoded(coded, header.shape, spreads), header.dtype, coded.step)

    def decode_contextuals(
        self, sections: Sequence[memoryview], header: Header, out: Float32
    ) -> tuple[int, FrameError] | None:
        """One after the other."""
        for index, (section, values) in enumerate(zip(sections, out.reshape(len(sections), -1), strict=True)):
            try:
                self.decode_contextual(section, header, values)
            except FrameError as error:
                return index, error
        return None

    def _coded(self, values: Float32, shape: tuple[int, ...], config: CodecConfig, spreads: Spreads) -> Coded | None:
        kept = kept_positions(values, config)
        if len(kept) == 0:
            return None
        one_sided = bool((values >= 0).all())
        kind = kind_of(natural_layout(shape, has_spreads=len(spreads) > 0), one_sided)
        grid, bounds = segments_of(shape, kind)
        step = step_of(step_threshold(values, kept, config), config, kind)
        quantised = quantise(values, kept, step)
        raw_bits, half_escapes = choose_raw_bits(quantised, kind)
        if takes_trellis(config, kind, one_sided, grid.rows, raw_bits, int(np.abs(quantised).max())):
            kind, step = tables.TRELLIS, trellis_step(step)
            quantised = path_of(values, quantised, step, grid, spreads)
            if not quantised.any():
                return None
            num_large = int((np.abs(quantised) > LARGEST_IN_NIBBLE).sum())
            half_escapes = has_half_escapes(num_large, int(np.count_nonzero(quantised)))
        high, raw = split_raw(quantised, raw_bits)
        short = is_short(len(bounds) - 1, raw_bits, kind)
        if has_fixed_shifts(config, kind, one_sided):
            shifts = default_shifts(kind, one_sided)
        else:
            shifts = measure_shifts(values, quantised, high, step, kind, one_sided, grid, short)
        start = activity.nearest_activity(int(np.abs(high).sum()), len(high)) if grid.layout is Layout.TOKENS else 0
        symbols = Symbols.of(high, grid, kind, start, spreads)
        fitted = fit_levels(symbols, kind)
        levels = tables.levels_of(tables.DEFAULT_LEVELS[kind], fitted[0], fitted[2])
        frequencies = frequencies_for(levels, grid, kind, half_escapes)
        model = np.zeros(300, np.uint8)
        model_bytes = parameters.pack_model(*fitted, is_one_sided_kind(kind), short, model)
        lanes = lanes_for(
            tables.payload_bits(symbols.histogram(), frequencies, tables.COST_OF_FREQUENCY), len(bounds) - 1
        )
        return Coded(
            kind=kind,
            one_sided=one_sided,
            lanes=lanes,
            step=float(step),
            activity=start,
            raw_bits=raw_bits,
            half_escapes=half_escapes,
            is_short=short,
            model=model[:model_bytes].tobytes(),
            levels=levels,
            shifts=shifts,
            streams=Streams.joined(
                [
                    encode_segment(symbols, high, frequencies, grid, kind, half_escapes, lanes, first, last)
                    for first, last in itertools.pairwise(bounds)
                ]
            ),
            raw=raw,
        )

    def _decoded(self, coded: Coded, shape: tuple[int, ...], spreads: Spreads) -> Float32:
        grid, bounds = segments_of(shape, coded.kind)
        high = np.zeros(grid.num_elements, np.int64)
        frequencies = frequencies_for(coded.levels, grid, coded.kind, coded.half_escapes)
        for segment, (first, last) in zip(coded.streams.segments(), itertools.pairwise(bounds), strict=True):
            decode_segment(segment, coded, frequencies, grid, spreads, high, first, last)
        if coded.kind == tables.TRELLIS:
            high = steps_along(high.reshape(grid.rows, grid.columns)).reshape(-1)
        return reconstruct(join_raw(high, coded.raw, coded.raw_bits), high, coded, grid)
