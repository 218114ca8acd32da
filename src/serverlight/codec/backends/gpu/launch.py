"""Launching kernels on the device that the tensors lie on; interpreted on the host where ``TRITON_INTERPRET=1`` is set."""

from __future__ import annotations

import os
import threading
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from serverlight.codec.backends import Float32

__all__ = [
    "BLOCK",
    "DTYPE_CODES",
    "INTERPRETED",
    "as_bits",
    "begins_of",
    "blocks_of",
    "launch",
    "to_device",
    "to_host",
    "values_on_host",
]

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


class _Landing(threading.local):
    """Where a thread's last small tensor came to on the host: pages that the device writes to by itself, and what they hold."""

    taken_for: tuple[torch.dtype, int] | None = None
    there: torch.Tensor
    bits: npt.NDArray[np.uint16]


_LANDING = _Landing()


def values_on_host(x: torch.Tensor) -> Float32:
    """The elements of a flat tensor on the host, in binary32.

    A token waits for its copy as long as it takes to write half of it: so the next one of the same size comes to the same place.
    """
    if x.dtype != torch.bfloat16 or not x.is_cuda or x.nbytes >= LARGE:
        values: Float32 = to_host(x).float().numpy()
        return values
    if _LANDING.taken_for != (x.dtype, len(x)):
        _LANDING.there = torch.empty(len(x), dtype=x.dtype, pin_memory=True)
        _LANDING.bits = _LANDING.there.view(torch.int16).numpy().view(np.uint16)
        _LANDING.taken_for = x.dtype, len(x)
    _LANDING.there.copy_(x)
    widened = np.empty(len(x), np.uint32)
    np.left_shift(_LANDING.bits, 16, out=widened, dtype=np.uint32)
    return widened.view(np.float32)


def as_bits(x: torch.Tensor) -> torch.Tensor:
    """A tensor as kernels take it: bfloat16 as its bits, which they widen and round on their own."""
    return x.view(torch.int16) if x.dtype == torch.bfloat16 else x
