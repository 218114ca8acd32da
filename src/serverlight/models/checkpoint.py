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

SHARD_DIGEST_LENGTH = 8
"""Hex digits for each file of a checkpoint in several files, which may be hundreds."""


def checkpoint_digest(spec: str) -> str:
    """A digest of a checkpoint that each side can take without reading the other side's weights.

    Over the settings and, where the weights are in one file, its header and some bytes from the middle of every tensor.
    Of a checkpoint in several files it covers settings and index, and each file has a digest of its own behind a colon, in
    the order of their names: ``0123456789abcdef:01234567,-``, with a dash for one that is not here. Two sides compare what
    both have (:func:`serverlight.plan.same_revision`); with no file in common that is settings and index.

    Raises :class:`ModelError` for what is no checkpoint, and for a file that is here but cannot be read.
    """
    folder = find_folder(spec, [*SETTINGS_FILES, INDEX_FILE])
    digest = hashlib.sha256()
    for name in ("config.json", INDEX_FILE):
        if (folder / name).is_file():
            digest.update((folder / name).read_bytes())
    if (folder / INDEX_FILE).is_file():
        shards = ",".join(_shard_digest(folder / name) for name in _shards(folder / INDEX_FILE))
        return f"{digest.hexdigest()[:DIGEST_LENGTH]}:{shards}"
    for piece in _samples(find_folder(spec, [*SETTINGS_FILES, WEIGHTS_FILE]) / WEIGHTS_FILE):
        digest.update(piece)
    return digest.hexdigest()[:DIGEST_LENGTH]


def _shards(index: pathlib.Path) -> list[str]:
    """The names of a checkpoint's files, each once."""
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        if any(pathlib.PurePath(name).name != name for name in names):
            raise ValueError("it names a file elsewhere")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as exc:
        raise ModelError(f"cannot read {index.name}: {exc}; download the model again") from None
    return names


def _shard_digest(path: pathlib.Path) -> str:
    if not path.is_file():
        return "-"
    digest = hashlib.sha256()
    for piece in _samples(path):
        digest.update(piece)
    return digest.hexdigest()[:SHARD_DIGEST_LENGTH]


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
