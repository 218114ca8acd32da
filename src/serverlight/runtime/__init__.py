"""Client and server: heads on devices, tails on a server, frames between them."""

from serverlight.runtime.client import Client, InferResult, connect
from serverlight.runtime.core import ServerConfig
from serverlight.runtime.server import Server

__all__ = ["Client", "InferResult", "Server", "ServerConfig", "connect"]
