"""Bias correction of feature maps: what is exact, what is refused, what is written without, and that it saves bits."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from frame_readers import BACKENDS, agree, check_altered, check_every_way_in, refuses
from serverlight.codec import Codec, CodecConfig, bias, decode, inspect
from serverlight.codec.wire import Reader
from serverlight.errors import (
    BadPadding,
    ConfigError,
    FrameTooShort,
    InconsistentFrame,
    NonFiniteTensor,
    UnsupportedFeature,
)

Float32 = npt.NDArray[np.float32]

CORRECTED = 96
"""The flags."""


def maps(*shape: int, seed: int = 0) -> Float32:
    """Rectified planes of unlike means."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) + 0.3 * rng.standard_normal((*shape[:-2], 1, 1))
    return np.maximum(x, 0).astype(np.float32)


# -- what it is for ----------------------------------------------------------------------------------------------------


def test_means_of_planes_arrive() -> None:
    """Half as far off and less, within a 32nd of a step; at two or three bits a plane."""
    x = maps(1, 64, 8, 8) * np.exp(np.random.default_rng(1).standard_normal((1, 64, 1, 1))).astype(np.float32)
    plain, corrected = (CodecConfig(sparsity=0.9, bias_correction=on) for on in (False, True))
    frames = [Codec(config).encode(x) for config in (plain, corrected)]
    step = inspect(frames[1]).config["step"]
    without, with_them = (np.abs((decode(frame, "numpy") - x).mean((2, 3))).mean() / step for frame in frames)
    assert with_them < min(without / 2, 1 / 32)
    assert 8 * (len(frames[1]) - len(frames[0])) < 4 * 64
    assert inspect(frames[1]).part_bytes["corrections"] == len(frames[1]) - len(frames[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 6, 7, 9), (2, 3, 8, 8), (1, 1, 4, 4), (1, 40, 2, 8), (2, 1, 3, 5, 4)])
@pytest.mark.parametrize("is_signed", [False, True])
def test_backends_write_and_read_alike(shape: tuple[int, ...], dtype: torch.dtype, is_signed: bool) -> None:
    """Bytes and bits; no element of a rectified map becomes negative."""
    x = torch.from_numpy(maps(*shape) - 0.4 * is_signed).to(dtype)
    config = CodecConfig(sparsity=0.85, bias_correction=True)
    frames = {Codec(config, backend=backend).encode(x) for backend in BACKENDS}
    assert len(frames) == 1
    y = agree(frame := frames.pop())
    assert frame[1] & CORRECTED == CORRECTED
    assert inspect(frame).config["bias_correction"]
    assert (y.shape, y.dtype) == (x.shape, dtype)
    assert is_signed or float(y.min()) >= 0


def test_every_way_in() -> None:
    """Channels-last maps, batches, given memory, and a device."""
    check_every_way_in(CodecConfig(bias_correction=True, sparsity=0.9), torch.from_numpy(maps(3, 8, 6, 10)))


# -- exactness ---------------------------------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    shape=st.sampled_from([(1, 16), (3, 2, 8), (9, 5, 4), (2, 3, 1, 17), (1, 1, 4, 4)]),
    seed=st.integers(0, 10**6),
    scale=st.integers(-38, 30),
    largest=st.sampled_from([0, 1, 9, 300, 1 << 20]),
    sparsity=st.sampled_from([0.0, 0.6]),
    is_signed=st.booleans(),
)
def test_any_corrections_read_alike(
    shape: tuple[int, ...], seed: int, scale: int, largest: int, sparsity: float, is_signed: bool
) -> None:
    """Whatever is put before the sections of planes: giant and tiny steps, corrections up to the largest."""
    rng = np.random.default_rng(seed)
    planes = math.prod(shape[:-2])
    x = np.abs(rng.standard_normal((1, planes, 4, 4))) if not is_signed else rng.standard_normal((1, planes, 4, 4))
    bare = Codec(CodecConfig(sparsity=sparsity, checksum=False)).encode((x * 10.0**scale).astype(np.float32))
    corrections = rng.integers(-largest, largest, planes, endpoint=True)
    block = bias.packed(corrections)
    if block:
        frame = bare[:1] + bytes((bare[1] | CORRECTED,)) + bare[2:6] + block + bare[6:]
        y = np.asarray(agree(frame))
        assert np.isfinite(y).all()
        assert is_signed or (y >= 0).all()


@settings(max_examples=200, deadline=None)
@given(
    numbers=st.lists(st.integers(-9, 9) | st.integers(-(1 << 20), 1 << 20), min_size=1, max_size=60),
)
def test_corrections_there_and_back(numbers: list[int]) -> None:
    """What is packed is read; nothing is packed of zeros, and of what takes too many bits."""
    block = bias.packed(np.array(numbers, np.int64))
    if block:
        reader = Reader(block)
        assert bias.read(reader, (len(numbers), 4, 4)).tolist() == numbers
        reader.finish()
    else:
        assert not any(numbers) or max(map(abs, numbers)) > 9


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([1e-38, 1e-3, 1.0, 1e30]))
def test_corrections_are_the_rounded_means(seed: int, scale: float) -> None:
    """Of what the sections leave, in 64ths of the step; half a 16th goes up."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((3, 5, 4)) * scale).astype(np.float32)
    units = rng.integers(-300, 300, x.shape).astype(np.float32)
    found = bias.corrections_of(x.reshape(-1), units.reshape(-1), float(np.float32(0.25 * scale)), x.shape)
    lacking = np.rint(x.astype(np.float64) * (64 / float(np.float32(0.25 * scale)))) - units
    assert found.tolist() == np.floor(lacking.mean((1, 2)) / 4 + 0.5).astype(int).tolist()


# -- what is written without -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "x",
    [
        np.abs(maps(6, 12)),
        maps(1, 5, 1, 1)[..., 0, 0],
        maps(1, 4, 3, 5),
        np.zeros((1, 2, 4, 4), np.float32),
        np.zeros((0, 2, 4, 4), np.float32),
    ],
    ids=["tokens", "token", "small planes", "zeros", "empty"],
)
def test_what_is_written_without(x: Float32) -> None:
    """The bytes are those of the same settings without a correction."""
    config = {"sparsity": 0.0, "distortion": 0.25}
    assert Codec(CodecConfig(bias_correction=True, **config)).encode(x) == Codec(CodecConfig(**config)).encode(x)


def test_waves_have_their_mean_among_them() -> None:
    """Of both that are asked for a signed map gets the transform, a rectified one the correction."""
    x = maps(1, 8, 6, 6)
    both = Codec(CodecConfig(transform="cosine", bias_correction=True, sparsity=0.9))
    assert inspect(both.encode(x)).config["bias_correction"]
    signed = inspect(both.encode(x - 0.5)).config
    assert (signed["transform"], signed["bias_correction"]) == ("cosine", False)


def test_bad_values_and_settings_are_refused() -> None:
    """By the name of the field."""
    x = maps(1, 2, 4, 4)
    x[0, 1, 2, 3] = np.inf
    with pytest.raises(NonFiniteTensor):
        Codec(CodecConfig(bias_correction=True)).encode(x)
    for wrong in ({"bias_correction": 1}, {"bias_correction": True, "profile": "slicer"}):
        with pytest.raises(ConfigError) as refused:
            CodecConfig(**wrong)
        assert refused.value.field == "bias_correction"


# -- hostile frames ----------------------------------------------------------------------------------------------------


def test_hostile_frames() -> None:
    """Shapes, kinds and profiles that have no correction; blocks that are cut, too long, dirty or too large."""
    bare = Codec(CodecConfig(sparsity=0.6, checksum=False)).encode(maps(1, 4, 5, 6))
    assert bare[:6] == bytes((0xA4, 8, 1, 4, 5, 6))
    sections, front = bare[6:], bytes((0xA4, 8 | CORRECTED, 1, 4, 5, 6))

    def of_bits(bits: str, parameter: int = 0, rest: bytes = b"", length: int | None = None) -> bytes:
        number = sum(1 << i for i, bit in enumerate(bits) if bit == "1")
        unary = number.to_bytes((len(bits) + 7) // 8, "little")
        return front + bytes((parameter, len(bits) if length is None else length)) + unary + rest + sections

    assert agree(of_bits("0101101")).shape == (1, 4, 5, 6)
    refuses(InconsistentFrame, of_bits("111"))  # too few
    refuses(InconsistentFrame, of_bits("11111"))  # too many
    refuses(InconsistentFrame, of_bits("11110"))  # does not end with the last one
    refuses(InconsistentFrame, of_bits("0" * 29 + "1111"))  # more than eight for each plane
    refuses(BadPadding, of_bits("01011011", length=7))
    refuses(InconsistentFrame, of_bits("1111", parameter=16, rest=bytes(8)))
    refuses(InconsistentFrame, of_bits("0" * 28 + "1111", parameter=15, rest=bytes(8))[:0] + front + bytes((15, 40)))
    refuses(FrameTooShort, front + bytes((0, 7)))
    refuses(FrameTooShort, front)
    refuses(FrameTooShort, front + bytes((3, 4, 15)) + b"\0")
    block = of_bits("1111")[6 : -len(sections)]
    for kind in (0, 1, 4, 5, 15):
        refuses(InconsistentFrame, front + block + bytes((sections[0] & 0xB0 | kind,)) + sections[1:])
    refuses(
        InconsistentFrame, front + block + bytes((sections[0] & 0xB0 | 2,))
    )  # a sign that contradicts the kind comes first
    refuses(UnsupportedFeature, front + block + b"\x17" + sections[1:])
    for profile in (0, 1):
        refuses(UnsupportedFeature, front[:1] + bytes((CORRECTED | profile << 2,)) + front[2:] + block + sections)
    for shape in ((), (120,), (0, 5), (8, 3, 5), (2, 4, 0, 5)):
        refuses(InconsistentFrame, bytes((0xA0 | len(shape), front[1], *shape)) + b"\0\0\x07")
    assert agree(bytes((0xA3, front[1], 0, 4, 4)) + b"\0\0\x07").shape == (0, 4, 4)
    assert not agree(bytes((0xA3, front[1], 2, 4, 4)) + b"\0\4\x0a\x07").any()


def test_a_correction_that_is_too_large() -> None:
    """Beyond 2^20 sixteenths of a step: refused, as is whatever only large quotients could mean."""
    bare = Codec(CodecConfig(sparsity=0.6, checksum=False)).encode(maps(1, 16, 4, 4))
    front = bytes((bare[0], bare[1] | CORRECTED)) + bare[2:6]
    largest = [1 << 20] + [0] * 15
    block = bias.packed(np.array(largest))
    assert block
    assert np.asarray(agree(front + block + bare[6:])).max() > 1e3
    code = (1 << 21) - 1
    for number, error in ((code, None), (code + 1, None), (code + 2, InconsistentFrame)):
        quotient, low = number >> 15, number & 0x7FFF
        unary = (1 << quotient) | ((1 << 15) - 1) << (quotient + 1)
        unary_bits = quotient + 16
        spoiled = bytes((15, unary_bits)) + unary.to_bytes((unary_bits + 7) // 8, "little")
        spoiled += low.to_bytes(30, "little")
        if error is None:
            agree(front + spoiled + bare[6:])
        else:
            refuses(error, front + spoiled + bare[6:])


@settings(max_examples=200, deadline=None)
@given(at=st.integers(0, 10**6), value=st.integers(0, 255))
def test_altered_frames_decode_or_are_refused(at: int, value: int) -> None:
    """A changed byte gives a frame error or finite values, never anything else."""
    config = CodecConfig(sparsity=0.8, checksum=False, bias_correction=True)
    check_altered(Codec(config).encode(maps(1, 4, 5, 6)), at, value)
