"""Text to token ids; the only file that imports tokenizers."""

from __future__ import annotations

import pathlib
from collections.abc import Sequence

import numpy as np

from serverlight.errors import MissingDependency, ModelError
from serverlight.evaluation.tasks.task import RawInput

__all__ = ["raw_tokens", "token_ids"]

ID_BYTES = 2
"""Bytes of a token id; vocabularies are below 65,536."""


def token_ids(folder: pathlib.Path, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, with the special tokens that the ``tokenizer.json`` of the folder asks for, and no padding.

    Raises :class:`MissingDependency` without the package tokenizers, and :class:`ModelError` without the file.
    """
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError:
        raise MissingDependency("tokenizers", "hf") from None
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(f"no tokenizer.json in {folder.name!r}; give a folder written by save_pretrained")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_padding()
    return [encoding.ids for encoding in tokenizer.encode_batch(list(texts))]


def raw_tokens(counts: Sequence[int]) -> RawInput:
    """Messages of so many tokens each, every id in two bytes."""
    return RawInput(format="token ids of 2 bytes", sizes=ID_BYTES * np.array(counts, np.int64))
