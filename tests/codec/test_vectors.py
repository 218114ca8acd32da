"""Golden frames: what was written once decodes for ever, and equal tensors give equal frames, whatever the backend."""

from __future__ import annotations

import importlib.util
import itertools
import json
import pathlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from serverlight.codec import Codec, CodecConfig, decode, inspect

VECTORS = pathlib.Path(__file__).parents[1] / "vectors"
LONG, SHORT = (
    sorted(str(folder.relative_to(VECTORS)) for folder in (VECTORS / name).iterdir()) for name in ("v1", "short")
)
CASES = LONG + SHORT
"""Frames with long headers and sections, which are only read; and what writers write."""


def need(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} not installed")


BACKENDS = ["reference", pytest.param("cpu", marks=need("numba"))]


def load(case: str, name: str) -> Any:
    """A fixture, stored compressed if it is large."""
    path = VECTORS / case / f"{name}.npy"
    if path.exists():
        return np.load(path, allow_pickle=False)
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        return arrays["arr_0"]


def frame_of(case: str) -> bytes:
    return (VECTORS / case / "frame.bin").read_bytes()


def test_no_vector_was_lost() -> None:
    """A golden frame that goes missing is a failure, not one test fewer."""
    assert (len(LONG), len(SHORT)) == (49, 66)
    for case in CASES:
        names = {path.name.replace(".npz", ".npy") for path in (VECTORS / case).iterdir()}
        assert names == {"decoded.npy", "frame.bin", "config.json"} | ({"input.npy"} if case in SHORT else set())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_golden_frame_decodes_to_the_same_bits(case: str, backend: str) -> None:
    """The frame decodes to exactly the values it decoded to when it was committed."""
    expected = load(case, "decoded")
    settings = json.loads((VECTORS / case / "config.json").read_text())
    y = decode(frame_of(case), backend=backend)
    assert str(y.dtype) == f"torch.{settings['dtype']}"
    assert y.float().numpy().tobytes() == expected.tobytes()
    assert tuple(y.shape) == expected.shape


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", SHORT)
def test_encoder_writes_the_same_frame(case: str, backend: str) -> None:
    """The same tensor and settings give the same bytes."""
    settings = json.loads((VECTORS / case / "config.json").read_text())
    x = torch.from_numpy(load(case, "input")).to(getattr(torch, settings["dtype"]))
    assert Codec(CodecConfig.from_dict(settings["codec"]), backend=backend).encode(x) == frame_of(case)


def test_vectors_use_every_position_coding() -> None:
    """All four position codings are among the golden frames (the modes byte follows K and the number of groups)."""
    codings = set()
    for case in CASES:
        info = inspect(frame_of(case))
        if info.config["profile"] == "slicer" and info.config["num_groups"]:
            codings.add(frame_of(case)[info.part_bytes["header"] - 1] & 3)
    assert codings == {0, 1, 2, 3}


@dataclass(frozen=True)
class Mode:
    """The mode byte of a ``serverlight`` frame, and the fields after it that depend on it."""

    kind: int
    one_sided: bool
    lanes: int
    flag: bool
    half: bool

    @classmethod
    def of(cls, frame: bytes) -> Mode:
        is_short = frame[0] >> 4 == 10
        rank, at = (frame[0] & 15, 2) if is_short else (frame[5], 6)
        for _ in range(rank):
            while frame[at] & 128:
                at += 1
            at += 1
        mode = frame[at]
        return cls(mode & 7, bool(mode & 8), 1 << (mode >> 4 & 3), bool(mode & 64), bool(mode & 128))


@pytest.mark.parametrize("cases", [LONG, SHORT], ids=["long", "short"])
def test_vectors_use_every_feature_of_serverlight(cases: list[str]) -> None:
    """Every kind of context with and without raw bits, whole and half escapes, signs, every number of lanes, segments; and short
    sections of every kind, with shifts and without."""
    frames = [frame_of(case) for case in cases if inspect(frame_of(case)).config["profile"] == "serverlight"]
    modes = {Mode.of(frame) for frame in frames}
    plain = {0, 1, 2, 3}
    assert {mode.kind for mode in modes} == (plain | {7} if cases is LONG else plain | {4, 5, 6, 7})
    assert {mode.lanes for mode in modes} == {1, 2, 4, 8}
    plain_of = {(mode.kind - 4 if mode.kind > 3 else mode.kind, mode.one_sided) for mode in modes}
    assert plain_of >= {(0, False), (0, True), (1, False), (1, True)}
    raw_and_half = {(mode.kind, mode.flag) for mode in modes if mode.half}
    if cases is LONG:
        assert raw_and_half == set(itertools.product(range(4), (False, True)))
        assert {mode.kind for mode in modes if mode.flag and not mode.half} >= {1, 2}
    else:
        assert {mode.kind for mode in modes if mode.kind < 4 and mode.flag} == plain
        assert {kind for kind, _ in raw_and_half} == {0, 1, 2, 3, 4, 5, 6}
        with_and_without = set(itertools.product((4, 5, 6), (False, True)))
        assert {(mode.kind, mode.flag) for mode in modes if 4 <= mode.kind < 7} == with_and_without
        assert {mode.one_sided for mode in modes if mode.kind == 6} == {False, True}
    parts = [inspect(frame).part_bytes for frame in frames]
    assert sum(part.get("escapes", 0) > 0 for part in parts) > 2
    assert any(part.get("segments", 0) > 4 for part in parts)
