"""Profile ``serverlight`` at the speed of compiled loops, on any processor that Numba knows; no compiler is needed.

The first call ever compiles for two minutes or so; later processes load the machine code from Numba's cache on disk. Writing
and reading are one compiled function each, which hold no lock.
"""

from __future__ import annotations

import functools
import itertools
import pathlib
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serverlight.codec import contextual
from serverlight.codec.activity import NO_SPREADS, Spreads
from serverlight.codec.backends import Float32
from serverlight.codec.backends.cpu.compiled import entry_point
from serverlight.codec.backends.cpu.model import fit_model
from serverlight.codec.backends.cpu.outline import outline_sections
from serverlight.codec.backends.cpu.reader import BAD_ESCAPES, BAD_RAW, BAD_WORDS, GOOD, LEFT_ESCAPES, read_sections
from serverlight.codec.backends.cpu.writer import write_section
from serverlight.codec.backends.slicer import SlicerKernels, budgets_by_sign
from serverlight.codec.config import CodecConfig
from serverlight.codec.layout import grid_of, natural_layout
from serverlight.codec.tables import Bytes
from serverlight.codec.tensors import LARGEST, check_finite
from serverlight.codec.wire import Header, Reader
from serverlight.errors import FrameError, InconsistentFrame

__all__ = ["NumbaKernels"]

FAULTS = {
    BAD_WORDS: "entropy coder: a segment has more or fewer words than it needs, or dirty states",
    BAD_ESCAPES: "escapes: a code runs past the end, is wider than 32 bits, or larger than any number of steps",
    LEFT_ESCAPES: "escapes: bits are left over",
    BAD_RAW: "raw bits: more or fewer than the numbers need, or dirty padding",
}


class NumbaKernels(SlicerKernels):
    """The stages of profile ``serverlight`` as compiled loops that hold no lock; the other profile as the reference has it."""

    name = "cpu"

    def encode_contextual(
        self, values: Float32, shape: tuple[int, ...], config: CodecConfig, spreads: Spreads = NO_SPREADS
    ) -> memoryview:
        """Filters, quantises and entropy-codes; byte for byte what the reference writes."""
        values = values.view()
        values.setflags(write=False)  # the machine code is made for the type of arrays that are only read
        budget = -1.0 if config.distortion is None else float(config.distortion)
        num_kept, num_positive = config.num_kept(len(values)), -1
        if config.asymmetry_mode == "budget":
            num_positive, _ = budgets_by_sign(values, config)
        seen = _seen_as(shape, len(spreads) > 0)
        section: Bytes = WRITE(
            values, num_kept, num_positive, float(config.asymmetry), budget, config.trellis, spreads, *seen
        )
        if not len(section):
            check_finite(values)
        return section.data

    def decode_contextual(
        self, section: memoryview, header: Header, out: Float32, spreads: Spreads = NO_SPREADS
    ) -> None:
        """Reconstructs, bit for bit what the reference gives."""
        rows, columns = (1, 1, *header.shape)[-2:]
        data, largest = np.frombuffer(section.toreadonly(), np.uint8), LARGEST[header.dtype]
        status = READ(data, NO_ENDS, rows, columns, largest, spreads, out)
        if status != GOOD:
            raise _fault_of(section, header, status)

    def decode_contextuals(
        self, sections: Sequence[memoryview], header: Header, out: Float32
    ) -> tuple[int, FrameError] | None:
        """The same for many frames, in one call."""
        data, ends, (rows, columns) = sections[0].toreadonly(), NO_ENDS, (1, 1, *header.shape)[-2:]
        if len(sections) > 1:
            data = memoryview(b"".join(sections))
            ends = np.fromiter(itertools.accumulate(map(len, sections)), np.int64, len(sections))
        status = READ(np.frombuffer(data, np.uint8), ends, rows, columns, LARGEST[header.dtype], NO_SPREADS, out)
        return None if status == GOOD else (status >> 3, _fault_of(sections[status >> 3], header, status & 7))


NO_ENDS = np.empty(0, np.int64)
"""Stands for a single frame."""


def _fault_of(section: memoryview, header: Header, status: int) -> FrameError:
    """What is wrong with a frame that was refused."""
    reader = Reader(section)
    try:
        contextual.read(reader, header)
        reader.finish()
    except FrameError as error:
        return error
    return InconsistentFrame(FAULTS.get(status, "the sections contradict each other"))


@functools.lru_cache(maxsize=256)
def _seen_as(shape: tuple[int, ...], has_spreads: bool) -> tuple[int, int, int, int]:
    grid = grid_of(shape, natural_layout(shape, has_spreads=has_spreads))
    return int(grid.layout), grid.planes, grid.rows, grid.columns


# -- compilation -----------------------------------------------------------------------------------------------


def source_files() -> list[pathlib.Path]:
    """The files whose functions and constants are compiled: this package's, and those that it takes from."""
    here = pathlib.Path(__file__).parent
    folders = (here, here.parent / "reference", *here.parents[:2])
    return [file for folder in folders for file in sorted(folder.glob("*.py"))]


def _sources() -> int:
    """A checksum over the source text of all that is compiled.

    Numba notes when the file of a cached function changes, but not when those of the functions that it calls do.
    """
    return functools.reduce(lambda checksum, file: zlib.crc32(file.read_bytes(), checksum), source_files(), 0)


def _compiled(sources: int) -> tuple[Callable[..., Any], ...]:
    """The entry points; what a closure holds is part of a function's key in the cache."""

    @entry_point
    def write(values, num_kept, num_positive, asymmetry, budget, trellis, spreads, layout, planes, rows, columns):  # type: ignore[no-untyped-def]
        _ = sources
        weight = np.float32(asymmetry)
        return write_section(
            values, num_kept, num_positive, weight, budget, trellis, spreads, layout, planes, rows, columns
        )

    @entry_point
    def read(data, ends, rows, columns, largest, spreads, out):  # type: ignore[no-untyped-def]
        _ = sources
        return read_sections(data, ends, rows, columns, np.float32(largest), spreads, out)

    @entry_point
    def fit(histogram, kind, with_tail, half_escapes, is_short):  # type: ignore[no-untyped-def]
        _ = sources
        return fit_model(histogram, kind, with_tail, half_escapes, is_short)

    @entry_point
    def outline(data, ends, rows, columns, size, heads, lengths, entries):  # type: ignore[no-untyped-def]
        _ = sources
        return outline_sections(data, ends, rows, columns, size, heads, lengths, entries)

    return write, read, fit, outline


WRITE, READ, FIT, OUTLINE = _compiled(_sources())
"""What Python calls. The last two, which other backends use, are compiled when they are first called."""
