"""What each refinement of profile serverlight is worth: one is taken away at a time, and bits are compared at equal divergence.

    python benchmarks/codec_ablation.py                        # all tasks, about a minute each
    python benchmarks/codec_ablation.py --task ST-3 --samples 40

Needs the models and data of the tasks in the folder that `--data` or SERVERLIGHT_SHARED names. Writes a JSON file and a table of
Markdown under `benchmarks/results/`. What each variant is, `serverlight.evaluation.ablation` says.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import sys
import time
from typing import Any

import torch

from serverlight.evaluation import describe_environment
from serverlight.evaluation.ablation import SPARSITIES, VARIANTS, ablate_task

NAME = "codec_ablation"
HERE = pathlib.Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = os.environ.get("SERVERLIGHT_SHARED", HERE.parents[1] / "shared" / "data")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(shared), help="folder of models and data")
    parser.add_argument("--task", action="append", choices=SPARSITIES, help="one of the tasks; may be repeated")
    parser.add_argument("--samples", type=int, help="images, pairs or windows for each task")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results", help="folder for the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    started, reports = time.perf_counter(), {}
    for name in args.task or SPARSITIES:
        reports[name] = ablate_task(name, str(args.data), samples=args.samples, note=say)
    environment = describe_environment()
    report = {
        "benchmark": NAME,
        "seconds": round(time.perf_counter() - started, 1),
        "environment": environment,
        "tasks": reports,
    }
    hardware = re.sub(r"[^a-z0-9]+", "-", environment["cpu"].lower()).strip("-")
    path = args.out / f"{NAME}_{hardware}_{environment['date']}"
    args.out.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(report, indent=2) + "\n")
    path.with_suffix(".md").write_text(as_markdown(report))
    print(f"wrote {path.name}.json and .md", file=sys.stderr)


def as_markdown(report: dict[str, Any]) -> str:
    """One column a task, one row a variant."""
    environment, reports = report["environment"], report["tasks"]
    return "\n".join(
        [
            "# What each refinement of profile serverlight is worth",
            "",
            f"{environment['date']}, {environment['cpu']}, Python {environment['python']}, torch "
            f"{environment['versions']['torch']}. Made by `python benchmarks/{NAME}.py` in {report['seconds']:.0f} s.",
            "",
            "Bits per element that a variant takes more than the profile (negative: fewer) at equal divergence of the outputs, "
            "the mean over three divergences: those that the profile has at the sparsities whose bits are in the second row. A "
            "dash: the variant does not reach them on its grid. What each variant is, `serverlight.evaluation.ablation` says.",
            "",
            f"| | {' | '.join(reports)} |",
            f"|{' --- |' * (len(reports) + 1)}",
            f"| messages | {' | '.join(str(r['messages']) for r in reports.values())} |",
            f"| profile serverlight, bits | {' | '.join(' / '.join(f'{b:.2f}' for b in r['bits']) for r in reports.values())} |",
            *(as_line(name, reports) for name in VARIANTS),
            "",
        ]
    )


def as_line(name: str, reports: dict[str, Any]) -> str:
    return f"| {name} | {' | '.join(as_cell(r['more'][name]['mean']) for r in reports.values())} |"


def as_cell(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
