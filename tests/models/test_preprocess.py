"""Tests of serverlight.models.preprocess."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from serverlight.errors import ConfigError, InputMismatch
from serverlight.models.preprocess import Normalize

NORMALIZE = Normalize(image_shape=(2, 3, 3), mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 1.0))


def test_normalises_each_channel() -> None:
    """Channels last in, channels first out, each with its own mean and deviation."""
    images = np.zeros((1, 2, 3, 3), np.uint8)
    images[..., 0], images[..., 2] = 255, 51
    tensor = NORMALIZE(images)
    assert tensor.shape == (1, 3, 2, 3)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    torch.testing.assert_close(tensor[0, :, 0, 0], torch.tensor([1.0, -1.0, 0.2]))


def test_takes_any_number_of_images_and_any_layout() -> None:
    """No images, and views that are not contiguous, are fine."""
    assert NORMALIZE(np.zeros((0, 2, 3, 3), np.uint8)).shape == (0, 3, 2, 3)
    images = np.random.default_rng(0).integers(0, 256, (4, 3, 2, 3), np.uint8).transpose(0, 2, 1, 3)[::2]
    torch.testing.assert_close(NORMALIZE(images), NORMALIZE(images.copy()))


@pytest.mark.parametrize(
    "images",
    [np.zeros((1, 2, 3, 3), np.float32), np.zeros((1, 3, 2, 3), np.uint8), np.zeros((2, 3, 3), np.uint8)],
    ids=["dtype", "size", "rank"],
)
def test_rejects_other_images(images: np.ndarray) -> None:
    """The message names what was expected, what came, and what to do."""
    with pytest.raises(InputMismatch, match=r"expected uint8 of shape \(N, 2, 3, 3\), got .*resize or convert"):
        NORMALIZE(images)


def test_rejects_wrong_settings() -> None:
    """One mean and one positive deviation for each channel."""
    with pytest.raises(ConfigError, match="mean"):
        Normalize(image_shape=(2, 2, 3), mean=(0.5,), std=(1.0, 1.0, 1.0))
    with pytest.raises(ConfigError, match="std"):
        Normalize(image_shape=(2, 2, 1), mean=(0.5,), std=(0.0,))
