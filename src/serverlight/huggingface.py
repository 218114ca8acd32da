"""What the project needs of Hugging Face: files, configs, classes, weights, caches; the only file that imports transformers.

Weights are read from safetensors files only, and code from a repository is never run.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from safetensors import SafetensorError

from serverlight.errors import ConfigError, MissingDependency, ModelError, NotPartitionable

try:
    import transformers
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
        MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES,
        MODEL_MAPPING_NAMES,
    )
except ModuleNotFoundError as exc:
    if exc.name not in ("transformers", "huggingface_hub"):
        raise
    raise MissingDependency(exc.name, "hf") from None

__all__ = [
    "INDEX_FILE",
    "SETTINGS_FILES",
    "SHIPPED",
    "TOKENIZER_FILES",
    "WEIGHT_FILES",
    "GenerativeModel",
    "causal_lm_class",
    "causal_lm_output",
    "find_folder",
    "generate_output",
    "generation_config",
    "is_detector",
    "is_generative",
    "load_image_processor",
    "load_tokenizer",
    "load_weights",
    "model_class",
    "new_cache",
    "quiet",
    "read_config",
    "read_json",
    "register_causal_lm",
    "set_token_count",
    "sliding_window",
    "stop_ids",
    "stopping_criteria",
    "write_random_llama",
    "write_random_resnet",
]

INDEX_FILE = "model.safetensors.index.json"
PROCESSOR_FILE = "preprocessor_config.json"
SETTINGS_FILES = ["config.json", PROCESSOR_FILE]
_loading = threading.RLock()

SHIPPED = {"demo-lm": pathlib.Path(__file__).parent / "models" / "data" / "demo_lm"}
"""Folders that come with the package, by the names that stand for them."""

WEIGHT_FILES = ["model.safetensors", "model-*-of-*.safetensors", INDEX_FILE]
GENERATION_FILE = "generation_config.json"
VOCABULARY_FILES = ["tokenizer.json", "vocab.json", "tokenizer.model", "vocab.txt", "spiece.model", "*.tiktoken"]
"""One of them holds a tokenizer's vocabulary."""

TOKENIZER_FILES = [
    *VOCABULARY_FILES, "config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "merges.txt", "chat_template.jinja", GENERATION_FILE,
]  # fmt: skip


# -- files -----------------------------------------------------------------------------------------


def find_folder(spec: str, patterns: Sequence[str]) -> pathlib.Path:
    """The local or shipped folder ``spec``, or the snapshot of the hub id ``spec``, with the files that match a pattern.

    Raises :class:`ModelError` for what is none of these, what is gated, and where the hub cannot be reached.
    """
    local = pathlib.Path(spec).expanduser()
    if not local.is_dir():
        local = SHIPPED.get(spec, local)
    if local.is_dir():
        return local
    if spec in SHIPPED:
        raise ModelError(f"{spec!r} is missing from this installation; install the package with its data files")
    try:
        return pathlib.Path(snapshot_download(spec, allow_patterns=list(patterns)))
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


def read_config(spec: str, folder: pathlib.Path) -> Any:
    """The config of a folder; raises :class:`ModelError` where there is none, or one that transformers cannot read."""
    if not (folder / "config.json").is_file():
        raise ModelError(f"{spec!r} has no config.json; give a folder written by save_pretrained")
    try:
        with quiet():
            return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (ValueError, OSError, KeyError) as exc:
        raise ModelError(f"cannot read the config of {spec!r}: {exc}; is transformers recent enough for it?") from exc


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Contents of an optional file; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        fields = json.loads(path.read_text())
    except ValueError as exc:
        raise ModelError(f"{path.name} is not JSON: {exc}; download it again") from None
    return fields if isinstance(fields, dict) else {}


def load_weights(
    spec: str, folder: pathlib.Path, model_class: Any, config: Any, dtype: torch.dtype | None
) -> torch.nn.Module:
    """Loads a folder into ``model_class``; without a dtype as stored, and then the files stay mapped, not copied.

    Raises :class:`ModelError` where a file cannot be read or lacks a weight of the class.
    """
    try:
        with quiet():
            module, info = model_class.from_pretrained(
                folder, config=config, dtype=dtype or "auto", use_safetensors=True, local_files_only=True,
                output_loading_info=True,
            )  # fmt: skip
    except ImportError as exc:  # a backbone from a package of its own
        raise ModelError(f"{spec!r} needs a package that is not installed: {exc}; install it") from exc
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
def quiet() -> Iterator[None]:
    """No progress bar and no report while loading: what matters of them is checked here.

    One thread at a time: transformers changes settings of the whole process while it loads, the default dtype among them.
    """
    with _loading, _silent():
        yield


@contextlib.contextmanager
def _silent() -> Iterator[None]:
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


def write_random_llama(folder: pathlib.Path, *, layers: int, hidden: int, heads: int, vocab_size: int) -> None:
    """Saves a Llama of random weights in bfloat16, with a third of the heads for keys and values, and room for 4096 tokens."""
    config = transformers.LlamaConfig(
        vocab_size=vocab_size, hidden_size=hidden, intermediate_size=8 * hidden // 3, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads // 3, max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(1)
    with quiet():
        transformers.LlamaForCausalLM(config).bfloat16().save_pretrained(folder)


def write_random_resnet(folder: pathlib.Path) -> None:
    """Saves a ResNet-50 of random weights for images of 224 x 224, with the usual mean and standard deviation beside it."""
    torch.manual_seed(1)
    with quiet():
        transformers.ResNetForImageClassification(transformers.ResNetConfig()).save_pretrained(folder)
    normalize = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
    (folder / PROCESSOR_FILE).write_text(json.dumps({"size": {"height": 224, "width": 224}, **normalize}))


# -- classes ---------------------------------------------------------------------------------------


def model_class(name: str) -> Any:
    """The class of that name, or ``None`` where transformers has none."""
    return getattr(transformers, name, None)


def is_detector(class_name: str) -> bool:
    """Whether a class finds objects in images, and so is one of ``AutoModelForObjectDetection``."""
    return class_name in MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES.values()


def is_generative(class_name: str, model_type: str) -> bool:
    """Whether a class generates text token by token: a causal language model, or the decoder that it wraps."""
    if class_name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return True
    decoder_only = (
        model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )
    return decoder_only and class_name == MODEL_MAPPING_NAMES.get(model_type)


def causal_lm_class(spec: str, config: Any) -> Any:
    """The causal language model class that a config names; raises :class:`ModelError` where it names another kind."""
    name = (config.architectures or [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)])[0]
    if name is None or (found := model_class(name)) is None:
        raise ModelError(
            f"{spec!r} needs code outside transformers ({name or config.model_type}), which is never run; "
            "convert it to an architecture of transformers"
        )
    if name not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        raise ModelError(
            f"{spec!r} is no causal language model ({name}); load_model takes vision models and text encoders"
        )
    return found


# -- images ----------------------------------------------------------------------------------------


def load_image_processor(spec: str) -> Any:
    """What makes a model's inputs of images, and of a detector's outputs boxes, as it lies beside the model.

    The one that works with Pillow, wherever torchvision is installed too: resized pixels are then the same everywhere.

    Raises :class:`ModelError` where there is none, and where it cannot be read.
    """
    folder = find_folder(spec, SETTINGS_FILES)
    if not (folder / PROCESSOR_FILE).is_file():
        raise ModelError(f"{spec!r} has no {PROCESSOR_FILE}; save the model's image processor beside it")
    try:
        auto: Any = transformers.AutoImageProcessor  # without types
        with quiet():
            return auto.from_pretrained(folder, local_files_only=True, backend="pil")
    except (ImportError, KeyError, OSError, TypeError, ValueError) as exc:
        raise ModelError(f"cannot read {PROCESSOR_FILE} of {spec!r}: {exc}; save the image processor again") from exc


# -- tokenizers ------------------------------------------------------------------------------------


def load_tokenizer(spec: str, vocab_size: int) -> Any:
    """The tokenizer that lies beside a model.

    Args:
        spec: The model's folder or hub id; of the latter only the tokenizer's files are downloaded.
        vocab_size: How many token ids the model takes. A tokenizer may have fewer, since matrices are often padded.

    Raises :class:`ModelError` where there is none, where it cannot be read, and where it makes ids that the model does not take.
    """
    folder = find_folder(spec, TOKENIZER_FILES)
    if not any(path for pattern in VOCABULARY_FILES for path in folder.glob(pattern)):
        raise ModelError(
            f"{spec!r} has no tokenizer ({', '.join(VOCABULARY_FILES[:3])} or another); "
            "save it beside the model with tokenizer.save_pretrained"
        )
    try:
        with quiet():
            tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as exc:  # readers of many formats, each with errors of its own
        raise ModelError(
            f"cannot read the tokenizer of {spec!r}: {exc}; save it again with tokenizer.save_pretrained"
        ) from exc
    largest = max(tokenizer.get_vocab().values(), default=-1)
    if largest >= vocab_size:
        raise ModelError(
            f"the tokenizer of {spec!r} makes token ids up to {largest}, but the model takes only those below "
            f"{vocab_size}; give the tokenizer that belongs to the model"
        )
    return tokenizer


def stop_ids(spec: str, tokenizer: Any) -> frozenset[int]:
    """The tokens that end an answer: those of the generation config, else of the config, else of the tokenizer."""
    folder = find_folder(spec, TOKENIZER_FILES)
    for name in (GENERATION_FILE, "config.json"):
        named = read_json(folder / name).get("eos_token_id")
        if named is not None:
            return frozenset([named] if isinstance(named, int) else named)
    return frozenset() if tokenizer.eos_token_id is None else frozenset([tokenizer.eos_token_id])


# -- generation ------------------------------------------------------------------------------------


# Their methods have few types, and which ones differs from version to version.
_PreTrainedModel: Any = transformers.PreTrainedModel
_GenerationMixin: Any = transformers.GenerationMixin


class GenerativeModel(_PreTrainedModel, _GenerationMixin):  # type: ignore[misc]
    """A model without parameters, whose subclass says how it generates; anything that takes a model of transformers takes it."""

    config_class = transformers.PreTrainedConfig
    # Attention is the business of the parts; without these the config of a part would be refused.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    @classmethod
    def can_generate(cls) -> bool:
        """Whether it has a ``generation_config``."""
        return True


def register_causal_lm(model_class: type[GenerativeModel]) -> None:
    """Makes pipelines know a class as a causal language model; they complain of any other."""
    transformers.AutoModelForCausalLM.register(transformers.PreTrainedConfig, model_class, exist_ok=True)


def generation_config(spec: str, config: Any) -> Any:
    """How a model wants to generate: its generation_config.json, else what its config says.

    Raises :class:`ModelError` where the folder is not found, and where the file cannot be read.
    """
    folder = find_folder(spec, [GENERATION_FILE, "config.json"])
    if not (folder / GENERATION_FILE).is_file():
        return transformers.GenerationConfig.from_model_config(config)
    try:
        return transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as exc:
        raise ModelError(f"cannot read {GENERATION_FILE} of {spec!r}: {exc}; correct or delete it") from exc


def stopping_criteria(settings: Any, more: Sequence[Any], tokenizer: Any) -> Any:
    """Decides after each token whether an answer ends: by the time limit and stop strings of a generation config, and ``more``.

    Called with ids ``[1, tokens]`` and scores, it gives a bool tensor ``[1]``. Raises :class:`ConfigError` where stop strings
    have no tokenizer.
    """
    criteria = transformers.StoppingCriteriaList(more)
    if settings.max_time is not None:
        criteria.append(transformers.MaxTimeCriteria(max_time=settings.max_time))
    if settings.stop_strings is not None:
        if tokenizer is None:
            raise ConfigError("stop_strings", "they are found in text; give the tokenizer too: generate(tokenizer=...)")
        criteria.append(transformers.StopStringCriteria(stop_strings=settings.stop_strings, tokenizer=tokenizer))
    return criteria


def generate_output(sequences: torch.Tensor) -> Any:
    """What ``generate(return_dict_in_generate=True)`` returns."""
    generation: Any = transformers.generation
    return generation.GenerateDecoderOnlyOutput(sequences=sequences)


def causal_lm_output(logits: torch.Tensor, loss: torch.Tensor | None) -> Any:
    """What ``forward`` of a causal language model returns."""
    return transformers.modeling_outputs.CausalLMOutputWithPast(logits=logits, loss=loss)


# -- caches ----------------------------------------------------------------------------------------


def new_cache(config: Any) -> Any:
    """An empty cache of keys and values, as the uncut model would make it, one layer for each of the model's.

    Windowed layers keep all that they are given; whoever owns the cache shortens them (:func:`sliding_window`).

    Raises:
        NotPartitionable: a layer has a state other than keys and values of its own, such as linear attention has.
    """
    cache: Any = DynamicCache(config=config)
    for index, layer in enumerate(cache.layers):
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            state = type(layer).__name__
            raise NotPartitionable(config.model_type, f"layer {index} keeps a {state}, not keys and values of its own")
    cache.activate_past_recording()
    return cache


def sliding_window(layer: Any) -> int | None:
    """How many tokens a layer of a cache attends to, the newest included; ``None`` for all."""
    return layer.sliding_window if layer.is_sliding else None


def set_token_count(layer: Any, num_tokens: int) -> None:
    """Makes an empty layer of a cache answer as if it held so many tokens: masks are sized by what layers say.

    A windowed layer counts; a full one measures its keys, so it gets some that take no memory.
    """
    if layer.is_sliding:
        layer.cumulative_length = num_tokens
    else:
        layer.keys = torch.empty(1, 1, num_tokens, 1, device="meta")
        layer.is_initialized = True
