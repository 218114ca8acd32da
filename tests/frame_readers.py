"""What tests of the forms of profile ``serverlight`` have in common: all readers give the same bits, and refuse the same frames."""

from __future__ import annotations

import importlib.util
import struct
from typing import Any

import numpy as np
import pytest
import torch

import independent_reader
from serverlight.codec import Codec, CodecConfig, decode, decode_batch, decode_into, inspect
from serverlight.errors import FrameError

BACKENDS = ["reference"] + ["cpu"] * (importlib.util.find_spec("numba") is not None)


def bits_of(y: Any) -> bytes:
    """Of a tensor's values in binary32."""
    return bytes(np.asarray(y.float() if isinstance(y, torch.Tensor) else y, np.float32).tobytes())


def agree(frame: bytes) -> Any:
    """All backends and the second reader give the same bits; returns the tensor."""
    y = decode(frame)
    second = independent_reader.read_frame(frame)
    assert struct.pack(f"<{len(second.values)}f", *second.values) == bits_of(y)
    assert tuple(second.shape) == tuple(y.shape)
    for backend in BACKENDS:
        assert bits_of(decode(frame, backend=backend)) == bits_of(y)
    return y


def check_every_way_in(config: CodecConfig, x: torch.Tensor) -> None:
    """Three maps, of shape (3, C, H, W): channels last, in batches with one of another form, into given memory, to a device."""
    codec = Codec(config)
    frames = [codec.encode(one[None]) for one in x]
    assert codec.encode(x[:1].to(memory_format=torch.channels_last)) == frames[0]
    together = decode_batch([*frames, Codec().encode(x[:1])])
    assert bits_of(together[:3]) == b"".join(bits_of(decode(frame)) for frame in frames)
    out = torch.empty_like(x[:1])
    decode_into(frames[1], out)
    assert bits_of(out) == bits_of(together[1])
    assert bits_of(decode(frames[2], device="cpu")) == bits_of(together[2])


def refuses(error: type[FrameError], frame: bytes, *, unseen: bool = False) -> None:
    """Every backend refuses it with this error, alone and in a batch; so does ``inspect``, unless only decoding can see it."""
    for backend in BACKENDS:
        for read in (decode, lambda frame, **how: decode_batch([frame], **how)):
            with pytest.raises(FrameError) as caught:
                read(frame, backend=backend)
            assert type(caught.value) is error, caught.value
    if not unseen:
        with pytest.raises(error):
            inspect(frame)


def check_altered(frame: bytes, at: int, value: int) -> None:
    """A changed byte gives a frame error or finite values, never anything else."""
    altered = bytearray(frame)
    altered[at % len(altered)] = value
    try:
        y = decode(bytes(altered), "numpy", max_elements=10_000)
    except FrameError:
        return
    assert np.isfinite(y).all()
