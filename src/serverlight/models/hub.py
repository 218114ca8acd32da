"""Single-shot models from a Hugging Face id or folder; the only file that imports transformers.

Weights are read from safetensors files only, and code from a repository is never run.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from safetensors import SafetensorError
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

from serverlight.errors import ModelError
from serverlight.models.loaded import ExampleInputs, LoadedModel
from serverlight.models.preprocess import Normalize

__all__ = ["load_hub_model"]

SETTINGS_FILES = ["config.json", "preprocessor_config.json"]
WEIGHT_FILES = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]

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
    local = pathlib.Path(spec).expanduser()
    folder = local if local.is_dir() else _download(spec, SETTINGS_FILES)
    config = _read_config(spec, folder)
    model_class = _model_class(spec, config)
    if folder is not local:
        folder = _download(spec, SETTINGS_FILES + WEIGHT_FILES)
    module = _load_weights(spec, folder, model_class, config)
    if model_class.main_input_name == "input_ids":
        return LoadedModel.of(spec, module, _example_text(config))
    processor = _read_json(folder / "preprocessor_config.json")
    image_shape = _image_shape(config, processor)
    if "image_mean" in processor and "image_std" in processor:
        return LoadedModel.of_images(spec, module, _normalize(image_shape, processor))
    height, width, channels = image_shape
    return LoadedModel.of(spec, module, torch.zeros(2, channels, height, width))


# -- files -----------------------------------------------------------------------------------------


def _download(spec: str, patterns: list[str]) -> pathlib.Path:
    """Snapshot folder of a hub id, from the cache where the hub cannot be reached."""
    try:
        return pathlib.Path(snapshot_download(spec, allow_patterns=patterns))
    except HFValidationError:
        raise ModelError(f"no folder {spec!r}, and it is no hub id either; check the path") from None
    except GatedRepoError:
        raise ModelError(
            f"model {spec!r} is gated; ask for access on its page and log in with `hf auth login`"
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(f"no folder {spec!r} here and no model {spec!r} on the hub; check the spelling") from None
    except Exception as exc:  # the hub's client raises the classes of whichever HTTP library it was built on
        raise ModelError(
            f"no folder {spec!r} here, and the hub cannot be reached; "
            "check the path, connect to the network, or give a downloaded folder"
        ) from exc


def _read_config(spec: str, folder: pathlib.Path) -> Any:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{spec!r} has no config.json; give a folder written by save_pretrained")
    try:
        with _quiet():
            return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as exc:
        raise ModelError(f"cannot read the config of {spec!r}: {exc}; is transformers recent enough for it?") from exc


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    """Contents of an optional file; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text())
    except ValueError as exc:
        raise ModelError(f"{path.name} is not JSON: {exc}; download it again") from None
    return fields if isinstance(fields, dict) else {}


def _load_weights(spec: str, folder: pathlib.Path, model_class: Any, config: Any) -> torch.nn.Module:
    try:
        with _quiet():
            module, info = model_class.from_pretrained(
                folder, config=config, dtype=torch.float32, use_safetensors=True, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
    except (SafetensorError, OSError, RuntimeError, ValueError) as exc:
        raise ModelError(f"cannot load the weights of {spec!r}: {exc}; save it again with save_pretrained") from exc
    if missing := sorted(info["missing_keys"]):
        raise ModelError(
            f"{spec!r} lacks {len(missing)} weights of {model_class.__name__}, {missing[0]!r} first, which would be "
            "random; give a complete checkpoint, or correct `architectures` in its config.json"
        )
    loaded: torch.nn.Module = module
    return loaded


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no report while loading: what matters of them is checked here."""
    log: Any = transformers.utils.logging  # its functions carry no annotations
    verbosity, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()


# -- which class, which inputs ---------------------------------------------------------------------


def _model_class(spec: str, config: Any) -> Any:
    names = config.architectures or []
    if not names:
        raise ModelError(f"the config of {spec!r} names no architecture; add `architectures` to its config.json")
    model_class = getattr(transformers, names[0], None)
    if model_class is None:
        raise ModelError(f"{spec!r} needs code outside transformers ({names[0]}); {OWN_FUNCTION}")
    if _is_generative(names[0], config.model_type):
        raise ModelError(
            f"{spec!r} is a generative language model ({names[0]}), which comes with the language-model commands; "
            "this takes single-shot models: vision models and text encoders"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelError(f"{spec!r} is an encoder-decoder ({names[0]}); to cut its encoder, {OWN_FUNCTION}")
    if model_class.main_input_name not in ("pixel_values", "input_ids"):
        raise ModelError(f"{names[0]} takes {model_class.main_input_name!r}, neither images nor tokens; {OWN_FUNCTION}")
    return model_class


def _is_generative(class_name: str, model_type: str) -> bool:
    if class_name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return True
    decoder_only = (
        model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    return decoder_only and class_name == MODEL_MAPPING_NAMES.get(model_type)


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
