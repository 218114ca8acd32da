"""Any frame that the page allows is read, whatever choices its writer made: both backends and the second reader agree."""

from __future__ import annotations

import importlib.util
import math
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from independent_reader import read_frame
from independent_reader.model import DEFAULTS, FLAT, ONE_SIDED_PLANES, SIGNED_PLANES
from independent_reader.writer import write_model, write_sections
from serverlight.codec import decode

BACKENDS = ["reference"] + ["cpu"] * (importlib.util.find_spec("numba") is not None)


def agree(frame: bytes) -> list[float]:
    """All readers give the same bits."""
    values = read_frame(frame).values
    bits = struct.pack(f"<{len(values)}f", *values)
    for backend in BACKENDS:
        assert decode(frame, backend=backend).float().numpy().tobytes() == bits, backend
    return values


@st.composite
def models(draw: st.DrawFn, kind: int, short: bool) -> bytes:
    """Parameters from the plain to the absurd."""
    contexts = DEFAULTS[kind].count(";") + 1
    correction = st.sampled_from([0, 0, 0, 1, -1, 4, -9, 63, -63])
    corrections = st.none() | st.lists(correction, min_size=contexts, max_size=contexts)
    if short and kind == FLAT:
        corrections = st.none()
    offset = st.integers(-32, 31) if draw(st.booleans()) else st.just(0)
    parameters = [(draw(offset), draw(corrections)) for _ in range(4 if kind == ONE_SIDED_PLANES else 5)]
    return write_model(parameters, kind if short else None)


@st.composite
def frames(draw: st.DrawFn) -> bytes:
    """Legal frames of every kind, with any lanes, parameters, escapes, shifts and raw bits, and numbers up to the largest."""
    kind, shape = draw(st.integers(0, 3)), draw(st.lists(st.sampled_from([1, 1, 2, 3, 4, 7, 9, 17]), max_size=4))
    size = math.prod(shape)
    if size > 600:
        shape, size = [size % 599 + 1], size % 599 + 1
    random: Any = draw(st.randoms(use_true_random=False))
    largest, density = draw(st.sampled_from([1, 2, 7, 8, 40, 300, 1 << 28])), draw(st.floats(0, 1))
    high = [random.randint(-largest, largest) if random.random() < density else 0 for _ in range(size)]
    high = [abs(h) for h in high] if kind == ONE_SIDED_PLANES else high
    one_sided = kind != SIGNED_PLANES and draw(st.booleans())
    short = draw(st.booleans())
    raw_bits = 0 if short else draw(st.sampled_from([0, 0, 1, 2, 7, 8, 9, 26]))
    num_shifts = {ONE_SIDED_PLANES: 10, SIGNED_PLANES: 9}.get(kind, 4 if one_sided else 3)
    return write_sections(
        shape,
        kind,
        high,
        lanes_log2=draw(st.integers(0, 3)),
        one_sided=one_sided,
        dtype=draw(st.integers(0, 2)),
        step=draw(st.sampled_from([b"\x80\x3f", b"\x80\x00", b"\x7f\x7f", b"\x55\x3d", b"\xd0\x60"])),
        activity=draw(st.sampled_from([0, 1, 40, 159]) | st.integers(0, 159)),
        raw_bits=raw_bits,
        half=draw(st.booleans()),
        low=[random.getrandbits(raw_bits) for h in high if h] if raw_bits else (),
        model=draw(models(kind, short)),
        shifts=None if short and draw(st.booleans()) else draw(st.binary(min_size=num_shifts, max_size=num_shifts)),
        short=short,
        escaped={i for i in range(size) if random.random() < 0.05},
    ).frame()


@settings(max_examples=250, deadline=None)
@given(frame=frames())
def test_every_legal_frame_is_read_alike(frame: bytes) -> None:
    """Numbers at the limits, tables at the limits, lanes without work: the readers give the same finite values."""
    assert all(map(math.isfinite, agree(frame)))


def test_a_context_whose_numbers_are_all_large() -> None:
    """Of a context that is not even used: its other symbols have one each, and the escape what is left."""
    frame = "534c0102000081803f00e0ff3fd00f81ffff401ffcff07fae0ff3fd00700000002010008ff0f03"
    assert agree(bytes.fromhex(frame)) == [0.0]


@pytest.mark.parametrize("kind", range(4))
@pytest.mark.parametrize("shape", [[], [1], [9], [1, 1], [5, 1], [1, 5], [3, 1, 1], [17, 1, 1], [17, 2, 3]], ids=str)
def test_lanes_may_outnumber_everything(kind: int, shape: list[int]) -> None:
    """Eight lanes over one element, one column or one plane are legal."""
    high = [(7 * i + 3) % 5 - 2 * (kind != ONE_SIDED_PLANES) for i in range(math.prod(shape))]
    for lanes_log2 in range(4):
        assert agree(write_sections(shape, kind, high, lanes_log2=lanes_log2).frame()) == high


@pytest.mark.parametrize("kind", range(4))
def test_segments_of_a_foreign_writer(kind: int) -> None:
    """Several segments, with lanes and escapes of their own, whole or half."""
    shape = [17, 60, 130]
    high = [i * i % 11 // 5 * (1 if kind == ONE_SIDED_PLANES or i % 3 else -1) for i in range(math.prod(shape))]
    high[5] = high[-3] = 1000
    for half in (False, True):
        sections = write_sections(shape, kind, high, lanes_log2=3, half=half, escaped={40, 100_000})
        assert len(sections.lengths) == (3 if kind in (ONE_SIDED_PLANES, SIGNED_PLANES) else 2)
        assert agree(sections.frame()) == high
