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
    from serverlight.frontier import Frontier
    from serverlight.link import LinkConfig
    from serverlight.loopback import Loopback
    from serverlight.models import LoadedModel, load_model
    from serverlight.partition import CutPoint, Partition, partition
    from serverlight.partition.weights import load_head, load_part, load_tail
    from serverlight.plan import Plan
    from serverlight.runtime import AdaptiveClient, Client, Credentials, Rules, Security, Server, connect
    from serverlight.search.constraints import Constraints, Objective, Workload
    from serverlight.search.optimise import SearchResult
    from serverlight.search.pipeline import search
    from serverlight.split_lm import SplitCausalLM

__version__ = "0.1.0"

_HOMES = {  # public name -> the module it lives in
    "AdaptiveClient": "serverlight.runtime",
    "Basis": "serverlight.codec",
    "Client": "serverlight.runtime",
    "Codec": "serverlight.codec",
    "CodecConfig": "serverlight.codec",
    "Constraints": "serverlight.search.constraints",
    "Credentials": "serverlight.runtime",
    "CutPoint": "serverlight.partition",
    "FrameInfo": "serverlight.codec",
    "Frontier": "serverlight.frontier",
    "LinkConfig": "serverlight.link",
    "LoadedModel": "serverlight.models",
    "Loopback": "serverlight.loopback",
    "Objective": "serverlight.search.constraints",
    "Partition": "serverlight.partition",
    "Plan": "serverlight.plan",
    "Rules": "serverlight.runtime",
    "SearchResult": "serverlight.search.optimise",
    "Security": "serverlight.runtime",
    "Server": "serverlight.runtime",
    "ServerlightError": "serverlight.errors",
    "SplitCausalLM": "serverlight.split_lm",
    "Workload": "serverlight.search.constraints",
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
    "search": "serverlight.search.pipeline",
}

__all__ = [
    "AdaptiveClient",
    "Basis",
    "Client",
    "Codec",
    "CodecConfig",
    "Constraints",
    "Credentials",
    "CutPoint",
    "FrameInfo",
    "Frontier",
    "LinkConfig",
    "LoadedModel",
    "Loopback",
    "Objective",
    "Partition",
    "Plan",
    "Rules",
    "SearchResult",
    "Security",
    "Server",
    "ServerlightError",
    "SplitCausalLM",
    "Workload",
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
    "search",
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
