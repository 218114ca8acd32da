"""Cutting a model in two: which cuts there are, what crosses them, and the two sides as modules."""

from __future__ import annotations

from serverlight.partition.boundary import Boundary, CutPoint, TensorSpec
from serverlight.partition.graph import Partition, partition
from serverlight.partition.sides import Head, Tail

__all__ = ["Boundary", "CutPoint", "Head", "Partition", "Tail", "TensorSpec", "partition"]
