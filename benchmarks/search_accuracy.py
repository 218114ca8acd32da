"""How well SLICER-Search predicts: random feasible plans, measured over sockets and an imitated link.

    python benchmarks/search_accuracy.py                                  # four models, 44 plans each; some minutes a model
    python benchmarks/search_accuracy.py --models demo-vision --plans 10 --json a.json --plot a.png

Each plan has a cut, codec settings and a link drawn by lot, such that it is predicted to lose at most 5 percentage points. Latency
is the median of some requests (of a language model: of decode steps), server time the processor time of the server's whole
process, bytes are those of the messages. All plans of a model take turns, in several rounds; a plan's figures are the medians of
its turns.

A profile tells what a machine costs at the speed that it has meanwhile, and on a shared one that changes with the minute: others,
outside of the machine that one sees, have a part of the core. So each round has a profile before it and one after it, and a turn
counts with the predictions of those of the two in which a fixed loop took what it took beside the turn, to a fifth. A turn with
neither is left out. The last columns of the table are of all turns, predicted from the first profile alone.

Quality is measured on samples that the table was not made of, in one process, which gives the same bits as sockets do. A table of
qualities is made first, unless the folder of --work has it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import random
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from search_subjects import NAMES, Linked, Measured, Subject, linked_server, load_subject, quality_table
from serverlight.environment import describe_environment
from serverlight.link import LinkConfig
from serverlight.search.candidates import candidate_of, candidates
from serverlight.search.constraints import Constraints
from serverlight.search.measure import profile_model
from serverlight.search.predict import predict
from serverlight.search.prediction import Prediction, Scene
from serverlight.search.profile import Profile
from serverlight.search.quality import QualityTable

MOST_LOSS_PP, MOST_LATENCY_MS = 5.0, 1000.0
SLOWER = 1.2
BOUNDS = {"latency": 10.0, "uplink bytes": 3.0, "server time": 10.0, "quality": 0.5}
"""Per cent; of quality, percentage points."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(NAMES), help="some of them, with commas between them")
    parser.add_argument("--plans", type=int, default=44, help="of each model; some may have no turn that counts")
    parser.add_argument("--requests", type=int, default=12, help="of each plan in each round")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each plan; all plans of a model take turns")
    parser.add_argument("--samples", type=int, default=400, help="images to calibrate on; a tenth as many texts")
    parser.add_argument("--budget", type=float, default=0.1, help="share of the grid that the calibration may run")
    parser.add_argument(
        "--quantile", type=float, default=0.5, help="of the times of a plan; a low one where others use the machine"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=pathlib.Path, help="folder that keeps tables of qualities")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--markdown", type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = list[dict[str, Any]]()
    for name in args.models.split(","):
        began_s = time.monotonic()
        rows += measure_model(load_subject(name, args.samples), args)
        print(f"{name}: {time.monotonic() - began_s:.0f} s", file=sys.stderr)
    settings = {
        key: getattr(args, key) for key in ("plans", "requests", "rounds", "samples", "budget", "quantile", "seed")
    }
    result = {
        **describe_environment(),
        "settings": settings,
        "load": os.getloadavg()[0],
        "errors": errors(rows),
        "rows": rows,
    }
    report = table(result)
    print(report)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(report)
    if args.plot:
        plot(rows, args.plot)
    return 0


def measure_model(subject: Subject, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One row for each plan."""
    qualities = quality_table(subject, args.work, args.budget)
    profiles, rounds = [profile_model(subject.spec, fresh=True)], list[list[Turn]]()
    plans = draw_plans(subject, profiles[0], qualities, args)
    cuts = list(dict.fromkeys(p.candidate.cut for p, _ in plans if p.candidate.cut))
    for number in range(args.rounds):
        with linked_server(subject, cuts) as server:
            rounds.append([take_turn(subject, server, p, link, args) for p, link in plans])
        profiles.append(profile_model(subject.spec, fresh=True))
        print(f"{subject.name}: round {number + 1} of {args.rounds}", file=sys.stderr)
    lost = true_losses(subject, [p for p, _ in plans])
    turns = zip(*rounds, strict=True)
    return [row_of(subject, p, link, t, profiles, loss) for (p, link), t, loss in zip(plans, turns, lost, strict=True)]


@dataclasses.dataclass(frozen=True)
class Turn:
    """One turn of a plan, and what the loop on the server's core took beside it, the longer of before and after."""

    measured: Measured
    core_ms: float


def foretold(turn: Turn, around: Sequence[Prediction], loops_ms: Sequence[float]) -> list[Prediction]:
    """Of the predictions from the profiles before and after a turn those for a core that was as fast, to a fifth."""
    pairs = zip(around, loops_ms, strict=True)
    return [found for found, ms in pairs if 1 / SLOWER <= turn.core_ms / ms <= SLOWER]


def draw_plans(
    subject: Subject, profile: Profile, qualities: QualityTable, args: argparse.Namespace
) -> list[tuple[Prediction, LinkConfig]]:
    """Cut first, then settings, then a link; what would lose too much or take too long is drawn anew."""
    rng = random.Random(f"{subject.name} {args.seed}")
    drawn = list[tuple[Prediction, LinkConfig]]()
    first, cuts = profile.cuts[0].name, list(dict.fromkeys(row.cut for row in qualities.rows))
    while len(drawn) < args.plans:
        rate = 10 ** rng.uniform(5.7, 7.7)
        link = LinkConfig(rate_bits_per_s=round(rate), delay_ms=round(rng.uniform(0.5, 20), 1))
        scene = Scene(device=profile, server=profile, link=link, workload=subject.workload)
        raw = [
            c for c in candidates(scene, dataclasses.replace(qualities, rows=()), Constraints()) if c.cut is not None
        ]
        cut = rng.choice([*cuts, None])
        if cut is None:
            chosen = raw[0]
        else:
            row = rng.choice([row for row in qualities.rows if row.cut == cut])
            chosen = candidate_of(row, profile.cut(cut).elements, is_first=cut == first)
        prediction = predict(chosen, scene)
        if prediction.loss_pp <= MOST_LOSS_PP and prediction.latency_ms <= MOST_LATENCY_MS:
            drawn.append((prediction, link))
    return drawn


def take_turn(
    subject: Subject, server: Linked, prediction: Prediction, link: LinkConfig, args: argparse.Namespace
) -> Turn:
    """One turn of a plan."""
    chosen = prediction.candidate
    assert chosen.cut is not None
    assert chosen.codec is not None
    server.set(link)
    before_ms = server.core_ms()
    measured = subject.measure(
        server.address, chosen.cut, chosen.codec, is_raw=chosen.is_raw, requests=args.requests, quantile=args.quantile
    )
    return Turn(measured, max(before_ms, server.core_ms()))


def row_of(
    subject: Subject,
    prediction: Prediction,
    link: LinkConfig,
    turns: Sequence[Turn],
    profiles: Sequence[Profile],
    loss_pp: float | None,
) -> dict[str, Any]:
    """What was predicted and what came; without figures of either where no turn counts."""
    chosen = prediction.candidate
    assert chosen.codec is not None
    scenes = [Scene(device=p, server=p, link=link, workload=subject.workload) for p in profiles]
    told = [predict(chosen, scene) for scene in scenes]
    loops_ms = [profile.machine["loop_ms"] for profile in profiles]
    pairs = [(foretold(turn, told[i : i + 2], loops_ms[i : i + 2]), turn) for i, turn in enumerate(turns)]
    kept = [(found, turn.measured) for found, turn in pairs if found]
    return {
        "model": subject.name,
        "cut": chosen.cut,
        "codec": "raw" if chosen.is_raw else chosen.codec.to_dict(),
        "link": str(link),
        "is_measured": chosen.is_measured,
        "predicted": middles([middles([figures(p) for p in found]) for found, _ in kept]),
        "parts": {
            part: getattr(prediction, f"{part}_ms")
            for part in ("head", "encode", "uplink", "rtt", "queue", "decode", "tail", "message", "downlink")
        },
        "measured": {**middles([dataclasses.asdict(measured) for _, measured in kept]), "loss_pp": loss_pp},
        "predicted_from_one": figures(prediction),
        "measured_in_all_turns": middles([dataclasses.asdict(turn.measured) for turn in turns]),
        "turns": [{"server_ms": turn.measured.server_ms, "core_ms": turn.core_ms} for turn in turns],
        "profiles": [{"server_ms": p.server_busy_ms, "loop_ms": ms} for p, ms in zip(told, loops_ms, strict=True)],
        "turns_kept": len(kept),
    }  # fmt: skip


def figures(prediction: Prediction) -> dict[str, float | None]:
    """What is compared."""
    return {
        "latency_ms": prediction.latency_ms,
        "first_token_ms": prediction.first_token_ms,
        "uplink_bytes": prediction.uplink_bytes,
        "server_ms": prediction.server_busy_ms,
        "loss_pp": prediction.loss_pp,
    }


def middles(found: Sequence[dict[str, float | None]]) -> dict[str, float | None]:
    """Of each figure the median of what is known; nothing of none."""
    return {name: middle(each[name] for each in found) for name in (found[0] if found else ())}


def middle(values: Iterable[float | None]) -> float | None:
    """The median of what is known."""
    known_values = [value for value in values if value is not None]
    return statistics.median(known_values) if known_values else None


def true_losses(subject: Subject, predictions: Sequence[Prediction]) -> list[float | None]:
    """On samples that were not calibrated on; raw input has none."""
    wanted: dict[str, list[Any]] = {}
    for p in predictions:
        if not p.candidate.is_raw and p.candidate.cut is not None:
            wanted.setdefault(p.candidate.cut, []).append(p.candidate.codec)
    found = {cut: subject.evaluate(cut, list(dict.fromkeys(configs))) for cut, configs in wanted.items()}
    return [
        None if p.candidate.is_raw or p.candidate.cut is None else found[p.candidate.cut][p.candidate.codec]  # type: ignore[index]
        for p in predictions
    ]


# -- telling ----------------------------------------------------------------------------------------

TIMES = ("latency", "server time")
"""What depends on how fast the machine is."""

FIGURES = {"latency": "latency_ms", "uplink bytes": "uplink_bytes", "server time": "server_ms", "quality": "loss_pp"}
KEYS = {**FIGURES, "first token": "first_token_ms"}


def errors(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Median of the absolute errors of each model, in per cent of what was measured; of quality in percentage points."""
    found: dict[str, dict[str, float]] = {}
    for model in dict.fromkeys(row["model"] for row in rows):
        all_own = [row for row in rows if row["model"] == model]
        own = [row for row in all_own if row["turns_kept"]]
        found[model] = {what: typical(error(row, what) for row in own if known(row, what)) for what in FIGURES}
        if firsts := [error(row, "first token") for row in own if known(row, "first token")]:
            found[model]["first token"] = typical(firsts)
        every = [{"predicted": r["predicted_from_one"], "measured": r["measured_in_all_turns"]} for r in all_own]
        found[model] |= {f"{what}, one profile": typical(error(row, what) for row in every) for what in TIMES}
    return found


def known(row: dict[str, Any], what: str) -> bool:
    return all(row[side].get(KEYS[what]) is not None for side in ("measured", "predicted"))


def typical(values: Iterable[float]) -> float:
    """The median; not a number where no turn counts."""
    found = middle(values)
    return float("nan") if found is None else found


def error(row: dict[str, Any], what: str) -> float:
    predicted, measured = (row[side][KEYS[what]] for side in ("predicted", "measured"))
    return abs(predicted - measured) if what == "quality" else 100 * abs(predicted / measured - 1)


def table(result: dict[str, Any]) -> str:
    """Markdown."""
    settings = result["settings"]
    lines = [
        f"Median absolute errors of {settings['plans']} random feasible plans each, {settings['rounds']} turns "
        f"of {settings['requests']} requests or steps a plan; {result['cpu']}, {result['cores']} cores, "
        f"load {result['load']:.1f}, {result['date']}.",
        "",
        "| model | latency | uplink bytes | server time | quality loss | first token | latency, one profile | server, one |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for model, found in result["errors"].items():
        cells = [f"{found[what]:.2f} {'pp' if what == 'quality' else '%'}{'' if found[what] <= bound else ' (above)'}"
                 for what, bound in BOUNDS.items()]  # fmt: skip
        first = f"{found['first token']:.1f} %" if "first token" in found else "-"
        every = [f"{found[f'{what}, one profile']:.2f} %" for what in TIMES]
        lines.append(f"| {model} | {' | '.join([*cells, first, *every])} |")
    rows = result["rows"]
    left_out = 1 - sum(row["turns_kept"] for row in rows) / sum(len(row["turns"]) for row in rows)
    counted = ", ".join(
        f"{sum(row['turns_kept'] > 0 for row in rows if row['model'] == model)} of {model}"
        for model in result["errors"]
    )
    bounds = ", ".join(f"{what} {bound:g} {'pp' if what == 'quality' else '%'}" for what, bound in BOUNDS.items())
    return (
        "\n".join(
            [
                *lines,
                "",
                f"Bounds: {bounds}. {left_out:.0%} of the turns are left out, but for the last two columns; plans with a turn that "
                f"counts: {counted}.",
            ]
        )
        + "\n"
    )


def plot(rows: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Predicted against measured, one panel for each figure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    figure = Figure(figsize=(15, 4.2), layout="constrained")
    for axes, (what, key) in zip(figure.subplots(1, len(FIGURES)), FIGURES.items(), strict=True):
        for model, colour in zip(NAMES, ("#0072B2", "#D55E00", "#009E73", "#E69F00"), strict=True):
            own = [row for row in rows if row["model"] == model and known(row, what)]
            x, y = ([row[side][key] for row in own] for side in ("measured", "predicted"))
            axes.scatter(x, y, s=16, color=colour, alpha=0.8, label=model)
        ends = [min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])]
        if what != "quality":
            axes.set(xscale="log", yscale="log")
            for axis in (axes.xaxis, axes.yaxis):  # plain numbers
                axis.set_major_locator(LogLocator(subs=(1,) if key == "uplink_bytes" else (1, 2, 5)))
                axis.set_major_formatter("{x:,g}")
                axis.set_minor_formatter("")
            ends[0] = min(row[side][key] for row in rows for side in ("measured", "predicted") if known(row, what))
        axes.plot(ends, ends, color="#999999", linewidth=1, zorder=0)
        axes.set(title=what, xlabel=f"measured {key}", ylabel="predicted")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=140)


if __name__ == "__main__":
    sys.exit(main())
