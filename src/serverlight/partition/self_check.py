"""Finds out whether the models of an architecture can be cut exactly, by cutting a tiny one of random weights."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from serverlight.errors import NotPartitionable
from serverlight.huggingface import new_cache, quiet
from serverlight.partition.decoder import DecoderHead, DecoderPart, DecoderTail
from serverlight.partition.driver import Driver
from serverlight.partition.kv_cache import move_cut
from serverlight.partition.layout import Layout, observe, part_class
from serverlight.partition.tiny_config import tiny_config

__all__ = ["SPECIAL_TOKENS", "check_architecture", "part_of", "random_model", "say"]

PADDING = 3
"""How many tokens of the first sequence of the test are padding, on the left."""

CHUNKS = (9, 1, 4, 1)
"""New tokens of each step: a prompt longer than the window, a token, a chunk that crosses the window's edge, a token."""

MOST_PARAMETERS = 32_000_000
"""A config whose sizes are not found by name must not fill a device's memory."""

SPECIAL_TOKENS = 8
"""So many of the last token ids are left out: padding and the like may be treated differently."""

Result = TypeVar("Result")
Part = TypeVar("Part", bound=DecoderPart)

_known: dict[tuple[type, str], Layout | NotPartitionable] = {}


def check_architecture(model_class: Any, config: Any) -> Layout:
    """How models of a class are laid out, once head and tail of a tiny one gave exactly what the whole one gives.

    The tiny model has the settings of ``config`` but for its sizes. Compared are the logits of a padded batch, for a
    prompt, single tokens and a chunk, while the cut moves. The result is remembered as long as the process lives.

    Raises:
        NotPartitionable: the tiny model cannot be built, cut or run, or its parts differ from the whole.
    """
    config = config.get_text_config(decoder=True)
    if getattr(config, "num_attention_heads", None) is None:
        raise NotPartitionable(model_class.__name__, "it has no attention, and so no keys and values to keep")
    try:
        tiny = tiny_config(config)
    except Exception as exc:
        raise NotPartitionable(model_class.__name__, f"its config cannot be shrunk for a test ({say(exc)})") from exc
    key = (model_class, tiny.to_json_string(use_diff=False))
    if key not in _known:
        try:
            _known[key] = _check(model_class, tiny)
        except NotPartitionable as exc:
            _known[key] = exc
    found = _known[key]
    if isinstance(found, NotPartitionable):
        raise found
    return found


def _check(model_class: Any, config: Any) -> Layout:
    name = model_class.__name__
    with quiet(), warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        whole = _try(name, "a tiny one cannot be built", random_model, model_class, config)
        ids = torch.randint(0, config.vocab_size - SPECIAL_TOKENS, (2, sum(CHUNKS)))
        mask = torch.ones_like(ids)
        mask[0, :PADDING] = 0
        layout, expected = _try(name, "a tiny one does not run", _run_whole, whole, ids, mask)
        count = len(whole.get_submodule(layout.layers))
        for held, cuts in (
            ((count - 1, 1), (count // 2, 1, count - 1, 1)),
            ((0, 0), (0, 0, 0, 0)),
            ((count, count), (count, count, count, count)),
        ):
            parts = _try(name, "its parts do not run", _run_parts, whole, layout, held, cuts, ids, mask)
            for step, (ours, theirs) in enumerate(zip(parts, expected, strict=True)):
                if not torch.equal(ours, theirs):
                    difference = (ours - theirs).abs().max().item()
                    raise NotPartitionable(
                        name, f"cut at layer {cuts[step]}, step {step} of a test differs by {difference:.1e}"
                    )
    return layout


def _try(name: str, what: str, work: Callable[..., Result], *args: Any) -> Result:
    """Other people's model code may raise anything; all of it means that the model cannot be cut."""
    try:
        return work(*args)
    except NotPartitionable as exc:
        raise NotPartitionable(name, exc.reason) from exc
    except Exception as exc:
        raise NotPartitionable(name, f"{what} ({say(exc)})") from exc


def say(exc: Exception) -> str:
    """An error's class and first line."""
    first, *_ = str(exc).splitlines() or [""]
    return f"{type(exc).__name__}: {first[:200]}"


def random_model(model_class: Any, config: Any) -> Any:
    """A tiny model with weights large enough for every module to matter; a fresh model's may be zero."""
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class(config).parameters())
    if size > MOST_PARAMETERS:
        raise NotPartitionable(model_class.__name__, f"a tiny one still has {size} parameters, too many for a test")
    model = model_class(config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model


def _run_whole(model: Any, ids: Tensor, mask: Tensor) -> tuple[Layout, list[Tensor]]:
    layout = observe(model, input_ids=ids)
    cache = new_cache(model.config)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    logits, seen = [], 0
    for tokens in CHUNKS:
        new = slice(seen, seen + tokens)
        seen += tokens
        extra = {"position_ids": positions[:, new]} if "position_ids" in layout.arguments else {}
        output = model(
            input_ids=ids[:, new], attention_mask=mask[:, :seen], past_key_values=cache, use_cache=True, **extra
        )
        logits.append(output.logits)
    return layout, logits


def _run_parts(
    whole: Any, layout: Layout, held: tuple[int, int], cuts: Sequence[int], ids: Tensor, mask: Tensor
) -> list[Tensor]:
    count = len(whole.get_submodule(layout.layers))
    head = part_of(whole, layout, DecoderHead, 0, held[0])
    tail = part_of(whole, layout, DecoderTail, held[1], count)
    head_cache, tail_cache = head.new_cache(last=cuts[0]), tail.new_cache(first=cuts[0])
    logits, seen = [], 0
    for tokens, cut in zip(CHUNKS, cuts, strict=True):
        move_cut(head_cache, tail_cache, cut)
        new = slice(seen, seen + tokens)
        seen += tokens
        hidden = head(ids[:, new], head_cache, attention_mask=mask[:, :seen])
        logits.append(tail(hidden, tail_cache, attention_mask=mask[:, :seen]))
    return logits


def part_of(whole: Any, layout: Layout, kind: type[Part], first: int, last: int) -> Part:
    """A part that is built as from files, but takes its weights from a model at hand."""
    built = part_class(type(whole), layout, range(first, last), embeds=kind.embeds, finishes=kind.finishes)
    model = built(whole.config).eval()
    missing, _ = model.load_state_dict(whole.state_dict(), strict=False)
    if missing:
        raise NotPartitionable(type(whole).__name__, f"its part asks for weights that it does not have: {missing[0]}")
    return kind(Driver(model, layout), first, last)
