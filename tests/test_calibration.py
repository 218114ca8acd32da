"""Calibrated settings: the fewest bits that keep a quality target."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from serverlight.calibration import PRESETS, calibrate
from serverlight.codec import CodecConfig
from serverlight.codec.config import CORRECTED_STEPS, LONG_STEPS
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


def test_best_of_several_bases(halves: Any) -> None:
    """Each base is searched as it would be alone, and the cheapest setting of all is chosen."""
    bases = [CodecConfig(profile="slicer", distortion=0.02), CodecConfig(checksum=False), CodecConfig()]
    alone = [calibrate(*halves, max_loss="balanced", base=base) for base in bases]
    together = calibrate(*halves, max_loss="balanced", base=bases)
    assert together.trials == tuple(trial for result in alone for trial in result.trials)
    assert together.chosen == alone[1].chosen  # four bytes a frame less than the last


def test_a_trellis_is_tried_where_it_can_win(halves: Any) -> None:
    """Of tokens it takes fewer bits at the same target; feature maps have none."""
    mix = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)) / 8
    samples = [torch.randn(1, 48, 64, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    tokens = (lambda x: (x,), lambda x: x @ mix, samples)
    found = calibrate(*tokens)
    assert found.config.trellis
    assert found.chosen.bits_per_element < calibrate(*tokens, base=CodecConfig()).chosen.bits_per_element
    assert not any(trial.config.trellis for trial in calibrate(*halves).trials)


def test_longer_steps_are_tried_for_feature_maps() -> None:
    """What only averages over a map hardly minds coarse numbers; then they take fewer bits at the same target."""
    mix = torch.randn(32, 10, generator=torch.Generator().manual_seed(1))
    seeds = [torch.Generator().manual_seed(seed) for seed in range(8)]
    samples = [(torch.randn(1, 32, 12, 12, generator=one) - 0.5).relu() for one in seeds]
    maps = (lambda x: (x,), lambda x: 4 * x.mean((2, 3)) @ mix, samples)
    found, plain = calibrate(*maps), calibrate(*maps, base=CodecConfig())
    assert found.config.distortion in LONG_STEPS
    assert found.chosen.bits_per_element < plain.chosen.bits_per_element
    assert {trial.config.distortion for trial in found.trials} == {None, *LONG_STEPS}
    corrected = {trial.config.distortion for trial in found.trials if trial.config.bias_correction}
    assert corrected == set(CORRECTED_STEPS)


def test_waves_are_tried_where_they_can_win() -> None:
    """Of smooth maps with negative elements they take fewer bits at the same target; of rectified ones there are none."""
    mix = torch.randn(16 * 12 * 12, 10, generator=torch.Generator().manual_seed(1)) / 50
    noise = [torch.randn(1, 16, 12, 12, generator=torch.Generator().manual_seed(seed)) for seed in range(8)]
    smooth = [sum(torch.roll(x, (i, j), (2, 3)) for i in range(4) for j in range(4)) / 4 for x in noise]
    maps = (lambda x: (x,), lambda x: x.flatten(1) @ mix, smooth)
    found, plain = calibrate(*maps), calibrate(*maps, base=CodecConfig())
    assert found.config.transform == "cosine"
    assert found.chosen.bits_per_element < 0.9 * plain.chosen.bits_per_element
    rectified = calibrate(*maps[:2], [x.relu() for x in smooth])
    assert {trial.config.transform for trial in rectified.trials} == {"none"}


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


def test_nothing_to_measure(halves: Any) -> None:
    """No samples, or no settings to measure on them."""
    with pytest.raises(ConfigError, match="base"):
        calibrate(*halves, base=[])
    with pytest.raises(ConfigError, match="samples"):
        calibrate(halves[0], halves[1], [])
