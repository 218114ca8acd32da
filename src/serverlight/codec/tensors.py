"""Handing tensors over: NumPy or torch in, flat float32 inside, NumPy or torch out."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import numpy as np
import numpy.typing as npt

from serverlight.codec import backends
from serverlight.codec.backends import Float32
from serverlight.codec.wire import DTYPES, MAX_RANK
from serverlight.errors import ConfigError, NonFiniteTensor, UnsupportedTensor

if TYPE_CHECKING:
    import torch

__all__ = [
    "Like",
    "Tensor",
    "check_finite",
    "check_supported",
    "device_type_of",
    "from_double",
    "from_float32",
    "halves_of",
    "name_of",
    "saturate",
    "to_float32",
    "values_of",
    "write_to",
]

Tensor: TypeAlias = "npt.NDArray[Any] | torch.Tensor"
Like = Literal["torch", "numpy"]


def to_float32(x: Tensor) -> tuple[Float32, tuple[int, ...], str]:
    """A tensor's values as a flat, contiguous float32 array in C order, its shape, and its dtype's name.

    The values may be the tensor's own memory, and need not be finite: see :func:`check_finite`.

    Raises:
        UnsupportedTensor: the dtype is not float16, bfloat16 or float32, or the rank is above 8.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(x, torch.Tensor):
        dtype, shape = name_of(x.dtype), tuple(x.shape)
        check_supported(dtype, len(shape))
        tensor = x if dtype == "float32" else x.detach().to("cpu", torch.float32)
        return tensor.contiguous().numpy(force=True).reshape(-1), shape, dtype
    if isinstance(x, np.ndarray | np.generic):
        array = np.asarray(x)
        check_supported(array.dtype.name, array.ndim)
        return np.ascontiguousarray(array, dtype=np.float32).reshape(-1), array.shape, array.dtype.name
    raise UnsupportedTensor(f"expected a NumPy array or a torch tensor, got {type(x).__name__}")


def device_type_of(x: Tensor) -> str:
    """What kind of device a tensor lies on: ``cpu``, ``cuda``, ..."""
    torch = sys.modules.get("torch")
    return x.device.type if torch is not None and isinstance(x, torch.Tensor) else "cpu"


@functools.cache
def name_of(dtype: Any) -> str:
    """The name of a torch dtype, as NumPy would have it."""
    return str(dtype).removeprefix("torch.")


def from_float32(values: Float32, shape: tuple[int, ...], dtype: str, like: Like) -> Tensor:
    """The inverse of :func:`to_float32`: each value rounded to the nearest of ``dtype``, ties to even.

    NumPy has no bfloat16: such a tensor comes as float32 with bfloat16's values.
    """
    if like not in ("torch", "numpy"):
        raise ConfigError("like", f"must be 'torch' or 'numpy', got {like!r}")
    if like == "torch":
        x = _torch_from_float32(values, dtype)
        return x if len(shape) == 1 else x.view(shape)
    if dtype == "float32":
        return values.reshape(shape)
    halves = _bits_of(values, dtype).reshape(shape)
    return halves.view(np.float16) if dtype == "float16" else (halves.astype(np.uint32) << 16).view(np.float32)


def _torch_from_float32(values: Float32, dtype: str) -> torch.Tensor:
    """float16 is rounded by torch, in less than a tenth of NumPy's time, where it is known to round as this module does."""
    import torch

    if dtype == "float32":
        return torch.from_numpy(values)
    if dtype == "bfloat16" or not _torch_rounds_alike():
        return torch.from_numpy(_bits_of(values, dtype).view(np.int16)).view(getattr(torch, dtype))
    rounded = torch.from_numpy(values).to(torch.float16)
    _make_zeros_positive(rounded.view(torch.int16).numpy())
    return rounded


@functools.cache
def _torch_rounds_alike() -> bool:
    """Whether torch on this processor rounds to even and keeps subnormal numbers, in its loops and at their ends."""
    import torch

    hard = np.array(
        [0x3F801000, 0x3F803000, 0x38801000, 0x387FF000, 0x33000001, 0x33C00000, 0x00018000, 0x00008001], np.uint32
    )
    values = np.tile(hard, 33).view(np.float32)[:-1]
    rounded = torch.from_numpy(values).to(torch.float16).view(torch.int16).numpy()
    return bool((rounded.view(np.uint16) == halves_of(values, "float16")).all())


def _bits_of(values: Float32, dtype: str) -> npt.NDArray[np.uint16]:
    """What :func:`halves_of` gives, by a compiled loop where there is one."""
    return _narrowed()(values) if dtype == "bfloat16" else halves_of(values, dtype)


@functools.cache
def _narrowed() -> Callable[[Float32], npt.NDArray[np.uint16]]:
    """Looked up once: an import that has nothing to do takes as long as a token's rounding."""
    if not backends.is_installed("numba"):
        return functools.partial(halves_of, dtype="bfloat16")
    from serverlight.codec.backends.cpu.bfloat16 import narrowed

    return narrowed


def halves_of(values: Float32, dtype: str) -> npt.NDArray[np.uint16]:
    """The bits of values rounded to the nearest of a 16-bit dtype, ties to even; no zero is negative (section 3.2).

    >>> halves_of(np.array([1 + 2**-8 + 2**-9, -1e-30], np.float32), "float16")
    array([15366,     0], dtype=uint16)
    """
    if dtype == "float16":
        halves = values.astype(np.float16).view(np.uint16)
    else:
        bits = values.view(np.uint32)
        halves = ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype(np.uint16)
    _make_zeros_positive(halves.view(np.int16))
    return halves


def _make_zeros_positive(halves: npt.NDArray[np.int16]) -> None:
    """A negative zero has the least bits of all, as a signed number."""
    if halves.size and halves.min() == NEGATIVE_ZERO:
        halves[halves == NEGATIVE_ZERO] = 0


def values_of(out: Tensor, shape: tuple[int, ...], dtype: str) -> Float32 | None:
    """The memory of a tensor that is to receive a frame's values, flat; ``None`` if they cannot be written there as they are.

    Raises:
        UnsupportedTensor: ``out`` has another shape or dtype than the frame, or cannot be written to.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(out, torch.Tensor):
        found, is_ready = name_of(out.dtype), out.device.type == "cpu" and out.is_contiguous()
        _check_receiver(found, tuple(out.shape), dtype, shape)
        return out.detach().numpy().reshape(-1) if found == "float32" and is_ready else None
    if not isinstance(out, np.ndarray):
        raise UnsupportedTensor(f"expected a NumPy array or a torch tensor to write to, got {type(out).__name__}")
    _check_receiver(out.dtype.name, out.shape, "float32" if dtype == "bfloat16" else dtype, shape)
    if not out.flags.writeable:
        raise UnsupportedTensor("the array to write to is read-only; pass a copy")
    is_ready = dtype == "float32" and out.flags.c_contiguous and out.flags.aligned and out.dtype.isnative
    return out.reshape(-1) if is_ready else None


def write_to(out: Tensor, values: Float32, shape: tuple[int, ...], dtype: str) -> None:
    """Rounds values to a frame's dtype and copies them to ``out``."""
    if isinstance(out, np.ndarray):
        out[...] = from_float32(values, shape, dtype, "numpy")
    else:
        out.detach().copy_(cast("torch.Tensor", from_float32(values, shape, dtype, "torch")))


def _check_receiver(dtype: str, shape: tuple[int, ...], wanted_dtype: str, wanted_shape: tuple[int, ...]) -> None:
    if (dtype, shape) != (wanted_dtype, wanted_shape):
        raise UnsupportedTensor(
            f"the frame holds {wanted_dtype} of shape {wanted_shape}, the tensor to write to is {dtype} of shape {shape}; "
            "allocate it by what inspect(frame) says"
        )


LARGEST = {"float32": 3.4028234663852886e38, "float16": 65504.0, "bfloat16": 3.3895313892515355e38}
"""The largest finite number of each dtype."""

POSITIVE_ZERO = np.float32(0)
"""Added to what was rounded: a tiny negative number that becomes -0 is a zero like any other (section 3.2)."""

NEGATIVE_ZERO = -(1 << 15)
"""Its bits in 16, as a signed number."""

LARGE_STEP = 1e20
"""No smaller step can lead out of a float32's or bfloat16's range: numbers of steps are below 2^53."""


def saturate(values: Float32, dtype: str, step: float) -> Float32:
    """Holds what a quantiser of that step has reconstructed within the dtype's finite range."""
    largest = np.float32(LARGEST[dtype])
    return np.clip(values, -largest, largest, out=values) if dtype == "float16" or step > LARGE_STEP else values


def check_supported(dtype: str, rank: int) -> None:
    """Raises :class:`UnsupportedTensor` for a dtype or a rank that no frame has."""
    if dtype not in DTYPES:
        raise UnsupportedTensor(f"dtype {dtype} cannot be encoded; convert to one of {', '.join(DTYPES)} first")
    if rank > MAX_RANK:
        raise UnsupportedTensor(f"rank {rank}: a frame has at most {MAX_RANK} dimensions; reshape the tensor first")


def from_double(values: npt.NDArray[np.float64], dtype: str) -> Float32:
    """Values held within a dtype's range and rounded to float32; no zero is negative."""
    held: Float32 = np.clip(values, -float(LARGEST[dtype]), float(LARGEST[dtype])).astype(np.float32)
    return held + POSITIVE_ZERO


def check_finite(values: Float32) -> None:
    """Raises :class:`NonFiniteTensor` if a value is NaN or infinite."""
    finite = np.isfinite(values)
    if not finite.all():
        nonfinite = np.flatnonzero(~finite)
        raise NonFiniteTensor(num_nonfinite=len(nonfinite), first_index=int(nonfinite[0]))
