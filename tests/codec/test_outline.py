"""What kernels of a device are told of frames, compiled and not."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from serverlight.codec import Codec, CodecConfig, contextual, wire
from serverlight.codec.backends.gpu import outline as gpu_outline
from serverlight.codec.backends.gpu.outline import Outline, outline

pytest.importorskip("numba")

VECTORS = pathlib.Path(__file__).parents[1] / "vectors"


def parsed(frame: bytes) -> tuple[wire.Header, memoryview]:
    reader = wire.Reader(frame)
    return reader.header(1 << 28), reader.rest("sections")


def outlined(frames: list[bytes], is_compiled: bool, monkeypatch: pytest.MonkeyPatch) -> Outline:
    header, _ = parsed(frames[0])
    sections = [parsed(frame)[1] for frame in frames]
    with monkeypatch.context() as patched:
        patched.setattr(gpu_outline, "HAS_NUMBA", is_compiled)
        return outline(sections, np.frombuffer(b"".join(sections), np.uint8), header)


def agree(frames: list[bytes]) -> Outline:
    """Both ways tell the same; returns it."""
    monkeypatch = pytest.MonkeyPatch()
    compiled, plain = outlined(frames, True, monkeypatch), outlined(frames, False, monkeypatch)
    assert (compiled.heads == plain.heads).all()
    assert (compiled.entries == plain.entries).all()
    assert (compiled.lengths == plain.lengths).all()
    assert why(compiled) == why(plain)
    return plain


def why(known: Outline) -> Any:
    return known.fault and (known.fault[0], type(known.fault[1]), str(known.fault[1]))


def is_for_kernels(header: wire.Header, section: memoryview) -> bool:
    return header.profile == "serverlight" and not header.is_turned and not contextual.is_along_trellis(section)


def test_golden_frames() -> None:
    """Long and short sections, all kinds."""
    frames = [path.read_bytes() for name in ("v1", "short") for path in sorted((VECTORS / name).glob("*/frame.bin"))]
    known = [agree([frame]) for frame in frames if is_for_kernels(*parsed(frame))]
    assert len(known) > 50
    assert all(each.fault is None for each in known)


def frames_alike(shape: tuple[int, ...]) -> list[bytes]:
    """One header, but different settings, and thus models, lanes, escapes, raw bits; and one of zeros."""
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(1))
    knobs: list[dict[str, Any]] = [
        {"sparsity": 0.5},
        {"sparsity": 0.1, "distortion": 0.02},
        {"sparsity": 0.05, "distortion": 1e-3},
    ]
    encoded = [Codec(CodecConfig(**knob)).encode(values) for knob in knobs for values in (x, x.abs(), 0 * x)]
    return [*encoded, Codec(CodecConfig(sparsity=0.9)).encode(x)]


@pytest.mark.parametrize("shape", [(1, 101), (5, 17), (300, 500), (1, 17, 3, 4), (1, 64, 56, 56), (1, 200001)], ids=str)
def test_many_frames(shape: tuple[int, ...]) -> None:
    """Frames of one call, of one segment and of several."""
    known = agree(frames_alike(shape))
    assert known.fault is None
    assert len(known.heads) == 10


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_broken_frames(data: st.DataObject) -> None:
    """The first frame that is broken ends an outline, whatever breaks it, with the same words."""
    frames = frames_alike(data.draw(st.sampled_from([(1, 31), (5, 9), (1, 3, 3, 4)])))
    which = data.draw(st.integers(0, len(frames) - 1))
    _, section = parsed(frames[which])
    front, body = frames[which][: len(frames[which]) - len(section) - 4], bytearray(section)
    for _ in range(data.draw(st.integers(1, 3))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    body = body[: data.draw(st.integers(0, len(body)))] if data.draw(st.booleans()) else body
    frames[which] = wire.sealed(front, bytes(body), checksum=True)
    if is_for_kernels(*parsed(frames[which])):
        agree(frames)
