"""What is timed: from a torch tensor to bytes, and back."""

from __future__ import annotations

import contextlib
import math
from typing import Protocol

import torch
import torch.nn.functional as F

from serverlight.codec import Codec, CodecConfig, decode
from serverlight.codec.backends import BACKENDS
from serverlight.codec.config import PROFILES
from serverlight.codec.rivals import Rival, zstd
from serverlight.codec.rivals.blocks import Q80, BlockwiseInt8
from serverlight.codec.rivals.halves import Halves, ShuffledHalves
from serverlight.codec.rivals.integers import Integer
from serverlight.errors import BackendUnavailable
from serverlight.evaluation import bitsandbytes_codec

__all__ = ["OURS", "Contender", "InNumPy", "OwnCodec", "StraightforwardTorch", "contenders"]

OURS = "serverlight (cpu)"
"""The contender whose speed is claimed."""

SPARSITY = 0.5
"""Share of elements that codecs with a filter drop while they are timed."""


HOST_BACKENDS = tuple(name for name in BACKENDS if name != "gpu")
"""Those for tensors of the host; `benchmarks/gpu_codec.py` times the other one on its own ground."""


class Contender(Protocol):
    """An encoder and its decoder."""

    @property
    def name(self) -> str:
        """What it is called in tables."""

    def encode(self, x: torch.Tensor) -> bytes:
        """One message."""

    def decode(self, message: bytes) -> torch.Tensor:
        """The tensor, in the shape that was encoded last."""


class OwnCodec:
    """A profile of this package's codec on one backend."""

    def __init__(self, config: CodecConfig, backend: str) -> None:
        """Raises :class:`BackendUnavailable` if the backend's package is missing."""
        self.name = config.profile if backend == "auto" else f"{config.profile} ({backend})"
        self._codec, self._backend = Codec(config, backend=backend), backend

    def encode(self, x: torch.Tensor) -> bytes:
        """One frame."""
        return self._codec.encode(x)

    def decode(self, message: bytes) -> torch.Tensor:
        """The tensor of a frame."""
        x: torch.Tensor = decode(message, backend=self._backend)
        return x


class InNumPy:
    """A rival in NumPy, with PyTorch's memory passed through."""

    def __init__(self, rival: Rival, name: str = "") -> None:
        self.name, self._rival = name or rival.name, rival

    def encode(self, x: torch.Tensor) -> bytes:
        """One message."""
        return self._rival.encode(x.numpy())

    def decode(self, message: bytes) -> torch.Tensor:
        """The tensor of a message."""
        return torch.from_numpy(self._rival.decode(message))


class StraightforwardTorch:
    """The paper's stages as one would first write them: topk, sort, equal groups, quantise, pack; no entropy coding."""

    name = "torch topk + groups"

    def __init__(self, *, sparsity: float = SPARSITY, num_groups: int = 8, bits: int = 4) -> None:
        self._keep, self._num_groups, self._bits = 1 - sparsity, num_groups, bits
        self._shape: torch.Size = torch.Size()

    def encode(self, x: torch.Tensor) -> bytes:
        """Positions as a bitmap, group of each survivor, sign, code, and the groups' ranges."""
        flat = x.reshape(-1)
        self._shape = x.shape
        kept = torch.topk(flat.abs(), math.ceil(self._keep * flat.numel())).indices
        order = torch.sort(flat[kept].abs()).indices
        parts, ranges = torch.empty_like(flat, dtype=torch.uint8), []
        codes = torch.empty_like(parts)
        for group, members in enumerate(torch.tensor_split(kept[order], self._num_groups)):
            low, high = flat[members].abs().aminmax()
            ranges.append(torch.stack([low, high]))
            step = (high - low).clamp_min(torch.finfo(torch.float32).tiny) / (2**self._bits - 1)
            codes[members] = ((flat[members].abs() - low) / step).round().to(torch.uint8)
            parts[members] = group
        bitmap = torch.zeros_like(flat, dtype=torch.bool)
        bitmap[kept] = True
        fields = ((bitmap, 1), (parts[bitmap], 3), (flat[bitmap] < 0, 1), (codes[bitmap], self._bits))
        return b"".join((torch.cat(ranges).numpy().tobytes(), *(_pack(values, width) for values, width in fields)))

    def decode(self, message: bytes) -> torch.Tensor:
        """The tensor of a message."""
        size = self._shape.numel()
        num_kept = math.ceil(self._keep * size)
        data = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        ranges = data[: 8 * self._num_groups].view(torch.float32).view(-1, 2)
        at, fields = 8 * self._num_groups, []
        for count, width in ((size, 1), (num_kept, 3), (num_kept, 1), (num_kept, self._bits)):
            end = at + (count * width + 7) // 8
            fields.append(_unpack(data[at:end], count, width))
            at = end
        bitmap, parts, negative, codes = fields
        low, high = ranges[parts.long()].unbind(1)
        values = low + codes * ((high - low) / (2**self._bits - 1))
        flat = torch.zeros(size)
        flat[bitmap.bool()] = torch.where(negative.bool(), -values, values)
        return flat.view(self._shape)


def _pack(values: torch.Tensor, width: int) -> bytes:
    bits = (values.to(torch.uint8)[:, None] >> torch.arange(width, dtype=torch.uint8)) & 1
    padded = F.pad(bits.reshape(-1), (0, -bits.numel() % 8)).view(-1, 8)
    return (padded << torch.arange(8, dtype=torch.uint8)).sum(1, dtype=torch.uint8).numpy().tobytes()


def _unpack(data: torch.Tensor, count: int, width: int) -> torch.Tensor:
    bits = (data[:, None] >> torch.arange(8, dtype=torch.uint8)) & 1
    fields = bits.reshape(-1)[: count * width].view(count, width)
    return (fields << torch.arange(width, dtype=torch.uint8)).sum(1, dtype=torch.uint8)


def contenders(sparsity: float = SPARSITY) -> list[Contender]:
    """Everything that can be timed here. Of the rivals in NumPy only those whose speed would be no other elsewhere."""
    found: list[Contender] = []
    for profile in PROFILES:
        for backend in HOST_BACKENDS if profile != "fp16" else ("auto",):  # halves have no stages, so no backend
            with contextlib.suppress(BackendUnavailable):
                found.append(OwnCodec(CodecConfig(profile=profile, sparsity=sparsity), backend))
    found += [StraightforwardTorch(sparsity=sparsity)]
    if bitsandbytes_codec.is_available():
        found += [bitsandbytes_codec.BitsAndBytes(block) for block in (64, 4096)]
    found += [InNumPy(rival, f"{rival.name} in NumPy") for rival in (Halves(), BlockwiseInt8(block=64), Q80())]
    found += [InNumPy(Integer(bits=bits), f"int{bits} per token") for bits in (8, 4)]
    if zstd.is_available():
        found.append(InNumPy(ShuffledHalves(level=1)))
    return found
