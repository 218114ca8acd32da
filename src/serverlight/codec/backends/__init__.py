"""The stages' kernels: what a backend provides, and how one is found by name."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import numpy.typing as npt

from serverlight.codec.config import CodecConfig
from serverlight.codec.wire import Header
from serverlight.errors import BackendUnavailable, ConfigError

__all__ = ["BACKENDS", "Float32", "Kernels", "Survivors", "load"]

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

    def encode_contextual(self, values: Float32, shape: tuple[int, ...], config: CodecConfig) -> bytes | memoryview:
        """Section 6 of the frame of ``values``, of shape (n,); raises :class:`NonFiniteTensor` for a NaN or an infinity."""
        ...

    def decode_contextual(self, section: memoryview, header: Header, out: Float32) -> None:
        """Reads section 6 and writes the values to ``out``, of shape (n,), held within the dtype's range but not rounded to it.

        Raises :class:`FrameError` for what breaks a rule; ``out`` has no meaning then.
        """
        ...


BACKENDS = {  # name -> (where it lives, the package it needs)
    "cpu": ("serverlight.codec.backends.cpu:NumbaKernels", "numba"),
    "reference": ("serverlight.codec.backends.reference:ReferenceKernels", None),
}


@functools.cache
def load(name: str) -> Kernels:
    """The backend of that name; ``auto`` is ``cpu`` where Numba is installed, else ``reference``.

    Raises:
        ConfigError: there is no such backend.
        BackendUnavailable: its package is missing.
    """
    if name == "auto":
        name = "cpu" if importlib.util.find_spec("numba") else "reference"
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
