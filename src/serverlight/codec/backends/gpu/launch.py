"""Launching kernels on the device that the tensors lie on; interpreted on the host where ``TRITON_INTERPRET=1`` is set."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

__all__ = ["BLOCK", "DTYPE_CODES", "INTERPRETED", "as_bits", "begins_of", "blocks_of", "launch", "to_device", "to_host"]

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") not in ("", "0")
"""Whether kernels are Python on host tensors: Triton decides it as it is imported, and so it is decided here."""

BLOCK = 1024
"""Elements of one program of the elementwise kernels."""

LARGE = 1 << 19
"""Bytes from which on pages of that kind are worth the time that it takes to have them."""

DTYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
"""Dtypes by the numbers that kernels know them by."""


def blocks_of(size: int) -> int:
    """Programs that so many elements need."""
    return -(-size // BLOCK)


def begins_of(sizes: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each of several runs begins that lie one after the other, along the last dimension."""
    begins: npt.NDArray[np.int64] = np.cumsum(sizes, axis=-1) - sizes
    return begins


def launch(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Runs a kernel on the current device. Products and sums are not fused: each is rounded, as docs/wire-format.md says."""
    kernel[grid](*arguments, **constants, enable_fp_fusion=False)


def to_device(array: npt.NDArray[np.generic], device: torch.device) -> torch.Tensor:
    """A copy of an array on a device, for which nobody waits: it was taken from the array when this returns."""
    return torch.from_numpy(array).to(device, non_blocking=True)


def to_host(x: torch.Tensor) -> torch.Tensor:
    """A copy of a tensor on the host; a large one in pages that the device writes to by itself."""
    if not x.is_cuda or x.nbytes < LARGE:
        return x.cpu()
    there = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    there.copy_(x, non_blocking=True)
    torch.cuda.current_stream(x.device).synchronize()
    return there


def as_bits(x: torch.Tensor) -> torch.Tensor:
    """A tensor as kernels take it: bfloat16 as its bits, which they widen and round on their own."""
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x
