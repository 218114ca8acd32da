"""From 8-bit images to the tensor that a vision model takes."""

# Shapes: N = images, H = height, W = width, C = channels.

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from serverlight.errors import ConfigError, InputMismatch

__all__ = ["Normalize"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalize:
    """Scales 8-bit images and normalises each channel: ``(image * scale - mean) / std``.

    >>> to_tensor = Normalize(image_shape=(2, 2, 1), mean=(0.5,), std=(0.5,))
    >>> to_tensor(np.full((3, 2, 2, 1), 255, np.uint8)).shape
    torch.Size([3, 1, 2, 2])
    """

    image_shape: tuple[int, int, int]
    """Height, width and channels of every image."""

    mean: tuple[float, ...]
    """Mean of each channel, after scaling."""

    std: tuple[float, ...]
    """Standard deviation of each channel, after scaling."""

    scale: float = 1 / 255
    """Factor applied to the 8-bit values first."""

    def __post_init__(self) -> None:
        channels = self.image_shape[2]
        for field, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != channels:
                raise ConfigError(field, f"needs one value for each of {channels} channels, got {len(values)}")
        if not all(value > 0 for value in self.std):
            raise ConfigError("std", f"must be positive in every channel, got {self.std}")

    def __call__(self, images: NDArray[np.uint8]) -> torch.Tensor:
        """Float32 tensor (N, C, H, W); raises :class:`InputMismatch` for another dtype or shape."""
        if images.dtype != np.uint8 or images.shape[1:] != self.image_shape:
            raise InputMismatch(
                f"images: expected uint8 of shape (N, {', '.join(map(str, self.image_shape))}), "
                f"got {images.dtype} of shape {images.shape}; resize or convert them first"
            )
        pixels = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float()
        mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (self.mean, self.std))
        return ((pixels * self.scale - mean) / std).contiguous()
