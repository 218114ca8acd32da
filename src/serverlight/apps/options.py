"""Arguments and options that several commands share, and how their texts are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer

from serverlight.errors import ConfigError

__all__ = [
    "DataOption",
    "DtypeOption",
    "JsonOption",
    "LimitOption",
    "ModelArgument",
    "ModelsArgument",
    "ReturnCutOption",
    "ThreadsOption",
    "parse_list",
    "read_dtype",
]

_T = TypeVar("_T")

DTYPES = ("auto", "float32", "bfloat16", "float16")

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="`demo-vision` or `demo-lm` (shipped), a Hugging Face id or folder, a CIFAR ResNet's `.safetensors` file, "
        "or `package.module:function`.",
    ),
]

ModelsArgument = Annotated[
    list[str],
    typer.Argument(metavar="MODEL...", help="One model or several, each as the other commands take it."),
]

JsonOption = Annotated[
    str | None,
    typer.Option("--json", metavar="PATH", help="Write the figures as JSON; `-` for standard output instead of text."),
]

DataOption = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="SPEC",
        help="Labelled images: `demo-vision`, `demo-vision:calibration`, an `.npz` file with `images` and `labels`, "
        "or a folder or `.zip` of images, with a `labels.json` or a folder for each class.",
    ),
]

LimitOption = Annotated[
    int | None,
    typer.Option("--limit", metavar="N", min=1, help="Use the first N images, pairs, or questions of each task, only."),
]

ThreadsOption = Annotated[int, typer.Option("--threads", metavar="N", min=1, help="Threads that PyTorch may use.")]

DtypeOption = Annotated[
    str,
    typer.Option(help="Numbers of a language model's weights: `auto` as stored, `float32`, `bfloat16`, `float16`."),
]

ReturnCutOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Second cut of a language model: the layers behind it run on the device again, so that no token leaves it.",
    ),
]


def read_dtype(name: str) -> Any:
    """The torch dtype of that name, or ``None`` for ``auto``; raises :class:`ConfigError`."""
    import torch

    if name not in DTYPES:
        raise ConfigError("dtype", f"must be one of {', '.join(DTYPES)}, got {name!r}")
    return None if name == "auto" else getattr(torch, name)


def parse_list(field: str, text: str, kind: Callable[[str], _T]) -> list[_T]:
    """Reads numbers with commas between them; raises :class:`ConfigError` that names the option.

    >>> parse_list("sparsity", "0.5, 0.7", float)
    [0.5, 0.7]
    """
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError:
        what = "whole numbers" if kind is int else "numbers"
        raise ConfigError(field, f"cannot read {text!r}; give {what} with commas between them, like 1,2") from None
