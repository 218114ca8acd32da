"""Uniform integers of a few bits with a scale for each token, channel or tensor; rotated or not, entropy-coded or not."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from serverlight.codec.rivals.entropy import code, pack_bits, uncode, unpack_bits
from serverlight.codec.rivals.rival import (
    Float32,
    Integers,
    Rival,
    as_tokens,
    from_tokens,
    token_shape,
)
from serverlight.errors import ConfigError

__all__ = ["EntropyCodedInteger", "EntropyCodedRotatedInteger", "Integer", "RotatedInteger", "hadamard"]

Scope = Literal["token", "channel", "tensor"]
LARGEST_HALF = 65504.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Integer(Rival):
    """Codes of ``bits`` bits, packed; a float16 scale (and, with ``minmax``, a float16 minimum) for each scope."""

    name: ClassVar[str] = "integer"

    bits: int = 4
    """Width of a code, 2 to 8."""

    scope: Scope = "token"
    """What shares a scale; see :func:`serverlight.codec.rivals.rival.as_tokens` for what a token is."""

    ranges: Literal["absmax", "minmax"] = "absmax"
    """Codes around zero up to the largest magnitude, or from the smallest to the largest value."""

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise ConfigError("bits", f"must be from 2 to 8, got {self.bits}")

    def _pack(self, x: Float32) -> bytes:
        scales, codes = self._quantise(x)
        return scales + pack_bits(codes + self._offset, self.bits)

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        begin = self._scale_bytes(shape)
        codes = unpack_bits(body[begin:], math.prod(shape), self.bits) - np.int32(self._offset)
        return self._dequantise(body[:begin], codes, shape)

    @property
    def _offset(self) -> int:
        """What makes the smallest code zero."""
        return (1 << (self.bits - 1)) - 1 if self.ranges == "absmax" else 0

    def _quantise(self, x: Float32) -> tuple[bytes, Integers]:
        """The scales' bytes and the codes, scope by scope."""
        rows = self._rows(self._forward(as_tokens(x)))
        low, step = self._ranges(rows)
        inverse = np.divide(1, step, out=np.zeros_like(step), where=step > 0)
        codes = np.rint((rows - low) * inverse)
        least, most = (-self._offset, self._offset) if self.ranges == "absmax" else (0, (1 << self.bits) - 1)
        scales = np.hstack([low, step] if self.ranges == "minmax" else [step])
        return scales.astype("<f2").tobytes(), np.clip(codes, least, most).astype(np.int32).reshape(-1)

    def _ranges(self, rows: Float32) -> tuple[Float32, Float32]:
        """Value of code 0 and step of every row, (rows, 1) each, as float16 will hold them."""
        if self.ranges == "absmax":
            step = np.abs(rows).max(1, keepdims=True) / self._offset
            return np.zeros_like(step), _as_half(step)
        low = _as_half(rows.min(1, keepdims=True))
        return low, _as_half((rows.max(1, keepdims=True) - low) / ((1 << self.bits) - 1))

    def _dequantise(self, scales: bytes, codes: Integers, shape: tuple[int, ...]) -> Float32:
        tokens = token_shape(shape)
        rows = codes.reshape(self._row_shape(tokens)).astype(np.float32)
        columns = np.frombuffer(scales, "<f2").astype(np.float32).reshape(len(rows), -1)
        rows = rows * columns[:, -1:]
        if self.ranges == "minmax":
            rows += columns[:, :1]
        return from_tokens(self._backward(rows.T if self.scope == "channel" else rows.reshape(tokens)), shape)

    def _rows(self, tokens: Float32) -> Float32:
        return tokens.T if self.scope == "channel" else tokens.reshape(self._row_shape((len(tokens), tokens.shape[1])))

    def _row_shape(self, tokens: tuple[int, int]) -> tuple[int, int]:
        shapes = {"token": tokens, "channel": tokens[::-1], "tensor": (1, tokens[0] * tokens[1])}
        return shapes[self.scope]

    def _scale_bytes(self, shape: tuple[int, ...]) -> int:
        num_rows = self._row_shape(token_shape(shape))[0]
        return 2 * num_rows * (2 if self.ranges == "minmax" else 1)

    def _forward(self, tokens: Float32) -> Float32:
        return tokens

    def _backward(self, tokens: Float32) -> Float32:
        return tokens


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyCodedInteger(Integer):
    """The same codes under one static rANS table for the message."""

    name: ClassVar[str] = "integer-rans"

    def _pack(self, x: Float32) -> bytes:
        scales, codes = self._quantise(x)
        return code(scales, [codes])

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        begin = self._scale_bytes(shape)
        (codes,) = uncode(body, begin, [math.prod(shape)])
        return self._dequantise(body[:begin], codes, shape)


class _Rotated:
    """Channels mixed by random signs and a Hadamard transform, which spreads outliers over all of them."""

    __slots__ = ()

    def _forward(self, tokens: Float32) -> Float32:
        return hadamard(tokens * _signs(tokens.shape[1]))

    def _backward(self, tokens: Float32) -> Float32:
        return hadamard(tokens) * _signs(tokens.shape[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class RotatedInteger(_Rotated, Integer):
    """Packed codes of rotated channels."""

    name: ClassVar[str] = "rotated"


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyCodedRotatedInteger(_Rotated, EntropyCodedInteger):
    """The same under a rANS table."""

    name: ClassVar[str] = "rotated-rans"


def hadamard(tokens: Float32) -> Float32:
    """Orthonormal Walsh-Hadamard transform of the channels, in blocks of the largest power of two that divides them.

    >>> hadamard(np.float32([[1, 0, 0, 0]]))
    array([[0.5, 0.5, 0.5, 0.5]], dtype=float32)
    """
    num_tokens, channels = tokens.shape
    block = channels & -channels
    mixed, half = np.ascontiguousarray(tokens), 1
    while half < block:
        pairs = mixed.reshape(num_tokens, -1, 2, half)
        mixed = np.stack([pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]], axis=2)
        half *= 2
    rotated: Float32 = mixed.reshape(num_tokens, channels) * np.float32(block**-0.5)
    return rotated


def _signs(channels: int) -> Float32:
    return np.random.default_rng(channels).choice(np.array([-1, 1], np.float32), channels)


def _as_half(values: Float32) -> Float32:
    return np.clip(values, -LARGEST_HALF, LARGEST_HALF).astype(np.float16).astype(np.float32)
