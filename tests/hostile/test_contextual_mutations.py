"""Frames of profile ``serverlight`` altered at random: every backend decodes the same bits, or raises the same FrameError.

Compiled loops check no bounds, so this is where reads and writes beyond their arrays would show.
"""

from __future__ import annotations

import importlib.util
import math
import os
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from independent_reader.model import FLAT, ONE_SIDED_PLANES, SIGNED_PLANES, TOKENS, TRELLIS
from independent_reader.samples import good
from independent_reader.writer import varint, write_model, write_sections
from serverlight.codec import Codec, CodecConfig, decode, inspect
from serverlight.errors import FrameError

BACKENDS = ["reference"] + ["cpu"] * (importlib.util.find_spec("numba") is not None)
KINDS = range(5)


def outcome(frame: bytes, backend: str) -> Any:
    """The error's type, or shape, dtype and bits of the tensor."""
    try:
        y = decode(frame, backend=backend, max_elements=1 << 14)
    except FrameError as error:
        return type(error)
    values = y.float().numpy()
    assert np.isfinite(values).all()
    return y.dtype, y.shape, values.tobytes()


def both_agree(frame: bytes) -> None:
    """Every backend decodes the frame to the same bits, or refuses it with the same error; ``inspect`` knows the shape."""
    first = outcome(frame, BACKENDS[0])
    assert all(outcome(frame, backend) == first for backend in BACKENDS[1:])
    if not isinstance(first, type):
        assert inspect(frame, max_elements=1 << 14).shape == tuple(first[1])


def with_words(kind: int, lanes_log2: int, half: bool, words: list[int]) -> bytes:
    """The good frame with as many other words."""
    sections = good(kind, lanes_log2=lanes_log2, half=half)
    sections.words = [words]
    return sections.frame()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lanes_log2", [0, 3])
@pytest.mark.parametrize("half", [False, True])
def test_states_and_words_of_every_kind(kind: int, lanes_log2: int, half: bool) -> None:
    """Whatever the words say, the readers do not leave their arrays: zeros, ones, and every single word replaced."""
    words = good(kind, lanes_log2=lanes_log2, half=half).words[0]
    for value in (0, 0xFFFF, 0x7FFF, 0x8000):
        both_agree(with_words(kind, lanes_log2, half, [value] * len(words)))
        for i in range(len(words)):
            both_agree(with_words(kind, lanes_log2, half, [*words[:i], value, *words[i + 1 :]]))


def written_by_the_package(seed: int) -> bytes:
    """A frame of a random tensor: any layout, dtype, sparsity and step."""
    rng = np.random.default_rng(seed)
    shape = [(37,), (6, 9), (5, 1), (1, 3, 5, 4), (2, 2, 3, 3), (1, 9, 2, 5)][rng.integers(6)]
    x = rng.standard_normal(shape) ** rng.choice([1, 3])
    x = np.abs(x) if rng.random() < 0.5 else x
    config = CodecConfig(
        profile="serverlight",
        sparsity=float(rng.choice([0.0, 0.3, 0.7, 0.9])),
        distortion=rng.choice([None, 0.05, 1e-3]),
        trellis=bool(rng.integers(2)),
        checksum=False,
    )
    return Codec(config, backend="reference").encode(x.astype(rng.choice([np.float16, np.float32])))


def written_by_another(seed: int) -> bytes:
    """A frame of the other writer: lanes without work, wild parameters, escapes of small numbers."""
    rng = np.random.default_rng(seed)
    kind, shape = int(rng.integers(5)), [int(side) for side in rng.integers(1, 6, rng.integers(0, 5))]
    size = math.prod(shape)
    largest = int(rng.choice([3, 3, 20]))
    high = [int(h) for h in rng.integers(0 if kind == ONE_SIDED_PLANES else -largest, largest + 1, size)]
    raw_bits, short = int(rng.choice([0, 0, 5])), bool(rng.integers(2)) or kind == TRELLIS
    raw_bits = 0 if short else raw_bits
    contexts = (1, 16, 27, 14, 32)[kind]
    corrections = [None, *([int(c) for c in rng.integers(-9, 10, contexts)] for _ in range(4))]
    return write_sections(
        shape,
        kind,
        high,
        lanes_log2=int(rng.integers(4)),
        dtype=int(rng.integers(3)),
        activity=int(rng.integers(160)),
        raw_bits=raw_bits,
        half=bool(rng.integers(2)),
        low=[int(rng.integers(1 << raw_bits)) for h in high if h] if raw_bits else (),
        short=short,
        model=write_model(
            zip(map(int, rng.integers(-32, 32, 5)), [None] * 5 if kind == FLAT else corrections, strict=True),
            kind if short else None,
        )
        if kind != ONE_SIDED_PLANES
        else None,
        escaped={i for i in range(size) if rng.random() < 0.1},
    ).frame()


@settings(max_examples=1000, deadline=None)
@given(data=st.data())
def test_altered_frames_decode_or_raise_alike(data: st.DataObject) -> None:
    """Whatever is changed, cut or added in a valid frame, the backends agree: the same bits, or the same error."""
    source = data.draw(st.sampled_from([written_by_the_package, written_by_another]))
    frame = bytearray(source(data.draw(st.integers(0, 300))))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(frame) - 1))
        if data.draw(st.integers(0, 9)) == 0:
            frame[at : at + 1] = data.draw(st.binary(max_size=3))
            frame = frame or bytearray(b"S")
        elif data.draw(st.booleans()):
            frame[at] ^= 1 << data.draw(st.integers(0, 7))
        else:
            frame[at] = data.draw(st.integers(0, 255))
    both_agree(bytes(frame))


@settings(max_examples=1000, deadline=None)
@given(
    shape=st.lists(st.integers(1, 9), max_size=4),
    mode=st.integers(0, 255),
    words=st.integers(0, 60),
    escapes=st.integers(0, 9),
    body=st.binary(min_size=150, max_size=400),
)
def test_random_streams_behind_a_good_start(shape: list[int], mode: int, words: int, escapes: int, body: bytes) -> None:
    """Random words, escapes and raw bits behind well-formed sections, long and short."""
    kind = mode & 3
    one_sided = kind == ONE_SIDED_PLANES or (mode & 8 and kind != SIGNED_PLANES)
    mode = mode & 0xF0 | kind | (8 if one_sided else 0)
    num_shifts = {2: 10, 3: 9}.get(kind, 4 if one_sided else 3)
    num_decisions, short = 4 if kind == ONE_SIDED_PLANES else 5, body[11] & 1
    model = write_model([(body[3 + i] % 64 - 32, None) for i in range(num_decisions)], kind if short else None)
    if kind == TOKENS and short and body[12] & 1:
        mode, num_shifts = mode | 15, 3
    elif short:
        mode += 4 + min(kind, 2) - kind
    front = bytes((83, 76, 1, 2, body[0] % 3, len(shape), *shape, mode))
    front += b"\x80\x3f" + bytes((body[1] % 160,)) * (kind == TOKENS)
    if short:
        num_shifts = num_shifts if mode & 64 else 0
    elif mode & 64:
        front += bytes((body[2] % 26 + 1,))
    streams = bytes((words, escapes))[short:] + body[20 : 20 + 2 * words + escapes]
    rest = body[160 : 160 + body[9] % 40] if mode & 64 and not short else b""
    both_agree(front + model + body[10 : 10 + num_shifts] + streams + rest)


@pytest.mark.skipif("cpu" not in BACKENDS, reason="numba not installed")
def test_memory_stays_near_the_declared_size() -> None:
    """A hostile frame of a few bytes cannot make the reader allocate more than a small multiple of its limit."""
    frames = []
    for dims in ([1 << 20], [1 << 10, 1 << 10], [1, 1 << 20], [1 << 20, 1], [16, 256, 256], [1 << 18, 2, 2]):
        for kind in KINDS:
            for lanes_log2 in (0, 3):
                sections = good(kind, lanes_log2=lanes_log2)
                num_segments = max(1, min(16, units(dims, kind) // 8))
                sections.header = bytes((83, 76, 1, 2, 0, len(dims))) + b"".join(map(varint, dims))
                sections.lengths = [(16, 0)] * num_segments
                sections.words = [[0x8000, 0] * 8] * num_segments
                sections.escapes = []
                frames.append(sections.frame())
        frames.append(bytes((83, 76, 1, 2, 0, len(dims))) + b"".join(map(varint, dims)) + b"\x07")
    script = """
import resource, sys
from serverlight.codec import decode
from serverlight.errors import FrameError
def run(frames, limit):
    for frame in frames:
        try:
            decode(frame, "numpy", max_elements=limit, backend="cpu")
        except FrameError:
            pass
small, large = (list(map(bytes.fromhex, line.split())) for line in sys.stdin)
run(small, 1 << 20)
base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
run(large, 1 << 20)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base)
"""
    small = [
        good(kind, raw_bits=raw_bits).frame() for kind in KINDS for raw_bits in ((0, 3) if kind != TRELLIS else (0,))
    ]
    lines = "\n".join(" ".join(frame.hex() for frame in each) for each in (small, frames))
    done = subprocess.run([sys.executable, "-c", script], input=lines, capture_output=True, text=True, check=True)
    # 2^20 elements are 4 MiB of float32, and as much as integers; lines, lanes and contexts take a dozen bytes an element at most.
    assert int(done.stdout) < 64 * 1024


def units(dims: list[int], kind: int) -> int:
    """What segments are cut along (section 6.3)."""
    size = math.prod(dims)
    if kind == FLAT:
        return (size + 1) // 2
    rows = dims[-2] if len(dims) > 1 else 1
    return dims[-1] if kind in (TOKENS, TRELLIS) else size // (rows * dims[-1])


@pytest.mark.slow
@pytest.mark.skipif("cpu" not in BACKENDS, reason="numba not installed")
@pytest.mark.timeout(1800)
def test_compiled_loops_stay_within_their_arrays(tmp_path: pathlib.Path) -> None:
    """With bounds checks compiled in, this module, the attacks and the backends' suite raise no IndexError."""
    tests = pathlib.Path(__file__).parents[1]
    modules = [*(tests / "hostile").glob("test_contextual_*.py"), *(tests / "codec").glob("test_[bcft]*.py")]
    # Numba's cache does not tell checked from unchecked code: a folder of its own.
    checked = {**os.environ, "NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *map(str, sorted(modules))]
    done = subprocess.run(command, env=checked, capture_output=True, text=True, cwd=tests.parent)
    assert done.returncode == 0, done.stdout[-4000:]
