"""One suite over every backend: each writes the bytes that the reference writes, and reads the bits that the reference reads."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from serverlight.codec import Codec, CodecConfig, coded, decode, inspect, layout, tables
from serverlight.codec.backends.gpu import model as gpu_model


def need(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(package) is None, reason=f"{package} not installed")


COMPILED = [pytest.param("cpu", marks=need("numba"))]
"""Backends that must do what the reference does."""

BACKENDS = ["reference", *COMPILED]


@pytest.fixture(params=BACKENDS)
def encoder(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=BACKENDS)
def decoder(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=COMPILED)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def ours(**knobs: Any) -> CodecConfig:
    return CodecConfig(profile="serverlight", **knobs)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def bits_of(y: torch.Tensor) -> bytes:
    """Every bit counts, the sign of a zero included."""
    return y.float().numpy().tobytes()


def agree(x: Any, config: CodecConfig, backend: str) -> torch.Tensor:
    """Both backends write the same frame and read the same finite values from it; returns these."""
    frame = Codec(config, backend="reference").encode(x)
    assert Codec(config, backend=backend).encode(x) == frame
    expected, y = decode(frame, backend="reference"), decode(frame, backend=backend)
    assert bits_of(y) == bits_of(expected)
    assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
    assert torch.isfinite(y).all()
    return y


def mode_byte(frame: bytes) -> int:
    """The byte after the dimensions (section 6.1)."""
    at = 2
    for _ in range(frame[0] & 15):
        while frame[at] & 128:
            at += 1
        at += 1
    return frame[at]


# -- every layout, every dtype ------------------------------------------------------------------------------

FLAT = [(), (1,), (2,), (3,), (1, 64), (255,), (1, 1, 515)]
TOKENS = [(2, 1), (3, 1), (2, 2), (7, 5), (4, 2, 3), (33, 17), (8, 1, 96)]
PLANES = [(1, 1, 2, 2), (1, 3, 5, 7), (2, 2, 4, 6), (1, 9, 3, 3), (1, 8, 2, 2), (3, 1, 2, 9), (1, 2, 1, 2, 13, 4)]
KNOBS = [
    {},
    {"sparsity": 0.0},
    {"sparsity": 0.4, "asymmetry": 0.3},
    {"sparsity": 0.97, "asymmetry": 3.0},
    {"sparsity": 0.6, "asymmetry_mode": "budget"},
    {"sparsity": 0.2, "asymmetry": 0.1, "asymmetry_mode": "budget"},
    {"sparsity": 0.5, "distortion": 0.01},
    {"sparsity": 0.1, "distortion": 1e-4, "checksum": False},
    {"sparsity": 0.3, "distortion": 5.0},
]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("shape", FLAT + TOKENS + PLANES, ids=str)
@pytest.mark.parametrize("signs", ["signed", "one-sided", "negative"])
def test_layouts_dtypes_and_knobs(backend: str, shape: tuple[int, ...], signs: str) -> None:
    """Odd and even sides, all signs, every dtype, and knobs from mild to wild."""
    for seed, (knobs, dtype) in enumerate(itertools.product(KNOBS, DTYPES)):
        x = normal(*shape, seed=seed)
        x = {"signed": x, "one-sided": x.relu(), "negative": -x.abs()}[signs]
        agree(x.to(dtype), ours(**knobs), backend)


@pytest.mark.parametrize("profile", ["serverlight", "slicer", "fp16"])
@pytest.mark.parametrize("shape", [(40,), (6, 33), (1, 4, 6, 6)], ids=str)
def test_any_backend_reads_what_any_other_wrote(
    encoder: str, decoder: str, profile: str, shape: tuple[int, ...]
) -> None:
    """Frames are the same whoever writes them, and tensors whoever reads them, in every profile."""
    config, x = CodecConfig(profile=profile, sparsity=0.5), normal(*shape)
    frame = Codec(config, backend=encoder).encode(x)
    assert frame == Codec(config, backend="reference").encode(x)
    assert bits_of(decode(frame, backend=decoder)) == bits_of(decode(frame, backend="reference"))


# -- more than one segment, and sizes at which something changes -----------------------------------------------


@pytest.mark.parametrize("shape", [(1, 140_001), (45, 3113), (2, 35, 2001), (1, 17, 91, 91), (1, 32, 64, 69)], ids=str)
@pytest.mark.parametrize("one_sided", [False, True], ids=["signed", "one-sided"])
def test_several_segments(backend: str, shape: tuple[int, ...], one_sided: bool) -> None:
    """Tensors that are cut into segments, with odd ends: the reference reads what the compiled loops wrote."""
    x = normal(*shape)
    x = x.relu() if one_sided else x
    frame = Codec(ours(sparsity=0.9), backend=backend).encode(x)
    assert inspect(frame).part_bytes["segments"] > 4
    assert bits_of(decode(frame, backend=backend)) == bits_of(decode(frame, backend="reference"))


def test_several_segments_are_written_alike(backend: str) -> None:
    """The reference writes the same two segments."""
    agree(normal(1, 16, 91, 91).relu(), ours(sparsity=0.8), backend)


@pytest.mark.parametrize("shape", [(1, 80, 64, 64), (1, 26, 91, 91), (512, 512), (257, 1024)], ids=str)
def test_segments_in_turn_are_written_alike(backend: str, shape: tuple[int, ...]) -> None:
    """Four segments, whose pairs with escapes lie beside each other, and a fifth; and four that are not alike."""
    x = torch.from_numpy(np.random.default_rng(4).standard_t(4, shape).astype(np.float32))
    x = x.relu() if shape[1] == 80 else x
    agree(x, ours(sparsity=0.4), backend)
    assert inspect(Codec(ours(sparsity=0.4), backend=backend).encode(x)).part_bytes["escapes"] > 500


@pytest.mark.parametrize(
    "size", [8191, 8192, 8193, (1 << 15) - 1, 1 << 15, (1 << 15) + 1, (1 << 16) - 1, (1 << 16) + 1]
)
def test_sizes_around_powers_of_two(backend: str, size: int) -> None:
    """Where loops change their blocks nothing changes in the frame."""
    agree(normal(1, size), ours(sparsity=0.8), backend)


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
@pytest.mark.parametrize("units", [1, 7, 8, 9, 17])
def test_lanes(backend: str, lanes: int, units: int) -> None:
    """One to eight lanes over fewer, as many, and more channels or planes than lanes."""
    rows = {1: 16, 2: 1200, 4: 3000, 8: 9000}[lanes] // units + 3
    for x in (normal(rows, units), normal(1, units, rows // 3 + 2, 3), normal(1, units, rows // 3 + 2, 3).abs()):
        agree(x, ours(sparsity=0.1), backend)
        frame = Codec(ours(sparsity=0.1), backend=backend).encode(x)
        assert 1 << (mode_byte(frame) >> 4 & 3) == lanes


@need("numba")
@pytest.mark.parametrize("half_escapes", [False, True])
@pytest.mark.parametrize("shape", [(1, 64), (1, 65), (4, 8), (5, 8), (1, 3, 4, 4), (1, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize("short", [False, True])
def test_a_device_gets_the_same_model(
    shape: tuple[int, ...], one_sided: bool, half_escapes: bool, short: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the host fits for tensors on a device does not depend on whether it is compiled."""
    kind = coded.kind_of(layout.natural_layout(shape), one_sided)
    grid, _ = coded.segments_of(shape, kind)
    rng, histogram = np.random.default_rng(len(shape)), np.zeros((2 * tables.NUM_CONTEXTS[kind], 256), np.int64)
    histogram[: tables.NUM_CONTEXTS[kind]] = rng.geometric(0.02, 256) * (rng.random(256) < 0.6)
    if gpu_model.has_tail(grid):
        histogram[tables.NUM_CONTEXTS[kind] :, ::16] = rng.geometric(0.1, 16)
    compiled = gpu_model.fit(histogram, grid, kind, half_escapes, short)
    assert (gpu_model.frequencies_for(compiled.levels, grid, kind, half_escapes) == compiled.frequencies).all()
    monkeypatch.setattr(gpu_model, "HAS_NUMBA", False)
    plain = gpu_model.fit(histogram, grid, kind, half_escapes, short)
    assert (compiled.packed, compiled.payload_bits) == (plain.packed, plain.payload_bits)
    assert (compiled.levels == plain.levels).all()
    assert (compiled.frequencies == plain.frequencies).all()


# -- unkind values ---------------------------------------------------------------------------------------------


def spiky(x: torch.Tensor) -> torch.Tensor:
    """A few values are a million times the rest."""
    flat = x.clone().view(-1)
    flat[3::29] *= 1e6
    return flat.view(x.shape)


def outside(x: torch.Tensor) -> torch.Tensor:
    """Many zeros of both signs between the values."""
    return torch.where(x.abs() < 1, torch.zeros_like(x).copysign(x), x)


VALUES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "ties": lambda x: torch.round(x * 2) / 2,
    "zeros of both signs": outside,
    "all zero": lambda x: x * 0,
    "all negative zero": lambda x: torch.zeros_like(x) * -1,
    "constant": lambda x: torch.full_like(x, 0.7),
    "constant magnitude": lambda x: torch.sign(x) * 3.25,
    "one value": lambda x: torch.where(x == x.max(), x, torch.zeros_like(x)),
    "subnormal": lambda x: x * 1e-42,
    "least subnormal": lambda x: torch.sign(x) * 1e-45,
    "near the least normal": lambda x: x * 2e-38,
    "spikes": spiky,
    "heavy tails": lambda x: torch.sinh(x * 8),
    "near the largest": lambda x: x.clamp(-1, 1) * 3.4e38,
    "wide": lambda x: x.clamp(-3, 3) * 10.0 ** (12 * x.clamp(-3, 3)),
}


@pytest.mark.parametrize("shape", [(301,), (13, 24), (1, 5, 7, 9)], ids=str)
@pytest.mark.parametrize("values", list(VALUES))
def test_unkind_values(backend: str, values: str, shape: tuple[int, ...]) -> None:
    """Ties, zeros, subnormals, spikes and the largest numbers: the same frame, and finite values."""
    for knobs in (
        {},
        {"sparsity": 0.0},
        {"sparsity": 0.4, "distortion": 1e-4},
        {"asymmetry": 0.7},
        {"asymmetry_mode": "budget"},
    ):
        x = VALUES[values](normal(*shape))
        agree(x, ours(**knobs), backend)
        agree(VALUES[values](normal(*shape).abs()), ours(**knobs), backend)


def test_few_values_tie(backend: str) -> None:
    """Hundreds of elements at the threshold, of which some are kept, with and without a nibble for them."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        values, size = rng.choice([0, 1, 2, 3, 5, 40], rng.integers(1, 4)), int(rng.integers(1, 400))
        x = torch.from_numpy(rng.choice(values, size) * rng.choice([-1, 1], size)).float()
        knobs = {"sparsity": rng.choice([0.1, 0.5, 0.9]), "distortion": rng.choice([0.5, 0.1, 0.02, 0.005])}
        agree(x, ours(**{name: float(value) for name, value in knobs.items()}), backend)


@pytest.mark.parametrize("shape", [(300,), (12, 25), (1, 20, 12, 20)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_the_largest_numbers_stay_finite(backend: str, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Values at the end of the dtype's range do not become infinite, however coarse the step."""
    largest = torch.finfo(dtype).max
    for knobs in ({}, {"sparsity": 0.0}, {"distortion": 2.0}, {"distortion": 1e-3}):
        x = normal(*shape).sign() * torch.rand(shape, generator=torch.Generator().manual_seed(1)).add(7).clamp(max=7.5)
        x = (x / 7.5 * largest).to(dtype)
        assert agree(x, ours(**knobs), backend).abs().max() >= 0.9 * x.abs().max()


@pytest.mark.parametrize(
    "layout", ["channels last", "transposed", "strided", "reversed", "read-only", "gradient", "big-endian"]
)
def test_layout_in_memory_does_not_matter(encoder: str, layout: str) -> None:
    """However a tensor lies in memory, its frame is that of its contiguous copy."""
    x = normal(2, 6, 8, 10)
    frame = Codec(ours(sparsity=0.5), backend=encoder).encode(x)
    array = x.numpy().copy()
    array.setflags(write=False)
    same: dict[str, Any] = {
        "channels last": x.to(memory_format=torch.channels_last),
        "transposed": x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
        "strided": torch.stack([x, -x], -1)[..., 0],
        "reversed": np.ascontiguousarray(array[:, ::-1])[:, ::-1],
        "read-only": array,
        "gradient": x.clone().requires_grad_(),
        "big-endian": array.astype(">f4"),
    }
    assert Codec(ours(sparsity=0.5), backend=encoder).encode(same[layout]) == frame


# -- whatever comes ---------------------------------------------------------------------------------------------

configs = st.builds(
    ours,
    sparsity=st.floats(0, 0.99),
    asymmetry=st.floats(0.01, 100),
    asymmetry_mode=st.sampled_from(["score", "budget"]),
    distortion=st.none() | st.floats(1e-4, 10),
    checksum=st.booleans(),
)
elements = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 2.0]) | st.floats(-60000, 60000, width=16)
arrays = hnp.arrays(
    st.sampled_from([np.float32, np.float16]),
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=0, max_side=9),
    elements=elements,
) | hnp.arrays(
    np.float32,
    hnp.array_shapes(min_dims=0, max_dims=5, min_side=1, max_side=7),
    elements={"allow_nan": False, "allow_infinity": False},
)


@pytest.mark.parametrize("name", COMPILED)
@pytest.mark.parametrize("asymmetry", [0.01, 3.0, 100.0])
def test_scores_that_overflow(name: str, asymmetry: float) -> None:
    """Weighed scores of large finite values are infinite, and are ranked all the same."""
    values = torch.full((7, 3, 6, 2), -2.4e16)
    values.view(-1)[::50] = torch.tensor([-3.4e38, 3.4e38, 0.0, 16.0, 4.2e16, -3.3e38])
    agree(values, ours(sparsity=0.75, asymmetry=asymmetry), name)


@pytest.mark.parametrize("name", COMPILED)
@settings(max_examples=300, deadline=None)
@given(x=arrays, config=configs, as_bfloat16=st.booleans())
def test_any_array(name: str, x: Any, config: CodecConfig, as_bfloat16: bool) -> None:
    """For any finite array and any knobs the backends agree."""
    tensor = torch.from_numpy(x)
    if as_bfloat16 and torch.isfinite(tensor.bfloat16()).all():
        tensor = tensor.bfloat16()
    agree(tensor, config, name)


@pytest.mark.parametrize("name", COMPILED)
@settings(max_examples=60, deadline=None)
@given(data=st.data(), config=configs)
def test_any_distribution(name: str, data: st.DataObject, config: CodecConfig) -> None:
    """The same for larger tensors of random scale, tails and density."""
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=14), label="shape")
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1), label="seed"))
    x = rng.standard_normal(shape) ** data.draw(st.sampled_from([1, 3, 9]), label="power")
    x *= 10.0 ** data.draw(st.integers(-30, 10), label="scale")
    x = x * (rng.random(shape) < data.draw(st.floats(0.05, 1), label="density"))
    x = np.abs(x) if data.draw(st.booleans(), label="one-sided") else x
    agree(x.astype(np.float32), config, name)
