"""Tests of serverlight.models.imagenet_nets."""

from __future__ import annotations

import pathlib

import pytest
import torch
from safetensors.torch import save_file

from serverlight.errors import ModelError
from serverlight.evaluation import load_images
from serverlight.models import load_model
from serverlight.models.imagenet_nets import (
    MobileNetV2,
    SameConv,
    SqueezeNet,
    is_mobilenet_v2,
    is_squeezenet,
    load_mobilenet_v2,
)

BASELINES = {"squeezenet1_1_caffe": 0.60, "mobilenetv2_1.0_224": 0.80}
"""Top-1 on the first 25 of the 700 sample images, measured once with the reference definitions of these networks."""


@pytest.mark.parametrize("network", [SqueezeNet(), MobileNetV2()], ids=["squeezenet", "mobilenet"])
def test_state_dict_file(tmp_path: pathlib.Path, network: torch.nn.Module) -> None:
    """Each network's state dict is recognised by its keys, and loaded with its preprocessing."""
    save_file(network.state_dict(), tmp_path / "net.safetensors")
    model = load_model(str(tmp_path / "net.safetensors"))
    assert type(model.module) is type(network)
    assert model.image_shape == (224, 224, 3)
    x = torch.rand(1, 3, 64, 64)
    assert torch.equal(model.module(x), network.eval()(x))
    assert model.module(x).shape == (1, 1000)


def test_keys_are_told_apart() -> None:
    """Neither network's state dict is taken for the other's."""
    squeeze, mobile = SqueezeNet().state_dict(), MobileNetV2().state_dict()
    assert (is_squeezenet(squeeze), is_squeezenet(mobile)) == (True, False)
    assert (is_mobilenet_v2(squeeze), is_mobilenet_v2(mobile)) == (False, True)


def test_rejects_weights_that_do_not_fit() -> None:
    """A missing weight is one clear error."""
    state = MobileNetV2().state_dict()
    del state["blocks.7.project.bias"]
    with pytest.raises(ModelError, match=r"do not fit MobileNetV2.*blocks.7.project.bias.*complete"):
        load_mobilenet_v2(state)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(8, 3, 1), (8, 3, 2), (7, 3, 2), (5, 1, 1)])
def test_same_padding(size: int, kernel: int, stride: int) -> None:
    """The output has ceil(size / stride) rows, and an odd row of padding is at the end."""
    conv = SameConv(1, 1, kernel, stride)
    torch.nn.init.ones_(conv.weight)
    torch.nn.init.zeros_(conv.bias)
    y = conv(torch.ones(1, 1, size, size))
    assert y.shape[2:] == (-(-size // stride),) * 2
    if (size, stride) == (8, 2):  # one row of padding, below and to the right
        assert (y[0, 0, 0, 0], y[0, 0, -1, -1]) == (9, 4)


@pytest.mark.parametrize("name", BASELINES)
def test_published_weights(shared_data: pathlib.Path, name: str) -> None:
    """The real weights classify as well as with the definitions they came with."""
    torch.set_num_threads(1)
    path = shared_data / "vision_imagenet"
    if not (path / f"{name}.safetensors").is_file():
        pytest.skip(f"needs {name}.safetensors")
    model = load_model(str(path / f"{name}.safetensors"))
    data = load_images(str(path / "imagenet_sample_dev700_224_q92.zip")).first(25)
    with torch.inference_mode():
        answers = model.module(model.preprocess(data.images)).argmax(1).numpy()
    assert (answers == data.labels).mean() == pytest.approx(BASELINES[name])
