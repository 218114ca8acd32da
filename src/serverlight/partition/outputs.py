"""A module's output structure, as a flat list of tensors for the wire and back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from serverlight.errors import InputMismatch

__all__ = ["Outputs"]


class Outputs:
    """Puts tensors back into the structure that the module returns; what else it returns is a constant."""

    def __init__(self, leaves: Sequence[Any], structure: pytree.TreeSpec) -> None:
        self._constants = [None if isinstance(leaf, fx.Node) else leaf for leaf in leaves]
        self._slots = [i for i, leaf in enumerate(leaves) if isinstance(leaf, fx.Node)]
        self._structure = structure
        every = list(_names(structure, ""))
        self.names = tuple(every[i] for i in self._slots)
        """A name for every tensor: its key (``logits``), its place in a tuple (``0``), or ``output`` for the only one."""

    def unflatten(self, tensors: Sequence[Tensor]) -> Any:
        """The module's own structure around the tensors; raises InputMismatch if their number is wrong."""
        if len(tensors) != len(self._slots):
            names = ", ".join(self.names)
            raise InputMismatch(f"expected {len(self._slots)} outputs ({names}), got {len(tensors)}; pass all of them")
        leaves = list(self._constants)
        for slot, tensor in zip(self._slots, tensors, strict=True):
            leaves[slot] = tensor
        return pytree.tree_unflatten(leaves, self._structure)


def _names(structure: pytree.TreeSpec, path: str) -> Iterator[str]:
    if structure.is_leaf():
        yield path or "output"
        return
    children = structure.children()
    keys = _keys(structure.context, len(children))
    for key, child in zip(keys, children, strict=True):
        yield from _names(child, f"{path}.{key}" if path else key)


def _keys(context: Any, count: int) -> list[str]:
    """Keys of a mapping or a Hugging Face output, fields of a named tuple, else numbers."""
    keys = getattr(context, "_fields", context)
    if isinstance(keys, list | tuple) and len(keys) == count and all(isinstance(key, str) for key in keys):
        return list(keys)
    return [str(i) for i in range(count)]
