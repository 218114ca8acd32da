"""Single-shot models from a Hugging Face id or folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from serverlight.errors import ModelError
from serverlight.huggingface import (
    SETTINGS_FILES,
    WEIGHT_FILES,
    find_folder,
    is_detector,
    is_generative,
    load_weights,
    model_class,
    read_config,
    read_json,
)
from serverlight.models.loaded import ExampleInputs, LoadedModel
from serverlight.models.preprocess import Normalize

__all__ = ["load_hub_model"]

DEFAULT_IMAGE_SIZE = 224
"""Where neither the preprocessor nor the config names a size: what most classifiers were trained at."""

EXAMPLE_TOKENS = 16
"""Sequence length of the example inputs of text encoders."""

OWN_FUNCTION = "give it as package.module:function that returns (module, example_inputs)"


def load_hub_model(spec: str) -> LoadedModel:
    """Loads the model of a local folder or of a hub id, in float32 and evaluation mode.

    Raises :class:`ModelError` for an id or folder that is not there, one that cannot be read, and for models that
    are not single-shot vision models or text encoders.
    """
    folder = find_folder(spec, SETTINGS_FILES)
    config = read_config(spec, folder)
    chosen = _choose_class(spec, config)
    folder = find_folder(spec, SETTINGS_FILES + WEIGHT_FILES)
    module = load_weights(spec, folder, chosen, config, torch.float32)
    if chosen.main_input_name == "input_ids":
        return LoadedModel.of(spec, module, _example_text(config))
    processor = read_json(folder / "preprocessor_config.json")
    image_shape = _image_shape(config, processor)
    if "image_mean" in processor and "image_std" in processor:
        return LoadedModel.of_images(spec, module, _normalize(image_shape, processor))
    height, width, channels = image_shape
    return LoadedModel.of(spec, module, torch.zeros(2, channels, height, width))


# -- which class, which inputs ---------------------------------------------------------------------


def _choose_class(spec: str, config: Any) -> Any:
    names = config.architectures or []
    if not names:
        raise ModelError(f"the config of {spec!r} names no architecture; add `architectures` to its config.json")
    chosen = model_class(names[0])
    if chosen is None:
        raise ModelError(f"{spec!r} needs code outside transformers ({names[0]}); {OWN_FUNCTION}")
    if is_generative(names[0], config.model_type):
        raise ModelError(
            f"{spec!r} is a generative language model ({names[0]}), which load_head and load_tail cut; "
            "this takes single-shot models: vision models and text encoders"
        )
    # Detectors are called with an image alone; what their decoders begin with is learned.
    if getattr(config, "is_encoder_decoder", False) and not is_detector(names[0]):
        raise ModelError(f"{spec!r} is an encoder-decoder ({names[0]}); to cut its encoder, {OWN_FUNCTION}")
    if chosen.main_input_name not in ("pixel_values", "input_ids"):
        raise ModelError(f"{names[0]} takes {chosen.main_input_name!r}, neither images nor tokens; {OWN_FUNCTION}")
    return chosen


def _example_text(config: Any) -> ExampleInputs:
    length = min(EXAMPLE_TOKENS, getattr(config, "max_position_embeddings", EXAMPLE_TOKENS))
    input_ids = (torch.arange(length) % config.vocab_size).repeat(2, 1)
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}


def _image_shape(config: Any, processor: Mapping[str, Any]) -> tuple[int, int, int]:
    """Height, width and channels: as the preprocessor leaves images, else as the config says."""
    size = processor.get("crop_size") if processor.get("do_center_crop") else None
    size = size or processor.get("size") or _setting(config, "image_size") or DEFAULT_IMAGE_SIZE
    channels = int(_setting(config, "num_channels") or 3)
    if isinstance(size, Mapping):
        shortest = size.get("shortest_edge", DEFAULT_IMAGE_SIZE)
        return int(size.get("height", shortest)), int(size.get("width", shortest)), channels
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width), channels


def _setting(config: Any, name: str) -> Any:
    """A setting of the config or, for detectors, of the config of its backbone."""
    found = getattr(config, name, None)
    return found if found is not None else getattr(getattr(config, "backbone_config", None), name, None)


def _normalize(image_shape: tuple[int, int, int], processor: Mapping[str, Any]) -> Normalize:
    channels = image_shape[2]
    normalizes = processor.get("do_normalize", True)
    return Normalize(
        image_shape=image_shape,
        mean=tuple(map(float, processor["image_mean"])) if normalizes else (0.0,) * channels,
        std=tuple(map(float, processor["image_std"])) if normalizes else (1.0,) * channels,
        scale=float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0,
    )
