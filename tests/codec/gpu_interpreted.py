"""What ``test_gpu.py`` runs in a process of its own, where Triton interprets kernels on the processor.

Each program and each operation there takes its time, so tensors are small: a few segments' worth of code paths, not of data.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import types
from typing import Any

import numpy as np
import pytest
import torch
import triton.language
from triton.runtime import interpreter

from serverlight.codec import Codec, CodecConfig, calibrate_basis, coded, decode, decode_batch, layout, wire
from serverlight.codec.activity import NO_SPREADS
from serverlight.codec.backends import for_device, load
from serverlight.codec.backends.gpu import kernels as gpu
from serverlight.codec.backends.gpu import outline as gpu_outline
from serverlight.codec.backends.gpu import triton_reader
from serverlight.codec.backends.gpu.kernels import TritonKernels
from serverlight.codec.backends.reference import kernels as reference
from serverlight.errors import ConfigError, FrameError, NonFiniteTensor

assert os.environ["TRITON_INTERPRET"] == "1"
torch.set_num_threads(1)

VECTORS = pathlib.Path(__file__).parents[1] / "vectors"
SHAPES = {"flat": (41,), "tokens": (5, 9), "planes": (1, 3, 3, 5)}
KNOBS: list[dict[str, Any]] = [
    {"sparsity": 0.5},
    {"sparsity": 0.1, "distortion": 0.02},  # half escapes
    {"sparsity": 0.05, "distortion": 1e-3},  # raw bits
    {"sparsity": 0.6, "asymmetry": 0.3},
    {"sparsity": 0.6, "asymmetry": 0.5, "asymmetry_mode": "budget"},
    {"sparsity": 0.6, "trellis": True},
]


@pytest.fixture(scope="session", autouse=True)
def language_patched_once() -> None:
    """Triton's interpreter patches its language anew for every call of a function, which takes most of its time."""
    if not hasattr(interpreter, "_patch_lang"):  # its own affair; without this, tests are only slower
        return
    kernel: Any = triton_reader.get
    interpreter._patch_lang(kernel.fn)
    interpreter._patch_lang(triton.language.sum.fn)
    interpreter._patch_lang = lambda _: types.SimpleNamespace(restore=lambda: None)


def bits_of(y: torch.Tensor) -> bytes:
    return y.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes() if y.numel() else b""


def agree(x: torch.Tensor, config: CodecConfig) -> bytes:
    """This backend writes the reference's bytes and reads the reference's bits; returns the frame."""
    frame = Codec(config, backend="reference").encode(x)
    assert Codec(config, backend="gpu").encode(x) == frame
    check_reading(frame)
    return frame


def check_reading(frame: bytes) -> None:
    """Straight into a tensor of the frame's dtype, and by way of binary32 on the host."""
    expected = decode(frame, backend="reference")
    for y in (decode(frame, backend="gpu"), decode(frame, device="cpu", backend="gpu")):
        assert (y.shape, y.dtype) == (expected.shape, expected.dtype)
        assert bits_of(y) == bits_of(expected)


@pytest.mark.parametrize("knobs", KNOBS, ids=str)
@pytest.mark.parametrize("rectified", [False, True])
@pytest.mark.parametrize("layout", SHAPES)
def test_every_kind_of_frame(layout: str, rectified: bool, knobs: dict[str, Any]) -> None:
    """All kinds, with odd ends, escapes and raw bits; every dtype gets its share."""
    if rectified and layout != "planes" and knobs is not KNOBS[0]:
        pytest.skip("only contexts of planes tell one-sided tensors apart")
    kinds = len(SHAPES) * len(KNOBS)
    number = (list(SHAPES).index(layout) * len(KNOBS) + KNOBS.index(knobs)) % kinds
    x = 3 * torch.randn(SHAPES[layout], generator=torch.Generator().manual_seed(number))
    x = x.relu() if rectified else x
    agree(x.to((torch.float32, torch.float16, torch.bfloat16)[(number + rectified) % 3]), CodecConfig(**knobs))


@pytest.mark.parametrize("lanes", [2, 4, 8])
@pytest.mark.parametrize("shape", [(1, 101), (5, 17), (1, 17, 3, 3)], ids=["flat", "tokens", "planes"])
def test_lanes_and_segments(shape: tuple[int, ...], lanes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several lanes, more of them than units are left at an end, and two or three segments, with escapes in each."""
    monkeypatch.setattr(layout, "SEGMENT_ELEMENTS", 40)
    monkeypatch.setattr(gpu_outline, "HAS_NUMBA", False)  # what is compiled has segments of its own size
    for module in (coded, reference):
        monkeypatch.setattr(module, "lanes_for", lambda *_: lanes)
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(lanes))
    x.view(-1)[5::37] *= 40
    x = x.abs() if lanes == 4 else x
    config = CodecConfig(checksum=False, **KNOBS[lanes.bit_length() - 2])
    frame = Codec(config, backend="reference").encode(x)
    assert frame[2 + len(shape)] >> 4 & 3 == lanes.bit_length() - 1
    assert Codec(config, backend="gpu").encode(x) == frame
    assert bits_of(decode(frame, device="cpu", backend="gpu")) == bits_of(decode(frame, backend="reference"))


def test_ties_zeros_and_subnormals() -> None:
    """Equal scores go to the lowest index, negative zero is a zero, subnormal numbers stay."""
    x = torch.tensor([1.0, -1.0, 1.0, 0.0, -0.0, 1e-42, -2e-42, 1.0, 2.0, -1.0])
    agree(x, CodecConfig(sparsity=0.6))
    agree(torch.tensor([1e-42, -2e-42, 5e-43]), CodecConfig(sparsity=0.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_at_the_end_of_the_range(dtype: torch.dtype) -> None:
    """What a quantiser reconstructs is held within the dtype's finite numbers."""
    largest = torch.finfo(dtype).max
    with np.errstate(over="ignore"):  # infinity is held within them as well
        agree(torch.tensor([largest, -largest, largest / 3, 1.0]).to(dtype), CodecConfig(sparsity=0.25))


def test_spikes_are_escaped() -> None:
    """Numbers far beyond a nibble, alone in their pair and beside another."""
    x = torch.randn(6, 8, generator=torch.Generator().manual_seed(5))
    x[1, 2], x[1, 3], x[4, 0] = 2000.0, -900.0, 77.0
    agree(x, CodecConfig(sparsity=0.5))


@pytest.mark.parametrize(
    "x", [torch.zeros(3, 4), torch.zeros(0, 4), torch.tensor(2.5)], ids=["zeros", "empty", "scalar"]
)
def test_nothing_much(x: torch.Tensor) -> None:
    """Zeros, no elements, one element."""
    agree(x, CodecConfig())


@pytest.mark.parametrize(
    "folder", sorted(str(path.parent.relative_to(VECTORS)) for path in VECTORS.glob("*/*/frame.bin"))
)
def test_golden_frames(folder: str) -> None:
    """Every small golden frame is read to the values committed beside it."""
    frame = (VECTORS / folder / "frame.bin").read_bytes()
    header = wire.Reader(frame).header(1 << 28)
    if header.profile != "serverlight" or header.num_elements > 400:
        pytest.skip("another profile, or too large for the interpreter")
    check_reading(frame)


@pytest.mark.parametrize("form", [{"transform": "cosine"}, {"bias_correction": True}], ids=str)
def test_forms_of_maps(form: dict[str, Any]) -> None:
    """Waves and corrections, whose sections this backend writes and reads too."""
    x = torch.randn(1, 3, 4, 5, generator=torch.Generator().manual_seed(3)) + 0.3
    frame = agree(x, CodecConfig(sparsity=0.7, **form))
    assert wire.Reader(frame).header(1 << 10).is_turned


def test_frames_under_a_basis() -> None:
    """With spreads, which go through the host, and without."""
    rows = [torch.randn(40, 6, generator=torch.Generator().manual_seed(4)) * torch.arange(1, 7)]
    with_spreads = calibrate_basis(rows)
    for basis in (with_spreads, dataclasses.replace(with_spreads, spreads=NO_SPREADS)):
        x = rows[0][:3, None].repeat(1, 10, 1)
        frames = {
            Codec(CodecConfig(sparsity=0.5), basis=basis, backend=name).encode(x) for name in ("reference", "gpu")
        }
        assert len(frames) == 1
        frame = frames.pop()
        values = [decode(frame, basis=basis, backend=name) for name in ("reference", "gpu")]
        assert bits_of(values[0]) == bits_of(values[1])


def test_batch_into_one_tensor() -> None:
    """Frames of unlike kinds and settings are decoded together, each into its place, wherever their words begin."""
    generator = torch.Generator().manual_seed(7)
    tensors = [torch.randn(1, 24, generator=generator) for _ in range(7)] + [torch.zeros(1, 24)]
    frames = [Codec(CodecConfig(**KNOBS[i % 3])).encode(x) for i, x in enumerate(tensors)]
    sections = [frame[4:-4] for frame in frames]  # a header of rank 2, and the checksum
    header = wire.Reader(frames[0]).header(1 << 10)
    known = gpu_outline.outline(list(map(memoryview, sections)), np.frombuffer(b"".join(sections), np.uint8), header)
    begins = np.cumsum([0, *map(len, sections[:-1])])
    assert set((begins + known.heads[:, gpu_outline.STREAMS])[known.heads[:, 0] >= 0] % 2) == {0, 1}
    y = decode_batch(frames, device="cpu", backend="gpu")
    assert bits_of(y) == bits_of(torch.cat([decode(frame, backend="reference") for frame in frames]))


def test_fault_names_its_frame() -> None:
    """A broken stream in a batch is the same error as elsewhere, with the frame's index."""
    config = CodecConfig(checksum=False)
    frames = [Codec(config).encode(torch.randn(1, 24, generator=torch.Generator().manual_seed(i))) for i in range(3)]
    frames[1] = frames[1][:-2] + bytes((frames[1][-2] ^ 0x5A, frames[1][-1]))
    with pytest.raises(FrameError) as expected:
        decode_batch(frames, backend="reference")
    with pytest.raises(type(expected.value), match="frame 1"):
        decode_batch(frames, device="cpu", backend="gpu")


@pytest.mark.parametrize("seed", range(16))
def test_altered_frames_come_to_the_same_end(seed: int) -> None:
    """Whatever a byte is changed to: the reference's error, or the reference's bits."""
    rng = np.random.default_rng(seed)
    shape, knobs = list(SHAPES.values())[seed % 3], KNOBS[seed % 3]
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    frame = bytearray(Codec(CodecConfig(checksum=False, **knobs)).encode(x.relu() if seed % 2 else x))
    start = 2 + len(shape)
    frame[int(rng.integers(start, len(frame)))] ^= int(rng.integers(1, 256))
    try:
        expected: Any = decode(bytes(frame), backend="reference", max_elements=1 << 12)
    except FrameError as error:
        with pytest.raises(type(error)):
            decode(bytes(frame), device="cpu", backend="gpu", max_elements=1 << 12)
        return
    assert bits_of(decode(bytes(frame), device="cpu", backend="gpu")) == bits_of(expected)


def test_what_is_refused() -> None:
    """NaN is named with its place, and a device wants torch."""
    x = torch.ones(8)
    x[3] = float("nan")
    with pytest.raises(NonFiniteTensor) as caught:
        Codec(backend="gpu").encode(x)
    assert caught.value.first_index == 3
    with pytest.raises(ConfigError, match="like"):
        decode(Codec().encode(torch.ones(8)), "numpy", device="cpu", backend="gpu")
    with pytest.raises(ConfigError, match="device"):
        decode(Codec().encode(torch.ones(8)), device="nowhere")


def test_what_it_works_on() -> None:
    """Interpreted it works on host tensors, and nothing else chooses it there by itself."""
    assert for_device("gpu", "cpu") is load("gpu")
    assert for_device("auto", "cpu") is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_few_elements_are_met_on_the_host(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """No kernel runs for a small tensor, frames and values are the same, and a fault has its frame's index."""
    pytest.importorskip("numba")
    kernels = load("gpu")
    assert isinstance(kernels, TritonKernels)
    monkeypatch.setattr(kernels, "few_elements", 100)
    for name in ("coded_tensor", "read_frames"):
        monkeypatch.setattr(gpu, name, None)
    config = CodecConfig(sparsity=0.3, checksum=False)
    tensors = [torch.randn(1, 24, generator=torch.Generator().manual_seed(i)).to(dtype) for i in range(3)]
    frames = [Codec(config, backend="gpu").encode(x) for x in tensors]
    assert frames == [Codec(config, backend="reference").encode(x) for x in tensors]
    frames[1] = frames[1][:5] + b"\x80\x30" + frames[1][7:]  # a step of 2^-30: negative halves round to zero
    expected = torch.cat([decode(frame, backend="reference") for frame in frames])
    assert bits_of(decode_batch(frames, device="cpu", backend="gpu")) == bits_of(expected)
    with pytest.raises(FrameError, match="frame 2"):
        decode_batch([*frames[:2], frames[2][:-1]], device="cpu", backend="gpu")
    with pytest.raises(TypeError):  # enough of them are for the device
        decode_batch(frames * 3, device="cpu", backend="gpu")
