"""Tests of serverlight.models.cifar_resnet."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from serverlight.errors import ModelError
from serverlight.models import load_model
from serverlight.models.cifar_resnet import CifarResNet, is_cifar_resnet


def test_sizes_are_read_off_the_weights() -> None:
    """Depths, widths, channels and classes need not be said twice."""
    network = CifarResNet(depths=(1, 2, 3), widths=(4, 6, 9), in_channels=2, num_classes=5).eval()
    rebuilt = CifarResNet.from_state_dict(network.state_dict())
    x = torch.randn(2, 2, 8, 8)
    assert torch.equal(rebuilt(x), network(x))
    assert rebuilt.block_names == ("layer1.0", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer3.2")
    assert not rebuilt.training


def test_block_names_are_module_paths() -> None:
    """Every block name leads to a block."""
    network = CifarResNet(depths=(2, 1, 1))
    assert {type(network.get_submodule(name)).__name__ for name in network.block_names} == {"ResidualBlock"}


def test_counters_may_be_missing() -> None:
    """The batch counters of the norms, which older checkpoints lack, are not needed."""
    state = {k: v for k, v in CifarResNet(depths=(1, 1, 1)).state_dict().items() if "num_batches" not in k}
    assert CifarResNet.from_state_dict(state).depth == 8


@pytest.mark.parametrize("change", ["missing", "extra", "shape", "hole"])
def test_rejects_weights_that_do_not_fit(change: str) -> None:
    """A missing, extra or misshapen weight is one clear error."""
    state = dict(CifarResNet(depths=(1, 2, 1)).state_dict())
    if change == "missing":
        del state["layer2.1.bn2.weight"]
    elif change == "extra":
        state["layer1.0.conv3.weight"] = torch.zeros(1)
    elif change == "shape":
        state["linear.bias"] = torch.zeros(3)
    else:
        state = {name.replace("layer2.1.", "layer2.7."): tensor for name, tensor in state.items()}
    with pytest.raises(ModelError, match=r"do not fit a CIFAR ResNet.*complete"):
        CifarResNet.from_state_dict(state)


def test_recognises_its_own_keys_only() -> None:
    """A state dict of another network is not taken for a CIFAR ResNet."""
    assert is_cifar_resnet(CifarResNet(depths=(1, 1, 1)).state_dict())
    assert not is_cifar_resnet({"conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)})


def test_needs_three_stages() -> None:
    """Two stages, or an empty one, are refused."""
    for depths in ((1, 1), (1, 0, 1)):
        with pytest.raises(ModelError, match="3 stages"):
            CifarResNet(depths=depths)


def test_real_checkpoint_reaches_its_known_accuracy(shared_data) -> None:
    """ResNet-56 with the weights beside the checkout: 92.6 % on the thousand images, 96 % or more on the first 100."""
    model = load_model(str(shared_data / "vision_cifar10" / "resnet56.safetensors"))
    with np.load(shared_data / "vision_cifar10" / "cifar10_test_first1000.npz", allow_pickle=False) as arrays:
        images, labels = arrays["images"][:100], arrays["labels"][:100]
    assert isinstance(model.module, CifarResNet)
    assert model.module.depth == 56
    assert model.image_shape == (32, 32, 3)
    predicted = model.module(model.preprocess(images)).argmax(1).numpy()
    assert (predicted == labels).mean() >= 0.90
