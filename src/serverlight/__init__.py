"""Server-light inference by training-free compression of activations (SLICER, arXiv 2511.11608).

Names are loaded when first used, so that importing the package costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serverlight.calibration import calibrate
    from serverlight.codec import Basis, Codec, CodecConfig, FrameInfo, calibrate_basis, decode, inspect
    from serverlight.errors import ServerlightError
    from serverlight.loopback import Loopback
    from serverlight.models import LoadedModel, load_model
    from serverlight.partition import CutPoint, Partition, partition
    from serverlight.partition.weights import load_head, load_part, load_tail
    from serverlight.plan import Plan
    from serverlight.runtime import Client, Credentials, Security, Server, connect
    from serverlight.split_lm import SplitCausalLM

__version__ = "0.1.0"

_HOMES = {  # public name -> the module it lives in
    "Basis": "serverlight.codec",
    "Client": "serverlight.runtime",
    "Codec": "serverlight.codec",
    "CodecConfig": "serverlight.codec",
    "Credentials": "serverlight.runtime",
    "CutPoint": "serverlight.partition",
    "FrameInfo": "serverlight.codec",
    "LoadedModel": "serverlight.models",
    "Loopback": "serverlight.loopback",
    "Partition": "serverlight.partition",
    "Plan": "serverlight.plan",
    "Security": "serverlight.runtime",
    "Server": "serverlight.runtime",
    "ServerlightError": "serverlight.errors",
    "SplitCausalLM": "serverlight.split_lm",
    "calibrate": "serverlight.calibration",
    "calibrate_basis": "serverlight.codec",
    "connect": "serverlight.runtime",
    "decode": "serverlight.codec",
    "inspect": "serverlight.codec",
    "load_head": "serverlight.partition.weights",
    "load_model": "serverlight.models",
    "load_part": "serverlight.partition.weights",
    "load_tail": "serverlight.partition.weights",
    "partition": "serverlight.partition",
}

__all__ = [
    "Basis",
    "Client",
    "Codec",
    "CodecConfig",
    "Credentials",
    "CutPoint",
    "FrameInfo",
    "LoadedModel",
    "Loopback",
    "Partition",
    "Plan",
    "Security",
    "Server",
    "ServerlightError",
    "SplitCausalLM",
    "calibrate",
    "calibrate_basis",
    "connect",
    "decode",
    "inspect",
    "load_head",
    "load_model",
    "load_part",
    "load_tail",
    "partition",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'serverlight' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOMES[name]), name)
    # A submodule of the same name (serverlight.partition) would shadow the function once imported.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
