"""Client and server: heads on devices, tails on a server, frames between them."""

from serverlight.runtime.adaptive_client import AdaptiveClient
from serverlight.runtime.client import Client, InferResult, connect
from serverlight.runtime.core import ServerConfig
from serverlight.runtime.credentials import Credentials
from serverlight.runtime.security import Security
from serverlight.runtime.server import Server

__all__ = ["AdaptiveClient", "Client", "Credentials", "InferResult", "Security", "Server", "ServerConfig", "connect"]
