"""The cosine transform of feature maps: what is exact, what is refused, what is written without, and that it saves bits."""

from __future__ import annotations

import math
import pathlib

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frame_readers import BACKENDS, agree, bits_of, check_altered, check_every_way_in, refuses
from serverlight.codec import Basis, Codec, CodecConfig, cosine, decode, inspect
from serverlight.errors import (
    ConfigError,
    FrameTooShort,
    InconsistentFrame,
    NonFiniteTensor,
    TrailingBytes,
    UnsupportedFeature,
)

Float32 = npt.NDArray[np.float32]

VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "cosine"
COSINE = 64
"""The flag."""


def maps(*shape: int, seed: int = 0) -> Float32:
    """Planes whose neighbours are alike, as in a linear bottleneck."""
    x = np.random.default_rng(seed).standard_normal(shape)
    smooth = sum(np.roll(x, (i, j), (-2, -1)) for i in range(3) for j in range(3))
    return (np.asarray(smooth) / 3).astype(np.float32)


def as_waves(frame: bytes, shape: tuple[int, ...]) -> bytes:
    """A frame of rank 2 without checksum, made one of planes: its values are taken for coefficients."""
    start = 2 + sum(1 + (size > 127) + (size > 16383) for size in inspect(frame).shape)
    dims = b"".join(bytes((size & 127 | 128, size >> 7)) if size > 127 else bytes((size,)) for size in shape)
    return bytes((0xA0 | len(shape), frame[1] | COSINE)) + dims + frame[start:]


# -- what it is for ----------------------------------------------------------------------------------------------------


def test_smooth_maps_take_fewer_bits() -> None:
    """At equal squared error."""
    x = maps(1, 48, 14, 14)

    def curve(transform: str) -> tuple[list[float], list[float]]:
        frames = [Codec(CodecConfig(sparsity=s, transform=transform)).encode(x) for s in (0.9, 0.8, 0.7, 0.5, 0.3)]
        errors = [float(np.square(decode(frame, "numpy") - x).mean()) for frame in frames]
        return errors[::-1], [math.log(len(frame)) for frame in frames][::-1]

    (plain_errors, plain), (errors, waves) = curve("none"), curve("cosine")
    for error in (0.05, 0.1, 0.2):
        assert np.interp(error, errors, waves) < np.interp(error, plain_errors, plain) + math.log(0.9)


@pytest.mark.parametrize("trellis", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 6, 7, 9), (2, 3, 8, 8), (1, 1, 4, 6), (1, 5, 2, 256), (2, 1, 3, 5, 4)])
def test_backends_write_and_read_alike(shape: tuple[int, ...], dtype: torch.dtype, trellis: bool) -> None:
    """Bytes and bits, and near the tensor."""
    x = torch.from_numpy(maps(*shape)).to(dtype)
    config = CodecConfig(sparsity=0.3, distortion=None if trellis else 0.2, transform="cosine", trellis=trellis)
    frames = {Codec(config, backend=backend).encode(x) for backend in BACKENDS}
    assert len(frames) == 1
    y = agree(frame := frames.pop())
    assert frame[1] & COSINE
    assert inspect(frame).config["transform"] == "cosine"
    assert (y.shape, y.dtype) == (x.shape, dtype)
    assert float((y.float() - x.float()).square().mean()) < 0.05 * float(x.float().square().mean())


def test_every_way_in() -> None:
    """Channels-last maps, batches, given memory, and a device."""
    check_every_way_in(CodecConfig(transform="cosine", sparsity=0.5), torch.from_numpy(maps(3, 8, 6, 10)))


# -- exactness ---------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    planes=st.integers(1, 9),
    height=st.integers(1, 9),
    width=st.integers(1, 12),
    seed=st.integers(0, 10**6),
    scale=st.integers(-35, 30),
    distortion=st.sampled_from([None, 0.05, 1e-4, 1e-6]),
    is_long=st.booleans(),
)
def test_any_coefficients_read_alike(
    planes: int, height: int, width: int, seed: int, scale: int, distortion: float | None, is_long: bool
) -> None:
    """Whatever tokens are taken for waves: giant, tiny, with raw bits, of one row of frequencies or one plane."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((planes, height * width)) ** 3 * 10.0**scale).astype(np.float32)
    bare = Codec(CodecConfig(sparsity=0.3, distortion=distortion, checksum=False)).encode(x)
    shape = (planes, height, width) if not is_long else (1, planes, 1, height, width)
    assert np.isfinite(np.asarray(agree(as_waves(bare, shape)))).all()


def test_giant_numbers_take_the_slower_way() -> None:
    """Where sums leave the integers that binary64 holds, 64-bit integers give the exact sum: that of Python's."""
    rng, (planes, height, width) = np.random.default_rng(0), (3, 8, 16)
    units = np.where(rng.random((planes, height, width)) < 0.5, rng.integers(1, 200, (planes, height, width)), 2.0**34)
    units = units.astype(np.float32)
    down, along = cosine.waves(height).tolist(), cosine.waves(width).tolist()
    expected = []
    for plane in units.tolist():
        rows = [
            [(sum(int(u) * along[i][x] for i, u in enumerate(row)) + 2048) >> 12 for x in range(width)] for row in plane
        ]
        totals = [[sum(rows[j][x] * down[j][y] for j in range(height)) for x in range(width)] for y in range(height)]
        assert max(abs(total) for row in totals for total in row) > 2**53
        expected += [float(total) * 2.0**-26 for row in totals for total in row]
    assert cosine.values_of(units.reshape(-1), 1.0, units.shape).tolist() == expected


def test_no_sum_can_overflow() -> None:
    """The longest sides, the largest numbers and the largest sums of waves stay below 2^63, in both passes."""
    largest_unit = int(np.float32(64 * 2**28 + 127))
    most = max(int(np.abs(cosine.waves(side)).sum(axis=0).max()) for side in range(1, cosine.MAX_SIDE + 1))
    first = largest_unit * most
    assert first + 2048 < 2**63
    assert ((first + 2048 >> 12) + 1) * most < 2**63


def test_waves_are_the_same_everywhere() -> None:
    """No entry is so near to a half that another cosine might round it to the other side; and rows are orthogonal, of length 1."""
    for side in range(1, cosine.MAX_SIDE + 1):
        frequency, place = np.mgrid[:side, :side]
        exact = (
            65536
            * np.sqrt(np.where(frequency > 0, 2, 1) / side)
            * np.cos(np.pi * (2 * place + 1) * frequency / (2 * side))
        )
        waves = cosine.waves(side)
        distances = np.abs(np.abs(exact - np.floor(exact)) - 0.5)
        assert distances.min() > 1e-7, side
        assert np.array_equal(waves, np.rint(exact))
        assert np.abs(waves @ waves.T * 2.0**-32 - np.eye(side)).max() < 5e-4


def test_values_stay_within_the_dtype() -> None:
    """What waves add up to is held within the range of halves and of floats."""
    for dtype, value in ((np.float16, 6e4), (np.float32, 3e38)):
        bare = Codec(CodecConfig(sparsity=0.0, checksum=False)).encode(np.full((2, 16), value, dtype))
        y = agree(as_waves(bare, (2, 4, 4)))
        assert float(y.max()) == np.finfo(dtype).max


def test_zeros_are_zeros() -> None:
    """A frame that says that all coefficients are zero; and one of no planes."""
    assert not agree(bytes((0xA3, 8 | COSINE, 2, 3, 4, 7))).any()
    assert agree(bytes((0xA3, 8 | COSINE, 0, 3, 4, 7))).shape == (0, 3, 4)


@pytest.mark.parametrize("case", ["maps", "map", "trellis", "raw-bits", "large"])
def test_golden_frames(case: str) -> None:
    """A frame of waves decodes for ever to what it decoded to once."""
    frame = (VECTORS / f"{case}.bin").read_bytes()
    y = agree(frame) if case != "large" else decode(frame)
    assert bits_of(y) == np.load(VECTORS / f"{case}.npy", allow_pickle=False).tobytes()


# -- what is written without -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x",
    [
        np.maximum(maps(1, 4, 6, 6), 0),
        maps(1, 5, 1, 1)[..., 0, 0],
        maps(1, 6, 12)[0],
        maps(1, 2, 2, 257),
        np.full((1, 2, 4, 4), -3e38, np.float32),
        np.zeros((1, 2, 4, 4), np.float32),
        np.zeros((0, 2, 4, 4), np.float32),
    ],
    ids=["rectified", "token", "tokens", "long side", "too large", "zeros", "empty"],
)
def test_what_is_written_without(x: Float32) -> None:
    """The bytes are those of the same settings without the transform."""
    assert Codec(CodecConfig(transform="cosine")).encode(x) == Codec().encode(x)


def test_bad_values_and_settings_are_refused() -> None:
    """By the name of the field."""
    x = maps(1, 2, 4, 4)
    x[0, 1, 2, 3] = np.nan
    with pytest.raises(NonFiniteTensor) as caught:
        Codec(CodecConfig(transform="cosine")).encode(x)
    assert caught.value.first_index == 27
    for wrong in (
        {"transform": "wavelet"}, {"transform": "cosine", "profile": "slicer"}, {"transform": "cosine", "asymmetry": 0.5},
        {"transform": "cosine", "asymmetry_mode": "budget"},
    ):  # fmt: skip
        with pytest.raises(ConfigError) as refused:
            CodecConfig(**wrong)
        assert refused.value.field == "transform"
    identity = Basis(vectors=np.eye(4, dtype=np.int16), exponent=0, mean=np.zeros(4, np.float32))
    with pytest.raises(ConfigError, match="transform"):
        Codec(CodecConfig(transform="cosine"), basis=identity)


# -- hostile frames ----------------------------------------------------------------------------------------------------


def test_hostile_frames() -> None:
    """Ranks, sides, kinds and flags that no such frame has; cut, prolonged and spoiled ones."""
    frame = Codec(CodecConfig(sparsity=0.6, transform="cosine", checksum=False)).encode(maps(1, 4, 5, 6))
    assert frame[:6] == bytes((0xA4, 8 | COSINE, 1, 4, 5, 6))
    sections = frame[6:]

    def with_shape(*shape: int) -> bytes:
        dims = b"".join(bytes((size & 127 | 128, size >> 7)) if size > 127 else bytes((size,)) for size in shape)
        return bytes((0xA0 | len(shape), frame[1])) + dims

    for shape in ((), (120,), (0, 5), (4, 0), (1, 257), (257, 1), (2, 4, 0, 5)):
        refuses(InconsistentFrame, with_shape(*shape) + b"\x07")
    for kind in (2, 3, 6):
        mode = sections[0] & 0xB0 | kind | (8 if kind == 2 else 0)
        refuses(InconsistentFrame, frame[:6] + bytes((mode,)) + sections[1:])
    refuses(UnsupportedFeature, frame[:6] + b"\x17" + sections[1:])
    refuses(InconsistentFrame, frame[:7] + b"\0\0" + frame[9:])
    refuses(InconsistentFrame, frame[:7] + b"\x80\x7f" + frame[9:])
    for profile in (0, 1):
        refuses(UnsupportedFeature, frame[:1] + bytes((frame[1] & ~0x0C | profile << 2,)) + frame[2:])
    refuses(TrailingBytes, frame[:6] + b"\x07\0")
    refuses(InconsistentFrame, frame + b"\0")
    refuses(InconsistentFrame, frame + b"\0\0", unseen=True)
    for end in range(2, 11):
        refuses(FrameTooShort, frame[:end])


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 10**6), value=st.integers(0, 255))
def test_altered_frames_decode_or_are_refused(at: int, value: int) -> None:
    """A changed byte gives a frame error or finite values, never anything else."""
    config = CodecConfig(sparsity=0.4, checksum=False, transform="cosine")
    check_altered(Codec(config).encode(maps(1, 4, 5, 6)), at, value)
