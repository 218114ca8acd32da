"""How well a language model knows a text."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from serverlight.errors import InputMismatch

__all__ = ["bits_per_byte"]


@torch.inference_mode()
def bits_per_byte(logits_of: Callable[[Tensor], Tensor], windows: Tensor, text_of: Callable[[list[int]], str]) -> float:
    """What a text costs under a language model, in bits per byte of UTF-8: comparable between tokenizers.

    Each window stands for itself, and its first token, which nothing predicts, is not counted.

    Args:
        logits_of: from token ids int64 ``[1, tokens]`` to logits ``[1, tokens, vocabulary]``.
        windows: Token ids int64 ``[windows, tokens]``.
        text_of: The tokenizer's way back, from ids to text.

    Raises:
        InputMismatch: there is nothing to predict.

    >>> even = lambda ids: torch.zeros(1, ids.shape[1], 16)
    >>> bits_per_byte(even, torch.zeros(3, 9, dtype=torch.int64), lambda ids: "ab" * len(ids))
    2.0
    """
    if windows.ndim != 2 or not windows.shape[0] or windows.shape[1] < 2:
        raise InputMismatch(f"windows of shape {list(windows.shape)}; give at least one of two tokens")
    nats, num_bytes = 0.0, 0
    for window in windows:
        logits = logits_of(window[None])[0, :-1].float()
        nats += F.cross_entropy(logits, window[1:], reduction="sum").item()
        num_bytes += len(text_of(window[1:].tolist()).encode())
    return round(nats / num_bytes / math.log(2), 6)
