"""Claim: on a link that swings between 50 and 0.5 Mbit/s a client that follows it keeps its deadline in at least 95 % of the
steps in which any plan could have, and does better than every plan that stays.

    python benchmarks/link_swing.py                       # ResNet-56 of the shared data, a quarter of an hour
    python benchmarks/link_swing.py --model demo-vision --data demo-vision --steps 60      # a quick look

Server and tail, sockets, codec and link are real; the device is played: features are made beforehand, and it sleeps for as
long as a slow device's head would take (its share of `--device-ms`, by multiply-accumulates). So what another process takes of
the machine meanwhile is no link's fault. Writes a JSON file and tables of Markdown under `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import pathlib
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from serverlight.apps.demo.children import Family
from serverlight.codec import Codec, CodecConfig, decode, warm_up
from serverlight.evaluation import describe_environment, load_images
from serverlight.frontier import Choice, Frontier
from serverlight.link import LinkConfig, LinkPiece, LinkPlayer, LinkProxy, LinkTrace
from serverlight.models import LoadedModel, load_model
from serverlight.models.images import encode_png
from serverlight.partition import Partition, partition
from serverlight.plan import Plan, model_key
from serverlight.runtime.adapt import Change, Rules
from serverlight.runtime.adaptive_client import AdaptedResult, AdaptiveClient

HERE = pathlib.Path(__file__).parent
SHARED = pathlib.Path(os.environ.get("SERVERLIGHT_SHARED", HERE.parents[1] / "shared" / "data"))
BATCH = 4
"""Images of one request: the cameras of one device."""

FAST, SLOW, DELAY_MS = 50e6, 0.5e6, 10.0
CODECS = [CodecConfig(profile="fp16"), *(CodecConfig(sparsity=s) for s in (0.2, 0.5, 0.7, 0.8, 0.9))]
MS_PER_PP = 10.0
"""The objective: server time, and ten milliseconds for each percentage point of quality."""

TARGET = 0.95
TRACES = "swing,steps"


# -- links ------------------------------------------------------------------------------------------


def swing(period_s: float, until_s: float) -> LinkTrace:
    """Up and down on a logarithmic scale, with a fifth of noise, new every quarter of a second."""
    chance, pieces = random.Random(1), []
    for index in range(math.ceil(until_s / 0.25)):
        height = (1 + math.cos(2 * math.pi * index * 0.25 / period_s)) / 2
        rate = SLOW * (FAST / SLOW) ** height * chance.uniform(0.9, 1.1)
        pieces.append(piece(index * 0.25, min(FAST, max(SLOW, rate))))
    return LinkTrace(pieces=tuple(pieces))


def steps(period_s: float, until_s: float) -> LinkTrace:
    """Half of the time fast and half of it slow, from one moment to the next."""
    rates = [FAST, SLOW] * math.ceil(until_s / period_s)
    return LinkTrace(pieces=tuple(piece(index * period_s / 2, rate) for index, rate in enumerate(rates)))


def piece(start_s: float, rate: float) -> LinkPiece:
    return LinkPiece(start_s=start_s, link=LinkConfig(rate_bits_per_s=rate, delay_ms=DELAY_MS))


# -- a device that is played ------------------------------------------------------------------------


class PlayedDevice(Partition):
    """A partition whose heads bring recorded features after the time that a device would take; called with an index."""

    def __init__(self, parts: Partition, batches: Sequence[torch.Tensor], device_ms: float) -> None:
        self.__dict__.update(parts.__dict__)
        self._device_ms, self._batches = device_ms, batches
        self._made: dict[str, tuple[list[Any], Any]] = {}

    def head_ms(self, cut: str) -> float:
        """The head's share of the whole model's time."""
        point = self.cut(cut)
        return self._device_ms * point.head_macs / (point.head_macs + point.tail_macs)

    def features(self, cut: str) -> tuple[list[Any], Any]:
        """What crosses for each batch, and the tail."""
        if cut not in self._made:
            head, tail = super().split(cut)
            with torch.inference_mode():
                self._made[cut] = [head(batch) for batch in self._batches], tail
        return self._made[cut]

    def split(self, cut: Any) -> Any:
        """The played head, and the tail, which is played too where it is the whole model."""
        name = cut if isinstance(cut, str) else cut.name
        features, tail = self.features(name)

        def head(index: torch.Tensor) -> Any:
            time.sleep(self.head_ms(name) / 1e3)
            return features[int(index)]

        def all_the_rest(*tensors: torch.Tensor) -> Any:
            if name == self.cuts[0].name:  # all on the device
                time.sleep(self._device_ms / 1e3)
            return tail(*tensors)

        return head, all_the_rest


# -- what there is to choose from -------------------------------------------------------------------


def measure(
    device: PlayedDevice, model: LoadedModel, cuts: Sequence[str], files: Sequence[Sequence[bytes]]
) -> list[Choice]:
    """Every cut with every setting, the raw images, and all on the device."""
    whole = device.features(device.cuts[0].name)
    expected = [answers(whole[1](*tensors)) for tensors in whole[0]]
    choices = [
        Choice(
            way="all-device", plan=None, head_ms=device.head_ms(device.cuts[-1].name), server_ms=0.0, server_busy_ms=0.0,
            uplink_bytes=0, downlink_bytes=0, device_memory_bytes=0, loss_pp=0.0,
        )
    ]  # fmt: skip
    plan = Plan(model=model.name, revision=model.revision, cut=device.cuts[0].name, codec=CODECS[0])
    busy_ms = least_ms(lambda k: whole[1](*whole[0][k]), len(files))
    uplink = statistics.fmean(sum(map(len, batch)) for batch in files)
    choices.append(choice("full-server", plan, 0.0, busy_ms, uplink, 0.0))
    for cut in cuts:
        features, tail = device.features(cut)
        busy_ms = least_ms(lambda k, tail=tail, features=features: tail(*features[k]), len(files))
        for config in CODECS:
            codec = Codec(config)
            frames = [codec.encode(tensors[0]) for tensors in features]
            decode_ms = least_ms(lambda k, frames=frames: decode(frames[k]), len(files))
            with torch.inference_mode():
                got = [answers(tail(decode(frame))) for frame in frames]
            same = statistics.fmean(float((a == b).double().mean()) for a, b in zip(expected, got, strict=True))
            made = Plan(model=model.name, revision=model.revision, cut=cut, codec=config)
            size = statistics.fmean(map(len, frames))
            choices.append(
                choice("split", made, device.head_ms(cut) + 1.0, busy_ms + decode_ms, size, 100 * (1 - same))
            )
    return choices


def choice(way: Any, plan: Plan, head_ms: float, busy_ms: float, num_bytes: float, loss_pp: float) -> Choice:
    return Choice(
        way=way, plan=plan, head_ms=head_ms, server_ms=busy_ms, server_busy_ms=busy_ms, uplink_bytes=round(num_bytes) + 60,
        downlink_bytes=300, device_memory_bytes=0, loss_pp=loss_pp,
    )  # fmt: skip


def answers(outputs: Any) -> torch.Tensor:
    logits = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs
    return logits.argmax(-1)


def least_ms(act: Callable[[int], Any], count: int) -> float:
    times = []
    with torch.inference_mode():
        for k in range(min(count, 15)):
            started_s = time.perf_counter()
            act(k)
            times.append((time.perf_counter() - started_s) * 1e3)
    return min(times)  # of a machine that has other things to do


def objective(choice: Choice) -> float:
    return choice.server_busy_ms + MS_PER_PP * choice.loss_pp


def frontier_of(choices: Sequence[Choice], deadline_ms: float) -> Frontier:
    """Those that are the best for some link, best first, and the raw images."""
    ordered = sorted(choices, key=lambda choice: (objective(choice), choice.uplink_bytes))
    kept = [choice for choice in ordered if choice.way == "full-server"]
    for step in range(81):
        rate = SLOW * (FAST / SLOW) ** (step / 80) * 0.8
        fitting = [each for each in ordered if each.latency_ms(rate, 2 * DELAY_MS + 10) <= 0.95 * deadline_ms]
        kept += fitting[:1]
    return Frontier(choices=tuple(each for each in ordered if each in kept))


# -- runs -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Step:
    """One period; ``latency_ms`` is None where the request before it was still under way."""

    latency_ms: float | None
    choice: Choice | None = None
    server_cpu_ms: float = 0.0


def run(
    address: str,
    device: PlayedDevice,
    frontier: Frontier,
    trace: LinkTrace,
    files: Sequence[Sequence[bytes]],
    args: Any,
) -> tuple[list[Step], list[Change]]:
    """Requests at a fixed pace over a link that follows the trace."""
    changes = list[Change]()
    link = trace.at(0.0)
    assert link is not None
    with (
        LinkProxy(address, LinkConfig(delay_ms=DELAY_MS)) as proxy,
        AdaptiveClient(
            proxy.address,
            model=device,
            frontier=frontier,
            rules=Rules(deadline_ms=args.deadline_ms),
            on_change=changes.append,
        ) as client,
    ):
        for choice in frontier.choices:  # streams are there when the clock starts, in all runs alike
            if choice.plan is not None:
                client._client_at(choice.plan)
        with LinkPlayer(proxy, trace.sample()):
            return list(paced(client, files, args)), changes


def paced(client: AdaptiveClient, files: Sequence[Sequence[bytes]], args: Any) -> Iterator[Step]:
    started_s, period_s = time.monotonic(), args.period_ms / 1e3
    for index in range(args.steps):
        wait_s = started_s + index * period_s - time.monotonic()
        if wait_s < -period_s / 4:
            yield Step(None)
            continue
        time.sleep(max(0.0, wait_s))
        k = index % len(files)
        made: AdaptedResult = client.infer_detailed(torch.tensor(k), files=files[k])
        yield Step(made.latency_ms, made.choice, made.result.server.cpu_ms)


def compare(
    address: str, device: PlayedDevice, frontier: Frontier, trace: LinkTrace, files: Any, args: Any
) -> dict[str, Any]:
    """The adaptive client, and each plan by itself, over the same trace."""
    ways = [("adaptive", frontier), *((name_of(each), Frontier(choices=(each,))) for each in frontier.choices)]
    runs = {}
    for name, given in ways:
        print(f"  {name}", file=sys.stderr, flush=True)
        runs[name] = run(address, device, given, trace, files, args)
    in_time = {name: [is_in_time(step, args.deadline_ms) for step in steps_] for name, (steps_, _) in runs.items()}
    possible = [any(marks) for marks in zip(*in_time.values(), strict=True)]
    rows = [row(name, runs[name][0], in_time[name], possible) for name, _ in ways]
    changes = [
        {"step": c.step, "to": name_of(c.to_choice), "reason": c.reason} for c in runs["adaptive"][1]
    ]  # fmt: skip
    latencies = [step.latency_ms for step in runs["adaptive"][0]]
    return {
        "possible": sum(possible),
        "steps": len(possible),
        "rows": rows,
        "changes": changes,
        "latencies_ms": latencies,
    }


def is_in_time(step: Step, deadline_ms: float) -> bool:
    return step.latency_ms is not None and step.latency_ms <= deadline_ms


def row(name: str, made: Sequence[Step], in_time: Sequence[bool], possible: Sequence[bool]) -> dict[str, Any]:
    kept = [step for step, fine in zip(made, in_time, strict=True) if fine]
    chosen = [step.choice for step in made if step.choice is not None]
    hits = sum(fine for fine, could in zip(in_time, possible, strict=True) if could)
    return {
        "plan": name,
        "kept_of_possible": hits / max(1, sum(possible)),
        "objective": statistics.fmean(map(objective, chosen)),
        "loss_pp": statistics.fmean(choice.loss_pp for choice in chosen),
        "server_ms": statistics.fmean(choice.server_busy_ms for choice in chosen),
        "server_cpu_ms": statistics.fmean(step.server_cpu_ms for step in made if step.choice),
        "in_time_and_right": statistics.fmean(
            (1 - step.choice.loss_pp / 100) if fine and step.choice else 0.0
            for step, fine in zip(made, in_time, strict=True)
        ),
        "median_latency_ms": statistics.median(step.latency_ms for step in kept if step.latency_ms) if kept else None,
    }


def beats(ours: dict[str, Any], other: dict[str, Any]) -> bool:
    """A plan that does not keep the deadline is beaten by one that does; among those that do, the objective decides."""
    if other["kept_of_possible"] < TARGET:
        return bool(ours["kept_of_possible"] > other["kept_of_possible"])
    return bool(ours["objective"] < other["objective"])


def name_of(choice: Choice) -> str:
    if choice.plan is None:
        return "all on the device"
    if choice.way == "full-server":
        return "full server, PNG"
    codec = choice.plan.codec
    return f"{choice.plan.cut}, {'fp16' if codec.profile == 'fp16' else f's {codec.sparsity:g}'}"


def as_row(choice: Choice) -> dict[str, Any]:
    """All fields; of the model its name, since where its files lie is nobody's business."""
    row = {"name": name_of(choice), **dataclasses.asdict(choice)}
    if choice.plan is not None:
        row["plan"]["model"] = model_key(choice.plan.model)
    return row


# -- putting it together ----------------------------------------------------------------------------


def markdown(report: dict[str, Any]) -> str:
    lines = [
        "# A link that swings between 50 and 0.5 Mbit/s",
        "",
        f"{report['date']}, {report['cpu']}, load {report['load_before']:.1f} before it; {report['model']}, "
        f"{BATCH} images a request, one every {report['period_ms']:.0f} ms, deadline "
        f"{report['deadline_ms']:.0f} ms, round trip {2 * DELAY_MS:.0f} ms. Device: played, "
        f"{report['device_ms']:.0f} ms for the whole model. Made by `python benchmarks/link_swing.py`.",
        "",
        f"Objective: milliseconds of the server a request plus {MS_PER_PP:g} for each percentage point lost (disagreement "
        f"with the uncut model on {report['images']} images). A step was possible if any run kept the deadline in it; a request "
        "that was still under way when its successor was due makes that one missed. Server CPU is that of the compute thread.",
    ]
    for name, result in report["traces"].items():
        lines += [
            "",
            f"## {name}: {result['possible']} of {result['steps']} steps were possible, {len(result['changes']) - 1} changes",
            "",
            "| plan | kept, of possible | objective | server, ms | loss, pp | in time and as the uncut model | server CPU, ms | "
            "median latency, ms | beaten |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        ]
        for row in result["rows"]:
            latency = "" if row["median_latency_ms"] is None else f"{row['median_latency_ms']:.0f}"
            lines.append(
                f"| {row['plan']} | {row['kept_of_possible']:.1%} | {row['objective']:.1f} | {row['server_ms']:.1f} | "
                f"{row['loss_pp']:.2f} | {row['in_time_and_right']:.1%} | {row['server_cpu_ms']:.1f} | {latency} | "
                f"{'' if row is result['rows'][0] else 'yes' if beats(result['rows'][0], row) else 'no'} |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = SHARED / "vision_cifar10"
    parser.add_argument("--model", default=str(folder / "resnet56.safetensors"))
    parser.add_argument("--data", default=str(folder / "cifar10_test_first1000.npz"))
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--cuts", default="layer1.8,layer2.3,layer2.8,layer3.0,layer3.2,layer3.4")
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--deadline-ms", type=float, default=500.0)
    parser.add_argument("--period-ms", type=float, default=540.0)
    parser.add_argument("--device-ms", type=float, default=570.0, help="of the whole model, one request")
    parser.add_argument("--traces", default=TRACES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warm_up()
    model = load_model(args.model)
    images = load_images(args.data).first(args.images).images
    starts = range(0, len(images) - BATCH + 1, BATCH)
    assert model.preprocess is not None
    device = PlayedDevice(
        partition(model.module, model.example_inputs),
        [model.preprocess(images[i : i + BATCH]) for i in starts],
        args.device_ms,
    )
    files = [[encode_png(image) for image in images[i : i + BATCH]] for i in starts]
    choices = measure(device, model, args.cuts.split(","), files)
    frontier = frontier_of(choices, args.deadline_ms)
    for each in frontier.choices:
        print(
            f"{name_of(each)}: {objective(each):.1f}, {each.uplink_bytes} bytes, head {each.head_ms:.0f}",
            file=sys.stderr,
        )
    until_s = args.steps * args.period_ms / 1e3
    traces = {"swing": swing(40.0, until_s), "steps": steps(30.0, until_s)}
    environment = describe_environment()
    report: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%d"),
        "model": pathlib.Path(args.model).stem,
        **{name: getattr(args, name) for name in ("images", "deadline_ms", "period_ms", "device_ms")},
        "load_before": os.getloadavg()[0],
        "choices": [as_row(each) for each in choices],
        "traces": {},
        **environment,
    }
    cuts = [word for each in frontier.choices if each.plan for word in ("--cut", each.plan.cut)]
    words = list(dict.fromkeys(zip(cuts[::2], cuts[1::2], strict=True)))
    with Family() as family:
        family.start("server", "serverlight", "serve", args.model, *(w for pair in words for w in pair), "--port", "0",
                     "--json", "-", "--until-eof")  # fmt: skip
        _, said = family.hear()
        for name in args.traces.split(","):
            print(name, file=sys.stderr)
            report["traces"][name] = compare(said["address"], device, frontier, traces[name], files, args)
    stem = re.sub("[^a-z0-9]+", "-", str(report["cpu"]).lower()).strip("-")
    name = "link_swing" if args.traces == TRACES else f"link_swing_{args.traces}"
    target = HERE / "results" / f"{name}_{stem}_{report['date']}"
    target.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    target.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
