"""Attacks on short headers and short sections (docs/wire-format.md, sections 2 and 6.1): every backend refuses them alike."""

from __future__ import annotations

import zlib
from typing import Any

import pytest

from frame_attacks import BACKENDS, rejects
from independent_reader.model import FLAT, ONE_SIDED_PLANES, TOKENS, TRELLIS
from independent_reader.samples import good
from independent_reader.writer import Sections, varint, write_model, write_sections
from serverlight.codec import decode, inspect
from serverlight.errors import (
    BadMagic,
    BadPadding,
    BadVarint,
    FrameError,
    FrameTooLarge,
    FrameTooShort,
    InconsistentFrame,
    UnknownBasis,
    UnsupportedFeature,
    UnsupportedProfile,
)

ZEROS = b"\x07"
PROFILE_SERVERLIGHT = 2 << 2
KINDS = range(5)
"""Tokens along a trellis are always in short."""


def short(kind: int = FLAT, **choices: Any) -> Sections:
    """A good frame with a short header and a short section."""
    sections = good(kind, short=True, **choices)
    sections.header = bytes((0xA3, PROFILE_SERVERLIGHT, 2, 3, 5))
    return sections


@pytest.mark.parametrize("kind", KINDS)
def test_the_frames_that_the_attacks_start_from_are_good(kind: int) -> None:
    """Short or long, the same numbers; with shifts and without."""
    shifts = bytes(10 if kind == ONE_SIDED_PLANES else 9 if kind == 3 else 3)
    expected = decode(good(kind, half=True, shifts=shifts).frame(), "numpy")
    for backend in BACKENDS:
        for choices in ({}, {"lanes_log2": 3}, {"half": True}):
            assert decode(short(kind, **choices).frame(), "numpy", backend=backend).shape == (2, 3, 5)
        found = decode(short(kind, half=True, shifts=shifts).frame(), "numpy", backend=backend)
        assert found.tobytes() == expected.tobytes()


# -- section 2: short header -------------------------------------------------------------------------------------


def header(rank: int = 1, settings: int = PROFILE_SERVERLIGHT, dims: bytes = b"\x05") -> bytes:
    return bytes((0xA0 | rank, settings)) + dims


def test_a_short_header_says_what_a_long_one_says() -> None:
    for dtype, name in enumerate(("float32", "float16", "bfloat16")):
        info = inspect(header(settings=PROFILE_SERVERLIGHT | dtype) + ZEROS)
        assert (info.dtype, info.shape, info.config["profile"]) == (name, (5,), "serverlight")
    assert inspect(header(0, 0, b"") + b"\x00\x3c").config["profile"] == "fp16"
    assert inspect(header(1, 1 << 2) + b"\x00").config["profile"] == "slicer"


@pytest.mark.parametrize("first", [0x00, 0x0A, 0x9F, 0xB0, 0xFF])
def test_other_first_bytes_are_no_magic(first: int) -> None:
    rejects(BadMagic, bytes((first,)) + header()[1:] + ZEROS)


@pytest.mark.parametrize("rank", range(9, 16))
def test_rank_above_8(rank: int) -> None:
    rejects(UnsupportedFeature, header(rank, dims=b"\x01" * rank) + ZEROS)


def test_reserved_settings() -> None:
    for flags in (3, 128, 192, 128 | 16):
        rejects(UnsupportedFeature, header(settings=PROFILE_SERVERLIGHT | flags) + ZEROS)
    for flags in (64, 96, 64 | 16):  # waves and corrections are of planes, and a tensor of rank 1 has none
        frame = header(settings=PROFILE_SERVERLIGHT | flags) + ZEROS
        rejects(InconsistentFrame, frame + zlib.crc32(frame).to_bytes(4, "little") if flags & 16 else frame)
    rejects(UnsupportedProfile, header(settings=3 << 2) + ZEROS)
    for profile in (0, 1):
        for form in (32, 64, 96):
            rejects(UnsupportedFeature, header(settings=profile << 2 | form) + bytes(4) + ZEROS)
    rejects(UnknownBasis, header(settings=PROFILE_SERVERLIGHT | 32) + bytes(4) + ZEROS, unseen=True)


def test_every_truncation_of_a_header_is_too_short() -> None:
    whole = header(3, PROFILE_SERVERLIGHT | 32, b"\x80\x01\x02\x03") + bytes(4)
    for length in range(len(whole)):
        rejects(FrameTooShort, whole[:length])
    rejects(BadVarint, header(dims=b"\x80\x00") + ZEROS)
    rejects(FrameTooShort, header(settings=PROFILE_SERVERLIGHT | 16) + ZEROS)


def test_terabytes_are_refused() -> None:
    for dims in ([2**32 - 1] * 2, [2**31, 512], [2**16] * 8, [2**29]):
        rejects(FrameTooLarge, header(len(dims), dims=b"".join(map(varint, dims))) + ZEROS)
    rejects(FrameTooLarge, short().frame(), max_elements=29)


# -- section 6: short sections ---------------------------------------------------------------------------------


def test_only_one_segment_is_in_short() -> None:
    """What section 6.3 cuts in two has no short section."""
    for kind, dims in ((FLAT, [1 << 17]), (TOKENS, [1 << 13, 16]), (ONE_SIDED_PLANES, [16, 64, 128])):
        sections = short(kind)
        sections.header = header(len(dims), dims=b"".join(map(varint, dims)))
        rejects(InconsistentFrame, sections.frame())
        dims[0] -= 1
        sections.header = header(len(dims), dims=b"".join(map(varint, dims)))
        rejects(InconsistentFrame, sections.frame(), unseen=True)


def test_two_segments_along_a_trellis_have_both_lengths() -> None:
    """Where the only length would be the number of words, what is left is too little or too much."""
    sections = short(TRELLIS)
    sections.header = header(2, dims=varint(1 << 13) + varint(16))
    rejects(FrameTooShort, sections.frame())
    sections.short, sections.lengths = False, [(2, 0), (2, 0)]
    sections.words, sections.escapes = [[0, 1 << 15], [0, 1 << 15]], []
    rejects(InconsistentFrame, sections.frame(), unseen=True)
    sections.lengths = [(2, 0), (3, 0)]
    rejects(FrameTooShort, sections.frame())


@pytest.mark.parametrize("kind", KINDS)
def test_empty_tensors_have_no_stages(kind: int) -> None:
    sections = short(kind)
    sections.header = header(2, dims=b"\x00\x03")
    rejects(InconsistentFrame, sections.frame())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lanes_log2", [0, 3])
def test_truncations(kind: int, lanes_log2: int) -> None:
    """Cut before the streams, a frame is too short; among them, words are missing, or half of one is left."""
    sections = short(kind, lanes_log2=lanes_log2)
    frame, num_streams = sections.frame(), 2 * len(sections.words[0]) + len(sections.escapes[0])
    for length in range(len(frame) - num_streams + len(sections.escapes[0])):
        rejects(FrameTooShort, frame[:length])
    for length in range(len(frame) - num_streams + len(sections.escapes[0]), len(frame)):
        is_odd = (len(frame) - length) % 2 == 1
        rejects(InconsistentFrame, frame[:length], unseen=not is_odd)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_too_much_are_words(kind: int) -> None:
    frame = short(kind).frame()
    rejects(InconsistentFrame, frame + b"\x00")
    rejects(InconsistentFrame, frame + b"\x00\x00", unseen=True)
    rejects(InconsistentFrame, frame + bytes(1000), unseen=True)


@pytest.mark.parametrize("length", [1 << 31, (1 << 32) - 1, 100])
def test_escapes_that_are_not_there(length: int) -> None:
    sections = short()
    sections.lengths = [(0, length)]
    rejects(FrameTooShort, sections.frame())


@pytest.mark.parametrize("length", [b"\x80\x00", b"\x80\x80\x80\x80\x10", b"\xff\xff\xff\xff\xff\x01"])
def test_lengths_are_minimal(length: bytes) -> None:
    sections = short()
    rejects(BadVarint, sections.header + sections.stage_header + sections.model + length + bytes(20))


@pytest.mark.parametrize("kind", KINDS)
def test_padding_of_the_parameters_is_zero(kind: int) -> None:
    """An offset of 0 takes three bits, and where there is more than one context a bit tells of corrections."""
    num_bits = (4 if kind == ONE_SIDED_PLANES else 5) * (3 if kind == FLAT else 4)
    for bit in range(num_bits % 8 or 8, 8):
        sections = short(kind)
        sections.model = sections.model[:-1] + bytes((sections.model[-1] | 1 << bit,))
        rejects(BadPadding, sections.frame())


@pytest.mark.parametrize("kind", KINDS)
def test_offsets_are_at_most_eight_bits_wide(kind: int) -> None:
    """Six zero bits before an offset are allowed, and levels are held within their table; seven are not."""
    num_decisions = 4 if kind == ONE_SIDED_PLANES else 5
    for offset in (31, -32, 61, -254 // 2):
        model = write_model([(offset, None)] * num_decisions, kind)
        for backend in BACKENDS:
            frame = short(kind, model=model, half=False).frame()
            assert decode(frame, "numpy", backend=backend).shape == (2, 3, 5)
    for offset in (1 << 8, -(1 << 8), 1 << 20):
        sections = short(kind)
        sections.model = write_model([(offset, None)] + [(0, None)] * (num_decisions - 1), kind)
        rejects(InconsistentFrame, sections.frame())
    zeros = short(kind)
    zeros.model = bytes(400)
    rejects(InconsistentFrame, zeros.frame())


def test_corrections_are_at_most_six_bits_wide() -> None:
    for correction, is_good in ((63, True), (-63, True), (64, False), (-64, False)):
        sections = short(TOKENS)
        sections.model = write_model([(0, [correction] * 16)] + [(0, None)] * 4, TOKENS)
        if is_good:
            model = sections.model
            assert decode(short(TOKENS, model=model).frame(), "numpy").shape == (2, 3, 5)
        else:
            rejects(InconsistentFrame, sections.frame())


@pytest.mark.parametrize("kind", KINDS)
def test_a_flag_that_lies_about_shifts(kind: int) -> None:
    """Bytes of shifts are taken for lengths and words, or the other way around: never past the end."""
    for shifts in (None, bytes(range(10 if kind == ONE_SIDED_PLANES else 9 if kind == 3 else 3))):
        sections = short(kind, shifts=shifts)
        sections.mode = bytes((sections.mode[0] ^ 64,))
        outcomes = []
        for backend in BACKENDS:
            with pytest.raises(FrameError) as caught:
                decode(sections.frame(), "numpy", backend=backend)
            outcomes.append(type(caught.value))
        assert len(set(outcomes)) == 1


def test_shapes_of_a_reader_that_is_told_another_kind() -> None:
    """Section by section the kinds read the same bytes in another way; whatever comes of it, the backends agree."""
    for kind in KINDS:
        for mode in range(256):
            sections = write_sections([4, 6], kind, [i % 3 for i in range(24)], short=True)
            sections.mode = bytes((mode,))
            outcomes = []
            for backend in BACKENDS:
                try:
                    outcomes.append(decode(sections.frame(), "numpy", backend=backend).tobytes())
                except FrameError as error:
                    outcomes.append(type(error).__name__.encode())
            assert len(set(outcomes)) == 1, (kind, mode)
