"""Multiply-accumulates of every operation in a trace."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

__all__ = ["count_macs"]


def _attention(query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


# Torch's own table knows attention's kernels for GPUs only.
_FORMULAS: dict[Any, Callable[..., int]] = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention}


def count_macs(graph_module: fx.GraphModule, inputs: Sequence[torch.Tensor]) -> dict[fx.Node, int]:
    """Multiply-accumulates per node, for one sample.

    Only the shapes and dtypes of the inputs are used; the leading dimension of the first is the batch. Counted are
    convolutions and matrix products, attention's among them; element-wise operations are not.
    """
    fake_mode = FakeTensorMode(allow_non_fake_inputs=True)
    fake = [fake_mode.from_tensor(tensor, static_shapes=True) for tensor in inputs]
    counter = FlopCounterMode(display=False, custom_mapping=_FORMULAS)
    interpreter = _Counting(graph_module, counter)
    with fake_mode, counter, torch.no_grad():
        interpreter.run(*fake, enable_io_processing=False)
    return {node: macs // inputs[0].shape[0] for node, macs in interpreter.macs.items()}


class _Counting(fx.Interpreter):
    """Runs a graph and notes how much the counter moved at each node."""

    def __init__(self, graph_module: fx.GraphModule, counter: FlopCounterMode) -> None:
        super().__init__(graph_module)
        self.macs: dict[fx.Node, int] = {}
        self._counter = counter

    def run_node(self, n: fx.Node) -> Any:
        before = self._counter.get_total_flops()
        result = super().run_node(n)
        self.macs[n] = (self._counter.get_total_flops() - before) // 2
        return result
