"""Many frames in one call, and decoding into memory that is there already."""

from __future__ import annotations

import importlib.util
import itertools
from typing import Any

import numpy as np
import pytest
import torch

from serverlight.codec import Codec, CodecConfig, decode, decode_batch, decode_into
from serverlight.errors import (
    BadMagic,
    ChecksumMismatch,
    ConfigError,
    FrameError,
    FrameTooLarge,
    FrameTooShort,
    InconsistentFrame,
    UnsupportedTensor,
)

BACKENDS = ["reference"] + ["cpu"] * (importlib.util.find_spec("numba") is not None)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
PROFILES = ["serverlight", "slicer", "fp16"]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def frames_of(
    *shape: int, count: int = 3, dtype: torch.dtype = torch.float32, profile: str = "serverlight"
) -> list[bytes]:
    codec = Codec(CodecConfig(profile=profile, sparsity=0.5), backend="reference")
    return [codec.encode(normal(*shape, dtype=dtype, seed=seed)) for seed in range(count)]


# -- decode_into -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "profile"), list(itertools.product(DTYPES, PROFILES)), ids=str)
@pytest.mark.parametrize("shape", [(), (0, 3), (37,), (9, 16), (1, 3, 6, 8)], ids=str)
def test_into_torch(backend: str, shape: tuple[int, ...], dtype: torch.dtype, profile: str) -> None:
    """What lies in the tensor afterwards is what ``decode`` returns, whatever lay there before."""
    (frame,) = frames_of(*shape, count=1, dtype=dtype, profile=profile)
    out = torch.full(shape, torch.nan, dtype=dtype)
    decode_into(frame, out, backend=backend)
    assert torch.equal(out, decode(frame, backend=backend))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_into_numpy(backend: str, dtype: torch.dtype) -> None:
    """The same for NumPy, where bfloat16 comes as float32."""
    (frame,) = frames_of(9, 16, count=1, dtype=dtype)
    expected = decode(frame, "numpy", backend=backend)
    out = np.full(expected.shape, np.nan, expected.dtype)
    decode_into(frame, out, backend=backend)
    assert np.array_equal(out, expected)


def test_into_any_memory_layout(backend: str) -> None:
    """Views with gaps, other orders and gradients receive the values too, and nothing beside them changes."""
    (frame,) = frames_of(9, 16, count=1)
    expected = decode(frame, backend=backend)
    wide = torch.full((9, 32), 7.0)
    decode_into(frame, wide[:, ::2], backend=backend)
    assert torch.equal(wide[:, ::2], expected)
    assert (wide[:, 1::2] == 7).all()
    turned = torch.empty(16, 9).t()
    decode_into(frame, turned, backend=backend)
    assert torch.equal(turned, expected)
    parameter = torch.zeros(9, 16, requires_grad=True)
    decode_into(frame, parameter, backend=backend)
    assert torch.equal(parameter.detach(), expected)
    swapped = np.zeros((9, 16), ">f4")
    decode_into(frame, swapped, backend=backend)
    assert np.array_equal(swapped, expected.numpy())


def test_into_a_row_of_a_batch(backend: str) -> None:
    """Only the row is written."""
    (frame,) = frames_of(1, 64, count=1)
    batch = torch.full((3, 64), 7.0)
    decode_into(frame, batch[1:2], backend=backend)
    assert torch.equal(batch[1:2], decode(frame, backend=backend))
    assert (batch[[0, 2]] == 7).all()


@pytest.mark.parametrize(
    ("out", "why"),
    [
        (torch.empty(16, 9), "shape"),
        (torch.empty(9, 16, dtype=torch.float16), "float16"),
        (np.empty((9, 16)), "float64"),
        ([0.0], "list"),
    ],
)
def test_into_refuses_what_does_not_fit(out: Any, why: str) -> None:
    """Another shape, dtype or type is refused by name."""
    (frame,) = frames_of(9, 16, count=1)
    with pytest.raises(UnsupportedTensor, match=why):
        decode_into(frame, out)


def test_into_refuses_memory_that_is_read_only() -> None:
    """An array that may not be written to stays as it is."""
    (frame,) = frames_of(9, 16, count=1)
    out = np.zeros((9, 16), np.float32)
    out.setflags(write=False)
    with pytest.raises(UnsupportedTensor, match="read-only"):
        decode_into(frame, out)
    assert not out.any()


def test_into_proves_the_frame(backend: str) -> None:
    """The limit and the checksum hold here too."""
    (frame,) = frames_of(9, 16, count=1)
    with pytest.raises(FrameTooLarge):
        decode_into(frame, torch.empty(9, 16), max_elements=143, backend=backend)
    with pytest.raises(ChecksumMismatch):
        decode_into(frame[:-1] + bytes((frame[-1] ^ 1,)), torch.empty(9, 16), backend=backend)


# -- decode_batch ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "profile"), list(itertools.product(DTYPES, PROFILES)), ids=str)
@pytest.mark.parametrize("shape", [(1, 65), (2, 5, 7), (1, 3, 6, 8), (0, 4), (5,)], ids=str)
@pytest.mark.parametrize("like", ["torch", "numpy"])
def test_batch_is_the_tensors_joined(
    backend: str, shape: tuple[int, ...], dtype: torch.dtype, profile: str, like: Any
) -> None:
    """A batch is what the frames decode to one by one, joined along the first dimension."""
    frames = frames_of(*shape, dtype=dtype, profile=profile)
    batch = decode_batch(frames, like, backend=backend)
    singles = [decode(frame, like, backend=backend) for frame in frames]
    joined = np.concatenate(singles) if like == "numpy" else torch.cat(singles)
    assert batch.dtype == joined.dtype
    assert batch.shape == joined.shape
    assert bool((batch == joined).all())


def test_batch_mixes_profiles_and_checksums(backend: str) -> None:
    """Frames need only agree in shape and dtype."""
    frames = frames_of(1, 65, count=1) + frames_of(1, 65, count=1, profile="slicer")
    frames.append(Codec(CodecConfig(checksum=False)).encode(torch.zeros(1, 65)))
    frames.append(bytearray(frames[0]))  # type: ignore[arg-type]
    joined = torch.cat([decode(frame, backend=backend) for frame in frames])
    assert torch.equal(decode_batch(frames, backend=backend), joined)


def test_one_batch_is_the_same_on_every_backend() -> None:
    """Bit for bit."""
    frames = frames_of(1, 777, count=9)
    batches = [decode_batch(frames, "numpy", backend=name).tobytes() for name in BACKENDS]
    assert len(set(batches)) == 1


@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda frame: b"PK" + frame[2:], BadMagic),
        (lambda frame: frame[:3], FrameTooShort),
        (lambda frame: frame[:-1] + bytes((frame[-1] ^ 1,)), ChecksumMismatch),
    ],
)
def test_batch_names_the_broken_frame(backend: str, index: int, damage: Any, error: type[FrameError]) -> None:
    """An error keeps its class and says which frame it is about."""
    frames = frames_of(1, 65)
    frames[index] = damage(frames[index])
    with pytest.raises(error, match=f"frame {index}: "):
        decode_batch(frames, backend=backend)


def test_batch_names_the_frame_with_broken_streams(backend: str) -> None:
    """Faults that only the entropy decoder sees are named alike."""
    frames = [Codec(CodecConfig(sparsity=0.5, checksum=False)).encode(normal(1, 999, seed=seed)) for seed in range(3)]
    frames[1] = frames[1][:-2] + bytes(byte ^ 0x55 for byte in frames[1][-2:])
    with pytest.raises(InconsistentFrame, match="frame 1: "):
        decode_batch(frames, backend=backend)


@pytest.mark.parametrize("other", [normal(1, 64), normal(65), normal(1, 65).half(), normal(1, 1, 65)], ids=str)
def test_batch_refuses_frames_that_differ(backend: str, other: torch.Tensor) -> None:
    """Another shape or dtype is refused with the index of the frame."""
    frames = [*frames_of(1, 65, count=2), Codec().encode(other)]
    with pytest.raises(InconsistentFrame, match=r"frame 2: .*frame 0"):
        decode_batch(frames, backend=backend)


def test_batch_limits_all_frames_together(backend: str) -> None:
    """The limit is one for the tensor that the batch becomes."""
    frames = frames_of(1, 65)
    assert decode_batch(frames, max_elements=195, backend=backend).shape == (3, 65)
    with pytest.raises(FrameTooLarge, match="frame 0"):
        decode_batch(frames, max_elements=194, backend=backend)


def test_batch_needs_frames_with_a_first_dimension() -> None:
    """No frames at all, and tensors of rank 0, are refused with a remedy."""
    with pytest.raises(ConfigError, match="at least one"):
        decode_batch([])
    with pytest.raises(InconsistentFrame, match="rank 0"):
        decode_batch([Codec().encode(torch.tensor(1.0))])
