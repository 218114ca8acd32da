"""Drift measured from settings to figures: which crossings, what they do to given texts, and to texts that the cut model writes."""

from __future__ import annotations

import dataclasses
import functools
import importlib.resources
import itertools
import json
import lzma
import pathlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from serverlight.codec import CodecConfig
from serverlight.errors import ConfigError
from serverlight.evaluation.drift import Crossing, CutModel, Drift, FreeRun, by_position, free_running, teacher_forced
from serverlight.evaluation.tasks.tokens import token_ids
from serverlight.huggingface import find_folder

__all__ = [
    "CHUNKS",
    "LEAST_BITS",
    "PROMPT_TOKENS",
    "SEARCH_TOKENS",
    "SEARCH_WINDOWS",
    "TEMPERATURE",
    "Texts",
    "drift_of",
    "measure_drift",
    "read_text",
]

CHUNKS = (1, 16, 128)
"""Tokens of a frame."""

LEAST_BITS = {"serverlight": 1, "slicer": 2}
"""SLICER's bitmap alone takes one bit."""

SLICER_GRID = [(groups, distortion) for groups in (1, 2) for distortion in (0.03, 0.06, 0.12, 0.25)]
SPARSITY_STEPS = 8
"""Bisections; the last one moves the sparsity by less than half a hundredth."""

SEARCH_WINDOWS, SEARCH_TOKENS, PROMPT_TOKENS, TEMPERATURE = 2, 384, 24, 1.0
RAW_BYTES = 2
"""Of a token id that goes to a full server."""

Say = Callable[[str], None]
"""Is told what has been done."""

Chosen = list[tuple[str, float | None, Crossing]]
"""Titles, the bits an element that were aimed at, and how states cross."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Texts:
    """Held-out token ids: to measure on, to begin with, and to choose settings by; none overlap."""

    windows: Tensor
    """(N, T)"""

    prompts: Tensor
    """(N, P)"""

    search: Tensor
    """(N, T)"""

    @classmethod
    def draw(cls, texts: Sequence[Sequence[int]], *, tokens: int, num_windows: int, num_prompts: int) -> Texts:
        """So many pieces of some texts, always the same ones; raises :class:`ConfigError` where there are too few."""
        pieces = [torch.tensor(text[: len(text) // tokens * tokens]).view(-1, tokens) for text in texts]
        every = torch.cat(pieces)
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(every)))
        needed = num_windows + num_prompts + SEARCH_WINDOWS
        if needed > len(every):
            raise ConfigError(
                "texts",
                f"{needed} pieces of {tokens} tokens wanted, {len(every)} are there; ask for fewer or shorter ones",
            )
        windows, prompts, search = torch.split(every[order[:needed]], [num_windows, num_prompts, SEARCH_WINDOWS])
        return cls(windows=windows, prompts=prompts[:, :PROMPT_TOKENS], search=search[:, :SEARCH_TOKENS])


def read_text(path: pathlib.Path | None) -> str:
    """A text as it is, compressed, or line by line in a field ``text``; ``None`` for the shipped one.

    Raises :class:`ConfigError` where it cannot be read.
    """
    if path is None:
        shipped = importlib.resources.files("serverlight.models") / "data" / "demo_lm" / "held_out.txt"
        return shipped.read_text("utf-8")
    try:
        if path.suffix == ".xz":
            return lzma.decompress(path.read_bytes()).decode()
        text = path.read_text("utf-8")
        return "\n".join(json.loads(line)["text"] for line in text.splitlines()) if path.suffix == ".jsonl" else text
    except (OSError, ValueError, KeyError, TypeError, lzma.LZMAError) as error:
        raise ConfigError("texts", f"cannot read {path.name}: {error}; give text, .txt.xz or .jsonl") from None


def drift_of(
    spec: str,
    cut: str,
    files: Sequence[str],
    *,
    tokens: int,
    windows: int,
    texts_written: int,
    rates: Sequence[float],
    chunks: Sequence[int] = CHUNKS,
    say: Say = lambda line: None,
) -> dict[str, Any]:
    """Model, settings and rows of :func:`measure_drift`, ready for JSON.

    Args:
        spec: folder, hub id or ``demo-lm``.
        cut: where it is cut.
        files: held-out texts; the shipped one where there are none.
        tokens: of each piece of text, the prompt included.
        windows: pieces to read.
        texts_written: pieces to go on from.
        rates: bits an element to aim at.
        chunks: tokens of a frame.
        say: see :data:`Say`.

    Raises:
        ConfigError: a text cannot be read, or there is not enough of it.
        ModelError: there is no such model, or it cannot be loaded.
    """
    model = CutModel.load(spec, cut)
    folder = find_folder(spec, ["tokenizer.json"])
    ids = token_ids(folder, [read_text(path) for path in (map(pathlib.Path, files) if files else [None])])
    texts = Texts.draw(ids, tokens=tokens, num_windows=windows, num_prompts=texts_written)
    rows = measure_drift(model, texts, rates=rates, chunks=chunks, num_tokens=tokens - PROMPT_TOKENS, say=say)
    return {
        "model": {"name": pathlib.PurePath(spec).name, "revision": model.revision, "cut": cut},
        "hidden_size": model.head.hidden_size,
        "settings": {
            "windows": windows, "tokens": tokens, "texts_written": texts_written, "prompt_tokens": PROMPT_TOKENS,
            "temperature": TEMPERATURE, "texts": [pathlib.PurePath(name).name for name in files],
        },
        "rows": rows,
    }  # fmt: skip


def measure_drift(
    model: CutModel,
    texts: Texts,
    *,
    rates: Sequence[float],
    chunks: Sequence[int] = CHUNKS,
    num_tokens: int,
    say: Say = lambda line: None,
) -> list[dict[str, Any]]:
    """Rows, ready for JSON, of a full server, plain halves and each profile at each rate in frames of each length.

    Args:
        model: both parts.
        texts: see :class:`Texts`.
        rates: bits an element to aim at.
        chunks: tokens of a frame; those of one token are also written with.
        num_tokens: how many the models write after each prompt.
        say: see :data:`Say`.
    """
    chosen = choose_crossings(model, texts.search, rates, chunks, say)
    crossings = [crossing for _, _, crossing in chosen]
    count = iter(range(1, len(texts.windows) + 1))
    forced = teacher_forced(model, texts.windows, crossings, lambda: say(f"text {next(count)} read"))
    free = write_freely(model, texts.prompts, crossings, num_tokens, say)
    raw = {
        "title": "full server, token ids", "chunk_tokens": 1, "config": None, "wanted_bits": None, "kl": 0.0, "top1": 1.0,
        "bytes_per_token": RAW_BYTES, "bits_per_element": 8 * RAW_BYTES / model.head.hidden_size,
    }  # fmt: skip
    return [raw, *(as_row(*how, drift, runs) for how, drift, runs in zip(chosen, forced, free, strict=True))]


def choose_crossings(
    model: CutModel, search: Tensor, rates: Sequence[float], chunks: Sequence[int], say: Say
) -> Chosen:
    """Plain halves, then each profile at each rate in frames of each length."""
    halves = CodecConfig(profile="fp16")
    chosen: Chosen = [
        ("fp16", None, Crossing(config=halves, chunk_tokens=chunk)) for chunk in dict.fromkeys((chunks[0], chunks[-1]))
    ]
    for profile, bits, chunk in itertools.product(LEAST_BITS, rates, chunks):
        crossing = best_at(model, search, profile, bits, chunk) if bits >= LEAST_BITS[profile] else None
        say(f"{profile}, {bits:g} bits, frames of {chunk}: {crossing and crossing.config}")
        if crossing is not None:
            chosen.append((f"{profile}, {bits:g} bit{'s' if bits > 1 else ''}", bits, crossing))
    return chosen + same_settings(chosen, chunks[1:])


def same_settings(chosen: Chosen, chunks: Sequence[int]) -> Chosen:
    """The richest of our settings for frames of one token, in longer frames: what the length alone does."""
    single = [c for _, _, c in chosen if c.config and c.config.profile == "serverlight" and c.chunk_tokens == 1]
    return [
        ("serverlight, same s", None, dataclasses.replace(crossing, chunk_tokens=chunk))
        for crossing in single[-1:]
        for chunk in chunks
    ]


def best_at(model: CutModel, search: Tensor, profile: str, bits: float, chunk: int) -> Crossing | None:
    """The crossing of about so many bits an element with the least divergence on the texts to search with, if there is one."""
    bases = [CodecConfig(profile=profile)]
    if profile == "slicer":
        bases = [CodecConfig(profile=profile, num_groups=m, distortion=d) for m, d in SLICER_GRID]
    states = model.states(search[:1])
    fitted = [crossing for base in bases if (crossing := fit_sparsity(base, states, bits, chunk)) is not None]
    if len(fitted) < 2:
        return fitted[0] if fitted else None
    losses = [drift.kl.mean() for drift in teacher_forced(model, search, fitted)]
    return fitted[int(np.argmin(losses))]


def fit_sparsity(base: CodecConfig, states: Tensor, bits: float, chunk: int) -> Crossing | None:
    """Sparsity by bisection; none where even the sparsest needs a tenth more bits, or the densest a tenth fewer."""
    low, high = 0.0, 0.999
    for _ in range(SPARSITY_STEPS):
        middle = (low + high) / 2
        crossing = Crossing(config=dataclasses.replace(base, sparsity=round(middle, 4)), chunk_tokens=chunk)
        rate = 8 * crossing.send(states)[1] / states.numel()
        low, high = (low, middle) if rate < bits else (middle, high)
    return crossing if abs(rate / bits - 1) < 0.1 else None


def write_freely(
    model: CutModel, prompts: Tensor, crossings: Sequence[Crossing], num_tokens: int, say: Say
) -> list[dict[str, dict[str, Any]]]:
    """For each crossing of frames of one token, how its texts part from those of the uncut model."""
    results: list[dict[str, dict[str, Any]]] = [{} for _ in crossings]
    for mode, temperature in (("greedy", 0.0), ("drawn", TEMPERATURE)):
        write = functools.partial(free_running, model, prompts, num_tokens=num_tokens, temperature=temperature)
        uncut = write(Crossing(config=None))
        for result, crossing in zip(results, crossings, strict=True):
            if crossing.chunk_tokens == 1:
                result[mode] = compare_texts(write(crossing), uncut)
                say(f"{mode}: {crossing.config}")
    return results


def compare_texts(run: FreeRun, uncut: FreeRun) -> dict[str, Any]:
    """When the texts part, how alike they are then, and the drift on the cut model's own text."""
    same = run.tokens == uncut.tokens
    identical = np.logical_and.accumulate(same, axis=1)
    first = identical.sum(1)
    after = ~identical
    after[np.arange(len(first)), np.minimum(first, same.shape[1] - 1)] = False  # the difference itself
    return {
        "first_difference": [int(n) + 1 if n < same.shape[1] else None for n in first],
        "agreement_after": float(same[after].mean()) if after.any() else None,
        "kl": float(run.drift.kl.mean()),
        "top1": float(run.drift.agrees.mean()),
        "positions": buckets(run.drift),
        "bits_per_element": run.drift.bits_per_element,
        "bytes_per_token": run.drift.bytes_per_token,
        "distinct_tokens": float(np.mean([len(set(text)) for text in run.tokens.tolist()])),
    }


def buckets(drift: Drift) -> list[dict[str, Any]]:
    """Positions in powers of two, up to the last."""
    last = drift.kl.shape[1]
    edges = [2**i for i in range(last.bit_length()) if 2**i <= last]
    if len(edges) > 1 and last + 1 - edges[-1] < edges[-1] // 2:
        edges.pop()  # a stump of a bucket goes to the one before
    return [dataclasses.asdict(bucket) for bucket in by_position(drift, [*edges, last + 1])]


def as_row(title: str, wanted: float | None, crossing: Crossing, forced: Drift, free: dict[str, Any]) -> dict[str, Any]:
    """One way across; by ``greedy`` and ``drawn`` what was written, where frames have one token."""
    config = crossing.config
    whole = by_position(forced, [1, forced.kl.shape[1] + 1])[0]
    return {
        "title": title,
        "chunk_tokens": crossing.chunk_tokens,
        "config": config.to_dict() if config else None,
        "wanted_bits": wanted,
        "bits_per_element": forced.bits_per_element,
        "bytes_per_token": forced.bytes_per_token,
        "kl": whole.kl,
        "kl_interval": whole.kl_interval,
        "top1": whole.agreement,
        "top1_interval": whole.agreement_interval,
        "positions": buckets(forced),
        **free,
    }
