"""Launching kernels on the device that the tensors lie on; interpreted on the host where ``TRITON_INTERPRET=1`` is set."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["BLOCK", "DTYPE_CODES", "INTERPRETED", "as_bits", "blocks_of", "launch", "to_device"]

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
"""Whether kernels are Python on host tensors: Triton decides it as it is imported, and so it is decided here."""

BLOCK = 1024
"""Elements of one program of the elementwise kernels."""

DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Dtypes by the numbers that kernels know them by."""


def blocks_of(size: int) -> int:
    """Programs that so many elements need."""
    return -(-size // BLOCK)


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Runs a kernel, its products and sums not fused: each is rounded on its own, as docs/wire-format.md says."""
    tensor = next(a for a in arguments if isinstance(a, torch.Tensor))
    with torch.cuda.device_of(tensor):  # type: ignore[no-untyped-call]
        kernel[grid](*arguments, **constants, enable_fp_fusion=False)


def to_device(array: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A copy of an array on a device."""
    return torch.from_numpy(array).to(device)


def as_bits(x: torch.Tensor) -> torch.Tensor:
    """A tensor as kernels take it: bfloat16 as its bits, which they widen and round on their own."""
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x
