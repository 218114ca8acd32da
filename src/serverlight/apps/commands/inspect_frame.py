"""``serverlight inspect``."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Annotated

import typer

from serverlight.apps.options import JsonOption
from serverlight.apps.terminal import STDOUT, check_writable, format_bytes, print_lines, print_table, write_json
from serverlight.errors import ConfigError

__all__ = ["inspect_frame"]


def inspect_frame(
    frame: Annotated[pathlib.Path, typer.Argument(metavar="FRAME_FILE", help="A file that holds one frame.")],
    json: JsonOption = None,
) -> None:
    """Say what a frame tells of itself: shape, settings, and the bytes of each part.

    Example: `serverlight inspect feature.sl`
    """
    from serverlight.codec import inspect

    check_writable("json", json)
    try:
        content = frame.read_bytes()
    except OSError as error:
        raise ConfigError("frame", f"cannot read {frame}: {error.strerror}; check the path") from None
    info = inspect(content)
    if json:
        write_json(json, {**dataclasses.asdict(info), "bits_per_element": info.bits_per_element})
    if json == STDOUT:
        return
    shape = " x ".join(map(str, info.shape)) or "scalar"
    print_lines(
        f"{frame.name}: {info.dtype} {shape}, {format_bytes(info.num_bytes)} bytes, "
        f"{info.bits_per_element:.3g} bits an element",
        "; ".join(f"{name} {_setting(value)}" for name, value in info.config.items()),
    )
    share = {part: f"{100 * count / info.num_bytes:.1f} %" for part, count in info.part_bytes.items()}
    print_table(
        ["part", "bytes", "share"],
        [[part, format_bytes(count), share[part]] for part, count in info.part_bytes.items()],
    )


def _setting(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)
