"""The backend of Triton kernels on a graphics processor; skipped where there is none.

What every path of a kernel gives is shown by ``gpu_interpreted.py`` on small tensors. Here the same kernels are machine code, and
tensors are as large as they come.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from serverlight.codec import Codec, CodecConfig, decode, decode_batch, decode_into
from serverlight.codec.backends import for_device, load
from serverlight.errors import FrameError, NonFiniteTensor

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

SHAPES = {
    "one token": (1, 4096),
    "flat": (3 * (1 << 16) + 77,),
    "tokens": (130, 1031),
    "one segment": (37, 16),
    "planes": (2, 40, 29, 31),
    "small planes": (1, 3, 5, 7),
}
KNOBS: list[dict[str, Any]] = [
    {"sparsity": 0.5},
    {"sparsity": 0.9},
    {"sparsity": 0.1, "distortion": 0.02},  # half escapes
    {"sparsity": 0.05, "distortion": 1e-3},  # raw bits
    {"sparsity": 0.6, "asymmetry": 0.3},
    {"sparsity": 0.6, "asymmetry": 0.5, "asymmetry_mode": "budget"},
    {"sparsity": 0.6, "trellis": True},
]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture(autouse=True)
def nothing_on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """However few segments a tensor has, kernels run."""
    pytest.importorskip("triton")
    monkeypatch.setattr(load("gpu"), "few_elements", 0)


def feature(shape: tuple[int, ...], seed: int, *, rectified: bool = False) -> Any:
    """Channels of unlike scales, and a few elements far out."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator) * torch.rand(shape[-1], generator=generator).exp()
    x.view(-1)[3::997] *= 60
    return x.relu() if rectified else x


def bits_of(y: Any) -> bytes:
    return bytes(y.cpu().reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())


def check_reading(frame: bytes) -> None:
    expected, there = decode(frame, backend="cpu"), decode(frame, device="cuda")
    assert there.is_cuda
    assert (there.shape, there.dtype) == (expected.shape, expected.dtype)
    assert bits_of(there) == bits_of(expected)


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_bytes_and_bits(name: str, rectified: bool, knobs: dict[str, Any]) -> None:
    """The host's bytes are written there, and its bits are read there."""
    number = list(SHAPES).index(name) + KNOBS.index(knobs) + rectified
    x = feature(SHAPES[name], number, rectified=rectified).to(DTYPES[number % 3])
    frame = Codec(CodecConfig(**knobs), backend="cpu").encode(x)
    assert Codec(CodecConfig(**knobs)).encode(x.cuda()) == frame
    check_reading(frame)


def test_a_large_tensor() -> None:
    """Sixteen million elements, in 256 segments."""
    x = feature((4096, 4096), 1).bfloat16()
    frame = Codec(CodecConfig(sparsity=0.5), backend="cpu").encode(x)
    assert Codec(CodecConfig(sparsity=0.5)).encode(x.cuda()) == frame
    check_reading(frame)


@pytest.mark.parametrize("columns", [8, 16, 23, 30])
def test_few_groups_of_channels(columns: int) -> None:
    """Up to four groups of eight lanes."""
    x = feature((2600, columns), columns)
    frame = Codec(CodecConfig(sparsity=0.5), backend="cpu").encode(x)
    assert Codec(CodecConfig(sparsity=0.5)).encode(x.cuda()) == frame
    check_reading(frame)


def test_many_frames_of_unlike_settings() -> None:
    """Each into its place of one tensor."""
    tensors = [feature((1, 4096), seed) for seed in range(63)] + [torch.zeros(1, 4096)]
    frames = [Codec(CodecConfig(**KNOBS[i % 5])).encode(x) for i, x in enumerate(tensors)]
    together = decode_batch(frames, device="cuda")
    assert bits_of(together) == bits_of(decode_batch(frames, backend="cpu"))


def test_into_a_tensor_there() -> None:
    """A tensor on the device is written to, as one on the host is."""
    frame = Codec().encode(feature((64, 256), 2))
    out = torch.empty(64, 256, device="cuda")
    decode_into(frame, out)
    assert bits_of(out) == bits_of(decode(frame))


@pytest.mark.parametrize("seed", range(60))
def test_altered_frames_come_to_the_same_end(seed: int) -> None:
    """Whatever bytes are changed to: the host's error, or the host's bits."""
    rng = np.random.default_rng(seed)
    shape = list(SHAPES.values())[seed % len(SHAPES)]
    x = feature(shape, seed, rectified=bool(seed % 2))
    frame = bytearray(Codec(CodecConfig(checksum=False, **KNOBS[seed % 5])).encode(x))
    for place in rng.integers(2 + len(shape), len(frame), 1 + seed % 3):
        frame[int(place)] ^= int(rng.integers(1, 256))
    try:
        expected: Any = decode(bytes(frame), backend="cpu", max_elements=1 << 20)
    except FrameError as error:
        with pytest.raises(type(error)):
            decode(bytes(frame), device="cuda", max_elements=1 << 20)
        return
    assert bits_of(decode(bytes(frame), device="cuda", max_elements=1 << 20)) == bits_of(expected)


def test_what_is_refused() -> None:
    """NaN is named with its place."""
    x = torch.ones(100_000)
    x[70_003] = float("nan")
    with pytest.raises(NonFiniteTensor) as caught:
        Codec().encode(x.cuda())
    assert caught.value.first_index == 70_003


def test_small_tensors_go_by_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """And come out where they are wanted."""
    pytest.importorskip("numba")
    from serverlight.codec.backends.gpu import kernels as gpu

    monkeypatch.setattr(for_device("auto", "cuda"), "few_elements", gpu.FEW_ELEMENTS)
    monkeypatch.setattr(gpu, "read_frames", None)
    for dtype in DTYPES:
        for scale in (1.0, 1e-39):
            x = (scale * feature((1, 4096), 3)).to(dtype)
            frame = Codec().encode(x.cuda())
            assert frame == Codec().encode(x)
            check_reading(frame)
