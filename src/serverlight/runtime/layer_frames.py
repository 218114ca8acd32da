"""The keys and values of one layer as frames, for a cut that moves."""

from __future__ import annotations

import torch

from serverlight.codec import Codec, decode
from serverlight.errors import InputMismatch
from serverlight.partition.kv_cache import LayerSize, LayerState
from serverlight.runtime.messages import MoveCut

__all__ = ["read_layer", "write_layer"]


def write_layer(state: LayerState, codec: Codec) -> tuple[bytes, bytes]:
    """Frames ``[heads, kept tokens, head size]`` of keys and values of one sequence.

    Raises :class:`UnsupportedTensor` for values that the codec's profile does not carry.
    """
    return codec.encode(state.keys[0]), codec.encode(state.values[0])


def read_layer(move: MoveCut, size: LayerSize, num_tokens: int, device: torch.device) -> LayerState:
    """The state in a message from a stranger, on ``device``; ``size`` is what the layer remembers here of ``num_tokens``.

    Raises:
        FrameError: a frame is damaged, or claims more elements than the layer can have.
        InputMismatch: a frame has other heads or another head size than the layer.
    """
    keys = _read("keys", move.keys, size, size.key_size, num_tokens)
    values = _read("values", move.values, size, size.value_size, num_tokens)
    return LayerState(index=move.layer, num_tokens=num_tokens, keys=keys.to(device), values=values.to(device))


def _read(name: str, frame: bytes, size: LayerSize, head_size: int, num_tokens: int) -> torch.Tensor:
    tensor: torch.Tensor = decode(frame, max_elements=size.num_heads * head_size * num_tokens)
    shape = tuple(tensor.shape)
    if len(shape) != 3 or (shape[0], shape[2]) != (size.num_heads, head_size):
        raise InputMismatch(
            f"{name} of shape {list(shape)}; expected [{size.num_heads}, tokens, {head_size}], "
            "so head and server must have the same model"
        )
    return tensor.to(size.dtype).unsqueeze(0)
