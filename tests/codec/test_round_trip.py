"""What goes in comes out: shapes, dtypes, exactness of what the format promises exactly."""

from __future__ import annotations

import importlib.util
import itertools
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serverlight.codec import Codec, CodecConfig, backends, decode, inspect, tensors
from serverlight.errors import ConfigError, NonFiniteTensor, UnsupportedTensor


def need(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} not installed")


DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SHAPES = [(), (1,), (0,), (0, 3), (5, 0), (7,), (3, 5), (2, 3, 4, 5), (1, 1, 1, 1, 1, 1, 1, 2), (4, 4096)]


@pytest.mark.parametrize(("shape", "dtype"), list(itertools.product(SHAPES, DTYPES)), ids=str)
@pytest.mark.parametrize("profile", ["serverlight", "slicer", "fp16"])
def test_shape_and_dtype_survive(shape: tuple[int, ...], dtype: torch.dtype, profile: str) -> None:
    """Every dtype and shape comes back as it went in, empty and rank 0 included."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    y = decode(Codec(CodecConfig(profile=profile, num_groups=3)).encode(x))
    assert (y.shape, y.dtype) == (x.shape, x.dtype)


configs = st.builds(
    CodecConfig,
    profile=st.just("slicer"),
    sparsity=st.floats(0, 0.99),
    asymmetry=st.floats(0.01, 100),
    num_groups=st.integers(1, 256),
    distortion=st.floats(1e-4, 2),
    positions=st.sampled_from(["auto", "bitmap", "csr", "rice"]),
    checksum=st.booleans(),
)
arrays = hnp.arrays(
    st.sampled_from([np.float32, np.float16]),
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=9),
    elements={"allow_nan": False, "allow_infinity": False},
)


@settings(max_examples=300, deadline=None)
@given(x=arrays, config=configs)
def test_any_finite_array_round_trips(x: Any, config: CodecConfig) -> None:
    """For any finite array: exactly the kept elements are non-zero, signs hold, and no value leaves its group's range."""
    frame = Codec(config).encode(x)
    y = decode(frame, like="numpy")
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    num_kept = min(config.num_kept(x.size), int(np.count_nonzero(x)))
    assert np.count_nonzero(y) == num_kept
    kept = y != 0
    assert (np.sign(y[kept]) == np.sign(x[kept])).all()
    if num_kept:
        assert np.abs(y[kept]).max() <= np.abs(x[kept]).max()
        assert np.abs(y[kept]).min() >= np.abs(x[kept]).min()
    info = inspect(frame)
    assert sum(info.part_bytes.values()) == info.num_bytes == len(frame)


@settings(max_examples=100, deadline=None)
@given(x=arrays)
def test_fp16_profile_is_a_half_cast(x: Any) -> None:
    """The rival profile is a plain cast to half floats, for every value that fits."""
    x = np.clip(x, -65504, 65504)
    y = decode(Codec(CodecConfig(profile="fp16")).encode(x), like="numpy")
    assert (y == x.astype(np.float16).astype(x.dtype)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_single_values_and_outliers_are_exact(dtype: torch.dtype) -> None:
    """A group of one element is sent exactly, so that a massive activation survives."""
    x = torch.tensor([0.0, -2000.25, 0.0, 3.140625, 1e-7]).to(dtype)
    y = decode(Codec(CodecConfig(profile="slicer", sparsity=0.0, num_groups=3)).encode(x))
    assert torch.equal(x, y)


below = st.integers(0, 0x477FBFFF)
halfway = below.map(lambda bits: bits & ~0x1FFF | 0x1000) | below.map(lambda bits: bits & ~0xFFFF | 0x8000)


@pytest.mark.parametrize("is_fast", [False, pytest.param(True, marks=need("numba"))])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@settings(max_examples=100, deadline=None)
@given(
    bits=hnp.arrays(np.uint32, st.integers(0, 70), elements=st.integers(0, 0x477FE000) | halfway),
    negative=st.booleans(),
)
def test_halves_of_any_value(bits: Any, negative: bool, dtype: str, is_fast: bool) -> None:
    """Torch's, compiled, and NumPy's rounding and exact arithmetic agree on every float32 of the range, subnormal ones included."""
    values = bits.view(np.float32) * np.float32(-1 if negative else 1)
    with (
        mock.patch.object(tensors, "_torch_rounds_alike", return_value=is_fast),
        mock.patch.object(backends, "is_installed", return_value=is_fast),
        mock.patch.object(tensors, "_narrowed", tensors._narrowed.__wrapped__),
    ):
        rounded = tensors.from_float32(values, values.shape, dtype, "torch")
    halves = rounded.view(torch.int16).numpy().view(np.uint16)
    assert (halves == tensors.halves_of(values, dtype)).all()
    assert not (halves == 0x8000).any()
    exact = rounded.double().numpy()
    for step in (-1, 1):  # no neighbour is nearer, and of two as near this one is even
        around = ((halves + np.where(halves & 0x7FFF, step, max(step, 0))).astype(np.uint16)).view(np.int16)
        other = torch.from_numpy(around).view(rounded.dtype).double().numpy()
        here, there = np.abs(values - exact), np.abs(values - other)
        assert (~np.isfinite(other) | (here < there) | ((here == there) & ((halves & 1 == 0) | (other == exact)))).all()


def test_negative_zero_decodes_as_zero() -> None:
    """Negative zero is a zero."""
    for profile in ("serverlight", "slicer", "fp16"):
        y = decode(Codec(CodecConfig(profile=profile, sparsity=0)).encode(np.array([-0.0, 1.0], np.float32)), "numpy")
        assert not np.signbit(y).any()


@pytest.mark.parametrize("backend", ["reference", pytest.param("cpu", marks=need("numba"))])
def test_what_rounds_to_negative_zero_decodes_as_zero(backend: str) -> None:
    """Reconstructions too small for the dtype have no sign either."""
    x = torch.randn(1, 4, 20, 20, generator=torch.Generator().manual_seed(0)) * 6e-8
    y = decode(Codec(CodecConfig(profile="serverlight")).encode(x.half()), backend=backend)
    assert (y < 0).any()
    assert not torch.signbit(y[y == 0]).any()


def test_subnormals_survive() -> None:
    """Subnormal numbers are not flushed."""
    x = np.array([1e-45, -3e-42, 0, 1e-40], np.float32)
    assert (decode(Codec(CodecConfig(profile="slicer", sparsity=0, num_groups=3)).encode(x), "numpy") == x).all()


def test_layout_in_memory_does_not_matter() -> None:
    """Channels-last, transposed and gradient-carrying tensors give the frame of their contiguous copy."""
    codec = Codec(CodecConfig(profile="slicer", num_groups=2))
    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    frame = codec.encode(x)
    assert codec.encode(x.to(memory_format=torch.channels_last)) == frame
    assert codec.encode(x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0)) == frame
    assert codec.encode(x.clone().requires_grad_()) == frame
    assert codec.encode(x.numpy()) == frame


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rejects_non_finite_values(bad: float) -> None:
    """NaN and infinity are refused with their number and place."""
    x = np.ones(10, np.float32)
    x[4] = x[7] = bad
    with pytest.raises(NonFiniteTensor, match=r"2 NaN or infinite values .*index 4") as caught:
        Codec().encode(x)
    assert (caught.value.num_nonfinite, caught.value.first_index) == (2, 4)


@pytest.mark.parametrize("x", [np.ones(3), np.ones(3, np.int64), torch.ones(3, dtype=torch.int32), [1.0, 2.0], "text"])
def test_rejects_other_dtypes_and_types(x: Any) -> None:
    """What the format does not carry is refused by name."""
    with pytest.raises(UnsupportedTensor):
        Codec().encode(x)


def test_rejects_rank_9_and_large_halves() -> None:
    """Rank above 8, and values beyond float16 in the fp16 profile, are refused."""
    with pytest.raises(UnsupportedTensor, match="rank 9"):
        Codec().encode(np.ones((1,) * 9, np.float32))
    with pytest.raises(UnsupportedTensor, match="65504"):
        Codec(CodecConfig(profile="fp16")).encode(np.array([70000.0], np.float32))


@pytest.mark.parametrize("profile", ["serverlight", "slicer"])
def test_header_is_at_most_24_bytes(profile: str) -> None:
    """The header of a rank-2 tensor takes at most 24 bytes, however long its sides."""
    for shape in [(1, 1), (512, 4096), (1, 300_000), (2_100_000, 1)]:
        frame = Codec(CodecConfig(profile="slicer", sparsity=0.5)).encode(np.ones(shape, np.float32))
        assert inspect(frame).part_bytes["header"] <= 24


def test_unknown_backend_is_named() -> None:
    """A backend that does not exist is refused with the choices."""
    with pytest.raises(ConfigError, match="reference"):
        Codec(backend="quantum")
