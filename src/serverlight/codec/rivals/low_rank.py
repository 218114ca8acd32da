"""A feature as a product of two thin matrices: its best approximation of a rank, by singular values.

FourierCompress (arXiv 2510.16418) compares itself with SVD and QR. Of all products of a rank that of the singular vectors has the
least squared error (Eckart and Young 1936, doi:10.1007/BF02288367), so it stands for both. The factors are sent as halves, or
quantised and under rANS, which makes the rival stronger than the paper's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from serverlight.codec.rivals.entropy import code, uncode
from serverlight.codec.rivals.integers import LARGEST_HALF
from serverlight.codec.rivals.rival import Float32, Rival, as_tokens, from_tokens, token_shape
from serverlight.codec.rivals.spectral import dequantise, quantise
from serverlight.errors import ConfigError

__all__ = ["EntropyCodedLowRank", "LowRank", "scaled_factors"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LowRank(Rival):
    """Tokens times right singular vectors, and these vectors, as halves."""

    name: ClassVar[str] = "low-rank"

    rank: int = 8
    """Singular values that are kept; all of them where there are fewer."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError("rank", f"must be at least 1, got {self.rank}")

    def _pack(self, x: Float32) -> bytes:
        left, right, values = scaled_factors(as_tokens(x), self.rank)
        factors = np.clip(np.concatenate([left, right * _inverse(values)]), -LARGEST_HALF, LARGEST_HALF)
        packed: bytes = factors.astype("<f2").tobytes()
        return packed

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        num_tokens, channels = token_shape(shape)
        factors = np.frombuffer(body, "<f2").astype(np.float32).reshape(num_tokens + channels, -1)
        return from_tokens(factors[:num_tokens] @ factors[num_tokens:].T, shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class EntropyCodedLowRank(LowRank):
    """Both factors scaled by the singular values, under one quantiser and a table each; and the values.

    An error in a scaled factor is an error of the same size in the feature, whichever singular value it belongs to, so one step
    serves all columns of both.
    """

    name: ClassVar[str] = "low-rank-rans"

    step: float = 0.5
    """Step of the quantiser, in units of the feature's root mean square."""

    def __post_init__(self) -> None:
        LowRank.__post_init__(self)
        if not self.step > 0:
            raise ConfigError("step", f"must be positive, got {self.step}")

    def _pack(self, x: Float32) -> bytes:
        left, right, values = scaled_factors(as_tokens(x), self.rank)
        step = np.float32(self.step * math.sqrt(float(np.square(x, dtype=np.float64).mean())))
        front = np.concatenate([[step], values]).astype("<f4").tobytes()
        return code(front, [quantise(left, step), quantise(right, step)])

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        num_tokens, channels = token_shape(shape)
        rank = min(self.rank, num_tokens, channels)
        step, values = np.frombuffer(body, "<f4", 1)[0], np.frombuffer(body, "<f4", rank, 4)
        parts = uncode(body, 4 * (1 + rank), [num_tokens * rank, channels * rank])
        left, right = (dequantise(part, step).reshape(-1, rank) for part in parts)
        return from_tokens(left @ (right * _inverse(values)).T, shape)


def scaled_factors(matrix: Float32, rank: int) -> tuple[Float32, Float32, Float32]:
    """Left (rows, rank) and right (columns, rank) singular vectors, both times their singular values, and these, largest first.

    >>> left, right, values = scaled_factors(np.float32([[3, 0], [0, 4], [0, 0]]), 1)
    >>> np.abs(left).tolist(), np.abs(right).tolist(), values.tolist()
    ([[0.0], [4.0], [0.0]], [[0.0], [4.0]], [4.0])
    """
    is_tall = matrix.shape[0] >= matrix.shape[1]
    tall = (matrix if is_tall else matrix.T).astype(np.float64)
    squares, vectors = np.linalg.eigh(tall.T @ tall)  # far quicker than the whole decomposition, and exact enough here
    vectors = vectors[:, ::-1][:, :rank]
    values = np.sqrt(np.maximum(squares[::-1][:rank], 0))
    pair = ((tall @ vectors).astype(np.float32), (vectors * values).astype(np.float32))
    left, right = pair if is_tall else pair[::-1]
    return left, right, values.astype(np.float32)


def _inverse(values: Float32) -> Float32:
    """One over each value, zero for zero."""
    return np.divide(1, values, out=np.zeros_like(values), where=values > 0)
