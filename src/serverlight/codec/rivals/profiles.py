"""This package's own codec, seen as one more rival."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from serverlight.codec.codec import Codec, decode
from serverlight.codec.config import CodecConfig
from serverlight.codec.rivals.rival import Body, Float32, Rival

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

    def encode_many(self, tensors: Sequence[Float32]) -> list[bytes]:
        """One frame for each tensor; it holds the shape itself."""
        return self._pack_many(tensors)

    def decode_many(self, messages: Sequence[bytes]) -> list[Float32]:
        """The tensor of each frame."""
        return [np.asarray(decode(m, like="numpy", backend=self.backend), np.float32) for m in messages]

    def _pack_many(self, tensors: Sequence[Float32]) -> list[bytes]:
        codec = Codec(self.settings, backend=self.backend)
        return [codec.encode(x) for x in tensors]

    def _unpack_many(self, bodies: Sequence[Body]) -> list[Float32]:
        return self.decode_many([body for body, _ in bodies])
