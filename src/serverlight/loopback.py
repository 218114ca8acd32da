"""Head, encode, decode and tail in one process: what client and server together must compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from serverlight.codec import Basis, Codec, decode
from serverlight.errors import PlanMismatch
from serverlight.models import LoadedModel
from serverlight.partition import Partition, partition
from serverlight.partition.inputs import as_call
from serverlight.plan import Plan

__all__ = ["Loopback", "LoopbackResult"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoopbackResult:
    """The outputs of one call, and the frames that would have crossed."""

    outputs: Any
    """In the module's own structure."""

    frame_bytes: int
    """Bytes of all frames."""

    frame_elements: int
    """Elements in all frames, so that ``8 * frame_bytes / frame_elements`` is the rate in bits per element."""


class Loopback:
    """The oracle of the runtime and the workhorse of search and evaluation: no sockets, no threads.

    Args:
        plan: where to cut and how to compress.
        model: the model that the plan names, or its partition if it has been made already.
        basis: the one that the plan names, if it names one.

    Raises:
        ConfigError: another basis than the plan's.
        PlanMismatch: the plan is for another model.
        CutNotFound: the model has no such cut.
    """

    def __init__(self, plan: Plan, model: LoadedModel | Partition, *, basis: Basis | None = None) -> None:
        plan.check_basis(basis)
        self.plan = plan
        if isinstance(model, LoadedModel):
            for field, ours in (("model", model.name), ("revision", model.revision)):
                if getattr(plan, field) != ours:
                    raise PlanMismatch(field, ours, getattr(plan, field))
        self._parts = model if isinstance(model, Partition) else partition(model.module, model.example_inputs)
        self._cut = self._parts.cut(plan.cut)
        self._head, self._tail = self._parts.split(self._cut)
        self._codec = Codec(plan.codec, basis=basis)

    def infer(self, inputs: Any) -> Any:
        """The outputs for ``inputs`` (a tensor, a tuple of arguments or a dict of keyword arguments)."""
        return self.infer_detailed(inputs).outputs

    def infer_detailed(self, inputs: Any) -> LoopbackResult:
        """As :meth:`infer`, with the size of the frames."""
        frame_bytes = frame_elements = 0
        args, kwargs = as_call(inputs)
        with torch.inference_mode():
            tensors = list(self._head(*args, **kwargs))
            for i, spec in enumerate(self._cut.tensors):
                if spec.is_feature:
                    frame = self._codec.encode(tensors[i])
                    frame_bytes, frame_elements = frame_bytes + len(frame), frame_elements + tensors[i].numel()
                    tensors[i] = decode(frame, basis=self._codec.basis)
            outputs = self._tail(*tensors)
        return LoopbackResult(outputs=outputs, frame_bytes=frame_bytes, frame_elements=frame_elements)
