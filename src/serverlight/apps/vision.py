"""Images in, classes out: what the commands that measure image classifiers have in common."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from serverlight.errors import ConfigError
from serverlight.evaluation import ImageSet, load_images
from serverlight.models import LoadedModel
from serverlight.models.demo_vision import DEMO_VISION

__all__ = ["JPEG_QUALITY", "load_model_images", "predicted_class"]

JPEG_QUALITY = 90
"""Of the JPEG files that a feature's bytes are compared with."""


def load_model_images(model: LoadedModel, spec: str | None, limit: int | None) -> ImageSet:
    """The images that ``spec`` names, as many as wanted and of the model's shape; the shipped model has its own.

    Image files of another size are cut to the model's. Raises :class:`ConfigError`.
    """
    if model.image_shape is None:
        raise ConfigError("model", f"{model.name!r} takes no images, or its preprocessing is not known; use another")
    if spec is None and model.name != DEMO_VISION:
        raise ConfigError("data", f"{model.name!r} brings no images of its own; name some with --data")
    height, width, channels = model.image_shape
    data = load_images(spec or DEMO_VISION, channels=channels, size=(height, width), limit=limit)
    if data.images.shape[1:] != model.image_shape:
        got, wanted = (" x ".join(map(str, shape)) for shape in (data.images.shape[1:], model.image_shape))
        raise ConfigError("data", f"has images of {got}, the model takes {wanted}; resize them")
    return data


def predicted_class(outputs: Any) -> int:
    """The class that a classifier's outputs name for the only sample in them; raises :class:`ConfigError`."""
    logits = outputs.get("logits") if hasattr(outputs, "get") else outputs
    if isinstance(logits, tuple | list) and len(logits) == 1:
        logits = logits[0]
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        raise ConfigError("model", "its outputs are no logits of shape (images, classes); use an image classifier")
    return int(logits[0].argmax())
