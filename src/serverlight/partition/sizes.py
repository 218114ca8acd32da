"""Sizes that follow the batch, and how they are found again on either side of a cut."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from serverlight.partition.boundary import TensorSpec
from serverlight.partition.inputs import dtype_name

__all__ = ["batch_of", "spec_of", "unify_sizes"]

_SIZE = torch.ops.aten.sym_size.int


def unify_sizes(graph: fx.Graph, first: fx.Node) -> fx.Node:
    """Derives every size that is a multiple of the batch from one node, which is returned.

    Without this the shape of a feature deep in the head (``64 * batch`` windows) would have to cross the cut.
    """
    inputs = graph.find_nodes(op="placeholder")
    sizes = graph.find_nodes(op="call_function", target=_SIZE)
    symbol = first.meta["val"].shape[0]
    with graph.inserting_after(inputs[-1]):
        batch = graph.call_function(_SIZE, (first, 0))
        batch.meta["val"] = symbol
    multiples = {1: batch}
    for node in sizes:
        factor = _factor(node.meta["val"], symbol)
        if factor is None:
            continue
        if factor not in multiples:
            with graph.inserting_after(batch):
                multiples[factor] = graph.call_function(operator.mul, (batch, factor))
            multiples[factor].meta["val"] = node.meta["val"]
        node.replace_all_uses_with(multiples[factor])
        graph.erase_node(node)
    return batch


def spec_of(name: str, value: Any, symbol: Any) -> TensorSpec | None:
    """The spec of a traced value; None unless it is a tensor whose sizes are constants and multiples of the batch."""
    if not isinstance(value, torch.Tensor):
        return None
    factors = [_factor(size, symbol) for size in value.shape if not isinstance(size, int)]
    if len(factors) > 1 or None in factors:
        return None
    return TensorSpec(
        name=name,
        shape=tuple(size if isinstance(size, int) else None for size in value.shape),
        dtype=dtype_name(value.dtype),
        batch_factor=next(iter(factors), None) or 1,
    )


def batch_of(graph: fx.Graph, tensor: fx.Node, spec: TensorSpec) -> fx.Node:
    """Adds the nodes that read the batch size off a tensor."""
    rows = graph.call_function(_SIZE, (tensor, spec.shape.index(None)))
    return rows if spec.batch_factor == 1 else graph.call_function(operator.floordiv, (rows, spec.batch_factor))


def _factor(size: Any, symbol: Any) -> int | None:
    """``k`` where ``size`` is ``k * symbol``."""
    if not isinstance(size, torch.SymInt):
        return None
    factor, rest = size.node.expr.as_coeff_Mul()
    return int(factor) if rest == symbol.node.expr and factor.is_Integer and factor > 0 else None
