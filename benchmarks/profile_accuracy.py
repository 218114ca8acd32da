"""How well a profile predicts what it did not measure: other cuts, batches, prompts and contexts, alone and over sockets.

    python benchmarks/profile_accuracy.py demo-vision demo-lm --json accuracy.json --markdown accuracy.md

`alone` times whole heads, and whole tails in the server's own worker, at cuts and sizes that the profile was not fitted to.
`sockets` sends requests of one sample, prompts and steps over loopback to a server in another process, again at other cuts, and
compares the whole time of a request (head, encode, messages, decode, tail) and the server's part of it. The profile is measured
first, anew. Errors are relative; of many, the median counts.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from serverlight.environment import measured_document
from serverlight.models import load_model
from serverlight.models.loader import is_language_model
from serverlight.partition import partition
from serverlight.search import Profile, profile_model
from serverlight.search.depth import anchors_of
from serverlight.search.fitting import Point
from serverlight.search.language import HeadBench, TailBench, run_laps
from serverlight.search.language_parts import LanguageParts
from serverlight.search.language_rehearsal import rehearse_language
from serverlight.search.rehearsal import Exchange, rehearse_single_shot
from serverlight.search.serving import served
from serverlight.search.single_shot import SingleShotBench, candidate_cuts

BATCHES = (1, 3, 6, 12)
HEAD_POINTS = (Point(context=100), Point(tokens=32), Point(tokens=100), Point(tokens=32, context=64))
TAIL_POINTS = (
    Point(context=100), Point(rows=3, context=32), Point(rows=6, context=100), Point(rows=12, context=32),
    Point(tokens=32), Point(tokens=100),
)  # fmt: skip
BUDGET_S = 2.0

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="MODEL")
    parser.add_argument("--cuts", type=int, default=4, help="held-out cuts of each model at the most")
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--markdown", type=pathlib.Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for model in options.models for row in rows_of(model, options.cuts)]
    table = as_table(rows)
    print(table)
    if options.markdown:
        options.markdown.write_text(table)
    if options.json:
        names = [pathlib.PurePath(model).name for model in options.models]
        # Other programs on the machine lengthen what is measured, the profile and the check each at another time.
        settings = {"models": names, "cuts": options.cuts, "threads": 1, "load_average": os.getloadavg()}
        document = measured_document(settings, rows)
        options.json.write_text(json.dumps(document, indent=1) + "\n")


def rows_of(model: str, most_cuts: int) -> Iterator[Row]:
    profile = profile_model(model, fresh=True)
    found = of_language_model(profile, most_cuts) if is_language_model(model) else of_single_shot(profile, most_cuts)
    for row in found:
        yield {"model": pathlib.PurePath(model).stem, **row, "error": row["predicted_ms"] / row["measured_ms"] - 1}


def held_out(count: int, most: int) -> list[int]:
    """Places of cuts that were not measured whole, evenly spread; the ends always were."""
    others = [place for place in range(count) if place not in anchors_of(count)]
    step = max(1, len(others) / most)
    return [others[int(number * step)] for number in range(min(most, len(others)))]


def of_single_shot(profile: Profile, most_cuts: int) -> Iterator[Row]:
    model = load_model(profile.model)
    with served(profile.model, threads=1) as serving:
        parts = partition(model.module, model.example_inputs)
        names = [cut.name for cut in candidate_cuts(parts)]
        places = held_out(len(names), most_cuts)
        bench = SingleShotBench(model, parts, max(BATCHES), anchors=places)
        for batch in BATCHES:
            times = bench.measure(batch, BUDGET_S)
            for place in places:
                cost, what = profile.cuts[place], {"how": "alone", "cut": names[place], "rows": batch}
                yield {
                    **what,
                    "part": "head",
                    "measured_ms": times.before[place],
                    "predicted_ms": cost.head.ms(rows=batch),
                }
                yield {
                    **what,
                    "part": "tail",
                    "measured_ms": times.behind[place],
                    "predicted_ms": cost.tail.ms(rows=batch),
                }
        cuts = [names[place] for place in places]
        done = rehearse_single_shot(model, parts, serving.address(cuts), cuts, advance=lambda: None)
    yield from over_sockets(profile, [exchange for exchange in done if exchange.point.rows == 1])


def of_language_model(profile: Profile, most_cuts: int) -> Iterator[Row]:
    with served(profile.model, threads=1) as serving:
        parts = LanguageParts.load(profile.model)
        places = held_out(parts.num_layers + 1, most_cuts)
        heads, tails = HeadBench(parts, anchors=[parts.num_layers, *places]), TailBench(parts, anchors=[0, *places])
        for part, bench, points in (("head", heads, HEAD_POINTS), ("tail", tails, TAIL_POINTS)):
            for point in points:
                laps = run_laps(bench, point, BUDGET_S)
                took = bench.at_cuts(laps)
                for place in places:
                    curve = getattr(profile.cuts[place], part)
                    yield {
                        "how": "alone", "part": part, "cut": profile.cuts[place].name, **as_fields(point),
                        "measured_ms": took[place], "predicted_ms": ms(curve, laps[place][len(laps[place]) // 2].point),
                    }  # fmt: skip
        cuts = [f"layers.{place}" for place in places]
        done = rehearse_language(parts, serving.address(cuts), cuts, advance=lambda: None)
    yield from over_sockets(profile, done)


def over_sockets(profile: Profile, exchanges: Sequence[Exchange]) -> Iterator[Row]:
    for done in exchanges:
        cost, point = profile.cut(done.cut), done.point
        elements = cost.elements * point.rows * point.tokens
        if done.uplink_bytes > 1.5 * elements:  # in whole halves, to see what messages cost: another codec
            continue
        size = Point(rows=elements / 1e3)
        server_ms = ms(profile.codec.decode, size) + ms(cost.tail, point)
        device_ms = ms(cost.head, point) + ms(profile.codec.encode, size)
        message_ms = profile.message.latency.ms(rows=done.uplink_bytes / 1e3) + done.opens * profile.message.opening_ms
        what = {"how": "sockets", "cut": done.cut, **as_fields(point)}
        measured_server_ms = done.decode_ms + done.tail_ms
        measured_ms = done.head_ms + done.encode_ms + done.message_ms + measured_server_ms
        yield {**what, "part": "server", "measured_ms": measured_server_ms, "predicted_ms": server_ms}
        yield {
            **what, "part": "latency", "measured_ms": measured_ms, "predicted_ms": device_ms + message_ms + server_ms
        }  # fmt: skip


def ms(curve: Any, point: Point) -> float:
    found: float = curve.ms(rows=point.rows, tokens=point.tokens, context=point.context)
    return found


def as_fields(point: Point) -> Row:
    return {"rows": point.rows, "tokens": point.tokens, "context": point.context}


def as_table(rows: Sequence[Row]) -> str:
    """Median and 90th percentile of the absolute errors, by model and part."""
    kinds = dict.fromkeys((row["model"], row["how"], row["part"]) for row in rows)
    lines = [
        "| model | how | part | measurements | median error | 90 % below | bias |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for kind in kinds:
        errors = [row["error"] for row in rows if (row["model"], row["how"], row["part"]) == kind]
        absolute = sorted(map(abs, errors))
        ninth = absolute[min(len(absolute) - 1, int(0.9 * len(absolute)))]
        lines.append(
            f"| {' | '.join(kind)} | {len(errors)} | {100 * statistics.median(absolute):.1f} % | {100 * ninth:.1f} % "
            f"| {100 * statistics.median(errors):+.1f} % |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
