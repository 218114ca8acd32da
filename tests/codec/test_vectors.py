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

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "v1"
CASES = sorted(folder.name for folder in VECTORS.iterdir())


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
    assert len(CASES) == 49
    for case in CASES:
        names = {path.name.replace(".npz", ".npy") for path in (VECTORS / case).iterdir()}
        assert names == {"input.npy", "decoded.npy", "frame.bin", "config.json"}


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
@pytest.mark.parametrize("case", CASES)
def test_encoder_writes_the_same_frame(case: str, backend: str) -> None:
    """The same tensor and settings give the same bytes, unless the frame is from before a rule for writers changed."""
    settings = json.loads((VECTORS / case / "config.json").read_text())
    if settings.get("read_only"):
        pytest.skip("writers make another frame of this tensor now; it is here to be read")
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
    raw: bool
    half: bool

    @classmethod
    def of(cls, frame: bytes) -> Mode:
        rank = frame[5]
        at = 6
        for _ in range(rank):
            while frame[at] & 128:
                at += 1
            at += 1
        mode = frame[at]
        return cls(mode & 7, bool(mode & 8), 1 << (mode >> 4 & 3), bool(mode & 64), bool(mode & 128))


def test_vectors_use_every_feature_of_serverlight() -> None:
    """Every kind of context with and without raw bits, whole and half escapes, signs, every number of lanes, segments."""
    frames = [frame_of(case) for case in CASES if frame_of(case)[3] == 2]
    modes = {Mode.of(frame) for frame in frames}
    assert {mode.kind for mode in modes} == {0, 1, 2, 3, 7}
    assert {mode.lanes for mode in modes} == {1, 2, 4, 8}
    assert {(mode.kind, mode.one_sided) for mode in modes} >= {(0, False), (0, True), (1, False), (1, True)}
    assert {(mode.kind, mode.raw) for mode in modes if mode.half} == set(itertools.product(range(4), (False, True)))
    assert {mode.kind for mode in modes if mode.raw and not mode.half} >= {1, 2}
    parts = [inspect(frame).part_bytes for frame in frames]
    assert sum(part.get("escapes", 0) > 0 for part in parts) > 2
    assert any(part.get("segments", 0) > 4 for part in parts)
