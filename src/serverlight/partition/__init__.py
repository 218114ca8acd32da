"""Cutting a model in two: which cuts there are, what crosses them, and the two sides as modules."""

from __future__ import annotations

import sys
from collections.abc import Collection
from types import ModuleType

from torch import nn

from serverlight.partition.boundary import Boundary, CutPoint, TensorSpec
from serverlight.partition.graph import Partition, partition
from serverlight.partition.sides import Head, Tail

__all__ = ["Boundary", "CutPoint", "Head", "Partition", "Tail", "TensorSpec", "partition"]


class _CallablePackage(ModuleType):
    """Lets ``serverlight.partition(module, inputs)`` work also once the package of that name has been imported."""

    def __call__(
        self, module: nn.Module, example_inputs: object, *, side_inputs: Collection[str] | None = None
    ) -> Partition:
        return partition(module, example_inputs, side_inputs=side_inputs)


sys.modules[__name__].__class__ = _CallablePackage
