"""Block-wise int8 by bitsandbytes itself; the only file that imports it."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from typing import Any

import torch

from serverlight.errors import MissingDependency

__all__ = ["BitsAndBytes", "is_available"]


def is_available() -> bool:
    """Whether the optional package is installed."""
    return importlib.util.find_spec("bitsandbytes") is not None


class BitsAndBytes:
    """Encodes to the maxima of the blocks and then the codes; the receiver knows the shape."""

    def __init__(self, block: int) -> None:
        self.name, self._block = f"bitsandbytes int8 {block}", block
        self._functional = _functional()
        self._codebook = self._functional.create_dynamic_map()
        self._shape: torch.Size = torch.Size()

    def encode(self, x: torch.Tensor) -> bytes:
        """From tensor to bytes."""
        codes, state = self._functional.quantize_blockwise(x, code=self._codebook, blocksize=self._block)
        self._shape = x.shape
        return b"".join((state.absmax.numpy().data, codes.numpy().data))

    def decode(self, message: bytes) -> torch.Tensor:
        """From bytes to the tensor of the shape encoded last."""
        split = 4 * -(-self._shape.numel() // self._block)
        # PyTorch takes writable memory only, and this is the one copy that gives it.
        data = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        absmax, codes = data[:split].view(torch.float32), data[split:].view(self._shape)
        x: torch.Tensor = self._functional.dequantize_blockwise(
            codes, absmax=absmax, code=self._codebook, blocksize=self._block
        )
        return x


def _functional() -> Any:
    # It warns of GPU kernels that are missing.
    logging.getLogger("bitsandbytes").setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import bitsandbytes.functional
    except ModuleNotFoundError:
        raise MissingDependency("bitsandbytes", "bench") from None
    return bitsandbytes.functional
