"""Models that ``serverlight bench runtime`` makes for the purpose: how fast they are does not depend on their weights."""

from __future__ import annotations

import pathlib

import numpy as np
import torch

from serverlight.huggingface import write_random_llama, write_random_resnet

__all__ = ["make_llama", "make_resnet"]

LLAMA_SIZES = {"layers": 12, "hidden": 768, "heads": 12, "vocab_size": 32_000}
NUM_IMAGES, SIDE, COARSE_SIDE = 64, 224, 28


def make_llama(folder: pathlib.Path) -> str:
    """Writes a Llama of 125 M parameters into a new folder there; returns its path."""
    path = folder / "random-llama"
    write_random_llama(path, **LLAMA_SIZES)
    return str(path)


def make_resnet(folder: pathlib.Path) -> tuple[str, str]:
    """Writes a ResNet-50 of 24 M parameters and images for it; returns the paths of both.

    The images are smooth noise, so that their JPEG files are about as large as those of photographs.
    """
    path, data = folder / "random-resnet", folder / "images.npz"
    write_random_resnet(path)
    np.savez(data, images=_smooth_noise(), labels=np.zeros(NUM_IMAGES, np.int64))
    return str(path), str(data)


def _smooth_noise() -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    coarse = torch.rand(NUM_IMAGES, 3, COARSE_SIDE, COARSE_SIDE, generator=torch.Generator().manual_seed(1))
    images = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic").clamp(0, 1)
    return (255 * images).byte().movedim(1, -1).contiguous().numpy()
