"""One function that turns what a user wrote after MODEL into a model."""

from __future__ import annotations

import pathlib

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from serverlight.errors import ModelError
from serverlight.models.cifar_resnet import CIFAR_MEAN, CIFAR_STD, CifarResNet, is_cifar_resnet
from serverlight.models.demo_vision import DEMO_VISION, load_demo_vision
from serverlight.models.imagenet_nets import IMAGENET_NETS
from serverlight.models.importing import import_model, is_import_spec
from serverlight.models.loaded import LoadedModel
from serverlight.models.preprocess import Normalize

__all__ = ["DEMO_LM", "is_language_model", "load_model"]

DEMO_LM = "demo-lm"
"""The shipped language model; :func:`serverlight.load_head` and :func:`serverlight.load_tail` take it."""

DEMO_PREFIX = "demo-"
WEIGHTS_SUFFIX = ".safetensors"


def load_model(spec: str) -> LoadedModel:
    """The model that ``spec`` names, in evaluation mode and float32.

    ``spec`` is one of

    - ``demo-vision``, the small classifier that comes with the package;
    - the path of a ``.safetensors`` state dict of a CIFAR ResNet, of SqueezeNet 1.1 or of MobileNetV2 with folded batch
      norms, recognised by its keys;
    - a Hugging Face folder, or an id on the hub;
    - ``package.module:function``, see :func:`serverlight.models.importing.import_model`.

    Raises :class:`ModelError` when the model is not there or cannot be loaded, and :class:`MissingDependency` when it
    needs a package that is not installed.

    >>> load_model("demo-vision").image_shape
    (32, 32, 1)
    """
    path = pathlib.Path(spec).expanduser()
    if spec == DEMO_VISION:
        return load_demo_vision()
    if spec.startswith(DEMO_PREFIX) and spec != DEMO_LM and not path.exists():
        raise ModelError(f"no shipped model {spec!r}; use {DEMO_VISION!r} or {DEMO_LM!r}")
    if path.suffix == WEIGHTS_SUFFIX or path.is_file():
        return _load_weights_file(spec, path)
    if is_import_spec(spec) and not path.exists():
        return import_model(spec)
    if not spec.strip():
        raise ModelError(f"the model's name is empty; try {DEMO_VISION!r}")
    return _load_from_hub(spec)


def is_language_model(spec: str) -> bool:
    """Whether ``spec`` names a causal language model, which ``load_head`` and ``load_tail`` take and :func:`load_model` does not.

    Raises :class:`ModelError` where there is no such folder or hub id.
    """
    path = pathlib.Path(spec).expanduser()
    if spec == DEMO_LM:
        return True
    if spec.startswith(DEMO_PREFIX) or path.suffix == WEIGHTS_SUFFIX or path.is_file() or is_import_spec(spec):
        return False
    from serverlight.huggingface import SETTINGS_FILES, find_folder, is_generative, read_config

    config = read_config(spec, find_folder(spec, SETTINGS_FILES))
    return is_generative((config.architectures or [""])[0], config.model_type)


def _load_from_hub(spec: str) -> LoadedModel:
    from serverlight.models.hub import load_hub_model  # brings transformers, which takes seconds

    return load_hub_model(spec)


def _load_weights_file(spec: str, path: pathlib.Path) -> LoadedModel:
    if not path.is_file():
        raise ModelError(f"no file {spec!r}; check the path")
    if path.suffix != WEIGHTS_SUFFIX:
        raise ModelError(
            f"{spec!r} is not a {WEIGHTS_SUFFIX} file; save the state dict with safetensors.torch.save_file"
        )
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as exc:
        raise ModelError(f"{spec!r} cannot be read: {exc}; copy or download it again") from exc
    for is_net, load_net in IMAGENET_NETS:
        if is_net(state):
            return LoadedModel.of_images(spec, *load_net(state))
    if not is_cifar_resnet(state):
        raise ModelError(
            f"{spec!r} holds weights of no network known here (CIFAR ResNets, SqueezeNet 1.1 and MobileNetV2 are); "
            "give the model as package.module:function that returns (module, example_inputs)"
        )
    network = CifarResNet.from_state_dict(state)
    channels = network.conv1.in_channels
    if channels != len(CIFAR_MEAN):
        return LoadedModel.of(spec, network, torch.zeros(2, channels, 32, 32))
    return LoadedModel.of_images(spec, network, Normalize(image_shape=(32, 32, 3), mean=CIFAR_MEAN, std=CIFAR_STD))
