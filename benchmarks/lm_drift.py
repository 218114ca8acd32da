"""Question: how does the damage of a compressed cut grow over a long text, and are frames of one token or of many the better?

    python benchmarks/lm_drift.py                                     # everything, an hour or so on one core
    python benchmarks/lm_drift.py --windows 2 --texts-written 2 --tokens 100

A language model is cut in the middle. On held-out text (teacher-forced) every prediction after 1 to 1,000 tokens is compared
with the uncut model's: for profile `serverlight` at about 1, 2, 3 and 4 bits an element, for profile `slicer` at 2, 3 and 4, for
plain halves, in frames of 1, 16 and 128 tokens. Sparsities are found by bisection, SLICER's groups and budget by a grid, both on
other text. Then both models write: the cut one goes on from prompts, greedily and by drawing with the same luck, a frame for
every token. Writes JSON, a table and a figure under `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import lzma
import os
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from serverlight.apps.bench_plots import plot_drift
from serverlight.codec import CodecConfig
from serverlight.evaluation import describe_environment
from serverlight.evaluation.drift import (
    Crossing,
    CutModel,
    Drift,
    FreeRun,
    by_position,
    free_running,
    teacher_forced,
)
from serverlight.huggingface import find_folder

NAME = "lm_drift"
HERE = pathlib.Path(__file__).parent
HELD_OUT = ("text_corpora/chilit_valid_alice_pan.txt.xz", "text_corpora/fairytaleqa_valid.txt.xz")

CHUNKS = (1, 16, 128)
LEAST_BITS = {"serverlight": 1, "slicer": 2}
"""SLICER's bitmap alone takes one bit."""

SLICER_GRID = [(groups, distortion) for groups in (1, 2) for distortion in (0.03, 0.06, 0.12, 0.25)]
SPARSITY_STEPS = 8
"""Bisections; the last one moves the sparsity by less than half a hundredth."""

SEARCH_WINDOWS, SEARCH_TOKENS, PROMPT_TOKENS, TEMPERATURE = 2, 384, 24, 1.0
RAW_BYTES = 2
"""Of a token id that goes to a full server."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One way across, measured."""

    title: str
    wanted_bits: float | None
    crossing: Crossing
    forced: Drift
    free: dict[str, dict[str, Any]]
    """By `greedy` and `drawn`; empty where frames have many tokens, since writing sends one at a time."""


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    model = CutModel.load(args.model, args.cut)
    texts = Texts.load(args, tokens=args.tokens, num_windows=args.windows, num_prompts=args.texts_written)
    started = time.perf_counter()
    crossings = choose_crossings(model, texts.search, args.bits)
    say(f"{len(crossings)} settings chosen after {time.perf_counter() - started:.0f} s")
    count = iter(range(1, len(texts.windows) + 1))
    forced = teacher_forced(
        model, texts.windows, [crossing for _, _, crossing in crossings], lambda: say(f"text {next(count)} read")
    )
    free = write_freely(model, texts.prompts, [crossing for _, _, crossing in crossings], args.tokens - PROMPT_TOKENS)
    rows = [
        Row(title=title, wanted_bits=wanted, crossing=crossing, forced=drift, free=runs)
        for (title, wanted, crossing), drift, runs in zip(crossings, forced, free, strict=True)
    ]
    report = make_report(args, model, texts, rows, time.perf_counter() - started)
    print(text := as_markdown(report))
    write(args.out, report, text)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = os.environ.get("SERVERLIGHT_SHARED", HERE.parents[1] / "shared" / "data")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(shared), help="folder of the shared data")
    parser.add_argument("--model", default="demo-lm", help="folder, hub id or demo-lm")
    parser.add_argument("--cut", default="layers.4")
    parser.add_argument(
        "--texts", nargs="+", default=HELD_OUT, help="files in the data folder: .txt, .txt.xz or .jsonl"
    )
    parser.add_argument("--bits", type=float, nargs="+", default=(1, 2, 3, 4), help="bits an element to aim at")
    parser.add_argument("--tokens", type=int, default=1000, help="tokens of each text")
    parser.add_argument("--windows", type=int, default=32, help="texts to read")
    parser.add_argument("--texts-written", type=int, default=16, help="texts to write in each mode")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results", help="folder for the results")
    args = parser.parse_args()
    for name in args.texts:
        if not (args.data / name).is_file():
            parser.error(f"no {name} in {args.data}; name the data folder with --data or SERVERLIGHT_SHARED")
    return args


# -- what is measured --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Held-out token ids: to measure on, to begin with, and to choose settings by; none overlap."""

    windows: Tensor
    prompts: Tensor
    search: Tensor

    @classmethod
    def load(cls, args: argparse.Namespace, *, tokens: int, num_windows: int, num_prompts: int) -> Texts:
        """Draws so many texts of the held-out ones, always the same."""
        tokenizer = Tokenizer.from_file(str(find_folder(args.model, ["tokenizer.json"]) / "tokenizer.json"))
        ids = [tokenizer.encode(read_text(args.data / name)).ids for name in args.texts]
        cut = [torch.tensor(text[: len(text) // tokens * tokens]).view(-1, tokens) for text in ids]
        every = torch.cat(cut)
        order = torch.from_numpy(np.random.default_rng(0).permutation(len(every)))
        needed = num_windows + num_prompts + SEARCH_WINDOWS
        if needed > len(every):
            sys.exit(f"{needed} texts of {tokens} tokens wanted, {len(every)} are there; ask for fewer or shorter ones")
        chosen = every[order[:needed]]
        windows, prompts, search = chosen.split([num_windows, num_prompts, SEARCH_WINDOWS])
        return cls(windows=windows, prompts=prompts[:, :PROMPT_TOKENS], search=search[:, :SEARCH_TOKENS])


def read_text(path: pathlib.Path) -> str:
    """A text as it is, compressed, or line by line in a field ``text``."""
    if path.suffix == ".xz":
        return lzma.decompress(path.read_bytes()).decode()
    text = path.read_text()
    return "\n".join(json.loads(line)["text"] for line in text.splitlines()) if path.suffix == ".jsonl" else text


Chosen = list[tuple[str, float | None, Crossing]]


def choose_crossings(model: CutModel, search: Tensor, rates: Sequence[float]) -> Chosen:
    """Plain halves, then each profile at each rate in frames of each length."""
    halves = CodecConfig(profile="fp16")
    chosen: Chosen = [("fp16", None, Crossing(config=halves, chunk_tokens=chunk)) for chunk in (1, CHUNKS[-1])]
    for profile, bits, chunk in itertools.product(LEAST_BITS, rates, CHUNKS):
        crossing = best_at(model, search, profile, bits, chunk) if bits >= LEAST_BITS[profile] else None
        say(f"{profile}, {bits:g} bits, frames of {chunk}: {crossing and crossing.config}")
        if crossing is not None:
            chosen.append((f"{profile}, {bits:g} bit{'s' if bits > 1 else ''}", bits, crossing))
    return chosen + same_settings(chosen)


def same_settings(chosen: Chosen) -> Chosen:
    """The richest of our settings for frames of one token, in longer frames: what the length alone does."""
    single = [c for _, _, c in chosen if c.config and c.config.profile == "serverlight" and c.chunk_tokens == 1]
    return [
        ("serverlight, same s", None, dataclasses.replace(crossing, chunk_tokens=chunk))
        for crossing in single[-1:]
        for chunk in CHUNKS[1:]
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
    model: CutModel, prompts: Tensor, crossings: Sequence[Crossing], num_tokens: int
) -> list[dict[str, dict[str, Any]]]:
    """For each crossing of frames of one token, how its texts part from those of the uncut model."""
    results: list[dict[str, dict[str, Any]]] = [{} for _ in crossings]
    for mode, temperature in (("greedy", 0.0), ("drawn", TEMPERATURE)):
        settings = {"num_tokens": num_tokens, "temperature": temperature}
        uncut = free_running(model, prompts, Crossing(config=None), **settings)
        for result, crossing in zip(results, crossings, strict=True):
            if crossing.chunk_tokens == 1:
                result[mode] = compare_texts(free_running(model, prompts, crossing, **settings), uncut)
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


# -- what is written ----------------------------------------------------------------------------------------------


def make_report(
    args: argparse.Namespace, model: CutModel, texts: Texts, rows: Sequence[Row], seconds: float
) -> dict[str, Any]:
    raw = {
        "title": "full server, token ids", "chunk_tokens": 1, "config": None, "wanted_bits": None, "kl": 0.0, "top1": 1.0,
        "bytes_per_token": RAW_BYTES, "bits_per_element": 8 * RAW_BYTES / model.head.hidden_size,
    }  # fmt: skip
    return {
        "benchmark": NAME,
        "model": {"name": pathlib.Path(model.name).name, "revision": model.revision, "cut": model.cut},
        "hidden_size": model.head.hidden_size,
        "settings": {
            "windows": len(texts.windows), "tokens": args.tokens, "texts_written": len(texts.prompts),
            "prompt_tokens": PROMPT_TOKENS, "temperature": TEMPERATURE, "texts": list(args.texts),
        },
        "seconds": round(seconds, 1),
        "environment": describe_environment(),
        "rows": [raw, *map(as_dict, rows)],
    }  # fmt: skip


def as_dict(row: Row) -> dict[str, Any]:
    config = row.crossing.config
    whole = dataclasses.asdict(by_position(row.forced, [1, row.forced.kl.shape[1] + 1])[0])
    return {
        "title": row.title,
        "chunk_tokens": row.crossing.chunk_tokens,
        "config": config.to_dict() if config else None,
        "wanted_bits": row.wanted_bits,
        "bits_per_element": row.forced.bits_per_element,
        "bytes_per_token": row.forced.bytes_per_token,
        "kl": whole["kl"],
        "kl_interval": whole["kl_interval"],
        "top1": whole["agreement"],
        "top1_interval": whole["agreement_interval"],
        "positions": buckets(row.forced),
        **row.free,
    }


READ = (
    "codec", "tokens a frame", "s, M, delta", "bits/element", "bytes/token", "KL", "interval", "top-1", "KL at the first",
    "KL at the end",
)  # fmt: skip
WRITTEN = (
    "codec", "bytes/token", "texts without a difference", "first difference, median", "agreement after it",
    "KL on its own text", "top-1 on its own text",
)  # fmt: skip


def as_markdown(report: dict[str, Any]) -> str:
    """What was measured, and the tables."""
    environment, settings, model = report["environment"], report["settings"], report["model"]
    rows = report["rows"]
    lines = [
        f"# Drift of a cut language model over {settings['tokens']} tokens",
        "",
        f"{environment['date']}, {environment['cpu']}, {environment['torch_threads']} thread, Python {environment['python']}, "
        f"torch {environment['versions']['torch']}; `{model['name']}` (revision {model['revision']}) cut at {model['cut']}, "
        f"{report['hidden_size']} elements a token, float32. Made by `python benchmarks/{NAME}.py` in {report['seconds']:.0f} s.",
        "",
        "## Both models read the same text",
        "",
        f"{settings['windows']} held-out texts of {settings['tokens']} tokens. KL is the mean divergence from the uncut model's "
        "prediction, in nats a token; top-1 the share of equal first choices; intervals are at 95 %, by a bootstrap over the "
        "texts. Bytes are those of whole frames, without the network's framing.",
        "",
        *as_table(READ, [read_cells(row) for row in rows]),
        "",
        *written_tables(rows, settings),
    ]
    return "\n".join(lines)


def read_cells(row: dict[str, Any]) -> list[str]:
    config = row["config"] or {}
    knobs = {
        "slicer": f"{config.get('sparsity')}, {config.get('num_groups')}, {config.get('distortion')}",
        "serverlight": f"{config.get('sparsity')}",
    }.get(config.get("profile", ""), "")
    positions = row.get("positions")
    return [
        row["title"],
        str(row["chunk_tokens"]),
        knobs,
        f"{row['bits_per_element']:.2f}",
        f"{row['bytes_per_token']:.1f}",
        f"{row['kl']:.2g}",
        "{:.2g} to {:.2g}".format(*row["kl_interval"]) if positions else "",
        f"{row['top1']:.2%}",
        f"{positions[0]['kl']:.2g}" if positions else "0",
        f"{positions[-1]['kl']:.2g}" if positions else "0",
    ]


def written_tables(rows: Sequence[dict[str, Any]], settings: dict[str, Any]) -> list[str]:
    titles = {
        "greedy": "## The cut model writes, greedily",
        "drawn": f"## The cut model writes, drawing at temperature {settings['temperature']:g}",
    }
    lines = []
    for mode, title in titles.items():
        cells = [written_cells(row["title"], row[mode]) for row in rows if mode in row]
        lines += [title, "", *as_table(WRITTEN, cells), ""]
    lines += [
        f"{settings['texts_written']} prompts of {settings['prompt_tokens']} held-out tokens, "
        f"{settings['tokens'] - settings['prompt_tokens']} tokens written after each, a frame for every token. Beside the uncut "
        "model's text from the same prompt, and, drawing, with the same luck; KL and top-1 are the uncut model's opinion of the "
        "cut model's own text.",
        "",
    ]
    return lines


def written_cells(title: str, free: dict[str, Any]) -> list[str]:
    firsts = [np.inf if n is None else n for n in free["first_difference"]]
    median, after = np.median(firsts), free["agreement_after"]
    return [
        title,
        f"{free['bytes_per_token']:.1f}",
        f"{sum(np.isinf(firsts))} of {len(firsts)}",
        "none" if np.isinf(median) else f"{median:.0f}",
        "" if after is None else f"{after:.1%}",
        f"{free['kl']:.2g}",
        f"{free['top1']:.2%}",
    ]


def as_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}", *(f"| {' | '.join(cells)} |" for cells in rows)]


def write(folder: pathlib.Path, report: dict[str, Any], text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    environment = report["environment"]
    hardware = re.sub(r"[^a-z0-9]+", "-", environment["cpu"].lower()).strip("-")
    model = re.sub(r"[^a-z0-9]+", "-", report["model"]["name"].lower())
    path = folder / f"{NAME}_{model}_{hardware}_{environment['date']}"
    path.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    path.with_suffix(".md").write_text(text)
    plot_drift(report["rows"], str(path.with_suffix(".png")))
    say(f"wrote {path.name}.json, .md and .png")


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
