"""Profile ``serverlight`` on a graphics processor, through Triton: tensors that lie there are written and read where they lie.

Only finished sections cross to the host. There the sizes that a frame declares are proved before a kernel runs, and the small work
is done: the model's parameters and the tables of frequencies; and all of the work where segments are few. What is computed is
defined in ``reference/``, to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import numpy as np
import torch

from serverlight.codec import backends, contextual
from serverlight.codec.activity import NO_SPREADS, Spreads
from serverlight.codec.backends import Float32
from serverlight.codec.backends.gpu.launch import INTERPRETED, values_on_host
from serverlight.codec.backends.gpu.model import HAS_NUMBA
from serverlight.codec.backends.gpu.reader import read_frames
from serverlight.codec.backends.gpu.writer import coded_tensor
from serverlight.codec.backends.slicer import SlicerKernels
from serverlight.codec.config import CodecConfig
from serverlight.codec.layout import SEGMENT_ELEMENTS
from serverlight.codec.tensors import from_float32
from serverlight.codec.wire import Header, Writer
from serverlight.errors import BackendUnavailable, FrameError

__all__ = ["TritonKernels"]


FEW_ELEMENTS = 8 * SEGMENT_ELEMENTS
"""Fewer, in all frames of a call together, are written and read on the host, where Numba is installed: a program goes through a
segment step by step, and a step takes a graphics processor many times as long as a processor, so only many at once are worth it.
Beside an H200 four segments took the host 1.3 ms to write and 0.8 ms to read; the H200 took 2.4 and 2.5 ms, and for thirty-two 2.7
and 2.8."""


class TritonKernels(SlicerKernels):
    """The stages of profile ``serverlight`` as Triton kernels; the other profile as the reference has it."""

    name = "gpu"

    def __init__(self) -> None:
        if not (INTERPRETED or torch.cuda.is_available()):
            raise BackendUnavailable("backend 'gpu' needs a CUDA device, and torch finds none; use 'cpu'")
        self.device_type = "cpu" if INTERPRETED else "cuda"
        self.few_elements = 0 if INTERPRETED else FEW_ELEMENTS

    def encode_contextual(
        self, values: Float32, shape: tuple[int, ...], config: CodecConfig, spreads: Spreads = NO_SPREADS
    ) -> bytes | memoryview:
        """Copies the values to the device, and writes there; what has spreads is written on the host."""
        if len(spreads):
            return backends.load("auto").encode_contextual(values, shape, config, spreads)
        return b"".join(self.encode_on_device(torch.tensor(values, device=self.device_type), shape, config))

    def encode_on_device(
        self, values: torch.Tensor, shape: tuple[int, ...], config: CodecConfig
    ) -> Sequence[bytes | memoryview]:
        """Section 6 of the frame of a flat tensor on the device, of a dtype that frames have; see :meth:`encode_contextual`.

        Small tensors, trellises, whose paths take many steps for each token, and budgets by sign, which nothing in sight gains
        from, are met on the host.
        """
        if config.asymmetry_mode != "score" or config.trellis or self._is_for_host(values.numel()):
            return [backends.load("auto").encode_contextual(values_on_host(values), shape, config)]
        writer = Writer()
        with torch.cuda.device_of(values):  # type: ignore[no-untyped-call]
            contextual.write(writer, coded_tensor(values, shape, config))
        return writer.parts

    def decode_contextual(
        self, section: memoryview, header: Header, out: Float32, spreads: Spreads = NO_SPREADS
    ) -> None:
        """Reads on the device, and copies the values to the host; what has spreads is read there."""
        if len(spreads):
            backends.load("auto").decode_contextual(section, header, out, spreads)
            return
        fault = self.decode_contextuals([section], header, out)
        if fault is not None:
            raise fault[1]

    def decode_contextuals(
        self, sections: Sequence[memoryview], header: Header, out: Float32
    ) -> tuple[int, FrameError] | None:
        """The same for many frames together."""
        values = torch.empty(len(out), dtype=torch.float32, device=self.device_type)
        fault = self.decode_on_device(sections, header, values)
        if fault is None:
            out[:] = values.numpy(force=True)
        return fault

    def decode_on_device(
        self, sections: Sequence[memoryview], header: Header, out: torch.Tensor
    ) -> tuple[int, FrameError] | None:
        """Section 6 of frames with one header, straight into ``out``, a flat tensor on the device with room for all of them.

        ``out`` has the header's dtype, or float32, whose values are then held within the dtype's range but not rounded to it.
        Returns the first frame that breaks a rule, and how; ``out`` has no meaning then.
        """
        if self._is_for_host(out.numel()) or any(contextual.is_along_trellis(section) for section in sections):
            return _read_on_host(sections, header, out)
        with torch.cuda.device_of(out):  # type: ignore[no-untyped-call]
            return read_frames(sections, header, out)

    def _is_for_host(self, num_elements: int) -> bool:
        return HAS_NUMBA and num_elements < self.few_elements


def _read_on_host(sections: Sequence[memoryview], header: Header, out: torch.Tensor) -> tuple[int, FrameError] | None:
    """Reads frames with the processor's backend, and copies their values to the device together."""
    values = np.empty(len(sections) * header.num_elements, np.float32)
    fault = backends.load("auto").decode_contextuals(sections, header, values)
    if fault is not None:
        return fault
    dtype = header.dtype if out.dtype != torch.float32 else "float32"
    out.copy_(cast(torch.Tensor, from_float32(values, tuple(out.shape), dtype, "torch")), non_blocking=True)
    return None
