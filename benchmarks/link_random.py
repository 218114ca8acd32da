"""Claim: over random links between 50 and 0.5 Mbit/s, and on machines of any noise, a client that follows its link keeps its
deadline in at least 95 % of the steps in which any plan could have.

    python benchmarks/link_random.py                # some minutes
    python benchmarks/link_random.py --seeds 3      # a quick look

All of it is played in simulated time: the controller is a pure function, and so nothing but it decides. A message takes the
rates that its bytes meet on the way; what device, server and software take beside that is drawn. The choices are those that
`link_swing.py` measured for ResNet-56, with its deadline and its pace. Writes a JSON file and a table of Markdown under
`benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import bisect
import json
import math
import pathlib
import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from serverlight.frontier import Choice, Frontier
from serverlight.plan import Plan
from serverlight.runtime.adapt import Adapter, Observation, Rules

FAST, SLOW = 50e6, 0.5e6
ONE_WAY_MS, SOFTWARE_MS = 10.0, 12.0
DEADLINE_MS, PERIOD_S, STEPS = 500.0, 0.54, 120
MS_PER_PP = 10.0
TARGET = 0.95

MEASURED = (
    ("layer3.0", 399.5, 12.7, 32_842, 0.0),
    ("layer3.0", 399.5, 12.9, 5_864, 0.0),
    ("layer3.0", 399.5, 12.7, 2_710, 0.5),
    ("layer3.0", 399.5, 12.7, 1_821, 2.0),
    ("layer2.8", 383.5, 20.4, 1_462, 5.0),
    ("input", 0.0, 134.2, 9_072, 0.0),
)
"""Cut, milliseconds of the device and of the server, bytes up, percentage points lost; the last is the full server."""

Trace = list[tuple[float, float]]
"""From when on, in seconds, which rate."""


def frontier() -> Frontier:
    """What there is to choose from, best first."""
    return Frontier(
        choices=tuple(
            Choice(
                way="full-server" if cut == "input" else "split",
                plan=Plan(model="resnet56", revision="0", cut=cut),
                head_ms=head_ms,
                server_ms=server_ms,
                server_busy_ms=server_ms,
                uplink_bytes=num_bytes,
                downlink_bytes=300,
                device_memory_bytes=0,
                loss_pp=loss_pp,
            )
            for cut, head_ms, server_ms, num_bytes, loss_pp in MEASURED
        )
    )


# -- links ------------------------------------------------------------------------------------------


def between(height: float) -> float:
    """A rate, evenly on a logarithmic scale."""
    return SLOW * (FAST / SLOW) ** min(1.0, max(0.0, height))


def jumps(chance: random.Random, until_s: float) -> Trace:
    """From fast to slow and back, after three to twenty seconds each."""
    made, now_s, is_fast = Trace(), 0.0, chance.random() < 0.5
    while now_s < until_s:
        made.append((now_s, FAST if is_fast else SLOW))
        now_s, is_fast = now_s + chance.uniform(3, 20), not is_fast
    return made


def levels(chance: random.Random, until_s: float) -> Trace:
    """Likewise, to any rate."""
    return [(start_s, between(chance.random())) for start_s, _ in jumps(chance, until_s)]


def swings(chance: random.Random, until_s: float) -> Trace:
    """Up and down in 15 to 60 seconds, with a tenth of noise."""
    period_s, phase = chance.uniform(15, 60), chance.random()
    heights = [(1 + math.cos(2 * math.pi * (k / 4 / period_s + phase))) / 2 for k in range(math.ceil(4 * until_s))]
    return [(k / 4, between(height) * chance.uniform(0.9, 1.1)) for k, height in enumerate(heights)]


def wanders(chance: random.Random, until_s: float) -> Trace:
    """A random walk, which now and then begins anew elsewhere."""
    made, height = Trace(), chance.random()
    for k in range(math.ceil(4 * until_s)):
        height = chance.random() if chance.random() < 0.01 else min(1.0, max(0.0, height + chance.gauss(0, 0.06)))
        made.append((k / 4, between(height)))
    return made


LINKS: dict[str, Callable[[random.Random, float], Trace]] = {
    "jumps": jumps,
    "levels": levels,
    "swings": swings,
    "wanders": wanders,
}


def arrives_s(trace: Trace, sent_s: float, num_bytes: int) -> float:
    """When the last of so many bytes is through."""
    bits, now_s = num_bytes * 8.0, sent_s
    for index in range(bisect.bisect_right(trace, (sent_s, math.inf)) - 1, len(trace)):
        end_s = trace[index + 1][0] if index + 1 < len(trace) else math.inf
        if (room := (end_s - now_s) * trace[index][1]) >= bits:
            return now_s + bits / trace[index][1]
        bits, now_s = bits - room, end_s
    raise AssertionError("the last piece has no end")


# -- steps ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Noise:
    """Milliseconds of one step that nobody expects: on the device, at the server, on the way."""

    device: float
    server: float
    way: float

    @classmethod
    def draw(cls, chance: random.Random, level: float) -> Noise:
        """A little of it always, and of some steps much; ``level`` 0 is a machine with nothing else to do, 2 a busy one."""

        def late(usual_ms: float, long_ms: float) -> float:
            burst_ms = chance.expovariate(1 / long_ms) if chance.random() < 0.06 * level else 0.0
            return abs(chance.gauss(0, usual_ms * level)) + burst_ms

        return cls(late(3, 30), late(3, 30), late(4, 40))


@dataclass(frozen=True, slots=True)
class Step:
    """One period; without a choice where the request before it was still under way."""

    latency_ms: float
    choice: Choice | None


def play(
    choose: Callable[[float], Choice], tell: Callable[[Observation], None], trace: Trace, noises: Sequence[Noise]
) -> Iterator[Step]:
    """Requests at a fixed pace."""
    now_s = told_s = 0.0
    for index, noise in enumerate(noises):
        due_s = index * PERIOD_S
        if now_s > due_s + PERIOD_S / 4:
            yield Step(math.inf, None)
            continue
        now_s = begun_s = max(now_s, due_s)
        choice = choose(now_s - told_s)
        told_s = now_s
        head_ms = choice.head_ms + (noise.device if choice.head_ms else 0.0)
        server_ms, sent_s = choice.server_ms + noise.server, begun_s + head_ms / 1e3
        beside_ms = 2 * ONE_WAY_MS + SOFTWARE_MS + noise.way
        now_s = arrives_s(trace, sent_s, choice.uplink_bytes) + (beside_ms + server_ms) / 1e3
        tell(
            Observation(
                elapsed_s=now_s - told_s,
                head_ms=head_ms,
                num_bytes=choice.uplink_bytes,
                way_ms=(now_s - sent_s) * 1e3 - server_ms,
                server_ms=server_ms,
            )
        )
        told_s = now_s
        yield Step((now_s - begun_s) * 1e3, choice)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one link."""

    kept: float
    """Share of the steps in time, of those in which any plan by itself was."""

    objective: float
    best_fixed: float
    """Share of the plan by itself that keeps most."""

    beaten: int
    """Plans by themselves that keep fewer, or if they keep enough have a higher objective."""


def compare(link: str, level: float, seed: int, steps: int = STEPS) -> Outcome:
    """The adaptive client, and each plan by itself, over the same link with the same noise."""
    chance, choices = random.Random(f"{link}/{level}/{seed}"), frontier()
    trace = LINKS[link](chance, steps * PERIOD_S + 10)
    noises = [Noise.draw(chance, level) for _ in range(steps)]
    adapter = Adapter(choices, Rules(deadline_ms=DEADLINE_MS))
    ours = list(play(lambda elapsed_s: adapter.choose(elapsed_s=elapsed_s), adapter.observe, trace, noises))
    fixed = [list(play(lambda _, c=each: c, lambda _: None, trace, noises)) for each in choices.choices]
    possible = [any(step.latency_ms <= DEADLINE_MS for step in some) for some in zip(*fixed, strict=True)]

    def kept(made: Sequence[Step]) -> float:
        hits = [step.latency_ms <= DEADLINE_MS for step, could in zip(made, possible, strict=True) if could]
        return statistics.fmean(hits)

    objective = statistics.fmean(value(step.choice) for step in ours if step.choice)
    shares = [(kept(made), value(each)) for made, each in zip(fixed, choices.choices, strict=True)]
    beaten = [share < kept(ours) if share < TARGET else other > objective for share, other in shares]
    return Outcome(kept(ours), objective, max(share for share, _ in shares), sum(beaten))


def value(choice: Choice) -> float:
    """Milliseconds of the server, and ten for each percentage point lost."""
    return choice.server_busy_ms + MS_PER_PP * choice.loss_pp


# -- putting it together ----------------------------------------------------------------------------


def rows(noise_levels: Sequence[float], seeds: int) -> Iterator[dict[str, Any]]:
    """One for each kind of link and each level of noise."""
    for level in noise_levels:
        for link in LINKS:
            found = [compare(link, level, seed) for seed in range(seeds)]
            kept = [each.kept for each in found]
            yield {
                "link": link,
                "noise": level,
                "links": seeds,
                "kept": statistics.fmean(kept),
                "kept_least": min(kept),
                "reach_target": sum(share >= TARGET for share in kept),
                "objective": statistics.fmean(each.objective for each in found),
                "fixed_plans_beaten": statistics.fmean(each.beaten for each in found) / len(MEASURED),
            }


def markdown(report: dict[str, Any]) -> str:
    """The table."""
    lines = [
        "# Random links between 50 and 0.5 Mbit/s, played",
        "",
        f"{report['date']}; ResNet-56 as `link_swing.py` measured it, {STEPS} steps a link, one every {PERIOD_S * 1e3:.0f} ms, "
        f"deadline {DEADLINE_MS:.0f} ms. Made by `python benchmarks/link_random.py`. A plan by itself is beaten if it keeps the "
        f"deadline in less than {TARGET:.0%} of the steps, and in fewer than the adaptive client; or else costs more.",
        "",
        "| link | noise | kept, of possible | least | links with 95 % | objective | plans beaten |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {row['link']} | {row['noise']:g} | {row['kept']:.1%} | {row['kept_least']:.1%} "
        f"| {row['reach_target']} of {row['links']} | "
        f"{row['objective']:.1f} | {row['fixed_plans_beaten']:.0%} |"
        for row in report["rows"]
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Plays all, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--noise", default="0,0.5,1,2,4")
    args = parser.parse_args()
    made = list(rows([float(word) for word in args.noise.split(",")], args.seeds))
    report = {"date": time.strftime("%Y-%m-%d"), "seeds": args.seeds, "rows": made}
    target = pathlib.Path(__file__).parent / "results" / f"link_random_{report['date']}"
    target.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    target.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
