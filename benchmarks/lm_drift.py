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
import json
import os
import pathlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from serverlight.apps.bench_plots import plot_drift
from serverlight.evaluation import describe_environment
from serverlight.evaluation.drift_runs import drift_of

NAME = "lm_drift"
HERE = pathlib.Path(__file__).parent
HELD_OUT = ("text_corpora/chilit_valid_alice_pan.txt.xz", "text_corpora/fairytaleqa_valid.txt.xz")


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    started = time.perf_counter()
    found = drift_of(
        args.model, args.cut, [str(args.data / name) for name in args.texts], tokens=args.tokens, windows=args.windows,
        texts_written=args.texts_written, rates=args.bits, say=say,
    )  # fmt: skip
    seconds = round(time.perf_counter() - started, 1)
    report = {"benchmark": NAME, "seconds": seconds, "environment": describe_environment(), **found}
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


# -- what is written ----------------------------------------------------------------------------------------------


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
