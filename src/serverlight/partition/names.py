"""Names for the places in a trace, taken from the modules that the operations come from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from serverlight.partition.export import ADAPTER_PREFIX

__all__ = ["INPUT", "OUTPUT", "PlaceName", "name_places"]

INPUT, OUTPUT = "input", "output"
"""Names of the first and the last cut."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlaceName:
    """The place after one operation."""

    name: str
    """``layer1.3`` at a module's exit, else ``layer1.3:add``; unique within the module."""

    aliases: tuple[str, ...] = ()
    """Further modules that end here, from the outside in."""

    is_module_exit: bool


def name_places(operations: Sequence[fx.Node]) -> list[PlaceName]:
    """Names the place after each operation.

    Where several nested modules end at once, the outermost gives the name and the others are aliases. The second call
    of one module ends at ``path@1``. Other places are called after the innermost module and the operation, which is
    numbered from its second occurrence there: ``path:add``, ``path:add_1``. No name depends on what other modules
    contain, so that an edit elsewhere in the model leaves it alone.
    """
    scopes = [list(_scopes(node)) for node in operations]
    last = {key: position for position, stack in enumerate(scopes) for key, _ in stack}
    unique = _Unique()
    names = []
    for position, (node, stack) in enumerate(zip(operations, scopes, strict=True)):
        exits = [unique(path, "@") for key, path in stack if last[key] == position]
        if exits:
            names.append(PlaceName(name=exits[0], aliases=tuple(exits[1:]), is_module_exit=True))
        else:
            path = stack[-1][1] if stack else "forward"
            names.append(PlaceName(name=unique(f"{path}:{_operation(node)}", "_"), is_module_exit=False))
    return names


class _Unique:
    """Numbers a name from its second use on."""

    def __init__(self) -> None:
        self._uses = Counter((INPUT, OUTPUT))

    def __call__(self, name: str, separator: str) -> str:
        uses = self._uses[name]
        self._uses[name] += 1
        return name if uses == 0 else f"{name}{separator}{uses}"


def _scopes(node: fx.Node) -> Iterator[tuple[str, str]]:
    """Key and path of every submodule call around an operation, outermost first; the module itself is left out."""
    for key, (path, _) in (node.meta.get("nn_module_stack") or {}).items():
        if path.startswith(ADAPTER_PREFIX):
            yield key, path.removeprefix(ADAPTER_PREFIX)


def _operation(node: fx.Node) -> str:
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.rpartition("::")[2].strip("_")
    return getattr(target, "__name__", str(target))
