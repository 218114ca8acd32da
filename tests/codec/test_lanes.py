"""The loops that take eight lanes, four segments or four frames at once give what those that take one after the other do."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("numba")

from hypothesis import given, settings
from hypothesis import strategies as st

from serverlight.codec import Codec, CodecConfig, decode, decode_batch
from serverlight.codec.backends.cpu import coder as cpu_coder
from serverlight.codec.backends.cpu import escapes as cpu_escapes
from serverlight.codec.backends.cpu import filter as cpu_filter
from serverlight.codec.backends.cpu import lanes as cpu_lanes
from serverlight.codec.backends.cpu import model as cpu_model
from serverlight.codec.backends.cpu import tokens as cpu_tokens
from serverlight.codec.backends.cpu.compiled import njit
from serverlight.codec.backends.cpu.symbols import SMALL_MEAN
from serverlight.codec.backends.cpu.vectors import HAS_VECTORS
from serverlight.codec.tables import COST_OF_FREQUENCY, DEFAULT_LEVELS, FIRST, FLIP_NEXT, NEXT
from serverlight.errors import FrameError

TOKENS = 1
ROWS = 16
needs_vectors = pytest.mark.skipif(not HAS_VECTORS, reason="this processor has no AVX-512")


def coder_tables(index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The writer's and the reader's table for entries of rows of tokens."""
    levels = DEFAULT_LEVELS[TOKENS].astype(np.int64)
    frequencies = cpu_model.build_tables(levels, FIRST[TOKENS], NEXT[TOKENS], FLIP_NEXT[TOKENS], False, False, True)
    histogram = np.bincount(index, minlength=256 * ROWS).reshape(ROWS, 256).astype(np.int64)
    table = np.zeros(1024 * ROWS, np.uint32)
    cpu_model.encoder_tables(frequencies, histogram, COST_OF_FREQUENCY, table)
    return table, cpu_model.decoder_table(frequencies)


def entries(rng: np.random.Generator, size: int) -> np.ndarray:
    """Entries of the tables, most of them of small numbers, and some with escapes."""
    symbols = 16 * np.minimum(rng.geometric(0.4, size) - 1, 15) + np.minimum(rng.geometric(0.4, size) - 1, 15)
    return (256 * rng.integers(0, ROWS, size) + symbols).astype(np.uint16)


@needs_vectors
@pytest.mark.parametrize(("stride", "advance"), [(1, 8), (40, 1)])
def test_eight_lanes_are_coded_as_one_after_the_other(stride: int, advance: int) -> None:
    """Words, states and the places of marked entries are the same, for lanes side by side and for planes."""
    index = entries(np.random.default_rng(stride), 8 * 40)
    table, _ = coder_tables(index)
    found = []
    for put in (
        cpu_coder.put_eights_in_turn,
        cpu_coder.at_once(8, stride if stride == 1 else 0),
        cpu_coder.at_once(0, 0),
    ):
        states, words = np.full(8, 1 << 15, np.uint64), np.zeros(600, np.uint16)
        escaped = np.zeros(400, np.int64)
        at, count = put(8, index, 0, stride, advance, 40, 1, 0, table, states, words, np.uint64(600), escaped, 0)
        found.append((int(at), int(count), states.tolist(), words[int(at) :].tolist(), escaped[: int(count)].tolist()))
    assert found[0] == found[1] == found[2]
    assert found[0][1] > 0


@needs_vectors
@pytest.mark.parametrize("count", [1, 5, 7])
def test_lanes_that_do_not_take_part_keep_their_states(count: int) -> None:
    """Fewer planes than lanes are coded as by the loop over states."""
    index = entries(np.random.default_rng(count), 8 * 30)
    table, _ = coder_tables(index)
    some, loop = (np.arange(8, dtype=np.uint64) + np.uint64(1 << 16) for _ in range(2))
    words, other, escaped = np.zeros(400, np.uint16), np.zeros(400, np.uint16), np.zeros(400, np.int64)
    at, _ = cpu_coder.at_once(0, 0)(count, index, 0, 30, 1, 30, 1, 0, table, some, words, np.uint64(400), escaped, 0)
    to = np.uint64(400)
    for place in range(29, -1, -1):
        to, _ = cpu_coder.put_loop(index, place, 30, count, count - 1, table, loop, other, to, escaped, 0)
    assert (some == loop).all()
    assert words[int(at) :].tolist() == other[int(to) :].tolist()


@needs_vectors
@pytest.mark.parametrize("widths", [(8,), (13, 13, 14), (24, 24, 24, 24), (19, 20, 19, 20, 20), (3, 9, 8, 16, 1, 7)])
def test_segments_in_turn_are_read_as_one_after_the_other(widths: tuple[int, ...]) -> None:
    """A line of many segments, of any widths, gives each its symbols, states and positions, and nothing to its neighbour."""
    rng = np.random.default_rng(len(widths))
    borders = np.concatenate([[0], np.cumsum(widths)]).astype(np.int64)
    size, count = int(borders[-1]), len(widths)
    _, table = coder_tables(entries(rng, 10))
    words = rng.integers(0, 1 << 16, 100 * count + 200).astype(np.uint16)
    rows = np.zeros(size + 8, np.uint8)
    rows[:size] = rng.integers(0, ROWS, size)
    states = rng.integers(1 << 15, 1 << 31, (count, 8)).astype(np.uint32)
    at, limits = (
        np.arange(0, 100 * count, 100).astype(np.uint64),
        np.arange(100, 100 * count + 1, 100).astype(np.uint64),
    )
    streams = borders, states, at, limits, np.zeros((count, 5), np.int64), words, np.zeros(0, np.uint8)
    line, expected = np.zeros(size + 64, np.uint8), np.zeros(size + 64, np.uint8)
    alone, positions = states.copy(), at.copy()
    assert cpu_lanes.get_line(streams, rows, table, line)
    for i in range(count):
        part = slice(int(borders[i]), int(borders[i + 1]))
        into = expected[part]
        positions[i] = cpu_lanes.get_run(
            rows[part], widths[i], alone[i], words, limits[i], positions[i], table, into
        )  # fmt: skip
    assert line[:size].tolist() == expected[:size].tolist()
    assert at.tolist() == positions.tolist()
    assert states.tolist() == alone.tolist()


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.one_of(st.integers(0, 40), st.integers(0, (1 << 29) - 1)), min_size=1, max_size=20),
    start=st.integers(0, 30),
)
def test_golomb_codes_come_back(values: list[int], start: int) -> None:
    """Short codes, long ones, and those at the end of the bytes, from any bit on; and none beyond the end."""
    buffer, at = np.zeros(18 * len(values) + 20, np.uint8), start
    for value in values:
        at = put_golomb(buffer, at, value)
    exact = buffer[: (at + 7) // 8]
    place = start
    for value in values:
        number, place = get_golomb(exact, place, at)
        assert number == value
    assert place == at
    assert get_golomb(exact, start, start + 1)[1] == -1


@njit
def put_golomb(buffer: np.ndarray, at: int, value: int) -> int:
    """The writer's function."""
    return cpu_escapes.put_golomb(buffer, at, value)


@njit
def get_golomb(buffer: np.ndarray, at: int, end: int) -> tuple[int, int]:
    """The reader's."""
    return cpu_lanes.get_golomb(buffer, at, end)


@settings(max_examples=200, deadline=None)
@given(
    size=st.integers(1, 5000),
    seed=st.integers(0, 1000),
    odd=st.lists(st.sampled_from([0.0, -0.0, 1e-45, -1e-45, np.inf, -np.inf, np.nan, 3.4e38, -3.4e38]), max_size=4),
    low=st.floats(0, 2, width=32),
    width=st.floats(0, 1, width=32),
    room=st.integers(0, 3000),
)
def test_a_survey_finds_what_counting_finds(
    size: int, seed: int, odd: list[float], low: float, width: float, room: int
) -> None:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=size).astype(np.float32)
    x = np.abs(x) if seed % 2 else x
    x[rng.integers(0, size, len(odd))] = odd
    keys, magnitudes = x.view(np.int32), (x.view(np.int32) & 0x7FFFFFFF)
    bottom, top = (int(np.float32(value).view(np.int32)) for value in (low, low + width))
    work = np.empty(room, np.int32)
    *facts, found = cpu_filter.survey(keys, np.int32(bottom), np.int32(top), work)
    assert facts == [
        np.count_nonzero(magnitudes),
        bool(((keys < 0) & (magnitudes > 0)).any()),
        bool(np.isfinite(x).all()),
        np.count_nonzero(magnitudes >= bottom),
        np.count_nonzero(magnitudes >= top),
    ]
    between = magnitudes[(magnitudes >= bottom) & (magnitudes < top)]
    assert found == between.size or found <= room < between.size
    assert set(work[:found].tolist()) <= set(between.tolist())
    if found == between.size:
        assert work[:found].tolist() == between.tolist()


@pytest.mark.parametrize("rank", [1, 1000, 100_000, 200_000])
def test_the_rank_is_exact_where_channels_differ(rank: int) -> None:
    """A sample at even distances would see the same few channels only; the result is exact whatever the sample says."""
    rng = np.random.default_rng(rank)
    x = (rng.standard_normal((64, 4096)) * np.exp(2 * rng.standard_normal(4096))).astype(np.float32).reshape(-1)
    expected = np.sort(np.abs(x))[-rank]
    assert np.int32(cpu_filter.kth_largest(x.view(np.int32), rank)).view(np.float32) == expected


@pytest.mark.parametrize("shape", [(3, 100, 100), (5, 80, 80), (13, 41, 41), (44, 40, 40)])
@pytest.mark.parametrize("spread", [0.0, 2.0])
@pytest.mark.parametrize("signed", [False, True])
def test_planes_are_read_as_by_the_reference(shape: tuple[int, ...], spread: float, signed: bool) -> None:
    """Few planes, odd ends, fewer planes than lanes in a last block, segments in turn, and raw bits with escapes: all the same."""
    rng = np.random.default_rng(shape[0])
    x = rng.standard_normal(shape) * np.exp(spread * rng.standard_normal(shape))
    frame = Codec(CodecConfig(sparsity=0.2)).encode((x if signed else np.abs(x)).astype(np.float32))
    expected = decode(frame, like="numpy", backend="reference")
    assert np.array_equal(decode(frame, like="numpy").view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("width", [5, 32, 77])
@pytest.mark.parametrize("is_even", [False, True])
def test_channels_in_groups_become_what_those_alone_do(width: int, is_even: bool) -> None:
    """Values, means and contexts of whatever symbols there are, after whatever was read before, with any shifts."""
    rng = np.random.default_rng(width)
    facts = cpu_tokens.facts_of(rng.integers(-127, 128, 10).astype(np.int16), is_even)
    by_nibble, unit = cpu_tokens.tables_of(facts), np.float32(0.37)
    for _ in range(200):
        line = rng.integers(0, 256, width).astype(np.uint8)
        means = rng.integers(0, rng.choice([2, 60, 700, 9000, SMALL_MEAN + 1]), width).astype(np.int16)
        leads = (means * rng.uniform(-1, 1, width)).astype(np.int16)
        borders = np.sort(rng.choice(means, 7)).astype(np.int16)
        found = []
        for read, known in (
            (cpu_tokens.busy_values, (borders, facts, by_nibble, unit)),
            (cpu_tokens.busy_loop, (borders, facts, unit)),
        ):
            own = means.copy(), leads.copy(), np.empty(width, np.uint8), np.empty((2, width), np.float32)
            read(line, *known, *own[:3], own[3][0], own[3][1])
            found.append([part.tobytes() for part in own])
        assert found[0] == found[1]


def tokens(num: int, sparsity: float) -> list[bytes]:
    """Frames of single tokens."""
    rng = np.random.default_rng(num)
    codec = Codec(CodecConfig(sparsity=sparsity))
    return [codec.encode(rng.standard_t(5, (1, 2048)).astype(np.float32)) for _ in range(num)]


@pytest.mark.parametrize("num", [3, 4, 5, 11])
@pytest.mark.parametrize("sparsity", [0.1, 0.6, 0.97])
def test_batches_of_tokens_are_read_as_single_ones(num: int, sparsity: float) -> None:
    """Whether four at once or not, and with one, two or four lanes, a batch gives the same bits as its frames alone."""
    frames = tokens(num, sparsity)
    expected = np.concatenate([decode(frame, like="numpy") for frame in frames])
    assert np.array_equal(decode_batch(frames, like="numpy").view(np.int32), expected.view(np.int32))


@pytest.mark.parametrize("broken", range(8))
def test_a_broken_token_is_named_among_four(broken: int) -> None:
    """The error has the frame's index and says what it says of the frame alone; frames of other kinds may lie between."""
    frames = tokens(7, 0.6) + tokens(1, 0.1)
    plain = Codec(CodecConfig(sparsity=0.6, checksum=False)).encode(decode(frames[0], like="numpy"))
    frames[broken] = plain[:-9] + bytes(9)
    with pytest.raises(FrameError) as alone:
        decode(frames[broken])
    with pytest.raises(type(alone.value), match=f"frame {broken}: "):
        decode_batch(frames)


WITHOUT_VECTORS = """
import hashlib, numpy as np
from serverlight.codec import Codec, CodecConfig, decode
from serverlight.codec.backends.cpu.vectors import HAS_VECTORS
rng, digest = np.random.default_rng(0), hashlib.sha256()
for shape, shift in (((512, 512), 0), ((1, 40, 56, 56), 0), ((1, 40, 56, 56), 2), ((1, 4096), 0)):
    x = (rng.standard_t(5, shape) + shift).astype(np.float32)
    frame = Codec(CodecConfig(sparsity=0.4)).encode(np.maximum(x, 0) if shift else x)
    digest.update(frame)
    digest.update(decode(frame, like="numpy").tobytes())
print(HAS_VECTORS, digest.hexdigest())
"""


@pytest.mark.slow
@needs_vectors
def test_a_processor_without_vectors_gives_the_same() -> None:
    """Compiled for a processor without AVX-512, the codec writes the same bytes and reads the same bits; this takes minutes."""
    answers = []
    for more in ({}, {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "+avx2,+bmi,+bmi2,+lzcnt,+popcnt,+sse4.2"}):
        done = subprocess.run(
            [sys.executable, "-c", WITHOUT_VECTORS],
            env={**os.environ, **more},
            capture_output=True,
            text=True,
            check=True,
        )
        answers.append(done.stdout.split())
    assert [answer[0] for answer in answers] == ["True", "False"]
    assert answers[0][1] == answers[1][1]
