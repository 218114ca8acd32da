"""Tests of serverlight.partition.decoder: for every architecture, head then tail is the model, bit for bit."""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
import pathlib
from typing import Any

import pytest
import torch
from torch import Tensor

transformers = pytest.importorskip("transformers")

import serverlight as sl  # noqa: E402
from decoder_models import ARCHITECTURES, FURTHER, LAYERS, VOCABULARY, build  # noqa: E402
from serverlight.errors import ConfigError, ContextExceeded, InputMismatch  # noqa: E402
from serverlight.partition.kv_cache import move_cut  # noqa: E402

ALL = [*ARCHITECTURES, *(pytest.param(name, marks=pytest.mark.slow) for name in FURTHER)]

STEPS = (13, 1, 1, 5, 1)
"""New tokens of each step: a prompt longer than any window, decoding, a second chunk, decoding."""

PADDING = 4
SEEN = [sum(STEPS[:step]) for step in range(len(STEPS) + 1)]
NEW = [slice(*ends) for ends in itertools.pairwise(SEEN)]


@functools.cache
def tokens() -> tuple[Tensor, Tensor]:
    """Ids of two sequences, the first padded on the left, and their mask."""
    ids = torch.randint(3, VOCABULARY, (2, sum(STEPS)), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :PADDING] = 0
    return ids, mask


@functools.cache
def uncut(name: str, *, padded: bool = True) -> list[Tensor]:
    return run_whole(build(name), padded=padded)


def run_whole(model: Any, *, padded: bool = True) -> list[Tensor]:
    """The logits that the whole model gives in each step, with a cache of its own making."""
    ids, mask = tokens()
    positions = (mask.cumsum(-1) - 1).clamp(min=0) if padded else torch.arange(ids.shape[1]).expand_as(ids)
    cache, logits = None, []
    for new, seen in zip(NEW, SEEN[1:], strict=True):
        extra = {"position_ids": positions[:, new]} if takes_positions(model) else {}
        extra |= {"attention_mask": mask[:, :seen]} if padded else {}
        output = model(input_ids=ids[:, new], past_key_values=cache, use_cache=True, **extra)
        cache = output.past_key_values
        logits.append(output.logits)
    return logits


def takes_positions(model: Any) -> bool:
    return "position_ids" in inspect.signature(type(model).forward).parameters


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Gives the folder that a model was saved to, written once."""

    @functools.cache
    def save(name: str, dtype: torch.dtype = torch.float32) -> pathlib.Path:
        folder = tmp_path_factory.mktemp("model")
        copy.deepcopy(build(name)).to(dtype).save_pretrained(folder)
        return folder

    return save


def run(head: Any, tail: Any, cuts: list[int], *, padded: bool = True) -> list[Tensor]:
    """The logits of head and tail in each step; the cut may be another one in each."""
    ids, mask = tokens()
    front, back = head.new_cache(last=cuts[0]), tail.new_cache(first=cuts[0])
    logits = []
    for new, seen, cut in zip(NEW, SEEN[1:], cuts, strict=True):
        move_cut(front, back, cut)
        extra = {"attention_mask": mask[:, :seen]} if padded else {}
        hidden = head(ids[:, new], front, **extra)
        assert hidden.shape == (2, new.stop - new.start, head.hidden_size)
        logits.append(tail(hidden, back, **extra))
    return logits


def assert_equal(ours: list[Tensor], theirs: list[Tensor]) -> None:
    for step, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        assert torch.equal(our, their), f"step {step} differs by {(our - their).abs().max():.1e}"


@pytest.mark.parametrize("cut", [0, 1, 3, LAYERS])
@pytest.mark.parametrize("name", ALL)
def test_head_and_tail_are_the_model(folders: Any, name: str, cut: int) -> None:
    """Prompt, decoding and a second chunk, left-padded: the same bits as uncut, each side loaded on its own."""
    head, tail = sl.load_head(str(folders(name)), layers=cut), sl.load_tail(str(folders(name)), layers=cut)
    assert_equal(run(head, tail, [cut] * len(STEPS)), uncut(name))


@pytest.mark.parametrize("name", ALL)
def test_without_padding(folders: Any, name: str) -> None:
    """Without a mask other kernels may run; the bits are still the same."""
    head, tail = sl.load_head(str(folders(name)), layers=2), sl.load_tail(str(folders(name)), layers=2)
    assert_equal(run(head, tail, [2] * len(STEPS), padded=False), uncut(name, padded=False))


@pytest.mark.parametrize("name", ALL)
def test_bfloat16(folders: Any, name: str) -> None:
    """Weights stored as bfloat16 stay bfloat16, and head and tail give the same bits as uncut."""
    folder = str(folders(name, torch.bfloat16))
    head, tail = sl.load_head(folder, layers=3), sl.load_tail(folder, layers=3)
    assert head.dtype == tail.dtype == torch.bfloat16
    whole = type(build(name)).from_pretrained(folder)
    assert_equal(run(head, tail, [3] * len(STEPS)), run_whole(whole))


@pytest.mark.parametrize("name", ALL)
def test_cut_moves_in_mid_sequence(folders: Any, name: str) -> None:
    """Layers change sides with their keys and values, 4 -> 2 -> 5 -> 2 -> 5, and not a bit changes."""
    head, tail = sl.load_head(str(folders(name)), layers=5), sl.load_tail(str(folders(name)), layers=2)
    assert_equal(run(head, tail, [4, 2, 5, 2, 5]), uncut(name))


def test_middle_part(folders: Any) -> None:
    """Cut twice, the middle sees neither tokens nor logits, and the three parts are the model."""
    folder = str(folders("Gemma2"))
    head, tail = sl.load_head(folder, layers=2), sl.load_tail(folder, layers=4)
    middle = sl.load_part(folder, 2, 4)
    ids, mask = tokens()
    caches = head.new_cache(), middle.new_cache(), tail.new_cache()
    for new, seen, expected in zip(NEW, SEEN[1:], uncut("Gemma2"), strict=True):
        crossing = head(ids[:, new], caches[0], attention_mask=mask[:, :seen])
        crossing = middle(crossing, caches[1], attention_mask=mask[:, :seen])
        assert torch.equal(tail(crossing, caches[2], attention_mask=mask[:, :seen]), expected)


def test_middle_without_layers(folders: Any) -> None:
    """Two cuts at one place: what comes in goes out."""
    middle = sl.load_part(str(folders("Llama")), 3, 3)
    hidden = torch.randn(1, 2, middle.hidden_size)
    assert torch.equal(middle(hidden, middle.new_cache()), hidden)


@pytest.mark.parametrize("name", ["Llama", "Gemma3", "Bloom"])
def test_step_without_cache(folders: Any, name: str) -> None:
    """Without a cache each call stands alone, as a scoring harness calls a model."""
    head, tail = sl.load_head(str(folders(name)), layers=3), sl.load_tail(str(folders(name)), layers=3)
    ids, mask = tokens()
    for _ in range(2):
        hidden = head(ids[:, NEW[0]], attention_mask=mask[:, NEW[0]])
        assert torch.equal(tail(hidden, attention_mask=mask[:, NEW[0]]), uncut(name)[0])


@pytest.mark.parametrize("name", ["Llama", "OPT"])
def test_last_logits_only(folders: Any, name: str) -> None:
    """Generation needs the logits of the last token; the others are not made."""
    head, tail = sl.load_head(str(folders(name)), layers=3), sl.load_tail(str(folders(name)), layers=3)
    ids, mask = tokens()
    hidden = head(ids[:, NEW[0]], attention_mask=mask[:, NEW[0]])
    logits = tail(hidden, attention_mask=mask[:, NEW[0]], num_logits=1)
    assert logits.shape == (2, 1, VOCABULARY)
    torch.testing.assert_close(logits, uncut(name)[0][:, -1:])
    with pytest.raises(ConfigError, match="num_logits: must be at least 1"):
        tail(hidden, num_logits=0)


def test_explicit_positions(folders: Any) -> None:
    """Positions may be given, and then count instead of those from the mask."""
    head, tail = sl.load_head(str(folders("Llama")), layers=3), sl.load_tail(str(folders("Llama")), layers=3)
    ids = tokens()[0][:, :5]
    positions = torch.tensor([[7, 8, 9, 10, 11], [0, 3, 6, 9, 12]])
    expected = build("Llama")(input_ids=ids, position_ids=positions, use_cache=True).logits
    assert torch.equal(tail(head(ids, position_ids=positions), position_ids=positions), expected)


def test_one_tail_serves_sequences_with_other_cuts(folders: Any) -> None:
    """A server's tail holds layers for the shallowest cut; each sequence's cache says where its own is."""
    tail = sl.load_tail(str(folders("Mistral")), layers=1)
    for cut in (1, 4, LAYERS):
        head = sl.load_head(str(folders("Mistral")), layers=cut)
        assert_equal(run(head, tail, [cut] * len(STEPS)), uncut("Mistral"))


# -- errors ----------------------------------------------------------------------------------------


@pytest.fixture
def head(folders: Any) -> Any:
    return sl.load_head(str(folders("Llama")), layers=2)


@pytest.fixture
def tail(folders: Any) -> Any:
    return sl.load_tail(str(folders("Llama")), layers=2)


def test_context_is_not_exceeded(head: Any, tail: Any) -> None:
    """A prompt longer than the context is refused, and so is the step that would outgrow it."""
    assert head.context_length == 128
    with pytest.raises(ContextExceeded, match=r"129 tokens, but the model's context holds 128; shorten"):
        head(torch.ones(1, 129, dtype=torch.long))
    cache = tail.new_cache()
    tail(torch.zeros(1, 128, 32), cache)
    with pytest.raises(ContextExceeded, match="129 tokens"):
        tail(torch.zeros(1, 1, 32), cache)
    assert cache.num_tokens == 128


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.tensor([[1, VOCABULARY]]), "token ids from 1 to 96.*use the tokenizer that belongs"),
        (torch.tensor([[-1]]), "token ids from -1 to -1"),
        (torch.tensor([1, 2]), r"must be int64 of shape \[batch, tokens\].*\[2\]"),
        (torch.tensor([[1.0]]), "must be int64"),
        (torch.ones(1, 0, dtype=torch.long), "no tokens"),
        (torch.ones(0, 1, dtype=torch.long), "no tokens"),
    ],
)
def test_wrong_tokens(head: Any, ids: Tensor, message: str) -> None:
    """Ids of another tokenizer and tensors of another kind are told apart."""
    with pytest.raises(InputMismatch, match=message):
        head(ids)


@pytest.mark.parametrize("hidden", [torch.zeros(1, 2, 33), torch.zeros(2, 32), torch.ones(1, 2, 32, dtype=torch.long)])
def test_wrong_hidden_state(tail: Any, hidden: Tensor) -> None:
    """What comes off the network is checked before it is used."""
    with pytest.raises(InputMismatch, match=r"floating point of shape \[batch, tokens, 32\]"):
        tail(hidden)


def test_wrong_side_tensors(head: Any) -> None:
    """Mask and positions must cover what they are for."""
    ids, cache = torch.ones(2, 3, dtype=torch.long), head.new_cache()
    head(ids, cache)
    with pytest.raises(InputMismatch, match=r"attention_mask must have shape \[2, 6\], got \[2, 3\]"):
        head(ids, cache, attention_mask=torch.ones(2, 3))
    with pytest.raises(InputMismatch, match=r"position_ids must have shape \[2, 3\], got \[2, 6\]"):
        head(ids, cache, position_ids=torch.ones(2, 6))
    with pytest.raises(InputMismatch, match="a batch of 1, but this cache has 2"):
        head(ids[:1], cache)


def test_layers_that_are_not_there(head: Any, tail: Any) -> None:
    """A part runs only layers that it holds, and the kinds keep their ends."""
    with pytest.raises(ConfigError, match="DecoderHead has layers 0 to 2 and cannot run 0 to 3"):
        head.new_cache(last=3)
    with pytest.raises(ConfigError, match="cannot run 1 to 2"):
        head.new_cache(first=1)
    with pytest.raises(ConfigError, match="DecoderTail has layers 2 to 6 and cannot run 2 to 5"):
        tail.new_cache(last=5)
    with pytest.raises(ConfigError, match="cannot run 2 to 6"):
        head(torch.ones(1, 1, dtype=torch.long), tail.new_cache())


def test_parts_say_what_they_are(head: Any) -> None:
    """In a log one sees which layers a part has."""
    assert repr(head) == "DecoderHead(LlamaForCausalLM, layers 0 to 2 of 6)"
