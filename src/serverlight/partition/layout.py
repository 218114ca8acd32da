"""Where a decoder model keeps its layers and its ends, and how the parts that are not needed are emptied."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from serverlight.errors import NotPartitionable

__all__ = ["Layout", "find_layers", "observe", "part_class"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How the classes of one architecture are built, as seen in one run of a tiny model."""

    layers: str
    """Path of the list of layers: ``model.layers``, ``transformer.h``, ..."""

    epilogue: tuple[str, ...]
    """Paths of the modules with parameters that run only after the last layer: final norm, language-model head."""

    returns_tuple: bool
    """Whether a layer returns the hidden state in a tuple."""

    arguments: frozenset[str]
    """Those of ``position_ids`` and ``logits_to_keep`` that the model's forward takes."""

    def returned(self, hidden: Tensor) -> Any:
        """A hidden state as a layer returns it."""
        return (hidden,) if self.returns_tuple else hidden


def find_layers(model: nn.Module, count: int) -> str:
    """Path of the model's list of layers: a list of ``count`` items that are called Layer or Block."""
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            name = type(module[0]).__name__
            if name.endswith(("Layer", "Block")):
                return str(path)
    raise NotPartitionable(type(model).__name__, f"no list of {count} layers is found in it")


def observe(model: Any, **inputs: Any) -> Layout:
    """Runs a whole model once and notes what runs when."""
    path = find_layers(model, model.config.get_text_config(decoder=True).num_hidden_layers)
    layers = model.get_submodule(path)
    events: list[str] = []
    outputs: list[object] = []

    def note_layer(layer: nn.Module, args: object, output: object) -> None:
        events.append(path)
        outputs.append(output)

    hooks = [layers[-1].register_forward_hook(note_layer)]
    for name, module in model.named_modules():
        if next(module.parameters(recurse=False), None) is not None and not name.startswith(f"{path}."):
            hooks.append(module.register_forward_hook(lambda *_, name=name: events.append(name)))
    try:
        with torch.no_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    if path not in events:
        raise NotPartitionable(type(model).__name__, f"its layers at {path} do not run one by one")
    before, after = events[: events.index(path)], events[events.index(path) + 1 :]
    known = inspect.signature(type(model).forward).parameters
    return Layout(
        layers=path,
        epilogue=tuple(dict.fromkeys(name for name in after if name not in before)),
        returns_tuple=isinstance(outputs[0], tuple),
        arguments=frozenset({"position_ids", "logits_to_keep"} & set(known)),
    )


def part_class(model_class: Any, layout: Layout, held: Collection[int], *, embeds: bool, finishes: bool) -> Any:
    """A subclass that builds only what one part needs, so that ``from_pretrained`` asks for no other weights.

    A foreign layer stays as an empty shell: the attributes that the model's own forward reads off it are still there.

    Args:
        model_class: The class of a causal language model.
        layout: Of its architecture.
        held: The layers to keep.
        embeds: Whether the part turns token ids into embeddings.
        finishes: Whether it makes logits; with tied weights it then needs the matrix of the embeddings.
    """

    def build(self: Any, config: Any) -> None:
        model_class.__init__(self, config)
        for index, layer in enumerate(self.get_submodule(layout.layers)):
            if index not in held:
                _empty(layer)
        tied = bool(self.all_tied_weights_keys)
        if not finishes:
            self.all_tied_weights_keys = {}
            for path in layout.epilogue:
                self.set_submodule(path, nn.Identity())
        if not embeds and not (finishes and tied):
            self.set_input_embeddings(_NoEmbeddings(self.get_input_embeddings().embedding_dim))

    members = {
        "__init__": build,
        # Under another module's name transformers takes a class for custom code and skips the renamings of its weights.
        "__module__": model_class.__module__,
        # A part generates nothing by itself, and loading is not to look for settings of generation.
        "can_generate": classmethod(lambda cls: False),
    }
    return type(model_class.__name__, (model_class,), members)


class _NoEmbeddings(nn.Module):
    """Where the embeddings were; keeps their width, which may not be that of the layers (OPT)."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.embedding_dim = embedding_dim


def _empty(layer: nn.Module) -> None:
    layer._modules.clear()
    layer._parameters.clear()
    layer._buffers.clear()
