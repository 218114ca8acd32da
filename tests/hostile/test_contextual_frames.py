"""Every rule of section 6 of docs/wire-format.md has an attack here, and every backend refuses it for the same reason.

The attacks spoil sections of legal frames, which tests/independent_reader/writer.py writes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from frame_attacks import BACKENDS, KINDS, rejects
from independent_reader import writer
from independent_reader.model import ONE_SIDED_PLANES, SIGNED_PLANES, TOKENS
from independent_reader.samples import good
from independent_reader.writer import BitsOut, Sections, to_zigzag, varint, write_model, write_sections
from serverlight.codec import decode
from serverlight.errors import (
    BadPadding,
    BadVarint,
    FrameTooLarge,
    FrameTooShort,
    InconsistentFrame,
    TrailingBytes,
    UnsupportedFeature,
)

whole_and_half = pytest.mark.parametrize("half", [False, True], ids=["whole", "half"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_frames_that_the_attacks_start_from_are_good(kind: int) -> None:
    """Without an attack they decode."""
    for choices in (
        {},
        {"raw_bits": 3},
        {"lanes_log2": 3},
        {"half": True},
        {"half": True, "raw_bits": 3, "lanes_log2": 3},
    ):
        for backend in BACKENDS:
            assert decode(good(kind, **choices).frame(), "numpy", backend=backend).shape == (2, 3, 5)


# -- section 6.1: stage header ---------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [7 | 16, 7 | 32, 7 | 64, 7 | 128, 0xF7])
def test_unknown_kinds(mode: int) -> None:
    """A tensor of zeros has no flags."""
    sections = good(TOKENS)
    sections.mode = bytes((mode,))
    rejects(UnsupportedFeature, sections.frame())


def test_kind_contradicts_the_sign_flag() -> None:
    """One-sided planes are one-sided, signed ones are not."""
    for kind in (ONE_SIDED_PLANES, SIGNED_PLANES):
        sections = good(kind)
        sections.mode = bytes((sections.mode[0] ^ 8,))
        rejects(InconsistentFrame, sections.frame())


@pytest.mark.parametrize("shape", [[0], [2, 0, 3], [0, 1, 2, 2]], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_empty_tensors_have_no_stages(shape: list[int], kind: int) -> None:
    sections = good(kind)
    sections.header = bytes((83, 76, 1, 2, 0, len(shape))) + bytes(shape)
    rejects(InconsistentFrame, sections.frame())
    rejects(InconsistentFrame, sections.header + sections.mode)
    assert decode(sections.header + b"\x07", "numpy").shape == tuple(shape)


def test_nothing_follows_zeros() -> None:
    for header in (good().header, b"SL\x01\x02\x00\x01\x00"):
        assert not decode(header + b"\x07", "numpy").any()
        rejects(TrailingBytes, header + b"\x07\x00")
        rejects(FrameTooShort, header)


@pytest.mark.parametrize("step", ["0000", "0080", "80bf", "c07f", "c0ff", "807f", "80ff", "7f00", "0100", "ff80"])
@pytest.mark.parametrize("kind", KINDS)
def test_steps_are_positive_and_normal(step: str, kind: int) -> None:
    """Zeros, negative numbers, NaN, infinities and subnormal numbers are no steps."""
    sections = good(kind)
    sections.step = bytes.fromhex(step)
    rejects(InconsistentFrame, sections.frame())


@pytest.mark.parametrize("activity", [160, 161, 200, 255])
def test_starting_activity(activity: int) -> None:
    sections = good(TOKENS)
    sections.activity = bytes((activity,))
    rejects(InconsistentFrame, sections.frame())


@pytest.mark.parametrize("raw_bits", [0, 27, 32, 64, 255])
def test_number_of_raw_bits(raw_bits: int) -> None:
    sections = good(raw_bits=3)
    sections.raw_bits = bytes((raw_bits,))
    rejects(InconsistentFrame, sections.frame())


# -- section 6.5: parameters ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_padding_of_the_parameters_is_zero(kind: int) -> None:
    """Each padding bit is looked at: four of them after four decisions of seven bits, five after five."""
    for bit in range(4 if kind == ONE_SIDED_PLANES else 3, 8):
        sections = good(kind)
        sections.model = sections.model[:-1] + bytes((sections.model[-1] | 1 << bit,))
        rejects(BadPadding, sections.frame())


def test_corrections_are_at_most_six_bits_wide() -> None:
    """Six zero bits are allowed; seven, or no one bit at all, are not."""
    for correction in (63, -63):
        sections = good(model=write_model([(0, [correction])] + [(0, None)] * 4))
        assert decode(sections.frame(), "numpy").shape == (2, 3, 5)
    for correction in (64, -64, 1 << 20):
        spoiled = good()
        spoiled.model = write_model([(0, [correction])] + [(0, None)] * 4)
        rejects(InconsistentFrame, spoiled.frame())
    zeros = good()
    zeros.model = b"\x60" + bytes(400)  # offset 0, corrections follow, and never a one
    rejects(InconsistentFrame, zeros.frame())


# -- section 1.4: lengths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lanes_log2", [0, 3])
def test_every_truncation_is_too_short(kind: int, lanes_log2: int) -> None:
    """Cut anywhere, the frame is refused as too short."""
    frame = good(kind, lanes_log2=lanes_log2).frame()
    for length in range(len(frame)):
        rejects(FrameTooShort, frame[:length])


@pytest.mark.parametrize("kind", KINDS)
def test_truncated_raw_bits(kind: int) -> None:
    """How many raw bits there must be is known only when all symbols are; too few are an inconsistency."""
    sections = good(kind, raw_bits=11)
    frame = sections.frame()
    for length in range(len(frame)):
        raw_is_reached = length >= len(frame) - len(sections.raw)
        rejects(InconsistentFrame if raw_is_reached else FrameTooShort, frame[:length], unseen=raw_is_reached)


@pytest.mark.parametrize("kind", KINDS)
def test_trailing_bytes(kind: int) -> None:
    rejects(TrailingBytes, good(kind).frame() + b"\x00")
    rejects(TrailingBytes, good(kind).frame() + bytes(1000))
    rejects(InconsistentFrame, good(kind, raw_bits=1).frame() + b"\x00", unseen=True)


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("length", [1 << 31, (1 << 32) - 1])
def test_huge_segments_are_refused_before_anything_is_allocated(which: int, length: int) -> None:
    """A segment that says it has eight gigabytes of words is simply too short."""
    sections = good()
    pair = list(sections.lengths[0])
    pair[which] = length
    sections.lengths = [(pair[0], pair[1])]
    rejects(FrameTooShort, sections.frame())


@pytest.mark.parametrize("length", [b"\x80\x00", b"\x80\x80\x80\x80\x10", b"\xff\xff\xff\xff\xff\x01"])
def test_lengths_are_minimal(length: bytes) -> None:
    sections = good()
    front = sections.header + sections.stage_header + sections.model + sections.shifts
    rejects(BadVarint, front + length + b"\x00" * 20)
    rejects(BadVarint, front + b"\x02" + length + b"\x00" * 20)


@pytest.mark.parametrize("kind", KINDS)
def test_terabytes_are_refused(kind: int) -> None:
    """The limit on elements comes before everything else."""
    sections = good(kind)
    for dims in ([2**32 - 1] * 2, [2**31, 512], [2**16] * 8, [2**29]):
        sections.header = bytes((83, 76, 1, 2, 0, len(dims))) + b"".join(map(varint, dims))
        rejects(FrameTooLarge, sections.frame())
        rejects(FrameTooLarge, sections.header + b"\x07")
    rejects(FrameTooLarge, good(kind).frame(), max_elements=29)


# -- section 6.6: words -----------------------------------------------------------------------------------------


def with_words(sections: Sections, words: list[int]) -> bytes:
    sections.words = [words]
    sections.lengths = [(len(words), sections.lengths[0][1])]
    return sections.frame()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lanes_log2", range(4))
def test_the_number_of_words_is_exact(kind: int, lanes_log2: int) -> None:
    """One word more, or any number fewer, down to less than the states take, is an inconsistency."""
    words = good(kind, lanes_log2=lanes_log2).words[0]
    for count in range(len(words)):
        rejects(InconsistentFrame, with_words(good(kind, lanes_log2=lanes_log2), words[:count]), unseen=True)
    for more in ([0], [0xFFFF], [0x8000] * 100):
        rejects(InconsistentFrame, with_words(good(kind, lanes_log2=lanes_log2), words + more), unseen=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("last", [0, 1, (1 << 15) - 1, (1 << 15) + 1, 1 << 16, (1 << 31) - 1])
def test_all_lanes_end_in_the_least_state(kind: int, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lane that ends in another state has been written by nobody, even if all words are used."""
    for lanes_log2 in range(4):
        monkeypatch.setattr(writer, "LEAST", last)
        frame = good(kind, lanes_log2=lanes_log2).frame()
        monkeypatch.undo()
        rejects(InconsistentFrame, frame, unseen=True)


# -- section 6.6: escapes and raw bits --------------------------------------------------------------------------------


def with_escapes(kind: int, escapes: bytes, half: bool) -> bytes:
    """The good frame, whose two escaped numbers (20 and 300, in pairs with others) come from other bits."""
    sections = good(kind, half=half)
    sections.escapes = [escapes]
    sections.lengths = [(sections.lengths[0][0], len(escapes))]
    return sections.frame()


def golomb(*values: int) -> BitsOut:
    bits = BitsOut()
    for value in values:
        bits.golomb(value, 1)
    return bits


@whole_and_half
@pytest.mark.parametrize("kind", KINDS)
def test_escapes_fill_their_bytes_exactly(kind: int, half: bool) -> None:
    """Too few, too many, and dirty padding are refused."""
    escapes = good(kind, half=half).escapes[0]
    for length in range(len(escapes)):
        rejects(InconsistentFrame, with_escapes(kind, escapes[:length], half), unseen=True)
    for more in (b"\x00", b"\x01", bytes(100)):
        rejects(InconsistentFrame, with_escapes(kind, escapes + more, half), unseen=True)


@pytest.mark.parametrize("kind", KINDS)
def test_half_escapes_are_half(kind: int) -> None:
    """Of a pair with one large number only that one is in the escape bits, and what is sent of it is its excess."""
    bits = golomb(*(number - 15 if kind == ONE_SIDED_PLANES else 2 * (number - 8) for number in (20, 300)))
    assert good(kind, half=True).escapes[0] == bits.data()
    frame = with_escapes(kind, bits.data(), True)
    assert decode(frame, "numpy").ravel()[[4, 17]].tolist() == [20, 300]


@pytest.mark.parametrize("kind", KINDS)
def test_the_escape_symbol_has_a_bit_among_half_escapes(kind: int) -> None:
    """A pair with the escape symbol says whether its numbers are sent whole; what ends with that bit, or before it, is refused."""
    sections = write_sections([2, 2], kind, [300] * 4, half=True, model=good(kind, half=True).model)
    excess = 300 - 15 if kind == ONE_SIDED_PLANES else 2 * (300 - 8)
    whole = 300 if kind == ONE_SIDED_PLANES else to_zigzag(300)
    for is_whole, code in ((0, excess), (1, whole)):
        bits = BitsOut()
        for _ in range(2):
            bits.put(is_whole, 1)
            bits.golomb(code, 1)
            bits.golomb(code, 1)
        if not is_whole:
            assert sections.escapes[0] == bits.data()
        sections.escapes, sections.lengths = [bits.data()], [(sections.lengths[0][0], len(bits.data()))]
        for backend in BACKENDS:
            assert decode(sections.frame(), "numpy", backend=backend).tolist() == [[300, 300]] * 2
    for cut in (b"", bits.data()[:1], b"\x00", b"\x01", b"\xff", b"\x02" + bytes(4)):
        sections.escapes, sections.lengths = [cut], [(sections.lengths[0][0], len(cut))]
        rejects(InconsistentFrame, sections.frame(), unseen=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_flag_that_lies_about_half_escapes(kind: int) -> None:
    """Read with the other tables, the words do not come out even."""
    for half in (False, True):
        sections = good(kind, half=half, model=good(kind, half=True).model)
        sections.mode = bytes((sections.mode[0] ^ 128,))
        rejects(InconsistentFrame, sections.frame(), unseen=True)


@whole_and_half
@pytest.mark.parametrize("kind", KINDS)
def test_padding_of_escapes_is_zero(kind: int, half: bool) -> None:
    """Every padding bit is looked at, however many there are."""
    seen = set()
    for count in range(12):
        sections = good(kind, half=half, escaped=set(range(count)))
        escapes, padding = sections.escapes[0], sections.padding[0]
        for bit in range(8 - padding, 8):
            sections.escapes = [escapes[:-1] + bytes((escapes[-1] | 1 << bit,))]
            rejects(InconsistentFrame, sections.frame(), unseen=True)
        seen.add(padding)
    assert len(seen) > 2


@whole_and_half
@pytest.mark.parametrize("kind", KINDS)
def test_escapes_past_the_end_or_too_wide(kind: int, half: bool) -> None:
    """Only zeros, a one as the last bit, and codes of more than 32 bits never read past the end."""
    for escapes in (bytes(1), bytes(5), bytes(2000), b"\x80", bytes(3) + b"\x80", bytes(4) + b"\x01" + bytes(100)):
        rejects(InconsistentFrame, with_escapes(kind, escapes, half), unseen=True)


@whole_and_half
@pytest.mark.parametrize("kind", KINDS)
def test_numbers_are_at_most_2_to_the_28(kind: int, half: bool) -> None:
    """The largest number is read; one more is refused, and so is all that 32 bits can say."""

    def code_of(number: int) -> int:
        if half:
            return number - 15 if kind == ONE_SIDED_PLANES else 2 * (abs(number) - 8) + (number < 0)
        return number if kind == ONE_SIDED_PLANES else to_zigzag(number)

    def one_number(code: int) -> bytes:
        large = [15]
        sections = write_sections([1], kind, large, half=half, model=good(kind, half=True).model)
        sections.escapes = [golomb(code).data()]
        sections.lengths = [(sections.lengths[0][0], len(sections.escapes[0]))]
        return sections.frame()

    for number in (1 << 28, -(1 << 28)) if kind != ONE_SIDED_PLANES else (1 << 28,):
        code = code_of(number)
        for backend in BACKENDS:
            assert decode(one_number(code), "numpy", backend=backend) == [number]
        beyond = code + (1 if kind == ONE_SIDED_PLANES else 2)
        for too_large in (beyond, 1 << 31, (1 << 32) - 3, (1 << 33) - 3):
            rejects(InconsistentFrame, one_number(too_large), unseen=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("raw_bits", [1, 3, 8, 13, 26])
def test_raw_bits_are_exact(kind: int, raw_bits: int) -> None:
    """Too few, too many, none, and dirty padding are refused."""
    raw = good(kind, raw_bits=raw_bits).raw
    spoiled = [raw[:-1], raw + b"\x00", raw + b"\x01", b"", raw + bytes(100)]
    used = raw_bits * sum(1 for value in decode(good(kind).frame(), "numpy").ravel() if value)
    if used % 8:
        spoiled += [raw[:-1] + bytes((raw[-1] | 1 << bit,)) for bit in range(used % 8, 8)]
    for data in spoiled:
        sections = good(kind, raw_bits=raw_bits)
        sections.raw = data
        rejects(InconsistentFrame, sections.frame(), unseen=True)


def test_no_value_becomes_infinite() -> None:
    """The largest step, number, raw bits and shift are held within the finite range of every dtype."""
    for dtype, largest in ((0, 3.4028234663852886e38), (1, 65504.0), (2, 3.3895313892515355e38)):
        for kind in KINDS:
            high = [1 << 28, -(1 << 28)] if kind != ONE_SIDED_PLANES else [1 << 28] * 2
            choices: dict[str, Any] = {"step": b"\x7f\x7f", "raw_bits": 26, "low": [(1 << 26) - 1] * 2, "dtype": dtype}
            frame = write_sections([1, 2], kind, high, **choices).frame()
            for backend in BACKENDS:
                y = decode(frame, backend=backend).float().numpy()
                assert np.abs(y).tolist() == [[np.float32(largest)] * 2]
