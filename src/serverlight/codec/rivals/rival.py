"""What every rival of the codec provides, and the few bytes that all their messages share.

Rivals are measured, never deployed: they read only messages that they wrote themselves, and check nothing.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = [
    "Float32",
    "Integers",
    "Rival",
    "as_tokens",
    "from_tokens",
    "is_map",
    "read_shape",
    "read_varint",
    "shape_bytes",
    "token_shape",
    "varint",
]

Float32: TypeAlias = npt.NDArray[np.float32]
Integers: TypeAlias = npt.NDArray[np.int32]


class Rival(ABC):
    """One codec with one setting; subclasses are frozen dataclasses whose fields are the setting."""

    name: ClassVar[str]
    """What the codec is called in tables."""

    @property
    def config(self) -> dict[str, Any]:
        """The setting, ready for JSON."""
        return dataclasses.asdict(self)  # type: ignore[call-overload,no-any-return]

    def encode(self, x: Float32) -> bytes:
        """One message with everything that :meth:`decode` needs, the shape included."""
        return shape_bytes(x.shape) + self._pack(x)

    def decode(self, message: bytes) -> Float32:
        """The tensor of a message of :meth:`encode`, in the shape that was encoded."""
        shape, at = read_shape(message)
        return self._unpack(message[at:], shape)

    @abstractmethod
    def _pack(self, x: Float32) -> bytes:
        """What follows the shape in the message."""

    @abstractmethod
    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        """The inverse of :meth:`_pack`."""


# -- the front of a message ------------------------------------------------------------------------


def varint(value: int) -> bytes:
    """An unsigned integer, seven bits a byte, low bits first.

    >>> varint(300).hex(), read_varint(varint(300), 0)
    ('ac02', (300, 2))
    """
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def read_varint(message: bytes, at: int) -> tuple[int, int]:
    """The integer that starts at byte ``at``, and where the next byte is."""
    value, shift = 0, 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def shape_bytes(shape: tuple[int, ...]) -> bytes:
    """The rank in one byte and each side as an integer: five bytes for (1, 64, 56, 56)."""
    return bytes((len(shape),)) + b"".join(map(varint, shape))


def read_shape(message: bytes) -> tuple[tuple[int, ...], int]:
    """The shape at the front of a message, and where the next byte is."""
    sides, at = [], 1
    for _ in range(message[0]):
        side, at = read_varint(message, at)
        sides.append(side)
    return tuple(sides), at


# -- tokens and channels ---------------------------------------------------------------------------


def as_tokens(x: Float32) -> Float32:
    """A feature as a matrix (tokens, channels); sides of 1 in front of it are a batch and do not count.

    Of a feature map (C, H, W) every place is a token. Rank 2 is (tokens, channels) already, and rank 1 a single token.

    >>> as_tokens(np.zeros((1, 16, 8, 8), np.float32)).shape, as_tokens(np.zeros((1, 12, 384), np.float32)).shape
    ((64, 16), (12, 384))
    """
    num_tokens, channels = token_shape(x.shape)
    return x.reshape(channels, num_tokens).T if is_map(x.shape) else x.reshape(num_tokens, channels)


def token_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Tokens and channels of a feature of that shape.

    >>> token_shape((1, 16, 8, 8))
    (64, 16)
    """
    sides = _without_batch(shape)
    channels = sides[0] if is_map(shape) else sides[-1] if sides else 1
    return math.prod(shape) // max(channels, 1), channels


def from_tokens(tokens: Float32, shape: tuple[int, ...]) -> Float32:
    """The inverse of :func:`as_tokens`."""
    feature = tokens.T if is_map(shape) else tokens
    return np.ascontiguousarray(feature).reshape(shape)


def is_map(shape: tuple[int, ...]) -> bool:
    """Whether a feature of that shape has its channels first and places in space behind them."""
    return len(_without_batch(shape)) >= 3


def _without_batch(shape: tuple[int, ...]) -> tuple[int, ...]:
    first = next((i for i, side in enumerate(shape) if side != 1), len(shape))
    return shape[first:]
