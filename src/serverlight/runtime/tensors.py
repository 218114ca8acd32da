"""Torch tensors to raw tensors of the protocol and back."""

from __future__ import annotations

import sys

import torch

from serverlight.errors import InputMismatch, UnsupportedTensor
from serverlight.runtime.conversion import DTYPE_BYTES
from serverlight.runtime.messages import RawTensor

__all__ = ["from_raw", "to_raw"]

_TORCH_DTYPES = {name: getattr(torch, name) for name in DTYPE_BYTES}
_NAMES = {dtype: name for name, dtype in _TORCH_DTYPES.items()}


def to_raw(tensor: torch.Tensor, *, name: str = "") -> RawTensor:
    """The tensor's bytes, row-major and little-endian; raises :class:`UnsupportedTensor` for an exotic dtype.

    >>> to_raw(torch.tensor([[1, 2]], dtype=torch.int16))
    RawTensor(dtype='int16', shape=(1, 2), data=b'\\x01\\x00\\x02\\x00', name='')
    """
    if tensor.dtype not in _NAMES:
        raise UnsupportedTensor(
            f"{name or 'a tensor'} is {tensor.dtype}; convert it to one of {', '.join(DTYPE_BYTES)}"
        )
    # NumPy has no bfloat16, so the bytes are taken as bytes.
    as_bytes = tensor.detach().cpu().contiguous().view(-1).view(torch.uint8)
    data = _little_endian(as_bytes, tensor.element_size()).numpy().tobytes()
    return RawTensor(dtype=_NAMES[tensor.dtype], shape=tuple(tensor.shape), data=data, name=name)


def from_raw(raw: RawTensor) -> torch.Tensor:
    """The inverse of :func:`to_raw`, for a raw tensor whose size has been proved.

    Raises :class:`InputMismatch` for a bool that is neither 0 nor 1: torch does not define what it would mean.

    >>> from_raw(to_raw(torch.tensor([1.5, -2.0], dtype=torch.bfloat16)))
    tensor([ 1.5000, -2.0000], dtype=torch.bfloat16)
    """
    dtype = _TORCH_DTYPES[raw.dtype]
    if not raw.data:
        return torch.empty(raw.shape, dtype=dtype)
    as_bytes = torch.frombuffer(bytearray(raw.data), dtype=torch.uint8)
    if dtype is torch.bool and int(as_bytes.max()) > 1:
        raise InputMismatch(f"{raw.name or 'a raw tensor'}: bool elements must be 0 or 1")
    return _little_endian(as_bytes, DTYPE_BYTES[raw.dtype]).view(dtype).view(raw.shape)


def _little_endian(as_bytes: torch.Tensor, itemsize: int) -> torch.Tensor:
    """Swaps the bytes of each element on a big-endian machine; its own inverse."""
    if sys.byteorder == "little" or itemsize == 1:
        return as_bytes
    return as_bytes.view(-1, itemsize).flip(1).contiguous().view(-1)
