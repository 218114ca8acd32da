"""Question: how near does a tenth of the tail runs come to the whole grid of cuts and codec settings?

    python benchmarks/quality_surrogate.py                      # minutes on one core
    python benchmarks/quality_surrogate.py --only demo-vision --images 60

Every cut with every setting of the default grid is run on all samples, once. Then the sampling plan of `serverlight calibrate`
is played again and again from that record, each time with other samples looked at and other settings held out, and what it
predicts is compared with what was measured. Writes JSON and a table under `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import pathlib
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from serverlight.codec import CodecConfig
from serverlight.evaluation import describe_environment, load_images
from serverlight.generation import LoadedDecoder
from serverlight.models import load_model
from serverlight.partition import partition
from serverlight.search.calibrate import Run, fill_table
from serverlight.search.crossings import Kept, LanguageSubject, SingleShotSubject, Subject
from serverlight.search.figures import Figures, Judge, measure
from serverlight.search.grid import candidate_configs
from serverlight.search.quality import QualityTable
from serverlight.text import Tokenizer

NAME = "quality_surrogate"
HERE = pathlib.Path(__file__).parent
TEXT = "tinystories/tinystories_excerpt_30k.txt"
USEFUL_PP = 10.0
"""Rows that lose more are of no use to anybody; their errors are told apart."""

Task = tuple[Subject, Sequence[str], Sequence[CodecConfig], Any]


def main() -> None:
    args = parse_arguments()
    torch.set_num_threads(1)
    rows = []
    for name in args.only:
        started = time.perf_counter()
        rows.append(examine(name, TASKS[name](args), args))
        rows[-1]["seconds"] = time.perf_counter() - started
        write(args, rows)
    print(as_markdown(rows))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = os.environ.get("SERVERLIGHT_SHARED", HERE.parents[1] / "shared" / "data")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(shared), help="folder of the shared data")
    parser.add_argument("--only", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--texts", type=int, default=20)
    parser.add_argument("--tokens", type=int, default=96, help="of each text")
    parser.add_argument("--budget", type=float, default=0.1, help="share of the tail runs")
    parser.add_argument("--plays", type=int, default=20, help="seeds of the plan")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results", help="folder for the results")
    return parser.parse_args()


# -- what is measured --------------------------------------------------------------------------------------------


def vision(spec: str, data: str, cuts: Sequence[str], args: argparse.Namespace) -> Task:
    folder = str(args.data) + "/"
    model = load_model(spec.replace("DATA/", folder))
    images = load_images(data.replace("DATA/", folder), channels=model.image_shape[2]).first(args.images)
    samples = list(torch.split(model.preprocess(images.images), 1))
    subject = SingleShotSubject(model, samples, partition(model.module, model.example_inputs))
    return subject, cuts, candidate_configs("single-shot"), images.labels


def language(spec: str, cuts: Sequence[int], args: argparse.Namespace) -> Task:
    spec = spec.replace("DATA/", str(args.data) + "/")
    head = LoadedDecoder.head(spec, f"layers.{max(cuts)}", dtype=torch.float32)
    tail = LoadedDecoder.tail(spec, f"layers.{min(cuts)}", dtype=torch.float32)
    ids = Tokenizer.load(spec, head.part.vocab_size).encode((args.data / TEXT).read_text())
    texts = [ids[i * args.tokens : (i + 1) * args.tokens] for i in range(args.texts)]
    return LanguageSubject(head, tail, texts), [f"layers.{i}" for i in cuts], candidate_configs("language-model"), None


TASKS: dict[str, Callable[[argparse.Namespace], Task]] = {
    "demo-vision": functools.partial(vision, "demo-vision", "demo-vision", ("layer2.1", "layer3.1")),
    "stories260K": functools.partial(language, "DATA/lm/stories260K_llama", (2, 4)),
    "ResNet-56": functools.partial(
        vision,
        "DATA/vision_cifar10/resnet56.safetensors",
        "DATA/vision_cifar10/cifar10_test_first1000.npz",
        ("layer3.0", "layer3.4"),
    ),
    "demo-lm": functools.partial(language, "demo-lm", (3, 6)),
}


class Record:
    """Figures of the whole grid, kept."""

    def __init__(self, task: Task) -> None:
        subject, cuts, configs, labels = task
        judge = Judge(labels=labels, uncut=Kept())
        self._figures: dict[str, list[Figures]] = {}
        for cut in cuts:
            say(f"{subject.name}: {cut}")
            self._figures[cut] = measure(subject.open(cut), configs, range(subject.num_samples), judge)

    def figures(self, cut: str, settings: Sequence[int], samples: Sequence[int], note: Any) -> list[Figures]:
        """As the plan asks for them."""
        if note:
            note(len(settings) * len(samples))
        return [self._figures[cut][i].take(samples) for i in settings]


def examine(name: str, task: Task, args: argparse.Namespace) -> dict[str, Any]:
    """Plays the plan many times; every figure is the mean over the plays of that play's median over its predicted rows."""
    subject, cuts, configs, labels = task
    record = Record(task)
    plays = []
    for seed in range(args.plays):
        run = Run(
            model=subject.name, revision=subject.revision, metric="agreement" if labels is None else "accuracy",
            num_samples=subject.num_samples, cuts=tuple(cuts), configs=tuple(configs), budget=args.budget, seed=seed,
        )  # fmt: skip
        plays.append(compare(fill_table(record, run), record, configs))
    means = {key: float(np.nanmean([play[key] for play in plays])) for key in plays[0]}
    worst = max(float(play["useful_loss_error_pp"]) for play in plays)
    return {"model": name, "cuts": list(cuts), "samples": subject.num_samples, **means, "worst_play_pp": worst}


def compare(table: QualityTable, record: Record, configs: Sequence[CodecConfig]) -> dict[str, float]:
    """What a play predicted beside what the whole grid says."""
    rows = [row for row in table.rows if not row.is_measured]
    samples = range(table.num_samples)
    truth = [record.figures(row.cut, [configs.index(row.codec)], samples, None)[0] for row in rows]
    loss = np.array([one.loss_pp for one in truth])
    errors = np.abs(np.array([row.loss_pp for row in rows]) - loss)
    bits = np.array([row.bits_per_element / one.bits_per_element for row, one in zip(rows, truth, strict=True)])
    low, high = np.array([row.loss_interval_pp for row in rows]).T
    useful = loss <= USEFUL_PP
    lossy = useful & (loss > 0)
    return {
        "loss_error_pp": float(np.median(errors)),
        "useful_loss_error_pp": float(np.median(errors[useful])),
        "lossy_useful_error_pp": float(np.median(errors[lossy])) if lossy.any() else float("nan"),
        "bits_error": float(np.median(np.abs(bits - 1))),
        "covered": float(np.mean((low - 1e-9 <= loss) & (loss <= high + 1e-9))),
        "held_out_error_pp": table.held_out_error_pp or 0.0,
        "held_out_error_bits": table.held_out_error_bits or 0.0,
        "tail_share": table.tail_share or 1.0,
        "rows": len(table.rows),
        "useful_rows": int(useful.sum()),
    }


# -- what is written ---------------------------------------------------------------------------------------------


COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "model": lambda row: row["model"],
    "samples": lambda row: str(row["samples"]),
    "rows": lambda row: f"{row['rows']:.0f}",
    "tail runs": lambda row: f"{100 * row['tail_share']:.1f} %",
    "loss, all rows": lambda row: f"{row['loss_error_pp']:.2f} pp",
    "rows that lose up to 10 pp": lambda row: f"{row['useful_loss_error_pp']:.2f} pp",
    "those of them that lose anything": lambda row: f"{row['lossy_useful_error_pp']:.2f} pp",
    "worst play": lambda row: f"{row['worst_play_pp']:.2f} pp",
    "bits": lambda row: f"{100 * row['bits_error']:.2f} %",
    "within the interval": lambda row: f"{100 * row['covered']:.0f} %",
    "stated: loss": lambda row: f"{row['held_out_error_pp']:.2f} pp",
    "stated: bits": lambda row: f"{100 * row['held_out_error_bits']:.2f} %",
}


def as_markdown(rows: Sequence[dict[str, Any]]) -> str:
    cells = [list(COLUMNS), ["---", *["---:"] * (len(COLUMNS) - 1)]]
    cells += [[show(row) for show in COLUMNS.values()] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def write(args: argparse.Namespace, rows: Sequence[dict[str, Any]]) -> None:
    environment = describe_environment()
    cpu = "amd-epyc" if "EPYC" in str(environment) else "cpu"
    stem = args.out / f"{NAME}_{cpu}_{time.strftime('%Y-%m-%d')}"
    settings = {name: getattr(args, name) for name in ("images", "texts", "tokens", "budget", "plays")}
    stem.with_suffix(".json").write_text(
        json.dumps({**environment, "settings": settings, "rows": rows}, indent=1) + "\n"
    )
    head = (
        f"Predictions of `serverlight calibrate` beside the whole grid, {settings}. "
        "Errors are medians over predicted rows, and means of these over the plays."
    )
    stem.with_suffix(".md").write_text(f"{head}\n\n{as_markdown(rows)}\n")


def say(text: str) -> None:
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
