"""How large a part's weights are, from the headers of its files: nothing is loaded."""

from __future__ import annotations

import json
import math
import pathlib
from typing import Any

import torch

from serverlight.errors import ModelError
from serverlight.huggingface import INDEX_FILE, SETTINGS_FILES, causal_lm_class, find_folder, read_config
from serverlight.partition.self_check import check_architecture
from serverlight.partition.weights import is_own

__all__ = ["stored_bytes"]

MAX_HEADER_BYTES = 100 * 2**20
"""As the safetensors format allows."""


def stored_bytes(
    model: str, first: int, last: int | None = None, *, finishes: bool, dtype: torch.dtype | None = None
) -> int:
    """Bytes of the weights that a part of a causal language model needs, at most.

    Args:
        model: A folder as ``save_pretrained`` writes it, or an id on the hub; of one that is not downloaded yet only what is
            here is counted.
        first: First layer.
        last: The layer after the last; by default to the end.
        finishes: Whether the part makes logits. Then the embeddings are counted too, which it needs where they are tied.
        dtype: What they are converted to; by default as stored.

    Raises :class:`ModelError` for what is no checkpoint, and :class:`NotPartitionable` for one that cannot be cut.
    """
    folder = find_folder(model, [*SETTINGS_FILES, INDEX_FILE])
    config = read_config(model, folder)
    layout = check_architecture(causal_lm_class(model, config), config)
    held = range(first, config.get_text_config(decoder=True).num_hidden_layers if last is None else last)
    headers = [_header(path) for path in sorted(folder.glob("*.safetensors"))]
    own = [
        tensor for header in headers for key, tensor in header.items() if is_own(key, layout, held, finishes=finishes)
    ]
    if dtype is not None:
        return sum(math.prod(tensor["shape"]) * dtype.itemsize for tensor in own)
    return sum(tensor["data_offsets"][1] - tensor["data_offsets"][0] for tensor in own)


def _header(path: pathlib.Path) -> dict[str, Any]:
    """Shape, dtype and place of each tensor of a safetensors file, by name."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MAX_HEADER_BYTES:
                raise ValueError("the header is too large")
            header = json.loads(file.read(size))
        return {key: tensor for key, tensor in header.items() if key != "__metadata__"}
    except (OSError, ValueError, AttributeError) as exc:
        raise ModelError(f"cannot read {path.name}: {exc}; save the model as safetensors") from None
