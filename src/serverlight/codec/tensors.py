"""Handing tensors over: NumPy or torch in, flat float32 inside, NumPy or torch out."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from serverlight.codec.backends import Float32
from serverlight.codec.wire import DTYPES, MAX_RANK
from serverlight.errors import ConfigError, NonFiniteTensor, UnsupportedTensor

if TYPE_CHECKING:
    import torch

__all__ = ["Like", "Tensor", "from_float32", "round_to_dtype", "saturate", "to_float32"]

Tensor: TypeAlias = "npt.NDArray[Any] | torch.Tensor"
Like = Literal["torch", "numpy"]


def to_float32(x: Tensor) -> tuple[Float32, tuple[int, ...], str]:
    """A tensor's values as a flat, contiguous float32 array in C order, its shape, and its dtype's name.

    Raises:
        UnsupportedTensor: the dtype is not float16, bfloat16 or float32, or the rank is above 8.
        NonFiniteTensor: a value is NaN or infinite.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        dtype, shape = str(x.dtype).removeprefix("torch."), tuple(x.shape)
        _check_supported(dtype, len(shape))
        values = x.detach().to("cpu", torch.float32).contiguous().view(-1).numpy()
    elif isinstance(x, np.ndarray | np.generic):
        array = np.asarray(x)
        dtype, shape = array.dtype.name, array.shape
        _check_supported(dtype, len(shape))
        values = np.ascontiguousarray(array, dtype=np.float32).reshape(-1)
    else:
        raise UnsupportedTensor(f"expected a NumPy array or a torch tensor, got {type(x).__name__}")
    _check_finite(values)
    return values, shape, dtype


def from_float32(values: Float32, shape: tuple[int, ...], dtype: str, like: Like) -> Tensor:
    """The inverse of :func:`to_float32`. NumPy has no bfloat16: such a tensor comes as float32 with bfloat16's values."""
    rounded = round_to_dtype(values, dtype)
    if like == "numpy":
        return rounded.astype(np.float16 if dtype == "float16" else np.float32, copy=False).reshape(shape)
    if like == "torch":
        import torch

        return torch.from_numpy(rounded).to(getattr(torch, dtype)).reshape(shape)
    raise ConfigError("like", f"must be 'torch' or 'numpy', got {like!r}")


LARGEST = {"float32": 3.4028234663852886e38, "float16": 65504.0, "bfloat16": 3.3895313892515355e38}
"""The largest finite number of each dtype."""

POSITIVE_ZERO = np.float32(0)
"""Added to what was rounded: a tiny negative number that becomes -0 is a zero like any other (section 3.2)."""

LARGE_STEP = 1e20
"""No smaller step can lead out of a float32's or bfloat16's range: numbers of steps are below 2^53."""


def saturate(values: Float32, dtype: str, step: float) -> Float32:
    """Holds what a quantiser of that step has reconstructed within the dtype's finite range."""
    largest = np.float32(LARGEST[dtype])
    return np.clip(values, -largest, largest, out=values) if dtype == "float16" or step > LARGE_STEP else values


def round_to_dtype(values: Float32, dtype: str) -> Float32:
    """Rounds float32 values to the nearest of ``dtype``, ties to even, and keeps them as float32.

    >>> round_to_dtype(np.array([1 + 2**-8 + 2**-9], np.float32), "bfloat16")
    array([1.0078125], dtype=float32)
    """
    if dtype == "float16":
        return values.astype(np.float16).astype(np.float32) + POSITIVE_ZERO
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        return ((bits + half) & np.uint32(0xFFFF0000)).view(np.float32) + POSITIVE_ZERO
    return values


def _check_supported(dtype: str, rank: int) -> None:
    if dtype not in DTYPES:
        raise UnsupportedTensor(f"dtype {dtype} cannot be encoded; convert to one of {', '.join(DTYPES)} first")
    if rank > MAX_RANK:
        raise UnsupportedTensor(f"rank {rank}: a frame has at most {MAX_RANK} dimensions; reshape the tensor first")


def _check_finite(values: Float32) -> None:
    finite = np.isfinite(values)
    if not finite.all():
        nonfinite = np.flatnonzero(~finite)
        raise NonFiniteTensor(num_nonfinite=len(nonfinite), first_index=int(nonfinite[0]))
