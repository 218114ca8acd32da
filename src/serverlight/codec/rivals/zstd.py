"""zstd without its magic bytes and checksum; the only file that imports zstandard."""

from __future__ import annotations

import functools
from typing import Any

from serverlight.errors import MissingDependency

__all__ = ["compress", "decompress", "is_available"]


def is_available() -> bool:
    """Whether the optional package is installed."""
    try:
        _zstandard()
    except MissingDependency:
        return False
    return True


def compress(data: bytes, level: int) -> bytes:
    """One frame; its length and the size of ``data`` are not in it."""
    compressed: bytes = _compressor(level).compress(data)
    return compressed


def decompress(data: bytes, size: int) -> bytes:
    """The inverse of :func:`compress`; ``size`` is that of the result."""
    zstandard = _zstandard()
    reader = zstandard.ZstdDecompressor(format=zstandard.FORMAT_ZSTD1_MAGICLESS)
    plain: bytes = reader.decompress(data, max_output_size=size) if size else b""
    return plain


@functools.lru_cache
def _compressor(level: int) -> Any:
    zstandard = _zstandard()
    settings = zstandard.ZstdCompressionParameters.from_level(
        level, format=zstandard.FORMAT_ZSTD1_MAGICLESS, write_content_size=False, write_checksum=False
    )
    return zstandard.ZstdCompressor(compression_params=settings)


def _zstandard() -> Any:
    try:
        import zstandard
    except ModuleNotFoundError:
        raise MissingDependency("zstandard", "bench") from None
    return zstandard
