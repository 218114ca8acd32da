"""Tests of serverlight.models.demo_vision."""

from __future__ import annotations

import importlib.resources

import numpy as np
import pytest
import torch

from serverlight.errors import ConfigError
from serverlight.models import LoadedModel, load_model
from serverlight.models.demo_vision import demo_images, enlarge_digits

TEST_ACCURACY_FLOOR = 0.985
"""Stated in training/README.md: 99.33 %; another CPU or torch may flip an image or three."""


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model("demo-vision")


def test_accuracy_on_held_out_images(demo: LoadedModel) -> None:
    """The shipped weights classify the shipped test images, which they never saw, as well as stated."""
    images, labels = demo_images()
    with torch.inference_mode():
        predicted = demo.module(demo.preprocess(images)).argmax(1).numpy()
    assert (predicted == labels).mean() >= TEST_ACCURACY_FLOOR


def test_revision_is_that_of_the_shipped_weights(demo: LoadedModel) -> None:
    """Plans name the shipped weights by this digest; retraining changes it, nothing else does."""
    assert demo.revision == "51a312a51a2b6b28"


def test_is_ready_to_be_cut(demo: LoadedModel) -> None:
    """Evaluation mode, float32, no gradients, an example of batch 2."""
    assert not demo.module.training
    assert {p.dtype for p in demo.module.parameters()} == {torch.float32}
    assert not any(p.requires_grad for p in demo.module.parameters())
    assert demo.example_inputs.shape == (2, 1, 32, 32)


def test_splits_have_the_stated_sizes_and_all_classes() -> None:
    """450 test and 200 calibration images, each class among them, and none in both."""
    test, test_labels = demo_images("test")
    calibration, calibration_labels = demo_images("calibration")
    assert test.shape == (450, 32, 32, 1)
    assert calibration.shape == (200, 32, 32, 1)
    assert set(test_labels) == set(calibration_labels) == set(range(10))
    assert np.bincount(test_labels).min() >= 43
    assert not {image.tobytes() for image in test} & {image.tobytes() for image in calibration}


def test_unknown_split_is_named() -> None:
    """The error names the field and the choices."""
    with pytest.raises(ConfigError, match="split: must be one of test, calibration, got 'train'"):
        demo_images("train")


def test_enlarging_spans_the_full_range() -> None:
    """No ink is black, full ink is white, and what lies between is rounded (7/16 of 255 is 111.6)."""
    enlarged = enlarge_digits(np.stack([np.full((8, 8), ink, np.uint8) for ink in (0, 7, 16)]))
    for image, grey in zip(enlarged, (0, 112, 255), strict=True):
        assert (image == grey).all()


def test_weights_stay_small() -> None:
    """The package carries at most 400 KB of weights."""
    data = importlib.resources.files("serverlight.models") / "data" / "demo_vision.safetensors"
    assert len(data.read_bytes()) <= 400_000
