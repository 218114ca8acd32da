"""Both sides of a language model, loaded to be measured, and what they hold."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from serverlight.generation import LoadedDecoder
from serverlight.partition.decoder import DecoderHead, DecoderPart

__all__ = ["LanguageParts", "Sizes"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageParts:
    """Both sides of a language model, each with all layers."""

    head: LoadedDecoder
    tail: LoadedDecoder

    @classmethod
    def load(cls, spec: str, *, dtype: torch.dtype | None = None) -> LanguageParts:
        """Errors are those of :func:`~serverlight.partition.weights.load_head`."""
        tail = LoadedDecoder.tail(spec, "layers.0", dtype=dtype)
        head = LoadedDecoder.head(spec, f"layers.{tail.part.num_layers}", dtype=dtype)
        return cls(head=head, tail=tail)

    @property
    def num_layers(self) -> int:
        """Layers of the model."""
        return self.head.part.num_layers


class Sizes:
    """Bytes of weights, activations, and keys and values."""

    def __init__(self, parts: LanguageParts) -> None:
        head, tail = parts.head.part, parts.tail.part
        path = head.driver.layout.layers
        ends, self._layers = dict[str, int](), [0] * parts.num_layers
        for part in (head, tail):
            ends |= {name: bytes_ for name, bytes_ in _named_bytes(part.model) if not name.startswith(f"{path}.")}
        for index, layer in enumerate(head.model.get_submodule(path)):
            self._layers[index] = sum(bytes_ for _, bytes_ in _named_bytes(layer))
        self._head_ends = _sum_of(head.model, ends)
        self._tail_ends = _sum_of(tail.model, ends)
        self.whole = sum(ends.values()) + sum(self._layers)
        self.hidden_bytes = head.hidden_size * head.dtype.itemsize
        self.activation_bytes = _activation_bytes(head)
        self.kv_bytes = _kv_bytes(head)

    def before(self, depth: int) -> int:
        """Weights before a cut."""
        return self._head_ends + sum(self._layers[:depth])

    def behind(self, depth: int) -> int:
        """Weights behind it, a tied matrix of embeddings included."""
        return self._tail_ends + sum(self._layers[depth:])


def _named_bytes(module: nn.Module) -> Iterator[tuple[str, int]]:
    yield from ((name, tensor.nbytes) for name, tensor in module.named_parameters())


def _sum_of(model: nn.Module, names: dict[str, int]) -> int:
    return sum(bytes_ for name, bytes_ in _named_bytes(model) if name in names)


@torch.inference_mode()
def _activation_bytes(head: DecoderPart) -> int:
    """What the modules of one layer give out for one token, all of them together: none may be gone before the others come."""
    given = list[int]()
    layers = head.model.get_submodule(head.driver.layout.layers)
    if not len(layers):
        return head.hidden_size * head.dtype.itemsize
    with contextlib.ExitStack() as stack:
        for module in layers[0].modules():
            hook = module.register_forward_hook(lambda _, args, output: given.append(_nbytes(output)))
            stack.callback(hook.remove)
        assert isinstance(head, DecoderHead)
        head(torch.zeros(1, 1, dtype=torch.int64))
    return sum(given)


def _nbytes(output: object) -> int:
    match output:
        case Tensor():
            return output.nbytes
        case tuple() | list():
            return sum(map(_nbytes, output))
        case _:
            return 0


@torch.inference_mode()
def _kv_bytes(head: DecoderPart) -> list[int]:
    """Keys and values of one token in each layer."""
    assert isinstance(head, DecoderHead)
    cache = head.new_cache()
    head(torch.zeros(1, 1, dtype=torch.int64), cache)
    return [size.num_bytes(1) for size in cache.layer_sizes()]
