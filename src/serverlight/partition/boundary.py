"""Cut points, and what crosses them."""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Boundary", "CutPoint", "TensorSpec"]


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorSpec:
    """One tensor that crosses a cut."""

    name: str
    """The tensor's name in the traced graph, or the input's name for a side input."""

    shape: tuple[int | None, ...]
    """Shape; ``None`` stands for a dimension that follows the batch."""

    dtype: str
    """Element type, as torch names it without the prefix: ``float32``, ``int64``, ..."""

    batch_factor: int = 1
    """How many rows of the ``None`` dimension one sample makes (Swin has 64 windows an image)."""

    side_input: bool = False
    """Whether it is an input of the module handed on as it is (an attention mask), never compressed."""

    @property
    def elements_per_sample(self) -> int:
        """Elements of one sample."""
        return math.prod(self.batch_factor if size is None else size for size in self.shape)

    @property
    def is_feature(self) -> bool:
        """Whether the codec may compress it: a floating-point activation."""
        return not self.side_input and self.dtype in ("float16", "bfloat16", "float32")


Boundary = tuple[TensorSpec, ...]
"""The tensors that cross one cut, in the order in which the head returns and the tail takes them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CutPoint:
    """A place where a module can be cut in two."""

    name: str
    """The module path whose exit this is (``layer1.3``), or ``path:node`` for a place inside a module."""

    index: int
    """Position in :attr:`Partition.cuts`, from the input (0) on."""

    tensors: Boundary
    """What crosses."""

    head_parameters: int
    """Parameters (elements) on the device's side."""

    tail_parameters: int
    """Parameters (elements) on the server's side."""

    head_macs: int
    """Multiply-accumulates of the head for one sample."""

    tail_macs: int
    """Multiply-accumulates of the tail for one sample."""

    aliases: tuple[str, ...] = ()
    """Further modules whose exit this is, from the outside in; :meth:`Partition.cut` takes these names too."""

    is_module_exit: bool
    """Whether the cut is the output of a module; such cuts are the ones to offer people first."""

    @property
    def elements_per_sample(self) -> int:
        """Elements that cross the cut for one sample."""
        return sum(spec.elements_per_sample for spec in self.tensors)
