"""Tests of serverlight.partition.kv_cache: what a side remembers of a sequence, taken back and handed over."""

from __future__ import annotations

import copy
import dataclasses
import functools
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

from decoder_models import LAYERS, VOCABULARY, WINDOW, build  # noqa: E402
from serverlight.errors import ConfigError, InputMismatch  # noqa: E402
from serverlight.partition.decoder import DecoderHead, DecoderTail  # noqa: E402
from serverlight.partition.driver import Driver  # noqa: E402
from serverlight.partition.kv_cache import ROLLBACK_TOKENS, KVCache, move_cut  # noqa: E402
from serverlight.partition.self_check import check_architecture  # noqa: E402

IDS = torch.randint(3, VOCABULARY, (2, 100), generator=torch.Generator().manual_seed(2))


@functools.cache
def parts(name: str) -> tuple[DecoderHead, DecoderTail]:
    """Head and tail over one model in memory, which both hold all layers."""
    model = build(name)
    driver = Driver(copy.deepcopy(model), check_architecture(type(model), model.config))
    return DecoderHead(driver, 0, LAYERS), DecoderTail(driver, 0, LAYERS)


class Sequence:
    """Head and tail with their caches."""

    def __init__(self, name: str, cut: int = 3, **options: int) -> None:
        self.head, self.tail = parts(name)
        self.caches = self.head.new_cache(last=cut, **options), self.tail.new_cache(first=cut, **options)

    def step(self, ids: Tensor) -> Tensor:
        return self.tail(self.head(ids, self.caches[0]), self.caches[1])

    def crop(self, num_tokens: int) -> None:
        for cache in self.caches:
            cache.crop(num_tokens)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Gemma3", "GPT-OSS", "DeepSeek-V3", "Bloom", "GPT-2"])
@pytest.mark.parametrize("length", [3, WINDOW, 40])
def test_taken_back_tokens_leave_no_trace(name: str, length: int) -> None:
    """A rejected draft, in one chunk or token by token, is forgotten: what follows has the same bits."""
    straight, drafting = Sequence(name), Sequence(name)
    for sequence in (straight, drafting):
        sequence.step(IDS[:, :length])
    drafting.step(IDS[:, 60:65])
    for token in range(70, 74):
        drafting.step(IDS[:, token : token + 1])
    drafting.crop(4)
    drafting.crop(5)
    assert [cache.num_tokens for cache in drafting.caches] == [length, length]
    assert torch.equal(drafting.step(IDS[:, length : length + 3]), straight.step(IDS[:, length : length + 3]))


def test_take_back_everything() -> None:
    """An emptied cache starts again."""
    sequence = Sequence("Mistral")
    first = sequence.step(IDS[:, :6])
    sequence.crop(6)
    assert [cache.num_bytes for cache in sequence.caches] == [0, 0]
    assert torch.equal(sequence.step(IDS[:, :6]), first)


def test_window_limits_what_can_be_taken_back() -> None:
    """Beyond rollback_tokens a windowed layer has forgotten; the refusal changes nothing. Full layers know no limit."""
    sequence = Sequence("Mistral", rollback_tokens=4)
    sequence.step(IDS[:, :30])
    with pytest.raises(ConfigError, match="num_tokens: 5 is too many, a window of 8 tokens has moved on"):
        sequence.crop(5)
    assert sequence.caches[0].num_tokens == 30
    sequence.crop(4)
    full = Sequence("Llama", rollback_tokens=0)
    full.step(IDS[:, :30])
    full.crop(29)
    for wrong in (-1, 2):
        with pytest.raises(ConfigError, match=f"must be 0 to 1, as many as were seen; got {wrong}"):
            full.crop(wrong)
    with pytest.raises(ConfigError, match="rollback_tokens: must be zero or more"):
        Sequence("Llama", rollback_tokens=-1)


def test_bytes() -> None:
    """Keys and values of each held layer; windowed layers stop growing."""
    full, windowed = Sequence("Llama", cut=2), Sequence("Mistral", cut=2)
    for sequence in (full, windowed):
        sequence.step(IDS)
    per_token = 2 * 2 * 2 * 8 * 4  # batch, keys and values, heads, head size, bytes
    assert full.caches[0].num_bytes == 2 * 100 * per_token
    assert full.caches[1].num_bytes == 4 * 100 * per_token
    assert windowed.caches[0].num_bytes == 2 * (WINDOW - 1 + ROLLBACK_TOKENS) * per_token
    assert repr(full.caches[0]) == f"KVCache(layers 0 to 2, 100 tokens, {200 * per_token} bytes)"


@pytest.mark.parametrize("name", ["Llama", "Mistral"])
def test_failed_step_leaves_the_cache_as_it_was(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a step dies half-way the sequence goes on as if it had not begun."""
    straight, unlucky = Sequence(name), Sequence(name)
    for sequence in (straight, unlucky):
        sequence.step(IDS[:, :12])
    layer = unlucky.tail.model.model.layers[4]
    with monkeypatch.context() as patch:
        patch.setattr(type(layer.mlp), "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            unlucky.step(IDS[:, 12:14])
    assert unlucky.caches[0].num_tokens == 12
    assert torch.equal(unlucky.step(IDS[:, 12:14]), straight.step(IDS[:, 12:14]))


def test_failed_first_step_leaves_the_cache_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first step may be tried again, with another batch too."""
    sequence = Sequence("Mistral")
    layer = sequence.tail.model.model.layers[1]
    with monkeypatch.context() as patch:
        patch.setattr(type(layer.mlp), "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sequence.step(IDS[:, :4])
    assert torch.equal(sequence.step(IDS[:1, :4]), Sequence("Mistral").step(IDS[:1, :4]))


# -- handing over ----------------------------------------------------------------------------------


def test_what_is_handed_over() -> None:
    """The states of the moved layers, in order, with all their bytes; move_cut says how many."""
    sequence = Sequence("Gemma3", cut=4)
    sequence.step(IDS[:, :12])
    front, back = sequence.caches
    states = front.release(2, 4)
    assert [(state.index, state.num_tokens) for state in states] == [(2, 12), (3, 12)]
    assert (front.first, front.last) == (0, 2)
    back.adopt(2, 4, states)
    assert (back.first, back.last) == (2, LAYERS)
    assert move_cut(front, back, 4) == sum(state.num_bytes for state in states)
    assert move_cut(front, back, 4) == 0


def test_cut_moves_before_the_first_step() -> None:
    """There is nothing to hand over then."""
    sequence = Sequence("Llama", cut=4)
    assert move_cut(*sequence.caches, 1) == 0
    assert torch.equal(sequence.step(IDS[:, :5]), Sequence("Llama", cut=1).step(IDS[:, :5]))


@pytest.mark.parametrize("end", [0, LAYERS])
def test_all_layers_on_one_side(end: int) -> None:
    """The cut may move to either end of the model and back."""
    straight, moving = Sequence("Gemma3", cut=4), Sequence("Gemma3", cut=4)
    for sequence in (straight, moving):
        sequence.step(IDS[:, :20])
    for layer in (end, 2, end, end, 4):
        move_cut(*moving.caches, layer)
        assert (moving.caches[0].last, moving.caches[1].first) == (layer, layer)
        assert torch.equal(moving.step(IDS[:, 20:22]), straight.step(IDS[:, 20:22]))


def test_sizes_of_layers() -> None:
    """What a layer remembers of a token, times the tokens that it keeps, are the bytes that it holds."""
    sequence = Sequence("Mistral", cut=4, rollback_tokens=2)
    front = sequence.caches[0]
    with pytest.raises(ConfigError, match="run one first"):
        front.layer_sizes()
    sequence.step(IDS[:, :1])
    sizes = front.layer_sizes()
    assert len(sizes) == 4
    for num_tokens in (2, 30, 60):
        sequence.step(IDS[:, front.num_tokens : num_tokens])
        assert front.num_bytes == len(IDS) * sum(size.num_bytes(num_tokens) for size in sizes)


def test_states_survive_a_copy() -> None:
    """Keys and values may be copied, as the network does; what is left behind shares no memory that matters."""
    straight, moving = Sequence("Mistral", cut=4), Sequence("Mistral", cut=4)
    for sequence in (straight, moving):
        sequence.step(IDS[:, :20])
    front, back = moving.caches
    states = [
        dataclasses.replace(state, keys=state.keys.clone(), values=state.values.clone())
        for state in front.release(3, 4)
    ]
    back.adopt(3, 4, states)
    assert torch.equal(moving.step(IDS[:, 20:22]), straight.step(IDS[:, 20:22]))


def test_windowed_layer_may_send_its_window_only() -> None:
    """What a window no longer shows need not be sent: fewer bytes, the same bits."""
    straight, moving = Sequence("Mistral", cut=4), Sequence("Mistral", cut=4)
    for sequence in (straight, moving):
        sequence.step(IDS[:, :20])
    front, back = moving.caches
    states = [
        dataclasses.replace(state, keys=state.keys[:, :, 1 - WINDOW :], values=state.values[:, :, 1 - WINDOW :])
        for state in front.release(3, 4)
    ]
    back.adopt(3, 4, states)
    assert torch.equal(moving.step(IDS[:, 20:22]), straight.step(IDS[:, 20:22]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"num_tokens": 13}, "has seen 13 tokens, this sequence has 12"),
        (lambda state: {"keys": state.keys[:, :, :-1]}, r"has keys of torch.float32 and shape \[2, 2, 11, 8\]"),
        (lambda state: {"values": state.values[:1]}, "has values of .*do not fit 2 sequences of 12 tokens"),
        (lambda state: {"keys": state.keys[:1], "values": state.values[:1]}, "has keys of"),
        (lambda state: {"values": state.values.long()}, "has values of torch.int64"),
        (lambda state: {"keys": state.keys[0]}, "has keys of"),
        (lambda state: {"index": 1}, r"the states of layers 2 to 3 were expected in order, got those of \[1\]"),
    ],
)
def test_states_of_a_stranger_are_checked(change: Any, message: str) -> None:
    """States may come over the network: one that does not fit is refused, and changes nothing."""
    sequence = Sequence("Llama")
    sequence.step(IDS[:, :12])
    front, back = sequence.caches
    (state,) = front.release(2, 3)
    before = repr(back)
    with pytest.raises(InputMismatch, match=message):
        back.adopt(2, 3, [dataclasses.replace(state, **change(state))])
    with pytest.raises(InputMismatch, match="expected in order"):
        back.adopt(2, 3, [])
    assert repr(back) == before
    back.adopt(2, 3, [state])


def test_only_layers_at_the_cut_move() -> None:
    """A cache covers layers without a gap."""
    sequence = Sequence("Llama")
    sequence.step(IDS[:, :3])
    front, back = sequence.caches
    for first, last in ((1, 2), (2, 4), (2, 1)):
        with pytest.raises(ConfigError, match=f"layers: {first} to {last} are not at an end of the cache's 0 to 3"):
            front.release(first, last)
    with pytest.raises(ConfigError, match="layers: 1 to 2 are not next to the cache's 3 to 6"):
        back.adopt(1, 2, [])
    with pytest.raises(ConfigError, match="layer: 7 is not within 0 to 3 and 3 to 6"):
        move_cut(front, back, 7)
    with pytest.raises(ConfigError, match="give the two caches of one sequence"):
        move_cut(back, front, 3)


def test_both_sides_have_finished_the_step() -> None:
    """A cut does not move between a head's step and its tail's."""
    sequence = Sequence("Llama")
    sequence.head(IDS, sequence.caches[0])
    with pytest.raises(InputMismatch, match="the front has seen 100 tokens, the back 0"):
        move_cut(*sequence.caches, 2)


def test_caches_know_nothing_of_each_other() -> None:
    """Sequences of one tail do not mix."""
    alone, other = Sequence("Gemma3"), Sequence("Gemma3", cut=5)
    alone.step(IDS[:, :9])
    expected = alone.step(IDS[:, 9:11])
    mixed = Sequence("Gemma3")
    mixed.step(IDS[:, :9])
    other.step(IDS[:, 40:70])
    assert torch.equal(mixed.step(IDS[:, 9:11]), expected)
    assert isinstance(mixed.caches[0], KVCache)
