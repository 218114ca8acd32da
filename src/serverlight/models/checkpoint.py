"""A digest of a language model's files, for sides that each hold only a part of them."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Iterator

from serverlight.errors import ModelError
from serverlight.huggingface import INDEX_FILE, SETTINGS_FILES, find_folder
from serverlight.models.digest import DIGEST_LENGTH

__all__ = ["checkpoint_digest"]

WEIGHTS_FILE = "model.safetensors"

MAX_HEADER_BYTES = 100 * 2**20
"""As the safetensors format allows."""

SAMPLE_BYTES = 64


def checkpoint_digest(spec: str) -> str:
    """A digest of a checkpoint that each side can take without reading the other side's weights.

    Over the settings and, where the weights are in one file, its header and some bytes from the middle of every tensor.
    Of a checkpoint in several files, which a side need not all have, it covers settings and index only.

    Raises :class:`ModelError` for what is no checkpoint.
    """
    folder = find_folder(spec, [*SETTINGS_FILES, INDEX_FILE])
    digest = hashlib.sha256()
    for name in ("config.json", INDEX_FILE):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    if not (folder / INDEX_FILE).is_file():
        for piece in _samples(find_folder(spec, [*SETTINGS_FILES, WEIGHTS_FILE]) / WEIGHTS_FILE):
            digest.update(piece)
    return digest.hexdigest()[:DIGEST_LENGTH]


def _samples(path: pathlib.Path) -> Iterator[bytes]:
    """The header of a safetensors file, then a few bytes of each tensor."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > MAX_HEADER_BYTES:
                raise ValueError("the header is too large")
            yield (header := file.read(size))
            for name, tensor in sorted(json.loads(header).items()):
                if name != "__metadata__":
                    first, last = tensor["data_offsets"]
                    file.seek(8 + size + max(first, (first + last - SAMPLE_BYTES) // 2))
                    yield file.read(min(SAMPLE_BYTES, last - first))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelError(f"cannot read {path.name}: {exc}; save the model as safetensors") from None
