"""Tests of serverlight.partition.sweep: steps of many sequences in one pass, for every architecture as each one alone."""

from __future__ import annotations

import dataclasses
import functools
import gc
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

from decoder_models import ARCHITECTURES, FURTHER, LAYERS, build  # noqa: E402
from serverlight.errors import ConfigError, ContextExceeded, InputMismatch, NotBatchable  # noqa: E402
from serverlight.partition.decoder import DecoderHead, DecoderMiddle, DecoderTail  # noqa: E402
from serverlight.partition.kv_cache import KVCache  # noqa: E402
from serverlight.partition.kv_pool import SPARE_TOKENS  # noqa: E402
from serverlight.partition.layout import Layout, observe  # noqa: E402
from serverlight.partition.self_check import part_of  # noqa: E402
from serverlight.partition.sweep import Sweep  # noqa: E402
from serverlight.partition.sweep_check import TOLERANCE, make_sweep  # noqa: E402

RUNS_ALONE = {"Falcon-ALiBi", "Llama4"}
"""ALiBi folded into the mask, and attention within chunks of absolute positions."""

ALL = [
    *(name for name in ARCHITECTURES if name not in RUNS_ALONE),
    *(pytest.param(name, marks=pytest.mark.slow) for name in FURTHER if name not in RUNS_ALONE),
]
CUTS = (1, 3, 3, LAYERS, 0)
PROMPTS = (9, 3, 14, 5, 7)


@functools.cache
def layout_of(name: str) -> Layout:
    return observe(build(name), input_ids=torch.tensor([[1, 2, 3]]))


def make_part(name: str, kind: Any, first: int = 0, last: int = LAYERS) -> Any:
    return part_of(build(name), layout_of(name), kind, first, last)


@dataclasses.dataclass
class Sequences:
    """The same sequences twice: together in sweeps, and each alone."""

    part: Any
    together: list[KVCache]
    alone: list[KVCache]
    random: torch.Generator

    def hidden(self, num_tokens: int = 1) -> Tensor:
        return torch.randn(1, num_tokens, self.part.hidden_size, generator=self.random)

    def run_alone(self, row: int, num_tokens: int) -> None:
        state = self.hidden(num_tokens)
        self.part(state, self.together[row])
        self.part(state, self.alone[row])

    def step(self, sweep: Sweep, rows: list[int]) -> float:
        """Goes on by a token of each row in both ways; returns the largest difference, of the largest element."""
        states = [self.hidden() for _ in rows]
        ours = sweep(states, [self.together[row] for row in rows])
        theirs = torch.cat([self.part(state, self.alone[row]) for state, row in zip(states, rows, strict=True)])
        assert ours.shape == theirs.shape
        return float((ours - theirs).abs().max() / theirs.abs().max())


def start(part: Any, cuts: tuple[int, ...] = CUTS) -> Sequences:
    together, alone = ([part.new_cache(first=cut) for cut in cuts] for _ in range(2))
    sequences = Sequences(part, together, alone, torch.Generator().manual_seed(3))
    for row, num_tokens in zip(range(len(cuts)), PROMPTS, strict=False):
        sequences.run_alone(row, num_tokens)
    return sequences


@pytest.fixture
def llama() -> Sequences:
    return start(make_part("Llama", DecoderTail))


@pytest.mark.parametrize("name", ALL)
def test_together_as_alone(name: str) -> None:
    """Other cuts, lengths and windows; some sit out a step, come in another order, or run alone in between."""
    part = make_part(name, DecoderTail)
    sequences, sweep = start(part), Sweep(part)
    for step in range(12):
        rows = [row for row in range(len(CUTS)) if step % 4 != 3 or row != step % 5]
        difference = sequences.step(sweep, rows[::-1] if step % 3 == 1 else rows)
        assert difference <= TOLERANCE / 10, f"step {step}"
        if step == 6:
            sequences.run_alone(2, 3)


@pytest.mark.parametrize("name", sorted(RUNS_ALONE))
def test_what_cannot_be_batched_says_so(name: str) -> None:
    """The test on a tiny model finds it out."""
    with pytest.raises(NotBatchable, match="differs by"):
        make_sweep(make_part(name, DecoderTail))


def test_check_lets_through_what_can_be_batched() -> None:
    """Also a part that has not all layers."""
    sequences = start(make_part("Mistral", DecoderTail, first=2), cuts=(2, 3))
    assert sequences.step(make_sweep(sequences.part), [0, 1]) <= TOLERANCE


def test_middle() -> None:
    """Between two cuts; one sequence has no layers here and passes through."""
    sequences = start(make_part("Llama", DecoderMiddle, first=1, last=4), cuts=(1, 3, 4))
    sweep = Sweep(sequences.part)
    for _ in range(3):
        assert sequences.step(sweep, [2, 0, 1]) <= TOLERANCE
    assert sequences.step(sweep, [2]) == 0


@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_long_sequences(name: str) -> None:
    """More steps than a pool has room for, so that it is built anew; windowed layers forget."""
    part = make_part(name, DecoderTail)
    sequences, sweep = start(part), Sweep(part)
    for _ in range(SPARE_TOKENS + 20):
        assert sequences.step(sweep, [0, 2, 4]) <= TOLERANCE
    assert [cache.num_bytes for cache in sequences.together] == [cache.num_bytes for cache in sequences.alone]


@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_tokens_taken_back(name: str) -> None:
    """After a crop a sequence goes on in its place."""
    part = make_part(name, DecoderTail)
    sequences, sweep = start(part), Sweep(part)
    for _ in range(20):
        sequences.step(sweep, [0, 1, 2])
    for cache in sequences.together[1], sequences.alone[1]:
        cache.crop(5)
    for _ in range(3):
        assert sequences.step(sweep, [0, 1, 2]) <= TOLERANCE


def test_moved_cut(llama: Sequences) -> None:
    """A layer that comes over between two steps joins the others."""
    sweep = Sweep(llama.part)
    llama.step(sweep, [0, 1, 2])
    for cache in llama.together[0], llama.alone[0]:
        cache.release(1, 2)
    assert llama.together[0].first == 2
    assert llama.step(sweep, [0, 1, 2]) <= TOLERANCE


def test_failure_leaves_all_as_they_were(llama: Sequences) -> None:
    """A layer that raises in the middle of a sweep costs nobody a token."""
    sweep, broken = Sweep(llama.part), RuntimeError("out of order")
    llama.step(sweep, [0, 1, 2])

    def fail(*_: object) -> None:
        raise broken

    handle = llama.part.model.get_submodule("model.layers.4.mlp").register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of order"):
        sweep([llama.hidden() for _ in range(3)], llama.together[:3])
    handle.remove()
    assert [cache.num_tokens for cache in llama.together] == [cache.num_tokens for cache in llama.alone]
    assert llama.step(sweep, [0, 1, 2]) <= TOLERANCE


def test_rows_do_not_touch_each_other(llama: Sequences) -> None:
    """A sequence of nothing but NaN spoils itself only."""
    sweep = Sweep(llama.part)
    poison = torch.full((1, 1, llama.part.hidden_size), torch.nan)
    states = [llama.hidden(), poison, llama.hidden()]
    for _ in range(3):
        ours = sweep(states, llama.together[:3])
        assert ours[1].isnan().all()
        for row in (0, 2):
            expected = llama.part(states[row], llama.alone[row])[0]
            assert torch.allclose(ours[row], expected, atol=float(TOLERANCE * expected.abs().max()))


def test_left_behind(llama: Sequences) -> None:
    """A sequence that sits out does not keep the others' memory alive, nor do closed ones."""
    sweep = Sweep(llama.part)
    llama.step(sweep, [0, 1, 2, 4])
    llama.step(sweep, [0, 1])
    alone = llama.together[2].held[0].keys
    assert alone.untyped_storage().nbytes() == alone.nbytes
    assert sweep.num_seated == sum(LAYERS - CUTS[row] for row in (0, 1)) + 1  # the last one is alone in layer 0
    pool = weakref.ref(sweep._pools._seats[llama.together[0].held[0]].pool)
    llama.together.clear()
    gc.collect()
    assert not sweep.num_seated
    assert pool() is None


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda s: ([s.hidden(2)], s.together[:1]), InputMismatch, "expected .1, 1, 32"),
        (lambda s: ([s.hidden()], [s.part.new_cache()]), ConfigError, "run its prompt alone"),
        (lambda s: ([s.hidden()], [make_part("Llama", DecoderHead).new_cache(last=2)]), ConfigError, "begun"),
    ],
)
def test_wrong_rows(llama: Sequences, spoil: Any, error: type[Exception], message: str) -> None:
    """Each must be one token of one sequence that has begun, at this part."""
    with pytest.raises(error, match=message):
        Sweep(llama.part)(*spoil(llama))


def test_context_is_not_exceeded(llama: Sequences) -> None:
    """A full sequence is told."""
    length = llama.part.context_length
    llama.run_alone(0, length - llama.together[0].num_tokens)
    with pytest.raises(ContextExceeded, match=f"{length + 1} tokens"):
        Sweep(llama.part)([llama.hidden(), llama.hidden()], llama.together[:2])


def test_attention_without_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """An attention that cannot be told what to see is refused."""
    part = make_part("Llama", DecoderTail)
    monkeypatch.setattr(part.model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(NotBatchable, match="flash_attention_2"):
        Sweep(part)
