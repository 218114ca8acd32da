"""Uniform quantisation over the range of the tensor and rANS, after arXiv 2511.11664: dense, or as a sparse matrix."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from serverlight.codec.rivals.entropy import code, uncode
from serverlight.codec.rivals.rival import Float32, Integers, Rival, read_varint, varint

__all__ = ["SparseUniform", "Uniform"]

ROW_LENGTHS = tuple(1 << k for k in range(3, 10))
"""Columns of the sparse matrix to choose from."""

STEP_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Uniform(Rival):
    """Codes from the smallest to the largest value, zero on the grid; all of them under one table.

    Any number of levels is allowed, where the paper has powers of two.
    """

    name: ClassVar[str] = "uniform-rans"

    levels: int = 16
    """Number of different codes."""

    def _pack(self, x: Float32) -> bytes:
        step, codes = self._quantise(x)
        return code(step, [codes])

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        (codes,) = uncode(body, STEP_BYTES, [math.prod(shape)])
        return _values(body, codes, shape)

    def _quantise(self, x: Float32) -> tuple[bytes, Integers]:
        """The step's bytes, and the codes; code 0 is the value 0."""
        low, high = min(float(x.min(initial=0)), 0.0), max(float(x.max(initial=0)), 0.0)
        step = np.float32((high - low) / (self.levels - 1))
        inverse = np.float32(1 / step if step > 0 else 0)
        zero = round(-low * float(inverse))
        codes = np.clip(np.rint(x.reshape(-1) * inverse), -zero, self.levels - 1 - zero).astype(np.int32)
        return step.astype("<f4").tobytes(), codes


@dataclass(frozen=True, kw_only=True, slots=True)
class SparseUniform(Uniform):
    """The same codes; those other than zero as a CSR matrix: values, columns and row counts, each under its own table."""

    name: ClassVar[str] = "uniform-csr-rans"

    def _pack(self, x: Float32) -> bytes:
        step, codes = self._quantise(x)
        row_length = min(ROW_LENGTHS, key=lambda length: sum(map(_stream_bits, _csr(codes, length)[1:])))
        streams = _csr(codes, row_length)
        return code(step + varint(row_length) + varint(len(streams[0])), streams)

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        num_elements = math.prod(shape)
        row_length, at = read_varint(body, STEP_BYTES)
        num_nonzero, at = read_varint(body, at)
        parts = uncode(body, at, [num_nonzero, num_nonzero, -(-num_elements // row_length)])
        return _values(body, _from_csr(parts, row_length, num_elements), shape)


def _values(body: bytes, codes: Integers, shape: tuple[int, ...]) -> Float32:
    step = np.frombuffer(body, "<f4", 1)[0]
    values: Float32 = codes.astype(np.float32) * step
    return values.reshape(shape)


def _csr(codes: Integers, row_length: int) -> list[Integers]:
    where = np.flatnonzero(codes)
    counts = np.bincount(where // row_length, minlength=-(-len(codes) // row_length))
    return [codes[where], (where % row_length).astype(np.int32), counts.astype(np.int32)]


def _from_csr(parts: Sequence[Integers], row_length: int, num_elements: int) -> Integers:
    values, columns, counts = parts
    codes = np.zeros(num_elements, np.int32)
    codes[np.repeat(np.arange(len(counts)) * row_length, counts) + columns] = values
    return codes


def _stream_bits(symbols: Integers) -> float:
    """Ideal bits of a stream, and about as many for its table as that will take."""
    counts = np.bincount(symbols - symbols.min(initial=0))
    counts = counts[counts > 0]
    return float((counts * np.log2(counts.sum() / counts)).sum() + 12 * len(counts)) if len(counts) else 0.0
