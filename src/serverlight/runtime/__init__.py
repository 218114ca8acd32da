"""Client and server: heads on devices, tails on a server, frames between them.

Names are loaded when first used, so that the limits of a server can be read without what serves it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serverlight.runtime.adapt import Rules
    from serverlight.runtime.adaptive_client import AdaptiveClient
    from serverlight.runtime.client import Client, InferResult
    from serverlight.runtime.connecting import connect
    from serverlight.runtime.credentials import Credentials
    from serverlight.runtime.security import Security
    from serverlight.runtime.server import Server
    from serverlight.runtime.server_config import ServerConfig

_HOMES = {  # public name -> the module it lives in
    "AdaptiveClient": "adaptive_client",
    "Client": "client",
    "Credentials": "credentials",
    "InferResult": "client",
    "Rules": "adapt",
    "Security": "security",
    "Server": "server",
    "ServerConfig": "server_config",
    "connect": "connecting",
}

__all__ = [
    "AdaptiveClient",
    "Client",
    "Credentials",
    "InferResult",
    "Rules",
    "Security",
    "Server",
    "ServerConfig",
    "connect",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'serverlight.runtime' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"serverlight.runtime.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
