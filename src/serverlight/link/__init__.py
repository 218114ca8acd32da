"""Imitated links: a rate and a delay, how they change with time, and a TCP proxy that has them."""

from serverlight.link.config import LinkConfig
from serverlight.link.models import FixedLink, GilbertElliott, LinkModel, Rayleigh
from serverlight.link.player import LinkPlayer
from serverlight.link.proxy import LinkProxy, Meddle
from serverlight.link.spec import parse_link_model
from serverlight.link.trace import LinkPiece, LinkTrace

__all__ = [
    "FixedLink",
    "GilbertElliott",
    "LinkConfig",
    "LinkModel",
    "LinkPiece",
    "LinkPlayer",
    "LinkProxy",
    "LinkTrace",
    "Meddle",
    "Rayleigh",
    "parse_link_model",
]
