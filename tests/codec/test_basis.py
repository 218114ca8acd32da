"""A calibrated basis: what is exact, what is refused, and that it saves bits."""

from __future__ import annotations

import dataclasses
import importlib.util
import pathlib
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import independent_reader
from serverlight.codec import (
    Basis,
    Codec,
    CodecConfig,
    calibrate_basis,
    decode,
    decode_batch,
    decode_into,
    inspect,
)
from serverlight.codec.activity import MAX_SPREAD, NO_SPREADS
from serverlight.codec.basis import MAX_WIDTH
from serverlight.errors import (
    ConfigError,
    FrameError,
    FrameTooShort,
    InconsistentFrame,
    NonFiniteTensor,
    TrailingBytes,
    UnknownBasis,
    UnsupportedFeature,
    UnsupportedTensor,
)

Float32 = npt.NDArray[np.float32]

BACKENDS = ["reference"] + ["cpu"] * (importlib.util.find_spec("numba") is not None)
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
VECTORS = pathlib.Path(__file__).parents[1] / "vectors" / "basis"
CONFIG = CodecConfig(sparsity=0.4)
WIDTH = 12
START = 2 + 3 + 4
"""Where section 6 starts in a frame of three dimensions below 128, under a basis."""


def features(count: int, *, rows: int = 20, width: int = WIDTH, seed: int = 0) -> list[Float32]:
    """Features of few strong directions, as in a residual stream, with a mean."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).standard_normal((width, width)) * np.geomspace(8, 0.1, width)[:, None]
    return [(rng.standard_normal((1, rows, width)) @ mixing + 3).astype(np.float32) for _ in range(count)]


@pytest.fixture(scope="module")
def basis() -> Basis:
    return calibrate_basis(features(30, seed=1))


def any_basis(width: int, seed: int, largest: int = 32767) -> Basis:
    rng = np.random.default_rng(seed)
    vectors = rng.integers(-largest, largest, (width, width), endpoint=True).astype(np.int16)
    return Basis(vectors=vectors, exponent=int(rng.integers(0, 31)), mean=rng.standard_normal(width).astype(np.float32))


def plain(basis: Basis) -> independent_reader.Basis:
    return independent_reader.Basis(basis.vectors.tolist(), basis.exponent, basis.mean.tolist(), basis.spreads.tolist())


def agree(frame: bytes, basis: Basis) -> Any:
    """All backends and the second reader give the same bits, which are returned."""
    decoded = independent_reader.read_frame(frame, plain(basis))
    expected = struct.pack(f"<{len(decoded.values)}f", *decoded.values)
    for backend in BACKENDS:
        assert decode(frame, basis=basis, backend=backend).float().numpy().tobytes() == expected
    return decode(frame, "numpy", basis=basis)


# -- what it is for ------------------------------------------------------------------------------------------------


def test_it_saves_bits_at_equal_error(basis: Basis) -> None:
    """On features that are correlated across channels, frames under the basis are smaller and no worse."""
    bits, errors = [], []
    for codec in (Codec(CONFIG), Codec(CodecConfig(sparsity=0.78), basis=basis)):
        frames = [codec.encode(x) for x in features(20, seed=2)]
        bits.append(sum(map(len, frames)))
        received = [decode(frame, "numpy", basis=basis) for frame in frames]
        errors.append(sum(float(((x - y) ** 2).sum()) for x, y in zip(features(20, seed=2), received, strict=True)))
    assert bits[1] < 0.8 * bits[0]
    assert errors[1] < errors[0]


def test_gradients_move_the_error_to_where_it_harms_less() -> None:
    """With gradients the directions to which the output is sensitive arrive more exactly than without."""
    rng, direction = np.random.default_rng(5), np.zeros(WIDTH, np.float32)
    direction[4] = 1
    gradients = [(rng.standard_normal((20, 1)) * direction).astype(np.float32)]
    calibration, test = features(30, seed=1), features(20, seed=2)
    harms = []
    for found in (calibrate_basis(calibration), calibrate_basis(calibration, gradients=gradients)):
        codec = Codec(CONFIG, basis=found)
        received = [decode(codec.encode(x), "numpy", basis=found) for x in test]
        harms.append(sum(float((((x - y) @ direction) ** 2).sum()) for x, y in zip(test, received, strict=True)))
    assert harms[1] < 0.8 * harms[0]


# -- exactness ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 20, WIDTH), (WIDTH,), (1, 1, WIDTH), (2, 3, WIDTH), (0, WIDTH)], ids=str)
def test_all_readers_agree(basis: Basis, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Tokens, a single one, none, and every dtype: the same bits from every backend and the second reader."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    frame = Codec(CONFIG, basis=basis).encode(x)
    y = agree(frame, basis)
    assert y.shape == shape
    assert decode(frame, basis=basis).dtype == dtype


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(2, 9),
    rows=st.integers(1, 7),
    seed=st.integers(0, 10**6),
    largest=st.sampled_from([1, 100, 32767]),
    scale=st.integers(-20, 20),
    distortion=st.sampled_from([None, 1e-4, 1e-6]),
)
def test_any_basis_reads_alike(
    width: int, rows: int, seed: int, largest: int, scale: int, distortion: float | None
) -> None:
    """Frames whose coefficients are anything, under a basis that is anything, read alike everywhere."""
    found = any_basis(width, seed, largest)
    x = (np.random.default_rng(seed).standard_normal((rows, width)) ** 3 * 10.0**scale).astype(np.float32)
    bare = Codec(CodecConfig(sparsity=0.3, distortion=distortion, checksum=False)).encode(x)
    agree(under(bare, found), found)


def under(frame: bytes, basis: Basis, *, shape_bytes: int = 2) -> bytes:
    """A frame without checksum, made one under a basis: its values are taken for coefficients."""
    end = 2 + shape_bytes
    return frame[:1] + bytes((frame[1] | 32,)) + frame[2:end] + basis.digest[:4] + frame[end:]


@settings(max_examples=60, deadline=None)
@given(
    width=st.sampled_from([2, 7, 40, 130]),
    rows=st.integers(1, 9),
    seed=st.integers(0, 10**6),
    sparsity=st.sampled_from([0.0, 0.4, 0.9]),
    distortion=st.sampled_from([None, 0.05, 1e-4]),
)
def test_any_spreads_read_alike(width: int, rows: int, seed: int, sparsity: float, distortion: float | None) -> None:
    """Whatever the channels are said to be like: every backend writes the same frame, and every reader reads the same bits."""
    rng = np.random.default_rng(seed)
    spreads = rng.integers(0, MAX_SPREAD, width, endpoint=True).astype(np.uint8)
    identity = (np.eye(width) * 1024).astype(np.int16)
    found = Basis(vectors=identity, exponent=10, mean=np.zeros(width, np.float32), spreads=spreads)
    x = (rng.standard_normal((rows, width)) * rng.choice([0.1, 1, 30], width)).astype(np.float32)
    config = CodecConfig(sparsity=sparsity, distortion=distortion)
    frames = [Codec(config, basis=found, backend=backend).encode(x) for backend in BACKENDS]
    assert len(set(frames)) == 1
    agree(frames[0], found)


def test_spreads_give_a_single_token_contexts() -> None:
    """Channels that are known to be large or small: fewer bytes for the very same numbers."""
    rng, width = np.random.default_rng(0), 400
    scale = np.geomspace(0.05, 5, width)
    rows = (rng.standard_normal((300, width)) * scale).astype(np.float32)
    with_spreads = calibrate_basis([rows])
    without = dataclasses.replace(with_spreads, spreads=NO_SPREADS)
    assert with_spreads.spreads.max() > 64 > with_spreads.spreads.min()
    sizes = []
    for found in (without, with_spreads):
        codec = Codec(CodecConfig(sparsity=0.6), basis=found)
        frames = [codec.encode(row[None]) for row in rows[:50]]
        sizes.append(sum(map(len, frames)))
        received = [decode(frame, "numpy", basis=found) for frame in frames]
        sizes.append(float(np.square(np.concatenate(received) - rows[:50]).sum()))
    assert sizes[2] < 0.92 * sizes[0]
    assert sizes[3] == pytest.approx(sizes[1], rel=0.01)


def test_giant_numbers_take_the_slower_way() -> None:
    """Where sums leave the integers that binary64 holds, the product of 64-bit integers gives the exact sum."""
    vectors = np.array([[32767, 1], [-32767, 32767]], np.int16)
    found = Basis(vectors=vectors, exponent=15, mean=np.zeros(2, np.float32))
    x = np.array([[1.0, 2.0**27], [2.0**27 - 8, 2.0**27]], np.float32)
    bare = Codec(CodecConfig(sparsity=0.0, distortion=0.25, checksum=False)).encode(x)
    assert np.abs(decode(bare, "numpy")).max() > 1e8
    agree(under(bare, found), found)


def test_sums_beyond_binary64_are_exact() -> None:
    """Giant and tiny coefficients in one row: the sum is rounded once, at its end."""
    rng, width = np.random.default_rng(0), 64
    vectors = rng.integers(20_000, 32_767, (width, width), endpoint=True).astype(np.int16)
    found = Basis(vectors=vectors, exponent=15, mean=np.zeros(width, np.float32))
    rows = np.where(rng.random((20, width)) < 0.5, rng.integers(1, 200, (20, width)), 2.0**34).astype(np.float32)
    exact = [sum(int(u) * int(v) for u, v in zip(row, column, strict=True)) for row in rows for column in vectors.T]
    assert max(exact) > 2**53
    assert found.values(rows.reshape(-1), 1.0).tolist() == [float(total) * 2.0**-21 for total in exact]


def test_zeros_are_the_mean(basis: Basis) -> None:
    """A feature that is the mean everywhere is all zero in the basis, and comes back as it was."""
    x = np.tile(basis.mean, (5, 1))
    frame = Codec(CONFIG, basis=basis).encode(x)
    assert inspect(frame).part_bytes.get("symbols") is None
    assert np.array_equal(agree(frame, basis), x)


def test_values_stay_within_the_dtype() -> None:
    """What a basis makes of large coefficients is held within the range of halves and of floats."""
    found = Basis(vectors=np.full((2, 2), 32767, np.int16), exponent=0, mean=np.zeros(2, np.float32))
    for dtype, values in ((np.float16, [6e4, 5e4]), (np.float32, [3e38, 3e38])):
        bare = Codec(CodecConfig(sparsity=0.0, checksum=False)).encode(np.array([values, values], dtype))
        y = agree(under(bare, found), found)
        assert (y == np.finfo(dtype).max).all()


@pytest.mark.parametrize("case", ["tokens", "token", "spread-tokens", "spread-token"])
def test_golden_frames(case: str) -> None:
    """A frame under a basis decodes for ever to what it decoded to once."""
    found = Basis.load(VECTORS / ("spreads.npz" if case.startswith("spread") else "basis.npz"))
    y = agree((VECTORS / f"{case}.bin").read_bytes(), found)
    assert y.tobytes() == np.load(VECTORS / f"{case}.npy", allow_pickle=False).tobytes()


# -- every way in ----------------------------------------------------------------------------------------------------


def test_batches_and_given_memory(basis: Basis) -> None:
    """`decode_batch` and `decode_into` take a basis as `decode` does; frames without one do not mind it."""
    xs = features(3, seed=3)
    frames = [Codec(CONFIG, basis=basis).encode(x) for x in xs]
    expected = np.concatenate([decode(frame, "numpy", basis=basis) for frame in frames])
    assert np.array_equal(decode_batch(frames, "numpy", basis=basis), expected)
    out = np.empty_like(xs[0])
    decode_into(frames[0], out, basis=basis)
    assert np.array_equal(out, expected[:1])
    bare = Codec(CONFIG).encode(xs[0])
    assert np.array_equal(decode(bare, "numpy", basis=basis), decode(bare, "numpy"))


def test_file_there_and_back(tmp_path: pathlib.Path, basis: Basis) -> None:
    """A basis is read back as it was saved; its digest tells any change."""
    basis.save(tmp_path / "basis.npz")
    assert Basis.load(tmp_path / "basis.npz") == basis
    other = Basis(vectors=basis.vectors, exponent=basis.exponent, mean=np.nextafter(basis.mean, np.float32(9)))
    assert other != basis
    assert dataclasses.replace(basis, spreads=NO_SPREADS) != basis
    bare = dataclasses.replace(basis, spreads=NO_SPREADS)
    bare.save(tmp_path / "bare.npz")
    assert Basis.load(tmp_path / "bare.npz") == bare
    named = inspect(Codec(CONFIG, basis=basis).encode(features(1)[0])).config["basis"]
    assert named == basis.digest.hex()[:8]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"not a file of arrays"])
def test_files_that_are_no_basis(tmp_path: pathlib.Path, content: bytes) -> None:
    """Whatever else is in a file, the error names the field."""
    (tmp_path / "basis.npz").write_bytes(content)
    with pytest.raises(ConfigError, match="basis"):
        Basis.load(tmp_path / "basis.npz")
    np.savez(tmp_path / "pickled.npz", vectors=np.array([{}], object), exponent=0, mean=0)
    for name in ("pickled.npz", "missing.npz"):
        with pytest.raises(ConfigError, match="basis"):
            Basis.load(tmp_path / name)


# -- refusals ----------------------------------------------------------------------------------------------------------


def refuses(error: type[FrameError], frame: bytes, basis: Basis | None, *, unseen: bool = False) -> None:
    for backend in BACKENDS:
        with pytest.raises(FrameError) as caught:
            decode(frame, "numpy", basis=basis, backend=backend)
        assert type(caught.value) is error, caught.value
    if not unseen:
        with pytest.raises(error):
            inspect(frame)


def test_another_basis_is_not_taken(basis: Basis) -> None:
    """Without the basis that it names, or with another one, a frame is refused by name."""
    frame = Codec(CONFIG, basis=basis).encode(features(1)[0])
    refuses(UnknownBasis, frame, None, unseen=True)
    refuses(UnknownBasis, frame, any_basis(WIDTH, 0), unseen=True)
    altered = bytearray(frame[:-4])
    altered[6] ^= 1  # the digest follows three dimensions of one byte
    altered += zlib.crc32(altered).to_bytes(4, "little")
    refuses(UnknownBasis, bytes(altered), basis, unseen=True)


def test_a_frame_s_own_faults_come_first() -> None:
    """Whoever has no basis is still told what is wrong with the frame itself, in the words of inspect."""
    frame = Codec(CodecConfig(sparsity=0.8, checksum=False), basis=any_basis(WIDTH, 0)).encode(features(1)[0])
    for altered in (frame[:START] + b"\x17" + frame[START + 1 :], frame[: START + 5], frame + b"\0"):
        with pytest.raises(FrameError) as caught:
            inspect(altered)
        refuses(type(caught.value), altered, None)
        assert type(caught.value) is not UnknownBasis


def test_hostile_frames_under_a_basis(basis: Basis) -> None:
    """Wrong widths and kinds, cut and prolonged frames, bad steps: each rule has its error, and nothing else happens."""
    frame = Codec(CodecConfig(sparsity=0.8, checksum=False), basis=basis).encode(features(1)[0])
    assert (frame[0], frame[START] & 7) == (0xA3, 5)
    refuses(InconsistentFrame, frame[:4] + bytes((WIDTH - 1,)) + frame[5:], basis, unseen=True)
    refuses(InconsistentFrame, b"\xa0" + frame[1:2] + frame[5:START] + b"\x07", basis, unseen=True)  # rank 0
    for kind in (2, 3, 6):
        mode = frame[START] & 0xB0 | kind | (8 if kind == 2 else 0)
        refuses(InconsistentFrame, frame[:START] + bytes((mode,)) + frame[START + 1 :], basis)
    refuses(UnsupportedFeature, frame[:START] + b"\x17" + frame[START + 1 :], basis)
    refuses(InconsistentFrame, frame[: START + 1] + b"\0\0" + frame[START + 3 :], basis)
    refuses(InconsistentFrame, frame[: START + 1] + b"\x80\x7f" + frame[START + 3 :], basis)
    refuses(InconsistentFrame, frame + b"\0", basis)
    refuses(InconsistentFrame, frame + b"\0\0", basis, unseen=True)
    refuses(TrailingBytes, frame[:START] + b"\x07\0", basis)
    for profile in (0, 1):
        settings = frame[1] & ~0x0C | profile << 2
        refuses(UnsupportedFeature, frame[:1] + bytes((settings,)) + frame[2:], basis)
    for end in range(START + 5):
        with pytest.raises(FrameError) as caught:
            decode(frame[:end], basis=basis)
        assert type(caught.value) is FrameTooShort


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 10**6), value=st.integers(0, 255))
def test_altered_frames_decode_or_are_refused(basis: Basis, at: int, value: int) -> None:
    """A changed byte gives a frame error or finite values, never anything else."""
    frame = bytearray(Codec(CodecConfig(sparsity=0.4, checksum=False), basis=basis).encode(features(1)[0]))
    frame[at % len(frame)] = value
    try:
        y = decode(bytes(frame), "numpy", basis=basis, max_elements=10_000)
    except FrameError:
        return
    assert np.isfinite(y).all()


def test_tensors_that_do_not_suit_the_basis(basis: Basis) -> None:
    """Another width, feature maps, values that are not finite, and profiles without a basis are refused on the device."""
    codec = Codec(CONFIG, basis=basis)
    for x in (np.zeros((3, WIDTH + 1), np.float32), np.float32(1), np.zeros((1, 2, 3, WIDTH), np.float32)):
        with pytest.raises(UnsupportedTensor):
            codec.encode(x)
    with pytest.raises(NonFiniteTensor):
        codec.encode(np.full((2, WIDTH), np.inf, np.float32))
    with pytest.raises(NonFiniteTensor):
        codec.encode(np.full((2, WIDTH), 3e38, np.float32))
    for profile in ("slicer", "fp16"):
        with pytest.raises(ConfigError, match="basis"):
            Codec(CodecConfig(profile=profile), basis=basis)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("vectors", {"vectors": np.zeros((2, 3), np.int16)}),
        ("vectors", {"vectors": np.zeros((2, 2), np.int32)}),
        ("vectors", {"vectors": np.full((2, 2), -32768, np.int16)}),
        ("vectors", {"vectors": np.zeros((0, 0), np.int16)}),
        ("spreads", {"spreads": np.zeros(3, np.uint8)}),
        ("spreads", {"spreads": np.zeros(2, np.int64)}),
        ("spreads", {"spreads": np.array([0, 128], np.uint8)}),
        ("exponent", {"exponent": 31}),
        ("exponent", {"exponent": 1.0}),
        ("mean", {"mean": np.zeros(3, np.float32)}),
        ("mean", {"mean": np.array([0, np.nan], np.float32)}),
        ("mean", {"mean": np.zeros(2)}),
    ],
)
def test_a_basis_is_checked_at_birth(field: str, change: dict[str, Any]) -> None:
    """A part that is out of range is refused by the name of its field."""
    good = {"vectors": np.eye(2, dtype=np.int16), "exponent": 0, "mean": np.zeros(2, np.float32)}
    assert Basis(**good).width == 2
    with pytest.raises(ConfigError) as caught:
        Basis(**{**good, **change})
    assert caught.value.field == field


def test_calibration_says_what_it_lacks() -> None:
    """No features, features of unlike width, and gradients of another width are named."""
    for found in ([], [np.zeros((0, 4), np.float32)], [np.zeros((2, 3), np.float32), np.zeros((2, 4), np.float32)]):
        with pytest.raises(ConfigError, match="features"):
            calibrate_basis(found)
    with pytest.raises(ConfigError, match="gradients"):
        calibrate_basis(features(1), gradients=[np.zeros((2, 3), np.float32)])
    singular = Basis(vectors=np.zeros((2, 2), np.int16), exponent=0, mean=np.zeros(2, np.float32))
    with pytest.raises(ConfigError, match="inverse"):
        Codec(CONFIG, basis=singular).encode(np.ones((3, 2), np.float32))


def test_no_sum_can_overflow() -> None:
    """The largest width, the largest numbers and the largest entries stay below 2^63."""
    largest_unit = int(np.float32(64 * 2**28 + 127))
    assert MAX_WIDTH * largest_unit * 32767 < 2**63
