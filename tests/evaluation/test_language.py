"""Tests of serverlight.evaluation.language."""

from __future__ import annotations

import math

import pytest
import torch

from serverlight.errors import InputMismatch
from serverlight.evaluation.language import bits_per_byte


def certain(ids: torch.Tensor) -> torch.Tensor:
    """Bets nearly everything on the token after the one that it sees."""
    return 40.0 * torch.nn.functional.one_hot((ids + 1) % 5, 5).float()


def test_certain_and_right_costs_nothing() -> None:
    """A text that the model foresees is free, and the first token, which nobody foresees, is not counted."""
    windows = torch.tensor([[3, 4, 0, 1], [2, 3, 4, 0]])
    assert bits_per_byte(certain, windows, lambda ids: "x" * len(ids)) == pytest.approx(0, abs=1e-6)


def test_bytes_are_those_of_utf8() -> None:
    """Bits are shared out over bytes, not characters: text of two bytes a token costs half of what one byte does."""
    windows = torch.zeros(2, 8, dtype=torch.int64)
    even = torch.zeros(1, 8, 8)
    assert bits_per_byte(lambda _: even, windows, lambda ids: "x" * len(ids)) == pytest.approx(math.log2(8))
    assert bits_per_byte(lambda _: even, windows, lambda ids: "ü" * len(ids)) == pytest.approx(math.log2(8) / 2)


@pytest.mark.parametrize("shape", [(0, 8), (3, 1), (8,)])
def test_nothing_to_predict(shape: tuple[int, ...]) -> None:
    """Without a single predicted token there is no figure, and the error says what to give."""
    with pytest.raises(InputMismatch, match="give at least one of two tokens"):
        bits_per_byte(certain, torch.zeros(shape, dtype=torch.int64), str)
