"""Tests of serverlight.models.digest."""

from __future__ import annotations

import hashlib

import pytest
import torch
from torch import nn

from serverlight.errors import ModelError
from serverlight.models import weights_digest


def filled(value: float = 0.5, **kwargs: object) -> nn.Linear:
    layer = nn.Linear(3, 2, **kwargs)
    with torch.no_grad():
        for tensor in layer.parameters():
            tensor.fill_(value)
    return layer


def test_stays_the_same_for_ever() -> None:
    """The digest is defined by its docstring alone: plans saved by an earlier version stay valid."""
    half = b"\x00\x00\x00\x3f"  # 0.5 as little-endian float32
    expected = hashlib.sha256(
        b'["bias", "float32", [2]]' + 2 * half + b'["weight", "float32", [2, 3]]' + 6 * half
    ).hexdigest()
    assert weights_digest(filled()) == expected[:16] == "552349a546d7322c"


def test_ignores_order_of_registration_and_memory_layout() -> None:
    """Two modules with equal names and values agree, however they were built."""
    first, second = nn.Module(), nn.Module()
    for module, order in ((first, "ab"), (second, "ba")):
        for name in order:
            module.register_parameter(name, nn.Parameter(torch.arange(6.0).reshape(2, 3)))
    second.b = nn.Parameter(second.b.data.t().contiguous().t())
    assert weights_digest(first) == weights_digest(second)


@pytest.mark.parametrize(
    "other",
    [filled(0.25), filled(bias=False), filled().double(), nn.Sequential(filled())],
    ids=["value", "missing", "dtype", "name"],
)
def test_tells_models_apart(other: nn.Module) -> None:
    """Another value, tensor, dtype or name gives another digest."""
    assert weights_digest(other) != weights_digest(filled())


def test_tells_shapes_apart() -> None:
    """The same bytes in another shape are other weights."""
    row, column = nn.Module(), nn.Module()
    row.register_buffer("w", torch.ones(1, 4))
    column.register_buffer("w", torch.ones(4, 1))
    assert weights_digest(row) != weights_digest(column)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64, torch.bool])
def test_takes_any_dtype_scalars_and_empty_tensors(dtype: torch.dtype) -> None:
    """Whatever a state dict may hold has a digest."""
    module = nn.Module()
    module.register_buffer("scalar", torch.tensor(1, dtype=dtype))
    module.register_buffer("empty", torch.zeros(0, 3, dtype=dtype))
    assert len(weights_digest(module)) == 16


def test_refuses_weights_without_data() -> None:
    """A module on the meta device has nothing to digest, and says so."""
    with pytest.raises(ModelError, match=r"'weight' holds no data.*load the weights|'bias' holds no data"):
        weights_digest(nn.Linear(2, 2, device="meta"))
