"""From a module to a functional graph over the tensors of its call."""

from __future__ import annotations

import builtins
import contextlib
import io
import logging
import operator
import sys
import threading
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TextIO

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from serverlight.errors import InputMismatch, NotExportable
from serverlight.partition.diagnose import explain, shape_log
from serverlight.partition.inputs import InputBinder
from serverlight.partition.sizes import unify_sizes

__all__ = ["ADAPTER_PREFIX", "Trace", "trace"]

ADAPTER_PREFIX = "module."
"""What the traced paths carry in front of the module's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trace:
    """A module as a graph of operations without side effects."""

    graph_module: fx.GraphModule
    """The graph with the parameters, buffers and constants that it mentions, under the module's own names."""

    inputs: tuple[fx.Node, ...]
    """Placeholders, one per input tensor, in the order of :attr:`InputBinder.tensors`."""

    batch: fx.Node
    """The node from which all sizes that follow the batch are derived."""

    outputs: tuple[Any, ...]
    """Leaves of the module's output: nodes for tensors, plain values for the rest."""

    out_spec: pytree.TreeSpec
    """How the leaves make up the module's output structure."""


def trace(module: nn.Module, binder: InputBinder) -> Trace:
    """Traces a module in evaluation mode with a free batch size; the module is left as it was.

    Raises:
        InputMismatch: the module does not run with the example inputs.
        NotExportable: it runs, but cannot be written as one graph without side effects.
    """
    adapter = _Adapter(module, binder)
    with _evaluation_mode(module), _symbolic_len(module), _quiet(), torch.no_grad():
        try:
            program = _export(adapter, binder)
            outcome = program.run_decompositions({})
        except Exception as exc:
            _check_runs(module, binder)
            raise explain(module, exc, lambda: _export(adapter, binder)) from exc
        _refuse_mutation(module, binder, outcome)
        lifted = outcome.module(check_guards=False)
    assert isinstance(lifted, fx.GraphModule)
    return _as_trace(module, lifted, outcome.call_spec.out_spec)


class _Adapter(nn.Module):
    """Calls the module with flat tensors; everything else in the call is a constant."""

    def __init__(self, module: nn.Module, binder: InputBinder) -> None:
        super().__init__()
        self.module = module
        self._binder = binder
        self.training = False

    def forward(self, *tensors: torch.Tensor) -> Any:
        args, kwargs = self._binder.call(tensors)
        return self.module(*args, **kwargs)


def _export(adapter: _Adapter, binder: InputBinder) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch", min=1)
    shapes = tuple({0: batch} if binder.has_batch(name) else None for name in binder.tensors)
    return torch.export.export(adapter, tuple(binder.tensors.values()), dynamic_shapes=(shapes,))


def _as_trace(module: nn.Module, lifted: fx.GraphModule, out_spec: pytree.TreeSpec) -> Trace:
    graph = lifted.graph
    inputs = tuple(graph.find_nodes(op="placeholder"))
    batch = unify_sizes(graph, inputs[0])
    _drop_dead_nodes(graph)
    _refuse_mutable_operations(module, graph)
    output = graph.output_node()
    leaves = tuple(pytree.tree_leaves(output.args[0]))
    for leaf in leaves:
        if isinstance(leaf, fx.Node) and not isinstance(leaf.meta.get("val"), torch.Tensor):
            raise NotExportable(
                f"{type(module).__name__} returns a number that depends on its input ({leaf.name}); "
                "return tensors only, or partition a submodule that does"
            )
    output.args = (leaves,)
    graph.set_codegen(fx.graph.CodeGen())  # tensors in, a tuple of leaves out
    source = fx.GraphModule(_strip_prefix(lifted), graph)
    return Trace(graph_module=source, inputs=inputs, batch=batch, outputs=leaves, out_spec=out_spec)


def _strip_prefix(lifted: fx.GraphModule) -> dict[str, Any]:
    """Gives attributes the names that the module itself has for them; returns them by that name."""
    attributes: dict[str, Any] = {}
    for node in lifted.graph.find_nodes(op="get_attr"):
        value = operator.attrgetter(node.target)(lifted)
        node.target = node.target.removeprefix(ADAPTER_PREFIX)
        attributes[node.target] = value
    return attributes


def _drop_dead_nodes(graph: fx.Graph) -> None:
    """Removes what has no effect on the output, checks of export's own among it."""
    for node in reversed(graph.nodes):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def _refuse_mutation(module: nn.Module, binder: InputBinder, program: torch.export.ExportedProgram) -> None:
    signature = program.graph_signature
    inputs = dict(zip(signature.user_inputs, binder.tensors, strict=True))
    buffers = [name.removeprefix(ADAPTER_PREFIX) for name in signature.buffers_to_mutate.values()]
    if written := [*buffers, *(inputs[name] for name in signature.user_inputs_to_mutate.values())]:
        raise NotExportable(
            f"the forward of {type(module).__name__} writes to {', '.join(map(repr, written))}; a module that is cut "
            "must not change its buffers or inputs: return new tensors instead, or partition a submodule that does"
        )


def _refuse_mutable_operations(module: nn.Module, graph: fx.Graph) -> None:
    for node in graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable:
            raise NotExportable(
                f"the forward of {type(module).__name__} contains the in-place operation {node.target}, which cannot "
                "be made functional; write it without the underscore, or partition a submodule before it"
            )


def _check_runs(module: nn.Module, binder: InputBinder) -> None:
    args, kwargs = binder.call(list(binder.tensors.values()))
    try:
        module(*args, **kwargs)
    except Exception as exc:
        raise InputMismatch(
            f"{type(module).__name__} does not run with the example inputs: {exc}; pass inputs that it accepts"
        ) from exc


@contextlib.contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every attribute is what it was, those that a traced forward set included."""
    before = [(vars(part), dict(vars(part))) for part in module.modules()]
    before += [(entry, dict(entry)) for _, values in before for entry in values.values() if type(entry) is dict]
    module.eval()
    try:
        yield
    finally:
        for live, values in before:
            live.clear()
            live.update(values)


@contextlib.contextmanager
def _symbolic_len(module: nn.Module) -> Iterator[None]:
    """Lets ``len(tensor)`` in the model's own source follow the batch: the builtin fixes it to the example's."""
    homes = {cls.__module__ for part in module.modules() for cls in type(part).__mro__}
    homes -= {name for name in homes if name.partition(".")[0] in ("torch", "builtins")}
    shadowed = [vars(sys.modules[name]) for name in sorted(homes) if name in sys.modules]
    shadowed = [scope for scope in shadowed if "len" not in scope]
    for scope in shadowed:
        scope["len"] = _len
    try:
        yield
    finally:
        for scope in shadowed:
            del scope["len"]


def _len(x: Any) -> Any:
    return x.shape[0] if isinstance(x, torch.Tensor) and x.ndim > 0 else builtins.len(x)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps torch.export's hints off the terminal; what matters in them is in our error."""
    quiet_log = shape_log(logging.NullHandler(), logging.CRITICAL)
    with warnings.catch_warnings(), contextlib.redirect_stderr(_OthersOnly(sys.stderr)), quiet_log:
        warnings.simplefilter("ignore")
        yield


class _OthersOnly(io.TextIOBase):
    """Standard error for all threads but this one: a server that loads a model goes on writing its log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._mine = stream, threading.get_ident()

    def write(self, text: str) -> int:
        """Drops what this thread writes."""
        return len(text) if threading.get_ident() == self._mine else self._stream.write(text)

    def flush(self) -> None:
        """Nothing is held back here."""
        self._stream.flush()
