"""What loading a model gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from serverlight.errors import ModelError
from serverlight.models.digest import weights_digest
from serverlight.models.preprocess import Normalize

__all__ = ["ExampleInputs", "LoadedModel", "Preprocess"]

ExampleInputs = torch.Tensor | tuple[Any, ...] | dict[str, Any]
"""Inputs for one call: the only argument, the positional arguments, or the keyword arguments."""

Preprocess = Callable[[NDArray[np.uint8]], torch.Tensor]
"""From images uint8 (N, H, W, C) to the model's input."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadedModel:
    """A module ready to be cut, with what one needs to know to feed it."""

    name: str
    """The spec it was loaded by; :func:`serverlight.models.load_model` takes it again."""

    revision: str
    """Digest of the weights, see :func:`serverlight.models.weights_digest`."""

    module: nn.Module
    """The network: evaluation mode, float32, no gradients."""

    example_inputs: ExampleInputs
    """Inputs of batch 2, for tracing."""

    preprocess: Preprocess | None = None
    """For vision models whose normalisation is known: images uint8 (N, H, W, C) to the input tensor."""

    image_shape: tuple[int, int, int] | None = None
    """Height, width and channels of the images that :attr:`preprocess` takes."""

    def __post_init__(self) -> None:
        _check_type("the model", self.module, nn.Module)
        _check_type("example inputs", self.example_inputs, torch.Tensor, tuple, dict)
        if self.module.training:
            raise ModelError(f"model {self.name!r} is in training mode; call .eval() on it")
        if (self.preprocess is None) != (self.image_shape is None):
            raise ModelError("preprocess and image_shape belong together; give both or neither")

    @classmethod
    def of(cls, name: str, module: nn.Module, example_inputs: ExampleInputs) -> LoadedModel:
        """A model as it is: put into evaluation mode, gradients off, digest taken."""
        module.eval().requires_grad_(False)
        return cls(name=name, revision=weights_digest(module), module=module, example_inputs=example_inputs)

    @classmethod
    def of_images(cls, name: str, module: nn.Module, normalize: Normalize) -> LoadedModel:
        """A vision model: its example inputs are two grey images."""
        module.eval().requires_grad_(False)
        height, width, channels = normalize.image_shape
        return cls(
            name=name,
            revision=weights_digest(module),
            module=module,
            example_inputs=normalize(np.full((2, height, width, channels), 128, np.uint8)),
            preprocess=normalize,
            image_shape=normalize.image_shape,
        )


def _check_type(what: str, value: object, *wanted: type) -> None:
    if not isinstance(value, wanted):
        names = " or ".join(kind.__name__ for kind in wanted)
        raise ModelError(f"{what} must be a {names}, got {type(value).__name__}")
