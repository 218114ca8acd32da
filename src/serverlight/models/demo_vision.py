"""The shipped vision model, ``demo-vision``: handwritten digits, ten classes, no download.

A :class:`CifarResNet` of ten blocks on grey images of 32 x 32 pixels. ``training/train_vision.py`` made the weights
and the image files; the test images took no part in the training.
"""

from __future__ import annotations

import importlib.resources
import io

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load

from serverlight.errors import ConfigError
from serverlight.models.cifar_resnet import CifarResNet
from serverlight.models.images import resize_images
from serverlight.models.loaded import LoadedModel
from serverlight.models.preprocess import Normalize

__all__ = ["DEMO_VISION", "NORMALIZE", "SPLITS", "demo_images", "enlarge_digits", "load_demo_vision", "new_network"]

DEMO_VISION = "demo-vision"
"""The spec by which :func:`serverlight.models.load_model` knows the model."""

SPLITS = ("test", "calibration")
"""Shipped image sets: held-out ones to measure with, and some of the training images to calibrate with."""

NORMALIZE = Normalize(image_shape=(32, 32, 1), mean=(0.309,), std=(0.349,))
"""Mean and deviation are those of the enlarged training images, to three digits."""

MAX_INK = 16
"""The digits' darkest value: each of the 8 x 8 cells counts the set pixels among 16."""


def new_network() -> CifarResNet:
    """The network with fresh weights, in training mode.

    Ten blocks, most of the work in the early, wide-resolution ones: 86 % of the multiply-accumulates lie before
    the second block of the last stage.
    """
    return CifarResNet(depths=(4, 3, 3), widths=(16, 32, 48), in_channels=1)


def load_demo_vision() -> LoadedModel:
    """The trained network."""
    network = CifarResNet.from_state_dict(load(_data("demo_vision.safetensors")))
    return LoadedModel.of_images(DEMO_VISION, network, NORMALIZE)


def demo_images(split: str = "test") -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images uint8 (N, 32, 32, 1) and labels int64 (N,) of the ``test`` or ``calibration`` split."""
    if split not in SPLITS:
        raise ConfigError("split", f"must be one of {', '.join(SPLITS)}, got {split!r}")
    with np.load(io.BytesIO(_data(f"demo_vision_{split}.npz")), allow_pickle=False) as arrays:
        return enlarge_digits(arrays["images"]), arrays["labels"].astype(np.int64)


def enlarge_digits(digits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Digits (N, 8, 8) of values 0 to 16, as scikit-learn has them, to 8-bit images (N, 32, 32, 1)."""
    grey = (digits.astype(np.uint16) * 255 + MAX_INK // 2) // MAX_INK
    height, width, _ = NORMALIZE.image_shape
    return resize_images(grey.astype(np.uint8)[..., None], height, width)


def _data(name: str) -> bytes:
    return (importlib.resources.files("serverlight.models") / "data" / name).read_bytes()
