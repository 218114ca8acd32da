"""Tokens along a trellis: the same bytes and bits from every backend and the second reader, fewer bits, and where there is none."""

from __future__ import annotations

import importlib.util
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from independent_reader.frame import read_frame
from independent_reader.model import TRELLIS
from independent_reader.writer import write_sections
from serverlight.codec import Codec, CodecConfig, decode, inspect, trellis
from serverlight.codec.activity import NO_SPREADS
from serverlight.codec.backends.reference.trellis import Survivors
from serverlight.codec.basis import calibrate_basis
from serverlight.errors import ConfigError

BACKENDS = ["reference"] + ["cpu"] * (importlib.util.find_spec("numba") is not None)
Floats = NDArray[np.float32]


def along(**knobs: Any) -> CodecConfig:
    return CodecConfig(trellis=True, checksum=False, **knobs)


def tokens(rows: int, columns: int, *, seed: int = 0, tails: float = 8.0, lean: float = 0.0) -> Floats:
    """Channels of unlike size, with tails as of Student's distribution, and means that are not zero if asked for."""
    rng = np.random.default_rng(seed)
    x = rng.standard_t(tails, (rows, columns)) * np.exp(0.5 * rng.standard_normal(columns))
    return (x + lean * rng.standard_normal(columns)).astype(np.float32)


def is_along(frame: bytes) -> bool:
    """Whether the frame says so."""
    return bool(inspect(frame).config["trellis"])


def agree(x: Any, config: CodecConfig) -> tuple[bytes, Floats]:
    """All backends write one frame and read the same bits from it, and so does the second reader."""
    frames = [Codec(config, backend=backend).encode(x) for backend in BACKENDS]
    assert all(frame == frames[0] for frame in frames)
    values = [decode(frames[0], "numpy", backend=backend) for backend in BACKENDS]
    assert all(y.tobytes() == values[0].tobytes() for y in values)
    assert np.isfinite(values[0]).all()
    if x.size < 5000:
        second = read_frame(frames[0])
        assert np.array(second.values, np.float32).tobytes() == values[0].tobytes()
    return frames[0], values[0]


# -- bytes and bits ----------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)  # the first call compiles
@given(
    rows=st.integers(2, 23),
    columns=st.integers(1, 40),
    seed=st.integers(0, 1 << 20),
    tails=st.sampled_from([2.0, 4.0, 30.0]),
    lean=st.sampled_from([0.0, 0.7]),
    sparsity=st.sampled_from([0.3, 0.6, 0.8, 0.95]),
    distortion=st.sampled_from([None, 0.2, 0.6]),
)
def test_backends_and_readers_agree(
    rows: int, columns: int, seed: int, tails: float, lean: float, sparsity: float, distortion: float | None
) -> None:
    """Odd ends, escapes, leaning channels, any number of lanes."""
    x = tokens(rows, columns, seed=seed, tails=tails, lean=lean)
    agree(x, along(sparsity=sparsity, distortion=distortion))


@pytest.mark.parametrize(("rows", "columns"), [(40, 40), (33, 90), (60, 130), (80, 256), (300, 512)])
def test_lanes_and_segments(rows: int, columns: int) -> None:
    """One to eight lanes; the last tensor has two segments, so both of their lengths are sent."""
    frame, _ = agree(tokens(rows, columns), along(sparsity=0.6))
    assert is_along(frame)


def test_numbers_too_large_for_a_nibble() -> None:
    """Whole and half escapes, up to the largest numbers that a trellis is for."""
    for share, size in ((0.01, 30.0), (0.05, 8.0), (0.002, 8000.0)):
        x = tokens(48, 60, tails=30)
        chosen = np.random.default_rng(1).random(x.shape) < share
        x[chosen] *= size / np.abs(x[chosen])
        frame, y = agree(x, along(sparsity=0.6))
        assert is_along(frame)
        assert np.abs(x - y)[chosen].max() <= 3 * inspect(frame).config["step"]  # the next number but one is not tried


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves(dtype: torch.dtype) -> None:
    x = torch.from_numpy(tokens(21, 33)).to(dtype)
    frame = Codec(along(sparsity=0.7)).encode(x)
    values = [decode(frame, backend=backend) for backend in BACKENDS]
    assert is_along(frame)
    assert all(y.dtype == dtype and torch.equal(y, values[0]) for y in values)


def test_under_a_basis() -> None:
    """With spreads; every backend turns back alike."""
    samples = [
        tokens(50, 24, seed=seed) @ np.linalg.qr(np.random.default_rng(3).standard_normal((24, 24)))[0]
        for seed in range(8)
    ]
    basis = calibrate_basis([x.astype(np.float32) for x in samples])
    x = samples[0].astype(np.float32)
    frames = [Codec(along(sparsity=0.7), basis=basis, backend=backend).encode(x) for backend in BACKENDS]
    assert all(frame == frames[0] for frame in frames)
    values = [decode(frames[0], "numpy", basis=basis, backend=backend) for backend in BACKENDS]
    assert all(y.tobytes() == values[0].tobytes() for y in values)
    plain = Codec(CodecConfig(sparsity=0.7, checksum=False), basis=basis).encode(x)
    assert frames[0] != plain
    assert np.square(x - values[0]).mean() < 0.3 * np.square(x).mean()


@pytest.mark.parametrize("lanes_log2", [0, 1, 3])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 7, 8])
def test_frames_of_another_writer(lanes_log2: int, half: bool, rows: int) -> None:
    """Any path is legal, also of one number, and also with shifts, which the package never writes along a trellis."""
    rng = np.random.default_rng(rows)
    high = [int(h) for h in rng.integers(-3, 4, rows * 9)]
    high[0], high[-1] = -41, 19
    for shifts in (None, bytes((5, 251, 7))):
        sections = write_sections([rows, 9], TRELLIS, high, lanes_log2=lanes_log2, half=half, shifts=shifts, activity=9)
        frame = sections.frame()
        expected = read_frame(frame).values
        for backend in BACKENDS:
            y = decode(frame, "numpy", backend=backend)
            assert y.tobytes() == np.array(expected, np.float32).tobytes()
        steps = trellis.steps_along(np.array(high).reshape(rows, 9))
        assert np.abs(np.array(expected).reshape(rows, 9) - steps).max() <= 10 / 64


def test_every_number_of_steps_lies_on_the_trellis() -> None:
    """From a state even multiples can be reached, or odd ones and zero; both are a walk of the same machine."""
    for path in itertools.product(range(-3, 4), repeat=4):
        state = 0
        for number, steps in zip(path, trellis.steps_along(np.array(path)[:, None])[:, 0], strict=True):
            assert steps % 2 == (state >= 2 and number != 0)
            assert np.sign(steps) == np.sign(number)
            state = int(trellis.MOVES[state, number & 1])


# -- what it is worth --------------------------------------------------------------------------------------------


def test_the_path_is_the_cheapest() -> None:
    """Where costs do not depend on what was before, no other path is cheaper: all of five numbers are tried."""
    rng = np.random.default_rng(5)
    by_quantiser = np.array([[120, 300, 300, 560, 560], [340, 200, 200, 420, 420]])
    costs = np.full((32, 16), 4000)
    costs[:16, :5], costs[16:, :5] = by_quantiser
    for _ in range(25):
        targets = rng.integers(-150, 151, 5)
        found = Survivors.follow(targets[:, None], costs, 0, NO_SPREADS)[:, 0]

        def price(path: tuple[int, ...] | NDArray[np.int64], targets: NDArray[np.int64] = targets) -> int:
            numbers, state, total = np.array(path), 0, 0
            errors = targets - 64 * trellis.steps_along(numbers[:, None])[:, 0]
            for number in numbers:
                total += trellis.TRADE * int(costs[16 * (state >> 1), 2 * abs(number) - (number > 0)])
                state = int(trellis.MOVES[state, number & 1])
            return total + int((errors**2).sum())

        assert price(found) == min(price(path) for path in itertools.product(range(-2, 3), repeat=5))


def test_it_takes_fewer_bits_at_equal_error() -> None:
    """Four states are worth 0.99 dB at high rates (Marcellin and Fischer 1990), which is a sixth of a bit; half is asked for.

    Elements are independent and Gaussian, so that nothing else differs.
    """
    x = np.random.default_rng(7).standard_normal((400, 64)).astype(np.float32)

    def points(*, is_trellis: bool) -> NDArray[np.float64]:
        found = []
        for sparsity in (0.15, 0.2, 0.3, 0.4, 0.5, 0.6):
            frame = Codec(CodecConfig(sparsity=sparsity, trellis=is_trellis, checksum=False)).encode(x)
            assert is_along(frame) == is_trellis
            found.append((np.log(np.square(x - decode(frame, "numpy")).mean()), 8 * len(frame) / x.size))
        return np.array(sorted(found)).T

    plain, led = points(is_trellis=False), points(is_trellis=True)
    inside = (led[0] >= plain[0, 0]) & (led[0] <= plain[0, -1])
    gain = np.interp(led[0], *plain)[inside] - led[1][inside]
    assert inside.sum() >= 3
    assert gain.mean() > 0.08
    assert gain.min() > 0.04


# -- where there is none -----------------------------------------------------------------------------------------


def test_what_has_none_is_written_without() -> None:
    """Planes, single tokens, one-sided tokens, and tokens that need raw bits or hold extremes."""
    x = tokens(24, 32)
    extreme = x.copy()
    extreme[3, 4] = 1e6
    for y, knobs in (
        (x.reshape(1, 4, 8, 24), {}),
        (x[:1], {}),
        (x.reshape(-1), {}),
        (np.abs(x), {}),
        (x, {"distortion": 1e-3}),
        (extreme, {}),
    ):
        frame, _ = agree(y, along(**knobs))
        assert not is_along(frame)
        assert frame == Codec(CodecConfig(checksum=False, **knobs)).encode(y)


def test_nothing_worth_its_bits_is_a_frame_of_zeros() -> None:
    """Of two elements that stand out so little that no path would keep them, nothing is kept."""
    x = np.zeros((6, 50), np.float32)
    x[0, 0], x[5, 9] = 1.0, -1.0
    frame, y = agree(x, along(sparsity=0.5, distortion=3.0))
    assert not y.any()
    assert len(frame) == 5


def test_settings() -> None:
    for knobs in ({"profile": "slicer"}, {"profile": "fp16"}, {"asymmetry": 0.5}, {"asymmetry_mode": "budget"}):
        with pytest.raises(ConfigError) as caught:
            CodecConfig(trellis=True, **knobs)
        assert caught.value.field == "trellis"
    with pytest.raises(ConfigError):
        CodecConfig(trellis="yes")  # type: ignore[arg-type]
    config = CodecConfig(trellis=True, sparsity=0.5)
    assert CodecConfig.from_dict(config.to_dict()) == config
    assert CodecConfig.from_dict({"sparsity": 0.5}).trellis is False


def test_inspect_tells_of_it() -> None:
    frame = Codec(along()).encode(tokens(8, 16))
    assert inspect(frame).config["trellis"] is True
    assert inspect(Codec(CodecConfig()).encode(tokens(8, 16))).config["trellis"] is False
