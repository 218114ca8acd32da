"""The two sides of a cut as modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from serverlight.partition.boundary import CutPoint, TensorSpec
from serverlight.partition.inputs import InputBinder, check_tensors
from serverlight.partition.outputs import Outputs
from serverlight.partition.sizes import batch_of

__all__ = ["Head", "Tail", "extract"]


class Head(nn.Module):
    """The front part of a module, for the device; it is called like the module itself.

    ``head.body`` holds the parameters, under the names that they have in the module.
    """

    def __init__(self, cut: CutPoint, body: fx.GraphModule, binder: InputBinder, inputs: Sequence[TensorSpec]) -> None:
        super().__init__()
        self.cut = cut
        self.inputs = tuple(inputs)
        """What a call must bring, in the order of the module's parameters."""
        self.body = body
        self._binder = binder
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        """Runs up to the cut.

        Returns:
            The tensors of ``cut.tensors``, in that order.

        Raises:
            InputMismatch: an input is missing or unknown, or has another shape or dtype than at the partition.
        """
        tensors = self._binder.bind(args, kwargs)
        check_tensors(self.inputs, tensors)
        crossing: tuple[Tensor, ...] = self.body(*tensors)
        return crossing


class Tail(nn.Module):
    """The back part of a module, for the server.

    ``tail.body`` holds the parameters, under the names that they have in the module.
    """

    def __init__(self, cut: CutPoint, body: fx.GraphModule, outputs: Outputs) -> None:
        super().__init__()
        self.cut = cut
        self.body = body
        self._outputs = outputs
        self.eval()

    def flat(self, *tensors: Tensor) -> list[Tensor]:
        """Runs from the cut on; like calling the tail, but returns the output's tensors as a list, for the wire."""
        check_tensors(self.cut.tensors, tensors)
        return list(self.body(*tensors))

    def forward(self, *tensors: Tensor) -> Any:
        """Runs from the cut on.

        Args:
            tensors: What the head returned, in the order of ``cut.tensors``.

        Returns:
            The module's own output structure.

        Raises:
            InputMismatch: a tensor is missing, or does not have the shape or dtype of ``cut.tensors``.
        """
        return self._outputs.unflatten(self.flat(*tensors))


def extract(
    source: fx.GraphModule,
    entries: Sequence[tuple[fx.Node, TensorSpec]],
    results: Sequence[fx.Node],
    batch: fx.Node,
) -> fx.GraphModule:
    """The part of a graph that makes ``results`` from ``entries``, with only the attributes that it needs.

    Parameters are shared with the source, not copied. The batch size is read off the first entry that shows it.
    """
    graph = fx.Graph()
    placeholders = [(node, graph.placeholder(node.name)) for node, _ in entries]
    copies = {node: _lay_out(graph, placeholder, node) for node, placeholder in placeholders}
    needed = _ancestors(source.graph, results, set(copies) | {batch})
    if batch in needed:
        node, spec = next((node, spec) for node, spec in entries if None in spec.shape)
        copies[batch] = batch_of(graph, copies[node], spec)
    for node in source.graph.nodes:
        if node in needed and node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output(tuple(copies[node] for node in results))
    return fx.GraphModule(source, graph)


def _lay_out(graph: fx.Graph, entry: fx.Node, traced: fx.Node) -> fx.Node:
    """Gives an entry the order of dimensions in memory that it had in the trace.

    What comes off the wire is contiguous, but a traced ``view`` may rely on a transposed layout, and another layout
    may take another kernel and other last bits. It costs nothing where the layout is right already.
    """
    strides = [s if isinstance(s, int) else s.node.hint for s in traced.meta["val"].stride()]
    order = sorted(range(len(strides)), key=lambda dim: -strides[dim])
    if order == sorted(order):
        return entry
    outermost_first = graph.call_function(torch.ops.aten.permute.default, (entry, order))
    dense = graph.call_function(torch.ops.aten.contiguous.default, (outermost_first,))
    return graph.call_function(torch.ops.aten.permute.default, (dense, [order.index(dim) for dim in range(len(order))]))


def _ancestors(graph: fx.Graph, results: Sequence[fx.Node], stops: set[fx.Node]) -> set[fx.Node]:
    """The results and all that they are made from, as far back as ``stops``."""
    needed = set(results)
    for node in reversed(graph.nodes):
        if node in needed and node not in stops:
            needed.update(node.all_input_nodes)
    return needed
