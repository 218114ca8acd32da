"""Golden frames: what was written once decodes for ever, and equal tensors give equal frames."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import torch

from serverlight.codec import Codec, CodecConfig, decode, inspect

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "v1"
CASES = sorted(folder.name for folder in VECTORS.iterdir())


def test_no_vector_was_lost() -> None:
    """A golden frame that goes missing is a failure, not one test fewer."""
    assert len(CASES) == 20
    for case in CASES:
        names = {path.name for path in (VECTORS / case).iterdir()}
        assert names == {"input.npy", "decoded.npy", "frame.bin", "config.json"}


@pytest.mark.parametrize("case", CASES)
def test_golden_frame_decodes_to_the_same_bits(case: str) -> None:
    """The frame decodes to exactly the values it decoded to when it was committed."""
    expected = np.load(VECTORS / case / "decoded.npy", allow_pickle=False)
    settings = json.loads((VECTORS / case / "config.json").read_text())
    y = decode((VECTORS / case / "frame.bin").read_bytes())
    assert str(y.dtype) == f"torch.{settings['dtype']}"
    assert y.float().numpy().tobytes() == expected.tobytes()
    assert tuple(y.shape) == expected.shape


@pytest.mark.parametrize("case", CASES)
def test_encoder_writes_the_same_frame(case: str) -> None:
    """The same tensor and settings give the same bytes as ever."""
    settings = json.loads((VECTORS / case / "config.json").read_text())
    x = torch.from_numpy(np.load(VECTORS / case / "input.npy", allow_pickle=False)).to(
        getattr(torch, settings["dtype"])
    )
    frame = Codec(CodecConfig.from_dict(settings["codec"])).encode(x)
    assert frame == (VECTORS / case / "frame.bin").read_bytes()


def test_vectors_use_every_position_coding() -> None:
    """All four position codings are among the golden frames (the modes byte follows K and the number of groups)."""
    codings = set()
    for case in CASES:
        frame = (VECTORS / case / "frame.bin").read_bytes()
        info = inspect(frame)
        if info.config["profile"] == "slicer" and info.config["num_groups"]:
            codings.add(frame[info.part_bytes["header"] - 1] & 3)
    assert codings == {0, 1, 2, 3}
