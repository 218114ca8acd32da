"""Calibrated settings: the fewest bits that keep a quality target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from serverlight.calibration import PRESETS, calibrate
from serverlight.codec import CodecConfig
from serverlight.errors import ConfigError


@pytest.fixture(scope="module")
def halves() -> tuple[Any, Any, list[torch.Tensor]]:
    torch.manual_seed(0)
    head_module = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    tail = nn.Sequential(nn.Flatten(), nn.Linear(8 * 64, 10))
    samples = [torch.randn(1, 3, 8, 8) for _ in range(24)]
    return (lambda x: (head_module(x),)), tail, samples


def test_chosen_setting_keeps_the_target(halves: Any) -> None:
    """The chosen setting was measured within the target, and nothing cheaper that was tried was."""
    result = calibrate(*halves, max_loss="balanced", base=CodecConfig(profile="slicer", distortion=0.02))
    assert result.chosen.loss <= PRESETS["balanced"]
    assert result.config == result.chosen.config
    for trial in result.trials:
        assert trial.loss > PRESETS["balanced"] or trial.bits_per_element >= result.chosen.bits_per_element
        assert trial.loss_interval[0] <= trial.loss <= trial.loss_interval[1]


def test_presets_are_ordered(halves: Any) -> None:
    """`small` takes fewer bits than `balanced`, and that fewer than `fidelity`."""
    bits = [
        calibrate(*halves, max_loss=name, base=CodecConfig(profile="slicer", distortion=0.02)).chosen.bits_per_element
        for name in ("small", "balanced", "fidelity")
    ]
    assert bits == sorted(bits)
    assert bits[0] < bits[-1]


def test_disagreement_is_a_share(halves: Any) -> None:
    """The other metric counts answers that change."""
    result = calibrate(*halves, max_loss=0.1, metric="disagreement")
    assert 0 <= result.chosen.loss <= 0.1
    assert (result.chosen.loss * 24) == pytest.approx(round(result.chosen.loss * 24))


def test_unreachable_target_gives_the_closest(halves: Any) -> None:
    """When even nothing dropped loses too much, the result is the finest setting, and its loss says so."""
    result = calibrate(*halves, max_loss=1e-12, base=CodecConfig(profile="slicer", distortion=0.4))
    assert result.config.sparsity == 0
    assert result.chosen.loss > 1e-12


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("max_loss", {"max_loss": "tiny"}),
        ("max_loss", {"max_loss": 0.0}),
        ("max_loss", {"max_loss": "small", "metric": "disagreement"}),
        ("metric", {"metric": "mse"}),
    ],
)
def test_bad_targets_are_named(halves: Any, field: str, arguments: dict[str, Any]) -> None:
    """A bad target is refused by name."""
    with pytest.raises(ConfigError, match=field):
        calibrate(*halves, **arguments)


def test_no_samples_is_an_error(halves: Any) -> None:
    """There is nothing to measure on."""
    with pytest.raises(ConfigError, match="samples"):
        calibrate(halves[0], halves[1], [])
