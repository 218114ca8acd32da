"""A digest of a module's weights, so that two models of one name are told apart."""

from __future__ import annotations

import hashlib
import json

import torch
from torch import nn

from serverlight.errors import ModelError

__all__ = ["DIGEST_LENGTH", "weights_digest"]

DIGEST_LENGTH = 16
"""Hex digits of a digest: 64 bits, plenty to tell models apart by accident; it is no signature."""


def weights_digest(module: nn.Module) -> str:
    """First 16 hex digits of the SHA-256 over names, dtypes, shapes and bytes of the module's state dict.

    The order in which the module registered its tensors plays no part. Raises :class:`ModelError` for a tensor
    without data (one on the meta device).

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> _ = nn.init.zeros_(layer.weight)
    >>> weights_digest(layer)
    '0f6a2ffc15e6bec9'
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue  # a module's extra state: configuration, not weights
        if tensor.is_meta:
            raise ModelError(f"weight {name!r} holds no data (meta device); load the weights before using the model")
        dtype = str(tensor.dtype).removeprefix("torch.")
        digest.update(json.dumps([name, dtype, list(tensor.shape)]).encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()[:DIGEST_LENGTH]
