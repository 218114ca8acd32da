"""The format page is enough to write a reader from: one that shares no code with the package agrees bit for bit."""

from __future__ import annotations

import importlib.util
import pathlib
import struct
import sys
from types import ModuleType

import numpy as np
import pytest
import torch

from serverlight.codec import Codec, CodecConfig, decode

TESTS = pathlib.Path(__file__).parents[1]
FRAMES = sorted((TESTS / "vectors" / "v1").glob("*/frame.bin"))


@pytest.fixture(scope="module")
def reader() -> ModuleType:
    spec = importlib.util.spec_from_file_location("independent_reader", TESTS / "independent_reader.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["independent_reader"] = module
    spec.loader.exec_module(module)
    return module


def test_it_shares_no_code() -> None:
    """The second reader imports the standard library only."""
    source = (TESTS / "independent_reader.py").read_text()
    imports = [line.split()[1].split(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))]
    assert set(imports) <= sys.stdlib_module_names


@pytest.mark.parametrize("path", FRAMES, ids=lambda path: path.parent.name)
def test_golden_frames(reader: ModuleType, path: pathlib.Path) -> None:
    """Both readers give the same bits for every golden frame."""
    expected = np.load(path.parent / "decoded.npy", allow_pickle=False)
    decoded = reader.read_frame(path.read_bytes())
    assert tuple(decoded.shape) == expected.shape
    assert struct.pack(f"<{len(decoded.values)}f", *decoded.values) == expected.tobytes()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("positions", ["auto", "bitmap", "csr", "rice"])
def test_fresh_frames(reader: ModuleType, dtype: torch.dtype, positions: str) -> None:
    """Both readers agree on frames of random tensors, whatever the dtype and position coding."""
    for seed, sparsity in enumerate((0.0, 0.3, 0.9)):
        x = torch.randn(6, 33, generator=torch.Generator().manual_seed(seed)).to(dtype)
        frame = Codec(CodecConfig(sparsity=sparsity, num_groups=5, positions=positions)).encode(x)
        decoded = reader.read_frame(frame)
        assert torch.equal(torch.tensor(decoded.values).reshape(x.shape), decode(frame).float())
