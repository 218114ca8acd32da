"""This package's own codec, seen as one more rival."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from serverlight.codec.basis import Basis
from serverlight.codec.codec import Codec, decode
from serverlight.codec.config import CodecConfig
from serverlight.codec.rivals.rival import Float32, Rival

__all__ = ["Profile"]


@dataclass(frozen=True, slots=True)
class Profile(Rival):
    """A profile of :class:`serverlight.codec.Codec` with its settings, and a calibrated basis if one is given."""

    settings: CodecConfig
    backend: str = "auto"
    basis: Basis | None = None

    @property
    def name(self) -> str:  # type: ignore[override]
        """The profile's name, and whether it has a basis."""
        return self.settings.profile + ("-basis" if self.basis else "")

    @property
    def config(self) -> dict[str, Any]:
        """The codec's settings, and the basis by its digest."""
        return self.settings.to_dict() | ({"basis": self.basis.digest.hex()} if self.basis else {})

    def encode(self, x: Float32) -> bytes:
        """A frame; it holds the shape itself."""
        return self._pack(x)

    def decode(self, message: bytes) -> Float32:
        """The tensor of a frame."""
        return self._unpack(message, ())

    def _pack(self, x: Float32) -> bytes:
        return _codec(self.settings, self.backend, self.basis).encode(x)

    def _unpack(self, body: bytes, shape: tuple[int, ...]) -> Float32:
        return np.asarray(decode(body, like="numpy", backend=self.backend, basis=self.basis), np.float32)


@functools.lru_cache
def _codec(settings: CodecConfig, backend: str, basis: Basis | None) -> Codec:
    return Codec(settings, backend=backend, basis=basis)
