"""What choosing from few measurements costs beside measuring everything.

    python benchmarks/search_regret.py                       # demo-vision, 300 plans, 24 sets of caps
    python benchmarks/search_regret.py --settings 8 --requests 6 --sets 20

A grid of cuts and settings is measured in full: latency and the server's processor time over sockets and an imitated link, bytes,
and loss on the calibration set. Then, for random caps that some plan of the grid keeps, the search chooses from a profile and a
table of qualities that took a share of the tail runs (--budget), and confirms its choice by measuring it, and others where it does
not hold. All measurements together are a tenth of the grid at most. `regret` is how much more of the server's time the chosen
plan takes than the best one that keeps the caps; `over` by how much it exceeds a cap.
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
from collections.abc import Sequence
from typing import Any

import torch

from search_subjects import NAMES, Subject, linked_server, load_subject
from serverlight.codec import CodecConfig
from serverlight.environment import describe_environment
from serverlight.link import LinkConfig
from serverlight.search.caps import broken_caps
from serverlight.search.confirm import Observed, confirm
from serverlight.search.constraints import Constraints
from serverlight.search.grid import candidate_configs
from serverlight.search.measure import profile_model
from serverlight.search.optimise import SearchResult, optimise
from serverlight.search.prediction import Prediction
from serverlight.search.profile import Profile
from serverlight.search.quality import QualityTable

SHARE = 0.1
REGRET, OVER = 3.0, 2.0
"""Per cent."""

CUTS_LEFT_OUT = ("input", "output")
Key = tuple[str, CodecConfig]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=NAMES, default="demo-vision")
    parser.add_argument("--link", default="10mbit,5ms")
    parser.add_argument("--cuts", type=int, default=5)
    parser.add_argument("--settings", type=int, default=89, help="codec settings at each cut")
    parser.add_argument("--requests", type=int, default=12, help="of each plan in each round")
    parser.add_argument(
        "--rounds", type=int, default=3, help="over the grid, so that a slow minute does not hit one plan"
    )
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--budget", type=float, default=0.03, help="share of the grid's tail runs for the table")
    parser.add_argument("--sets", type=int, default=24, help="random sets of caps")
    parser.add_argument(
        "--quantile", type=float, default=0.5, help="of the times of a plan; a low one where others use the machine"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--markdown", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    subject, link = load_subject(args.model, args.samples), LinkConfig.parse(args.link)
    profile = profile_model(subject.spec, fresh=True)
    configs = spread(candidate_configs(profile.kind), args.settings)
    cuts = spread([cut.name for cut in profile.cuts if cut.name not in CUTS_LEFT_OUT], args.cuts)
    measured = measure_grid(subject, cuts, configs, link, args)
    truth = smoothed(measured)
    table = subject.calibrate(cuts, configs, args.budget)
    rows = [one_set((truth, measured), profile, table, subject, link, caps) for caps in draw_caps(truth, profile, args)]
    settings = {key: getattr(args, key) for key in vars(args) if key not in ("json", "markdown")}
    result = {
        **describe_environment(), "settings": settings, "load": os.getloadavg()[0], "plans": len(truth),
        "tail_share": table.tail_share, "rows": rows, "holds": holds(rows, len(truth), table),
    }  # fmt: skip
    report = tell(result)
    print(report)
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    if args.markdown:
        args.markdown.write_text(report)
    return 0


def spread(values: Sequence[Any], count: int) -> list[Any]:
    """So many of them, evenly."""
    count = min(count, len(values))
    return [values[round(i * (len(values) - 1) / max(1, count - 1))] for i in range(count)]


def smoothed(measured: dict[Key, Observed]) -> dict[Key, Observed]:
    """All plans at a cut run one head and one tail, so with one profile of the codec their times are lines in the bytes; that
    takes noise out of the extremes.
    """
    found = dict(measured)
    for kind in {(cut, codec.profile) for cut, codec in measured}:
        own = [key for key in measured if (key[0], key[1].profile) == kind]
        for name in ("server_ms", "latency_ms"):
            sizes, times = ([getattr(measured[key], field) for key in own] for field in ("uplink_bytes", name))
            line = statistics.linear_regression(sizes, times) if len(set(sizes)) > 1 else (0.0, statistics.fmean(times))
            for key, size in zip(own, sizes, strict=True):
                found[key] = dataclasses.replace(found[key], **{name: line[0] * size + line[1]})
    return found


def measure_grid(
    subject: Subject, cuts: Sequence[str], configs: Sequence[CodecConfig], link: LinkConfig, args: argparse.Namespace
) -> dict[Key, Observed]:
    """Everything, the slow way."""
    full = subject.calibrate(cuts, configs, None)
    lost = {(row.cut, row.codec): row.loss_pp for row in full.rows}
    seen: dict[Key, list[Any]] = {key: [] for key in lost}  # settings that write the same frames are one
    with linked_server(subject, cuts) as server:
        server.set(link)
        for number in range(args.rounds):
            for key in seen:
                seen[key].append(
                    subject.measure(server.address, *key, is_raw=False, requests=args.requests, quantile=args.quantile)
                )
            print(f"round {number + 1} of {args.rounds}", file=sys.stderr)
    return {
        key: Observed(
            latency_ms=statistics.median(m.latency_ms for m in found),
            uplink_bytes=statistics.fmean(m.uplink_bytes for m in found),
            server_ms=statistics.median(m.server_ms for m in found),
            loss_pp=lost[key],
        )
        for key, found in seen.items()
    }


def draw_caps(truth: dict[Key, Observed], profile: Profile, args: argparse.Namespace) -> list[Constraints]:
    """Each is what some plan of the grid takes, and a little more, in two to four respects; that plan keeps them all."""
    rng, drawn = random.Random(args.seed), list[Constraints]()
    while len(drawn) < args.sets:
        (cut, _), plan = rng.choice(list(truth.items()))
        cost = profile.cut(cut)
        room = rng.uniform(1.02, 1.5)
        every = {
            "latency_ms": plan.latency_ms * room,
            "uplink_bytes": plan.uplink_bytes * rng.uniform(1.02, 1.5),
            "max_quality_loss": max(0.3, plan.loss_pp * rng.uniform(1.0, 2.0)),
            "device_memory_mib": max(1e-3, (cost.head_weight_bytes + cost.head_activation_bytes) / 2**20 * 1.01),
        }
        names = rng.sample(sorted(every), rng.randint(2, 4))
        drawn.append(Constraints(**{name: every[name] for name in names}))
    return drawn


Truths = tuple[dict[Key, Observed], dict[Key, Observed]]
"""The grid by its lines, and as it was measured."""


def one_set(
    truths: Truths, profile: Profile, table: QualityTable, subject: Subject, link: LinkConfig, caps: Constraints
) -> dict[str, Any]:
    """The search beside the whole grid."""
    truth = truths[0]

    def measure(prediction: Prediction) -> Observed:
        return truth[key_of(prediction)]

    free = optimise(device=profile, server=profile, table=table, link=link, workload=subject.workload)
    result = dataclasses.replace(in_grid(free, truth), constraints=caps)
    confirmed = confirm(result, measure, most=max(1, int((SHARE - (table.tail_share or 0)) * len(truth))))
    hopeful = (p for p in result.predictions if not broken_caps(p, caps, result.scene))
    believed = min(hopeful, key=lambda p: p.server_busy_ms, default=None)
    chosen = {"unconfirmed": believed, "confirmed": confirmed.best}
    return {
        "caps": {k: v for k, v in dataclasses.asdict(caps).items() if v is not None},
        "measured": len(confirmed.observed),
        "tried": [
            {
                "cut": p.candidate.cut,
                "uplink_bytes": seen.uplink_bytes,
                "predicted_loss_pp": p.loss_pp,
                "loss_pp": seen.loss_pp,
            }
            for p, seen in confirmed.observed
        ],
        **{name: p and figures(key_of(p), truths, caps, profile) for name, p in chosen.items()},
    }


def in_grid(result: SearchResult, truth: dict[Key, Observed]) -> SearchResult:
    """Only what the grid has: neither the file to a full server nor the device alone."""
    return dataclasses.replace(result, predictions=tuple(p for p in result.predictions if key_of(p) in truth))


def key_of(prediction: Prediction) -> Key:
    return prediction.candidate.cut or "", prediction.candidate.codec or CodecConfig()


def figures(key: Key, truths: Truths, caps: Constraints, profile: Profile) -> dict[str, Any]:
    """Per cent, by the lines; ``raw_...`` by single measurements, whose least is too small by their noise."""
    found: dict[str, Any] = {"cut": key[0], "codec": key[1].to_dict()}
    for prefix, truth in zip(("", "raw_"), truths, strict=True):
        best_ms = min(plan.server_ms for at, plan in truth.items() if not exceeds(at, plan, caps, profile))
        over = exceeds(key, truth[key], caps, profile)
        found[f"{prefix}regret"] = 100 * (truth[key].server_ms / best_ms - 1)
        found[f"{prefix}over"] = 100 * max(over.values(), default=0.0)
    return found


def exceeds(key: Key, plan: Observed, caps: Constraints, profile: Profile) -> dict[str, float]:
    """The caps that a plan breaks, and by which share."""
    cost = profile.cut(key[0])
    values = {
        "latency_ms": plan.latency_ms,
        "uplink_bytes": plan.uplink_bytes,
        "max_quality_loss": plan.loss_pp,
        "device_memory_mib": (cost.head_weight_bytes + cost.head_activation_bytes) / 2**20,
    }
    set_caps = {name: cap for name in values if (cap := getattr(caps, name)) is not None}
    return {name: values[name] / cap - 1 for name, cap in set_caps.items() if values[name] > cap * (1 + 1e-9)}


def holds(rows: Sequence[dict[str, Any]], num_plans: int, table: QualityTable) -> dict[str, bool]:
    """The claims."""
    found = [row["confirmed"] for row in rows]
    spent = max(row["measured"] for row in rows) / num_plans + (table.tail_share or 0)
    return {
        "plans": num_plans >= 200,
        "caps": len(rows) >= 20,
        "measurements": spent <= SHARE,
        "regret": all(f is not None and f["regret"] <= REGRET for f in found),
        "caps kept": all(f is not None and f["over"] <= OVER for f in found),
    }


def tell(result: dict[str, Any]) -> str:
    """Markdown."""
    rows, settings = result["rows"], result["settings"]
    lines = [
        f"{settings['model']} over {settings['link']}: {result['plans']} plans measured, {len(rows)} sets of caps, the table from "
        f"{100 * (result['tail_share'] or 0):.1f} % of the tail runs; {result['cpu']}, load {result['load']:.1f}, "
        f"{result['date']}.",
        "",
        "| chosen | worst regret | mean | mean, single | worst over a cap | worst, single | within both | measurements |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in ("unconfirmed", "confirmed"):
        found = [row[name] for row in rows if row[name] is not None]
        good = sum(f["regret"] <= REGRET and f["over"] <= OVER for f in found)
        regrets = [f["regret"] for f in found if f["over"] <= OVER] or [float("nan")]
        over, raw_over = (max((f[name] for f in found), default=float("nan")) for name in ("over", "raw_over"))
        spent = "none" if name == "unconfirmed" else f"{max(row['measured'] for row in rows)} plans at most"
        told = "by prediction alone" if name == "unconfirmed" else "confirmed by measuring"
        raw = statistics.fmean([f["raw_regret"] for f in found if f["over"] <= OVER] or [float("nan")])
        regret = f"{max(regrets):.1f} % | {statistics.fmean(regrets):.1f} % | {raw:.1f} %"
        cells = f"{regret} | {over:.1f} % | {raw_over:.1f} % | {good} of {len(rows)}"
        lines.append(f"| {told} | {cells} | {spent} |")
    kept = ", ".join(f"{name}: {'holds' if held else 'FAILS'}" for name, held in result["holds"].items())
    lines += [
        "",
        "Figures are those of a line through the plans of each cut and profile; single ones have the noise of their measurement.",
    ]
    return (
        "\n".join(
            [*lines, "", f"Bounds: regret {REGRET:g} %, caps {OVER:g} %, {SHARE:.0%} of the measurements. {kept}."]
        )
        + "\n"
    )


if __name__ == "__main__":
    sys.exit(main())
