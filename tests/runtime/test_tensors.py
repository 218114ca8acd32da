from __future__ import annotations

import pytest
import torch

from serverlight.errors import UnsupportedTensor
from serverlight.runtime import tensors
from serverlight.runtime.conversion import DTYPE_BYTES
from serverlight.runtime.tensors import from_raw, to_raw


def sample(dtype: str) -> torch.Tensor:
    return (torch.arange(24) % 2 if dtype == "bool" else torch.arange(24)).to(getattr(torch, dtype)).view(2, 3, 4)


@pytest.mark.parametrize("dtype", DTYPE_BYTES)
def test_round_trip(dtype: str) -> None:
    """Every dtype comes back with its bits, also from a tensor that is not contiguous."""
    for tensor in (sample(dtype), sample(dtype).permute(2, 0, 1), sample(dtype)[:, ::2]):
        back = from_raw(to_raw(tensor))
        assert back.dtype == tensor.dtype
        assert torch.equal(back, tensor)


@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2)])
def test_empty_and_scalar(shape: tuple[int, ...]) -> None:
    """Rank 0 and empty tensors keep their shape."""
    back = from_raw(to_raw(torch.ones(shape)))
    assert back.shape == shape
    assert torch.equal(back, torch.ones(shape))


def test_special_floats_keep_their_bits() -> None:
    """NaN payloads, infinities and negative zero pass untouched."""
    bits = torch.tensor([0x7FC00001, 0x7F800000, -0x800000, -0x80000000], dtype=torch.int32)
    assert torch.equal(from_raw(to_raw(bits.view(torch.float32))).view(torch.int32), bits)


def test_rejects_exotic_dtype() -> None:
    """A dtype that the protocol does not carry is refused by name."""
    with pytest.raises(UnsupportedTensor, match="complex64"):
        to_raw(torch.zeros(1, dtype=torch.complex64))


def test_big_endian_machine_swaps(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a big-endian machine bytes are swapped on the way out and on the way in."""
    monkeypatch.setattr(tensors.sys, "byteorder", "big")  # type: ignore[attr-defined]
    raw = to_raw(torch.tensor([1], dtype=torch.int32))
    assert raw.data == b"\x00\x00\x00\x01"  # what the mock takes for big-endian memory, reversed
    assert from_raw(raw).tolist() == [1]


def test_result_is_writable_and_owns_its_memory() -> None:
    """What arrives may be changed in place without touching the message."""
    raw = to_raw(torch.zeros(4))
    from_raw(raw).add_(1)
    assert raw.data == bytes(16)
