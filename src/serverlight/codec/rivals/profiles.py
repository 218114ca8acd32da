"""This package's own codec, seen as one more rival."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from serverlight.codec.codec import Codec, decode
from serverlight.codec.config import CodecConfig
from serverlight.codec.rivals.rival import Float32, Rival

__all__ = ["Profile"]


@dataclass(frozen=True, slots=True)
class Profile(Rival):
    """A profile of :class:`serverlight.codec.Codec` with its settings."""

    settings: CodecConfig
    backend: str = "auto"

    @property
    def name(self) -> str:  # type: ignore[override]
        """The profile's name."""
        return self.settings.profile

    @property
    def config(self) -> dict[str, Any]:
        """The codec's settings."""
        return self.settings.to_dict()

    def encode(self, x: Float32) -> bytes:
        """A frame; it holds the shape itself."""
        return self._pack(x)

    def decode(self, message: bytes) -> Float32:
        """The tensor of a frame."""
        return self._unpack(message, ())

    def _pack(self, x: Float32) -> bytes:
        return _codec(self.settings, self.backend).encode(x)

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        return np.asarray(decode(body, like="numpy", backend=self.backend), np.float32)


@functools.lru_cache
def _codec(settings: CodecConfig, backend: str) -> Codec:
    return Codec(settings, backend=backend)
