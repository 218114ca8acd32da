"""Eight bits an element in small blocks: the layouts that frameworks ship today."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from serverlight.codec.rivals.rival import Float32, Rival

__all__ = ["DYNAMIC_CODEBOOK", "Q80", "BlockwiseInt8"]


def _dynamic_codebook() -> Float32:
    """The 256 values of the dynamic data type of Dettmers et al. (arXiv 2110.02861), ascending.

    Decade ``i`` of seven holds ``2**i`` values of each sign, the midpoints of as many equal parts of [0.1, 1]; 0 and 1 are
    values of their own.
    """
    positive = [
        10.0 ** (decade - 6) * (0.1 + 0.9 * (np.arange(2**decade) + 0.5) / 2**decade) for decade in range(7)
    ]  # fmt: skip
    values = np.concatenate([*positive, *(-p for p in positive), [0.0, 1.0]])
    return np.sort(values).astype(np.float32)


DYNAMIC_CODEBOOK = _dynamic_codebook()
_BOUNDARIES = (DYNAMIC_CODEBOOK[1:] + DYNAMIC_CODEBOOK[:-1]) / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockwiseInt8(Rival):
    """Block-wise 8-bit quantisation as in bitsandbytes, which Petals and hivemind send: a float32 maximum for each block."""

    name: ClassVar[str] = "blockwise-int8"

    block: int = 4096
    """Elements that share a maximum."""

    def _pack(self, x: Float32) -> bytes:
        blocks = _padded(x, self.block)
        largest = np.abs(blocks).max(1)
        with np.errstate(divide="ignore"):
            scaled = blocks * np.where(largest > 0, 1 / largest, 0).astype(np.float32)[:, None]
        codes = np.searchsorted(_BOUNDARIES, scaled.reshape(-1)[: x.size]).astype(np.uint8)
        packed: bytes = largest.astype("<f4").tobytes() + codes.tobytes()
        return packed

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        num_elements = math.prod(shape)
        largest = np.frombuffer(body, "<f4", -(-num_elements // self.block))
        values = DYNAMIC_CODEBOOK[np.frombuffer(body, np.uint8, num_elements, largest.nbytes)]
        return _scaled(values, largest, self.block).reshape(shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class Q80(Rival):
    """Blocks of 32 int8 codes with a float16 step, as llama.cpp's ``Q8_0``."""

    name: ClassVar[str] = "q80"
    block: ClassVar[int] = 32

    def _pack(self, x: Float32) -> bytes:
        blocks = _padded(x, self.block)
        steps = (np.abs(blocks).max(1) / 127).astype("<f2")
        with np.errstate(divide="ignore"):
            inverse = np.where(steps > 0, 1 / steps.astype(np.float32), 0).astype(np.float32)
        codes = np.clip(np.rint(blocks * inverse[:, None]), -127, 127).astype(np.int8)
        packed: bytes = steps.tobytes() + codes.reshape(-1)[: x.size].tobytes()
        return packed

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        num_elements = math.prod(shape)
        steps = np.frombuffer(body, "<f2", -(-num_elements // self.block))
        codes = np.frombuffer(body, np.int8, num_elements, steps.nbytes)
        return _scaled(codes.astype(np.float32), steps.astype(np.float32), self.block).reshape(shape)


def _padded(x: Float32, block: int) -> Float32:
    """All elements in rows of one block each; the last row is filled up with zeros."""
    flat = np.ascontiguousarray(x).reshape(-1)
    if rest := -len(flat) % block:
        flat = np.concatenate([flat, np.zeros(rest, np.float32)])
    return flat.reshape(-1, block)


def _scaled(values: Float32, scales: Float32, block: int) -> Float32:
    scaled = _padded(values, block) * scales[:, None]
    return scaled.reshape(-1)[: len(values)]
