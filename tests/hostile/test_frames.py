"""Every rule of docs/wire-format.md has an attack here, with the bytes written out by hand."""

from __future__ import annotations

import contextlib
import struct
import subprocess
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serverlight.codec import Codec, CodecConfig, decode, inspect
from serverlight.errors import (
    BadMagic,
    BadPadding,
    BadVarint,
    ChecksumMismatch,
    ConfigError,
    FrameError,
    FrameTooLarge,
    FrameTooShort,
    InconsistentFrame,
    TrailingBytes,
    UnsupportedFeature,
    UnsupportedProfile,
    UnsupportedVersion,
)

F32, F16, BF16, CHECKSUM = 0, 1, 2, 16
ALL, BITMAP, CSR, RICE = 0, 1, 2, 3
SIGNED = 128


def group(bits: int, low: float, high: float) -> bytes:
    return bytes((bits,)) + struct.pack("<ff", low, high)


def slicer(
    *,
    magic: bytes = b"SL",
    version: int = 1,
    profile: int = 1,
    flags: int = F32,
    dims: bytes = b"\x01\x08",
    kept: bytes = b"\x03",
    stages: bytes = bytes((1, BITMAP)),
    groups: bytes = group(0, 1.0, 1.0) + group(2, 2.0, 4.0),
    positions: bytes = b"\x15",
    signs: bytes = b"",
    labels: bytes = b"\x04",
    codes: bytes = b"\x03",
    tail: bytes = b"",
) -> bytes:
    """A frame of 8 elements; elements 0, 2 and 4 are kept, in two groups of 2 and 1 members."""
    head = magic + bytes((version, profile, flags)) + dims
    return head + kept + stages + groups + positions + signs + labels + codes + tail


def rejects(error: type[FrameError], frame: bytes, **limits: Any) -> None:
    """Both readers of frames refuse it with exactly this error."""
    for read in (decode, inspect):
        with pytest.raises(FrameError) as caught:
            read(frame, **limits)
        assert type(caught.value) is error, caught.value
        assert str(caught.value)


def test_the_frame_that_the_attacks_start_from_is_good() -> None:
    """Without an attack the hand-written frame decodes to what the page says."""
    y = decode(slicer(), "numpy")
    assert y.tolist() == [1, 0, 1, 0, 2 + 2 * 7 / 8, 0, 0, 0]


# -- section 1: conventions ---------------------------------------------------------------------------


@pytest.mark.parametrize("dims", [b"\x01\x88\x00", b"\x01\x80\x80\x80\x80\x80\x01", b"\x01\xff\xff\xff\xff\x1f"])
def test_varint_not_minimal_or_too_long(dims: bytes) -> None:
    """Two spellings of one number, six bytes, and values above 2^32 - 1 are refused."""
    rejects(BadVarint, slicer(dims=dims))


@pytest.mark.parametrize(("section", "data"), [("labels", b"\x0c"), ("codes", b"\x07")])
def test_padding_is_zero(section: str, data: bytes) -> None:
    """Padding bits cannot smuggle data."""
    rejects(BadPadding, slicer(**{section: data}))


def test_padding_of_a_bitmap_is_zero() -> None:
    rejects(BadPadding, slicer(dims=b"\x01\x07", positions=b"\x95"))


def test_every_truncation_is_too_short() -> None:
    """Cut anywhere, the frame is refused as too short."""
    frame = slicer()
    for length in range(len(frame)):
        rejects(FrameTooShort, frame[:length])


def test_trailing_bytes() -> None:
    rejects(TrailingBytes, slicer(tail=b"\x00"))
    rejects(
        TrailingBytes, slicer(kept=b"\x00", stages=b"", groups=b"", positions=b"", labels=b"", codes=b"", tail=b"x")
    )
    rejects(TrailingBytes, b"SL\x01\x00\x00\x01\x01" + b"\x00\x3c" + b"\x00")


# -- section 2: header --------------------------------------------------------------------------------


def test_magic_version_profile() -> None:
    rejects(BadMagic, slicer(magic=b"PK"))
    rejects(UnsupportedVersion, slicer(version=2))
    rejects(UnsupportedVersion, slicer(version=0))
    rejects(UnsupportedProfile, slicer(profile=200))


@pytest.mark.parametrize("flags", [3, 15, 32, 64, 128, 32 | 16, 32 | 64])
def test_reserved_dtypes_and_flags(flags: int) -> None:
    rejects(UnsupportedFeature, slicer(flags=flags))


def test_rank_above_8() -> None:
    rejects(UnsupportedFeature, slicer(dims=b"\x09" + b"\x01" * 9))


@pytest.mark.parametrize(
    "dims",
    [
        b"\x02\xff\xff\xff\xff\x0f\xff\xff\xff\xff\x0f",  # (2^32 - 1)^2: overflows 64 bits
        b"\x08" + b"\x80\x80\x04" * 8,  # (2^16)^8 = 2^128
        b"\x01\x80\x80\x80\x80\x02",  # 2^29, a half gigabyte of elements
        b"\x02\x80\x80\x80\x80\x04\x80\x04",  # 2^30 rows of 512: terabytes
    ],
)
def test_more_elements_than_the_limit(dims: bytes) -> None:
    """A frame that claims a terabyte is refused before anything is allocated, empty of data or not."""
    rejects(FrameTooLarge, slicer(dims=dims))
    rejects(
        FrameTooLarge, slicer(dims=dims, kept=b"\x00", stages=b"", groups=b"", positions=b"", labels=b"", codes=b"")
    )
    rejects(FrameTooLarge, b"SL\x01\x00\x00" + dims)


def test_limit_is_the_callers() -> None:
    rejects(FrameTooLarge, slicer(), max_elements=7)
    assert inspect(slicer(), max_elements=8).shape == (8,)
    with pytest.raises(ConfigError, match="max_elements"):
        decode(slicer(), max_elements=-1)


def test_empty_with_huge_sides() -> None:
    """A zero dimension does not excuse the others: the strides of such a tensor overflow in every library."""
    empty = {"kept": b"\x00", "stages": b"", "groups": b"", "positions": b"", "labels": b"", "codes": b""}
    rejects(FrameTooLarge, slicer(dims=b"\x02\x00\xff\xff\xff\xff\x0f", **empty))
    rejects(FrameTooLarge, slicer(dims=b"\x04\x80\x80\x80\x40\x80\x80\x80\x40\x80\x80\x80\x40\x00", **empty))
    assert decode(slicer(dims=b"\x02\x00\x80\x01", **empty), "numpy").shape == (0, 128)


def test_checksum() -> None:
    """With a checksum every single altered bit is noticed, and a missing one too."""
    body = slicer(flags=F32 | CHECKSUM)
    frame = body + zlib.crc32(body).to_bytes(4, "little")
    assert decode(frame, "numpy")[4] == 3.75
    for bit in range(8 * 9, 8 * len(frame)):  # past the header, whose own rules come first
        altered = bytearray(frame)
        altered[bit // 8] ^= 1 << bit % 8
        rejects(ChecksumMismatch, bytes(altered))
    rejects(FrameTooShort, b"SL\x01\x01\x10\x00\x00")


# -- sections 3 and 4: values ---------------------------------------------------------------------------


@pytest.mark.parametrize("half", [b"\x00\x7c", b"\x00\xfc", b"\x01\x7e"])
def test_halves_are_finite(half: bytes) -> None:
    rejects(InconsistentFrame, b"SL\x01\x00\x00\x01\x01" + half)


# -- section 5: slicer ----------------------------------------------------------------------------------


def test_more_kept_than_elements() -> None:
    rejects(InconsistentFrame, slicer(kept=b"\x09"))
    rejects(InconsistentFrame, slicer(kept=b"\xff\xff\xff\xff\x0f"))


def test_more_groups_than_kept() -> None:
    rejects(InconsistentFrame, slicer(stages=bytes((3, BITMAP))))


@pytest.mark.parametrize(
    "bad",
    [
        group(17, 2.0, 4.0),
        group(255, 2.0, 4.0),
        group(1, 4.0, 4.0),
        group(2, 4.0, 2.0),
        group(2, 0.0, 4.0),
        group(2, -2.0, 4.0),
        group(2, 2.0, float("inf")),
        group(2, float("nan"), 4.0),
        group(2, 2.0, float("nan")),
    ],
)
def test_bad_groups(bad: bytes) -> None:
    rejects(InconsistentFrame, slicer(groups=group(0, 1.0, 1.0) + bad))


def test_all_with_fewer_kept() -> None:
    rejects(InconsistentFrame, slicer(stages=bytes((1, ALL)), positions=b""))


@pytest.mark.parametrize("bitmap", [b"\x00", b"\x05", b"\x55", b"\xff"])
def test_bitmap_with_the_wrong_number_of_bits(bitmap: bytes) -> None:
    rejects(InconsistentFrame, slicer(positions=bitmap))


def test_rice_parameter_beside_another_coding() -> None:
    rejects(InconsistentFrame, slicer(stages=bytes((1, BITMAP | 1 << 2))))


def csr(counts: bytes, columns: bytes) -> bytes:
    """Two rows of 4; counts of 3 bits, columns of 2 bits."""
    return slicer(dims=b"\x02\x02\x04", stages=bytes((1, CSR)), positions=counts + columns)


def test_csr_rules() -> None:
    """Counts sum to K, columns ascend inside a row."""
    assert decode(csr(b"\x0a", b"\x08"), "numpy")[0, 0] == 1  # counts 2, 1; columns 0, 2 | 0
    rejects(InconsistentFrame, csr(b"\x09", b"\x08"))
    rejects(InconsistentFrame, csr(b"\x12", b"\x08"))
    rejects(InconsistentFrame, csr(b"\x0a", b"\x02"))  # 2, 0: descending
    rejects(InconsistentFrame, csr(b"\x0a", b"\x00"))  # 0, 0: twice the same
    rejects(BadPadding, csr(b"\x4a", b"\x08"))


def test_csr_column_beyond_the_row() -> None:
    """Three columns take two bits, so a fourth can be written; it is refused, and cannot reach into the next row."""
    frame = slicer(dims=b"\x02\x02\x03", stages=bytes((1, CSR)), positions=b"\x06" + b"\x0c")
    rejects(InconsistentFrame, frame)


def rice(data: bytes, parameter: int = 0, kept: bytes = b"\x03") -> bytes:
    return slicer(stages=bytes((1, RICE | parameter << 2)), positions=data, kept=kept)


def test_rice_rules() -> None:
    """The unary section ends with the last of exactly L one bits, and no position leaves the tensor."""
    assert decode(rice(b"\x05\x15"), "numpy")[2] == 1  # gaps 0, 1, 1 at r = 0
    rejects(InconsistentFrame, rice(b"\x06\x15"))  # a zero bit after the last one
    rejects(InconsistentFrame, rice(b"\x05\x14"))  # two one bits for three elements
    rejects(InconsistentFrame, rice(b"\x09\x15\x01"))  # nine unary bits for eight elements
    rejects(InconsistentFrame, rice(b"\x00"))
    rejects(InconsistentFrame, rice(b"\x05\x15" + b"\x3f", parameter=2))  # remainders 3, 3, 3 lead past the end
    rejects(InconsistentFrame, rice(b"\x08\xa8" + b"\x00" * 12, parameter=31))  # a gap of 2^31
    rejects(BadVarint, rice(b"\x85\x00\x15"))
    rejects(BadPadding, rice(b"\x05\x35"))


def test_labels_must_fill_their_groups() -> None:
    """Every group has the members it must have, and no label names a group that is not there."""
    for labels in (b"\x00", b"\x07", b"\x03"):
        rejects(InconsistentFrame, slicer(labels=labels))
    three = group(0, 1.0, 1.0) + group(0, 2.0, 2.0) + group(0, 3.0, 3.0)
    rejects(InconsistentFrame, slicer(stages=bytes((2, BITMAP)), groups=three, labels=b"\x34", codes=b""))


# -- all of it at once ------------------------------------------------------------------------------------


@settings(max_examples=2000, deadline=None)
@given(data=st.data())
def test_no_altered_frame_does_anything_but_decode_or_raise_a_frame_error(data: st.DataObject) -> None:
    """Whatever bytes are changed in a valid frame, it decodes to its declared shape or raises a FrameError."""
    x = np.random.default_rng(data.draw(st.integers(0, 50))).standard_normal((3, 17)).astype(np.float32)
    config = CodecConfig(
        profile="slicer", sparsity=data.draw(st.sampled_from([0.2, 0.5, 0.95])), num_groups=3, checksum=False
    )
    frame = bytearray(Codec(config).encode(x))
    for _ in range(data.draw(st.integers(1, 4))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    try:
        y = decode(bytes(frame), "numpy", max_elements=1 << 16)
    except FrameError:
        return
    assert np.isfinite(y).all()
    assert y.shape == inspect(bytes(frame)).shape


@settings(max_examples=1000, deadline=None)
@given(body=st.binary(max_size=200), profile=st.sampled_from([0, 1]))
def test_random_bytes_after_a_good_start(body: bytes, profile: int) -> None:
    """Random bytes behind a valid magic, version and profile never do anything but decode or raise a FrameError."""
    with contextlib.suppress(FrameError):
        decode(b"SL\x01" + bytes((profile,)) + body, "numpy", max_elements=1 << 16)


def test_memory_stays_near_the_declared_size() -> None:
    """A hostile frame of a few bytes cannot make the reader allocate more than a small multiple of its limit."""
    script = """
import resource, sys
from serverlight.codec import decode
from serverlight.errors import FrameError
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for frame in map(bytes.fromhex, sys.argv[1:]):
    try:
        decode(frame, "numpy", max_elements=1 << 20)
    except FrameError:
        pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
"""
    million = b"\x01\x80\x80\x40"
    frames = [
        b"SL\x01\x00\x00" + million,
        slicer(dims=million, kept=b"\x80\x80\x40", stages=bytes((0, ALL)), groups=group(0, 1.0, 1.0), positions=b"")[
            :-2
        ],
        slicer(dims=b"\x02\x80\x80\x40\x80\x80\x40"),
        slicer(dims=million, kept=b"\xff\xff\x3f", stages=bytes((255, RICE | 31 << 2)), positions=b"\xff\xff\x3f"),
    ]
    done = subprocess.run(
        [sys.executable, "-c", script, *(f.hex() for f in frames)], capture_output=True, text=True, check=True
    )
    # 2^20 elements are 4 MiB of float32; positions, labels, codes and masks of the reference reader take some 30 bytes each.
    assert int(done.stdout) < 64 * 1024
