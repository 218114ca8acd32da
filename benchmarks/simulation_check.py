"""Whether the simulation gives what was measured: the cells of `serverlight bench runtime`, from profiles of the same machine.

    serverlight profile demo-vision --fresh --save vision.json
    serverlight profile demo-lm --fresh --save lm.json
    serverlight bench runtime --vision demo-vision --lm demo-lm --clients 1,2,4,8,16,32 --json measured.json
    python benchmarks/simulation_check.py measured.json vision.json lm.json --json check.json --markdown check.md

All of it in one go on a quiet machine: the profiles are what the simulation knows of it. Beside them only the bytes that were sent
are taken from the measured rows, and how much times vary from those of a single client; the time to decode a JPEG file or plain
halves is measured here, since a profile tells only that of our codec. Latencies are of images, or of tokens after the first,
uncorrected (`measured_ms_p95`).
"""

from __future__ import annotations

import argparse
import json
import math
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from serverlight.apps.load_cells import NUM_TEXTS, PROMPT_TOKENS
from serverlight.apps.vision import JPEG_QUALITY, load_model_images
from serverlight.codec import Codec, CodecConfig, decode
from serverlight.environment import measured_document
from serverlight.evaluation.load.figures import FP16, FULL, IN_PROCESS, SERIAL
from serverlight.link import LinkConfig
from serverlight.models import load_model
from serverlight.models.images import decode_image, encode_jpeg
from serverlight.search.profile import Profile
from serverlight.simulation import Crossing, Fleet, Group, ServerModel, simulate
from serverlight.simulation.plans import AROUND_BYTES

SEEDS = 3
CLOSE = 0.1
P50, P95 = math.log(2) - math.log(4 / 3), math.log(20) - math.log(4 / 3)
"""Of an exponential's times whose mean is one, above the lower quartile."""

TRACE = 200_000
RUNS = 30

Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("measured", type=pathlib.Path, metavar="MEASURED", help="of `serverlight bench runtime --json`")
    parser.add_argument(
        "profiles", nargs="+", metavar="PROFILE", help="one of a vision model, one of a language model, or both"
    )
    parser.add_argument(
        "--share", type=float, help="of a message's time alone, what it takes in company; see ServerModel"
    )
    parser.add_argument("--json", type=pathlib.Path)
    parser.add_argument("--markdown", type=pathlib.Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    measured = json.loads(options.measured.read_text())
    loaded = [Profile.load(path) for path in options.profiles]
    profiles = {"lm" if profile.kind == "language-model" else "vision": profile for profile in loaded}
    rows = [*compared(measured, profiles, {} if options.share is None else {"message_share": options.share})]
    table = as_table(rows)
    print(table)
    if options.markdown:
        options.markdown.write_text(table)
    if options.json:
        options.json.write_text(json.dumps(measured_document(measured["settings"], rows), indent=1) + "\n")


def compared(measured: Mapping[str, Any], profiles: Mapping[str, Profile], more: Mapping[str, float]) -> Iterator[Row]:
    decodes = {workload: Decodes(profile) for workload, profile in profiles.items()}
    spreads = {workload: spread_of(measured["rows"], workload) for workload in profiles}
    for row in measured["rows"]:
        if row["workload"] not in profiles or row["system"] == IN_PROCESS:
            continue
        found = simulated(
            row,
            measured["settings"],
            profiles[row["workload"]],
            decodes[row["workload"]],
            {"spread": spreads[row["workload"]], **more},
        )
        errors = {
            name: found[name] / row[of] - 1
            for name, of in (
                ("throughput_per_s", "throughput_per_s"),
                ("p50_ms", "measured_ms_p50"),
                ("p95_ms", "measured_ms_p95"),
            )
        }
        yield {
            "workload": row["workload"], "system": row["system"], "clients": row["clients"], "cuts": row["cuts"],
            "measured": {
                "throughput_per_s": row["throughput_per_s"], "p50_ms": row["measured_ms_p50"],
                "p95_ms": row["measured_ms_p95"], "batch": row["mean_batch"], "server_ms": 1e3 * row["server_cpu_s_per_item"],
            },
            "simulated": found,
            "errors": errors,
            "holds": max(abs(errors["throughput_per_s"]), abs(errors["p95_ms"])) <= CLOSE,
        }  # fmt: skip


def spread_of(rows: list[Row], workload: str) -> float:
    """How much times vary on the machine, by the device that was alone: of no other row is anything but bytes taken."""
    alone = [row for row in rows if row["workload"] == workload and row["clients"] == 1 and row["measured_ms_p50"]]
    ratios = [row["measured_ms_p95"] / row["measured_ms_p50"] for row in alone]
    ratio = min(statistics.median(ratios), 3.0) if ratios else 1.0
    return min(1.0, max(0.0, (ratio - 1) / (P95 - P50 * ratio)))


class Decodes:
    """What a server takes to read what is not our frames, in milliseconds."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    def of(self, system: str, cut: str) -> float | None:
        """``None`` for frames of our codec."""
        if system == FULL and self._profile.kind == "single-shot":
            return self._jpeg_ms()
        return self._halves_ms(cut) if system in (FULL, FP16) else None

    def _halves_ms(self, cut: str) -> float:
        frame = Codec(CodecConfig(profile="fp16")).encode(torch.randn(1, self._profile.cut(cut).elements))
        return median_ms(lambda: decode(frame))

    def _jpeg_ms(self) -> float:
        model = load_model(self._profile.model)
        image = load_model_images(model, None, 1).images[0]
        file, preprocess, shape = encode_jpeg(image, JPEG_QUALITY), model.preprocess, model.image_shape
        assert preprocess is not None
        assert shape is not None
        with torch.inference_mode():
            return median_ms(lambda: preprocess(np.stack([decode_image(file, shape)])))


def median_ms(work: Callable[[], object]) -> float:
    times = list[float]()
    for _ in range(RUNS):
        started_s = time.perf_counter()
        work()
        times.append((time.perf_counter() - started_s) * 1e3)
    return statistics.median(times)


def simulated(
    row: Mapping[str, Any], settings: Mapping[str, Any], profile: Profile, decodes: Decodes, more: Mapping[str, float]
) -> Row:
    """The same turns: they begin when every device has had an answer, as those of the load generator."""
    delay_ms = settings["max_batch_delay_ms"]
    server = ServerModel(
        profile=profile, max_batch=1 if row["system"] == SERIAL else 64, max_sessions=256,
        max_delay_ms=15.0 if delay_ms is None else delay_ms, **more,
    )  # fmt: skip
    groups = tuple(groups_of(row, settings, profile, decodes))
    found = []
    for seed in range(SEEDS):
        begin_s = 0.0
        if row["rate_per_s"] is None:
            start = Fleet(groups=groups, server=server, duration_s=start_s(row), seed=seed, one_process=True)
            begin_s = ready_s(simulate(start, trace=TRACE).trace)
        warm_s = begin_s + settings["warmup_s"]
        fleet = Fleet(
            groups=groups, server=server, warmup_s=warm_s, duration_s=warm_s + settings["duration_s"], seed=seed,
            one_process=True,
        )  # fmt: skip
        found.append(simulate(fleet))
    means = {
        "throughput_per_s": statistics.mean(figures.items_per_s for figures in found),
        "p50_ms": statistics.mean(figures.latency.p50 for figures in found),
        "p95_ms": statistics.mean(figures.latency.p95 for figures in found),
        "batch": statistics.mean(figures.mean_batch for figures in found),
    }
    busy = statistics.mean(figures.utilisation for figures in found)
    return {**means, "server_ms": 1e3 * busy / max(means["throughput_per_s"], 1e-9)}


def start_s(row: Mapping[str, Any]) -> float:
    """Long enough for every device to have an answer."""
    return 10.0 + 4 * row["clients"] * row["measured_ms_p50"] / 1e3


def ready_s(trace: np.ndarray) -> float:
    """When the last device had its first answer."""
    devices = trace[:, 1].astype(int)
    firsts = np.full(devices.max() + 1, np.inf)
    np.minimum.at(firsts, devices, trace[:, 5])
    return float(firsts.max())


def groups_of(
    row: Mapping[str, Any], settings: Mapping[str, Any], profile: Profile, decodes: Decodes
) -> Iterator[Group]:
    """Devices of each cut, and of each link where there are some; they take cuts, links and texts in turn."""
    is_text, system, clients = row["workload"] == "lm", row["system"], row["clients"]
    links = [LinkConfig.parse(link) for link in settings["links"]] or [LinkConfig()]
    prompts = [round(length) for length in np.linspace(*PROMPT_TOKENS, NUM_TEXTS)]
    members: dict[tuple[str, LinkConfig], list[int]] = {}
    for i in range(clients):
        members.setdefault((row["cuts"][i % len(row["cuts"])], links[i % len(links)]), []).append(i)
    for number, ((cut, link), own) in enumerate(members.items()):
        carried = row["uplink_bytes_per_item"] - AROUND_BYTES
        if is_text and system in (FULL, FP16):  # what counts as sent for a full server is not what was sent
            carried = 2.0 * profile.cut(cut).elements
        yield Group(
            name=f"{cut} {number}", devices=len(own), device=profile, link=link,
            crossing=Crossing(
                cut=cut, request_bytes=AROUND_BYTES + carried, prompt_token_bytes=carried, reply_bytes=AROUND_BYTES,
                decode_ms=decodes.of(system, cut),
            ),
            works=False, rate_per_s=row["rate_per_s"] and row["rate_per_s"] / clients,
            think_ms=row["device_ms_per_item"] if settings["device_time"] else 0.0,
            prompt_tokens=tuple(prompts[i % NUM_TEXTS] for i in own) if is_text else (1,),
            new_tokens=settings["tokens"] + 1,
        )  # fmt: skip


def as_table(rows: list[Row]) -> str:
    lines = [
        "| workload | system | clients | items/s | simulated | error | p50 ms | simulated | error | p95 ms | simulated | error "
        "| batch | simulated | server ms | simulated | within 10 % |",
        "| --- | --- |" + " ---: |" * 15,
    ]
    for row in rows:
        seen, made, errors = row["measured"], row["simulated"], row["errors"]
        cells = [row["workload"], row["system"], str(row["clients"])]
        for name in ("throughput_per_s", "p50_ms", "p95_ms"):
            cells += [f"{seen[name]:,.1f}", f"{made[name]:,.1f}", f"{100 * errors[name]:+.1f} %"]
        for name in ("batch", "server_ms"):
            cells += [f"{seen[name]:.2f}", f"{made[name]:.2f}"]
        lines.append(f"| {' | '.join([*cells, 'yes' if row['holds'] else 'no'])} |")
    count = sum(row["holds"] for row in rows)
    lines += ["", f"{count} of {len(rows)} settings have throughput and p95 within 10 %."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
