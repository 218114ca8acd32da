"""How the event loop of the simulation is compiled, and what its cache depends on."""

from __future__ import annotations

import functools
import pathlib
import zlib

import numba

__all__ = ["entry_point", "njit", "sources"]

njit = numba.njit(nogil=True, error_model="numpy")
"""What is called by other compiled functions."""

entry_point = numba.njit(cache=True, nogil=True, error_model="numpy")
"""What Python calls."""


def sources() -> int:
    """A checksum over the source text of all that is compiled.

    Numba notes when the file of a cached function changes, but not when those of the functions that it calls do.
    """
    files = sorted(pathlib.Path(__file__).parent.glob("*.py"))
    return functools.reduce(lambda checksum, file: zlib.crc32(file.read_bytes(), checksum), files, 0)
