"""The stages' kernels: what a backend provides, and how one is found by name."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from serverlight.codec.activity import NO_SPREADS, Spreads
from serverlight.codec.config import CodecConfig
from serverlight.codec.wire import Header
from serverlight.errors import BackendUnavailable, ConfigError, FrameError

__all__ = ["BACKENDS", "DeviceKernels", "Float32", "Kernels", "Survivors", "for_device", "is_installed", "load"]

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True, kw_only=True, slots=True)
class Survivors:
    """What the three stages make of a tensor. K = elements kept, M = groups."""

    positions: npt.NDArray[np.int64]
    """Flat index of each kept element, ascending; shape (K,)."""

    negative: npt.NDArray[np.bool_]
    """Sign of each kept element; shape (K,)."""

    labels: npt.NDArray[np.uint8]
    """Group of each kept element; shape (K,)."""

    codes: npt.NDArray[np.uint32]
    """Code of each kept element at its group's width; shape (K,)."""

    low: Float32
    """Lowest magnitude of each group; shape (M,)."""

    high: Float32
    """Highest magnitude of each group; shape (M,)."""

    bits: npt.NDArray[np.uint8]
    """Bit width of each group; shape (M,)."""


class Kernels(Protocol):
    """The three stages and their inverse on flat float32 arrays, for each profile that has stages."""

    name: str

    def encode_slicer(self, values: Float32, config: CodecConfig) -> Survivors:
        """Filters, groups, allocates and quantises ``values`` of shape (n,)."""
        ...

    def decode_slicer(self, survivors: Survivors, num_elements: int) -> Float32:
        """Reconstructs an array of shape (num_elements,)."""
        ...

    def encode_contextual(
        self, values: Float32, shape: tuple[int, ...], config: CodecConfig, spreads: Spreads = NO_SPREADS
    ) -> bytes | memoryview:
        """Section 6 of the frame of ``values``, of shape (n,); raises :class:`NonFiniteTensor` for a NaN or an infinity.

        ``spreads`` are those of the basis that the values are in, of shape (D,); none otherwise.
        """
        ...

    def decode_contextual(
        self, section: memoryview, header: Header, out: Float32, spreads: Spreads = NO_SPREADS
    ) -> None:
        """Reads section 6 and writes the values to ``out``, of shape (n,), held within the dtype's range but not rounded to it.

        Raises :class:`FrameError` for what breaks a rule; ``out`` has no meaning then.
        """
        ...

    def decode_contextuals(
        self, sections: Sequence[memoryview], header: Header, out: Float32
    ) -> tuple[int, FrameError] | None:
        """The same for frames with one header, into ``out`` one after the other, of shape (frames * n,).

        Returns the first frame that breaks a rule, and how; ``out`` has no meaning then.
        """
        ...


class DeviceKernels(Kernels, Protocol):
    """Kernels that also take and give torch tensors on a device of their own."""

    device_type: str
    """What torch calls such devices."""

    def encode_on_device(
        self, values: Any, shape: tuple[int, ...], config: CodecConfig
    ) -> Sequence[bytes | memoryview]:
        """Section 6 of the frame of a flat tensor there, of a frame's dtype, in parts; errors as for ``encode_contextual``."""
        ...

    def decode_on_device(
        self, sections: Sequence[memoryview], header: Header, out: Any
    ) -> tuple[int, FrameError] | None:
        """Section 6 of frames with one header, straight into ``out``, a flat tensor there with room for all of them.

        Returns the first frame that breaks a rule, and how; ``out`` has no meaning then.
        """
        ...


BACKENDS = {  # name -> (where it lives, the package it needs)
    "cpu": ("serverlight.codec.backends.cpu.kernels:NumbaKernels", "numba"),
    "gpu": ("serverlight.codec.backends.gpu.kernels:TritonKernels", "triton"),
    "reference": ("serverlight.codec.backends.reference.kernels:ReferenceKernels", None),
}


@functools.cache
def load(name: str) -> Kernels:
    """The backend of that name; ``auto`` is ``cpu`` where Numba is installed, else ``reference``.

    Raises:
        ConfigError: there is no such backend.
        BackendUnavailable: its package is missing, or the device that it is for.
    """
    if name == "auto":
        name = "cpu" if is_installed("numba") else "reference"
    if name not in BACKENDS:
        raise ConfigError("backend", f"unknown backend {name!r}; choose from auto, {', '.join(sorted(BACKENDS))}")
    target, package = BACKENDS[name]
    module, attribute = target.split(":")
    try:
        return cast(Kernels, getattr(importlib.import_module(module), attribute)())
    except ModuleNotFoundError as exc:
        if exc.name != package:
            raise
        raise BackendUnavailable(f"backend {name!r} needs {package}: pip install 'serverlight[{name}]'") from exc


def for_device(name: str, device_type: str) -> DeviceKernels | None:
    """The backend for tensors on such a device; ``None`` where they go through the host."""
    if name == "gpu":
        kernels = cast(DeviceKernels, load("gpu"))
        return kernels if kernels.device_type == device_type else None
    if name == "auto" and device_type == "cuda" and is_installed("triton"):
        return cast(DeviceKernels, load("gpu"))
    return None


@functools.cache
def is_installed(package: str) -> bool:
    """Whether a package that a backend needs is there to be imported."""
    return importlib.util.find_spec(package) is not None
