"""What a module is called with: names for its inputs, and checks on every call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from serverlight.errors import InputMismatch
from serverlight.partition.boundary import TensorSpec

__all__ = ["Call", "InputBinder", "as_call", "check_tensors", "dtype_name", "widen"]

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and keyword arguments of one call."""


def as_call(example_inputs: object) -> Call:
    """Reads a tensor or a tuple as positional arguments, a mapping as keyword arguments."""
    if isinstance(example_inputs, Mapping):
        return (), dict(example_inputs)
    if isinstance(example_inputs, tuple | list):
        return tuple(example_inputs), {}
    if isinstance(example_inputs, torch.Tensor):
        return (example_inputs,), {}
    raise InputMismatch(
        f"example_inputs must be a tensor, a tuple of arguments or a dict of keyword arguments, "
        f"got {type(example_inputs).__name__}; pass what the module is called with"
    )


def widen(call: Call) -> Call:
    """Repeats a call of batch 1 to batch 2: a size of 1 would be baked into the trace as a constant."""

    def repeat(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if _has_batch(leaf, 1) else leaf

    return pytree.tree_map(repeat, call[0]), pytree.tree_map(repeat, call[1])


class InputBinder:
    """Gives every tensor among a module's arguments a name, whichever way the call spells them.

    Positional and keyword spelling of one argument are the same thing, and an argument that is passed at its default
    is the same as one left out. Whatever is not a tensor (``return_dict=True``) is a constant of the partition.
    """

    def __init__(self, forward: Callable[..., Any], example: Call) -> None:
        self._signature = inspect.signature(forward)
        self._flat, self._structure = pytree.tree_flatten(example)
        named = dict(self._leaves(example))
        slots = pytree.tree_unflatten([_Slot(i) for i in range(len(self._flat))], self._structure)
        self._slots = {name: slot.index for name, slot in self._leaves(slots) if name in named}
        self.tensors: dict[str, torch.Tensor] = {n: leaf for n, leaf in named.items() if isinstance(leaf, torch.Tensor)}
        """The example tensors by name, in the order of the module's parameters."""
        self._constants = {name: leaf for name, leaf in named.items() if name not in self.tensors}
        first = next(iter(self.tensors.values()), torch.tensor(0))
        if first.ndim == 0 or first.shape[0] == 0:
            raise InputMismatch(
                "the first tensor among example_inputs must have a batch dimension in front, with at least one sample"
            )

    @property
    def batch(self) -> int:
        """Batch size of the example: the leading dimension of its first tensor."""
        return next(iter(self.tensors.values())).shape[0]

    def has_batch(self, name: str) -> bool:
        """Whether the leading dimension of this input follows the batch: it does where the sizes agree."""
        return _has_batch(self.tensors[name], self.batch)

    def spec(self, name: str, *, side_input: bool) -> TensorSpec:
        """What a call must pass under this name."""
        example = self.tensors[name]
        shape: tuple[int | None, ...] = tuple(example.shape)
        if self.has_batch(name):
            shape = (None, *shape[1:])
        return TensorSpec(name=name, shape=shape, dtype=dtype_name(example.dtype), side_input=side_input)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The tensors of a call in the order of :attr:`tensors`, their shapes not yet checked.

        Raises:
            InputMismatch: an input is missing or unknown, or a constant differs from the example's.
        """
        leaves = dict(self._leaves((args, kwargs)))
        for name in self._slots:
            if name not in leaves:
                raise InputMismatch(f"input {name!r} is missing; the module was partitioned with {self._known}")
        for name, leaf in leaves.items():
            self._check_known(name, leaf)
        return [leaves[name] for name in self.tensors]

    def call(self, tensors: Sequence[torch.Tensor]) -> Call:
        """The inverse of :meth:`bind`, spelt as the example was."""
        flat = list(self._flat)
        for name, tensor in zip(self.tensors, tensors, strict=True):
            flat[self._slots[name]] = tensor
        args, kwargs = pytree.tree_unflatten(flat, self._structure)
        return args, kwargs

    @property
    def _known(self) -> str:
        return ", ".join(self._slots)

    def _check_known(self, name: str, leaf: Any) -> None:
        if name not in self._slots:
            raise InputMismatch(
                f"unexpected input {name!r}; the module was partitioned with {self._known}: "
                "partition it again with this input among example_inputs"
            )
        if name not in self._constants:
            return
        constant = self._constants[name]
        if not _same_constant(leaf, constant):
            raise InputMismatch(
                f"input {name!r}: the module was partitioned with {constant!r}, got {leaf!r}; "
                "partition it again with the new value"
            )

    def _leaves(self, call: Call) -> Iterator[tuple[str, Any]]:
        for name, value in self._arguments(call):
            leaves = pytree.tree_leaves(value)
            if len(leaves) == 1:
                yield name, leaves[0]
            else:
                yield from ((f"{name}_{i}", leaf) for i, leaf in enumerate(leaves))

    def _arguments(self, call: Call) -> Iterator[tuple[str, Any]]:
        try:
            bound = self._signature.bind(*call[0], **call[1])
        except TypeError as exc:
            raise InputMismatch(f"the inputs do not fit the module's forward: {exc}") from None
        for name, value in bound.arguments.items():
            parameter = self._signature.parameters[name]
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                yield from ((f"{name}_{i}", item) for i, item in enumerate(value))
            elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
                yield from sorted(value.items())
            elif not _same_constant(value, parameter.default):
                yield name, value


class _Slot:
    """Stands for one leaf of the example while its name is found."""

    def __init__(self, index: int) -> None:
        self.index = index


def check_tensors(specs: Sequence[TensorSpec], tensors: Sequence[Any]) -> int | None:
    """Raises InputMismatch for the first tensor that does not fit its spec; returns the batch size they agree on."""
    if len(tensors) != len(specs):
        names = ", ".join(spec.name for spec in specs)
        raise InputMismatch(f"expected {len(specs)} tensors ({names}), got {len(tensors)}; pass what the head returns")
    batch: int | None = None
    for spec, tensor in zip(specs, tensors, strict=True):
        rows = _check_tensor(spec, tensor)
        if rows is not None and batch is not None and rows != batch:
            raise InputMismatch(
                f"{spec.name}: holds {rows} samples, the tensors before it {batch}; give all the same batch size"
            )
        batch = batch if rows is None else rows
    return batch


def _check_tensor(spec: TensorSpec, tensor: Any) -> int | None:
    """Checks one tensor; returns how many samples it holds where that can be told."""
    if not isinstance(tensor, torch.Tensor):
        raise InputMismatch(f"{spec.name}: expected a torch tensor, got {type(tensor).__name__}; convert it first")
    expected = f"{spec.name}: expected {spec.dtype} of shape {_describe_shape(spec)}"
    if dtype_name(tensor.dtype) != spec.dtype:
        raise InputMismatch(f"{expected}, got {dtype_name(tensor.dtype)}; convert it with .to(torch.{spec.dtype})")
    fits = tensor.ndim == len(spec.shape) and all(
        size == wanted or (wanted is None and size > 0 and size % spec.batch_factor == 0)
        for size, wanted in zip(tensor.shape, spec.shape, strict=True)
    )
    if not fits:
        raise InputMismatch(
            f"{expected}, got shape {tuple(tensor.shape)}; only the batch may differ from what was partitioned"
        )
    rows = {tensor.shape[i] // spec.batch_factor for i, size in enumerate(spec.shape) if size is None}
    return rows.pop() if len(rows) == 1 else None


def _describe_shape(spec: TensorSpec) -> str:
    """The shape for people: ``(batch, 3, 32, 32)``, ``(64*batch, 49, 96)``."""
    rows = "batch" if spec.batch_factor == 1 else f"{spec.batch_factor}*batch"
    return f"({', '.join(rows if size is None else str(size) for size in spec.shape)})"


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")


def _same_constant(value: Any, other: Any) -> bool:
    return value is other or (
        isinstance(value, bool | int | float | str) and type(value) is type(other) and value == other
    )


def _has_batch(leaf: Any, batch: int) -> bool:
    return isinstance(leaf, torch.Tensor) and leaf.ndim > 0 and leaf.shape[0] == batch
