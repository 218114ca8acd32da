"""Tensors that lie on a device: encoded and decoded there, where a backend can; only frames cross to the host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from serverlight.codec import backends
from serverlight.codec.config import CodecConfig
from serverlight.codec.tensors import check_supported, name_of
from serverlight.codec.wire import Header, header_bytes, sealed
from serverlight.errors import ConfigError, FrameError

if TYPE_CHECKING:
    import torch

__all__ = ["decode_to_device", "encode_on_device", "kernels_for"]


def kernels_for(backend: str, device: Any) -> backends.DeviceKernels | None:
    """The backend that works on such a device; ``None`` where tensors go through the host."""
    import torch

    try:
        return backends.for_device(backend, torch.device(device).type)
    except (RuntimeError, TypeError) as exc:
        raise ConfigError("device", f"{device!r} is no device of torch: {exc}") from None


def encode_on_device(x: torch.Tensor, config: CodecConfig, kernels: backends.DeviceKernels) -> bytes:
    """The frame of profile ``serverlight`` of a tensor that lies on the kernels' device; see :meth:`Codec.encode`."""
    shape, dtype = tuple(x.shape), name_of(x.dtype)
    check_supported(dtype, len(shape))
    parts = kernels.encode_on_device(x.detach().contiguous().reshape(-1), shape, config)
    return sealed(header_bytes(config.profile, dtype, shape, config.checksum), *parts, checksum=config.checksum)


def decode_to_device(
    header: Header, sections: Sequence[memoryview], device: Any, kernels: backends.DeviceKernels
) -> tuple[torch.Tensor, tuple[int, FrameError] | None]:
    """The flat values of frames of profile ``serverlight`` with one header; and the first that breaks a rule, and how."""
    import torch

    out = torch.empty(len(sections) * header.num_elements, dtype=getattr(torch, header.dtype), device=device)
    return out, kernels.decode_on_device(sections, header, out)
