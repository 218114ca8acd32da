"""The format page is enough to write a reader from: one that shares no code with the package agrees bit for bit."""

from __future__ import annotations

import pathlib
import struct
import sys
from typing import Any

import numpy as np
import pytest
import torch

from independent_reader import read_frame
from serverlight.codec import Codec, CodecConfig, decode

TESTS = pathlib.Path(__file__).parents[1]
READER = TESTS / "independent_reader"
FRAMES = sorted((TESTS / "vectors").glob("*/*/frame.bin"))
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def agree(frame: bytes, expected: Any) -> None:
    """Both readers give this float32 array, bit for bit."""
    decoded = read_frame(frame)
    assert tuple(decoded.shape) == expected.shape
    assert struct.pack(f"<{len(decoded.values)}f", *decoded.values) == expected.tobytes()


def test_it_shares_no_code() -> None:
    """The second reader imports the standard library and itself only."""
    lines = [line for path in READER.glob("*.py") for line in path.read_text().splitlines()]
    imports = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert imports <= sys.stdlib_module_names | {"independent_reader"}


@pytest.mark.parametrize("path", FRAMES, ids=lambda path: "-".join(path.parts[-3:-1]))
def test_golden_frames(path: pathlib.Path) -> None:
    """Both readers give the same bits for every golden frame."""
    if path.with_name("decoded.npy").exists():
        agree(path.read_bytes(), np.load(path.with_name("decoded.npy"), allow_pickle=False))
    else:
        with np.load(path.with_name("decoded.npz"), allow_pickle=False) as arrays:
            agree(path.read_bytes(), arrays["arr_0"])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("positions", ["auto", "bitmap", "csr", "rice"])
def test_fresh_frames_of_slicer(dtype: torch.dtype, positions: str) -> None:
    """Both readers agree on frames of random tensors, whatever the dtype and position coding."""
    for seed, sparsity in enumerate((0.0, 0.3, 0.9)):
        x = torch.randn(6, 33, generator=torch.Generator().manual_seed(seed)).to(dtype)
        config = CodecConfig(profile="slicer", sparsity=sparsity, num_groups=5, positions=positions)
        frame = Codec(config).encode(x)
        agree(frame, decode(frame).float().numpy())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(67,), (1, 128), (6, 33), (2, 7, 40), (2, 3, 7, 9), (1, 5, 8, 8)], ids=str)
@pytest.mark.parametrize("one_sided", [False, True], ids=["signed", "one-sided"])
def test_fresh_frames_of_serverlight(shape: tuple[int, ...], one_sided: bool, dtype: torch.dtype) -> None:
    """Both readers agree on every layout, with odd ends, escapes and raw bits."""
    for seed, (sparsity, distortion) in enumerate([(0.7, None), (0.0, None), (0.3, 0.03), (0.5, 1e-4), (0.95, 0.2)]):
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
        x = (x.relu() if one_sided else x).to(dtype)
        config = CodecConfig(profile="serverlight", sparsity=sparsity, distortion=distortion)
        frame = Codec(config, backend="reference").encode(x)
        agree(frame, decode(frame, backend="reference").float().numpy())
