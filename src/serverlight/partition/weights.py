"""Loads only the weights that one side of a cut needs, from a Hugging Face id or folder."""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
import tempfile
from collections.abc import Collection, Iterator
from typing import TypeVar

import torch

from serverlight.errors import ModelError
from serverlight.huggingface import (
    INDEX_FILE,
    SETTINGS_FILES,
    WEIGHT_FILES,
    causal_lm_class,
    find_folder,
    load_weights,
    read_config,
    read_json,
)
from serverlight.partition.decoder import (
    DecoderHead,
    DecoderMiddle,
    DecoderPart,
    DecoderTail,
    DecoderWhole,
    check_layers,
)
from serverlight.partition.driver import Driver
from serverlight.partition.layout import Layout, part_class
from serverlight.partition.self_check import check_architecture

__all__ = ["is_own", "load_head", "load_part", "load_tail", "load_whole"]

SINGLE_FILE = "model.safetensors"

Part = TypeVar("Part", bound=DecoderPart)


def load_head(model: str, *, layers: int, dtype: torch.dtype | None = None) -> DecoderHead:
    """The front of a causal language model: the embeddings and the first ``layers`` layers, for the device.

    Only these weights are read, and with a hub id only the files that hold them are downloaded.

    Args:
        model: A folder as ``save_pretrained`` writes it, or an id on the hub.
        layers: How many layers; 0 leaves everything but the embeddings to the server, and as many as the model has
            leaves it the final norm and the language-model head.
        dtype: Element type of the weights. As stored by default: then they stay mapped to the files, and memory is
            taken only page by page, as they are used; converted ones all take memory at once.

    Raises:
        ConfigError: the model has no such layers.
        MissingDependency: transformers is not installed.
        ModelError: there is no such model, it is no causal language model, or a weight is missing.
        NotPartitionable: models of this kind cannot be cut exactly.
    """
    return _load(DecoderHead, model, 0, layers, dtype)


def load_tail(model: str, *, layers: int, dtype: torch.dtype | None = None) -> DecoderTail:
    """The rest of a causal language model behind a head of ``layers`` layers: layers, final norm and logits.

    It takes no token ids and holds no embeddings, but where their matrix is that of the language-model head too.
    Arguments and errors are those of :func:`load_head`.
    """
    return _load(DecoderTail, model, layers, None, dtype)


def load_whole(model: str, *, dtype: torch.dtype | None = None) -> DecoderWhole:
    """A tail of all layers that has the embeddings too, so that token ids can be sent to it as well as hidden states.

    Arguments and errors are those of :func:`load_head`.
    """
    return _load(DecoderWhole, model, 0, None, dtype)


def load_part(model: str, first: int, last: int, *, dtype: torch.dtype | None = None) -> DecoderMiddle:
    """The layers from ``first`` up to, but without, ``last``: hidden states in, hidden states out.

    With ``load_head(model, layers=first)`` and ``load_tail(model, layers=last)`` on the device, neither prompt nor
    answer leaves it. Other arguments and errors are those of :func:`load_head`.
    """
    return _load(DecoderMiddle, model, first, last, dtype)


def _load(kind: type[Part], spec: str, first: int, last: int | None, dtype: torch.dtype | None) -> Part:
    folder = find_folder(spec, [*SETTINGS_FILES, INDEX_FILE])
    config = read_config(spec, folder)
    model_class = causal_lm_class(spec, config)
    num_layers = config.get_text_config(decoder=True).num_hidden_layers
    last = num_layers if last is None else last
    check_layers(first, last, num_layers)
    layout = check_architecture(model_class, config)
    held = range(first, last)
    wanted = part_class(model_class, layout, held, embeds=kind.embeds, finishes=kind.finishes)
    with _files_of(spec, folder, layout, held, finishes=kind.finishes) as own_folder:
        model = load_weights(spec, own_folder, wanted, config, dtype)
    return kind(Driver(model, layout), first, last)


@contextlib.contextmanager
def _files_of(
    spec: str, folder: pathlib.Path, layout: Layout, held: Collection[int], *, finishes: bool
) -> Iterator[pathlib.Path]:
    """A folder with the files that hold the part's weights, downloaded where they are not here.

    Where the weights are in several files, it has an index of only the part's keys: the other files may be missing.
    """
    keys = {} if (folder / SINGLE_FILE).is_file() else read_json(folder / INDEX_FILE).get("weight_map", {})
    own = {key: file for key, file in keys.items() if is_own(key, layout, held, finishes=finishes)}
    for file in own.values():
        if pathlib.PurePath(file).name != file:
            raise ModelError(f"{INDEX_FILE} of {spec!r} names a file elsewhere, {file!r}; download the model again")
    files = sorted(set(own.values())) or WEIGHT_FILES
    source = find_folder(spec, [*SETTINGS_FILES, INDEX_FILE, *files])
    if not own:
        yield source
        return
    with tempfile.TemporaryDirectory(prefix="serverlight-") as view:
        for file in files:
            (pathlib.Path(view) / file).symlink_to((source / file).absolute())
        (pathlib.Path(view) / INDEX_FILE).write_text(json.dumps({"metadata": {}, "weight_map": own}))
        yield pathlib.Path(view)


def is_own(key: str, layout: Layout, held: Collection[int], *, finishes: bool) -> bool:
    """Whether a part may need a weight, by its name in the files; in doubt it does.

    Names in files may have more or fewer modules in front than those in the model, so only their ends are compared.
    """
    *modules, _ = key.split(".")
    layers = layout.layers.rpartition(".")[2]
    for module, index in itertools.pairwise(modules):
        if module == layers and index.isdecimal():
            return int(index) in held
    return finishes or not modules or modules[-1] not in {path.rpartition(".")[2] for path in layout.epilogue}
