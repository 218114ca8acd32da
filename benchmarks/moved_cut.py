"""What moving a cut in mid-sequence costs: keys and values as frames, and the two ways over imitated links.

    python benchmarks/moved_cut.py                               # stories260K of the shared data, two minutes
    python benchmarks/moved_cut.py --model FOLDER --layers 8     # another model, cut after 8 layers

Writes a JSON file and tables of Markdown under `benchmarks/results/`. Texts are drawn from the model itself, with a seed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import re
import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

from serverlight.codec import Codec, CodecConfig, decode, warm_up
from serverlight.evaluation import describe_environment
from serverlight.generation import DecoderLoopback, LoadedDecoder
from serverlight.link import LinkConfig, LinkProxy
from serverlight.partition.kv_cache import LayerState
from serverlight.plan import Plan
from serverlight.runtime import moving
from serverlight.runtime.decoder_client import DecoderClient
from serverlight.runtime.device import Footprint
from serverlight.runtime.exits import Caps
from serverlight.runtime.pace import MoveCost
from serverlight.runtime.server import Server
from serverlight.sampling import Sampling

HERE = pathlib.Path(__file__).parent
SHARED = pathlib.Path(os.environ.get("SERVERLIGHT_SHARED", HERE.parents[1] / "shared" / "data"))
NUM_TEXTS, NUM_BEFORE, NUM_AFTER = 8, 120, 120
LINKS = ("1mbit,20ms", "10mbit,20ms", "100mbit,5ms")
LOSSY = CodecConfig(sparsity=0.25)
CODECS = {
    "fp16": CodecConfig(profile="fp16"),
    "s 0.05, delta 0.05": CodecConfig(sparsity=0.05, distortion=0.05),
    "s 0.05, delta 0.2": CodecConfig(sparsity=0.05, distortion=0.2),
    "s 0.1": CodecConfig(sparsity=0.1),
    "s 0.25": LOSSY,
}


@dataclasses.dataclass(frozen=True)
class Parts:
    """One model, cut so that a head with some layers can give them all away."""

    head: LoadedDecoder
    tail: LoadedDecoder
    num_layers: int

    def plan(self, layers: int, codec: CodecConfig) -> Plan:
        """Cut after so many layers."""
        return Plan(model=self.head.name, revision=self.head.revision, cut=f"layers.{layers}", codec=codec)


# -- what the codec does to keys and values ---------------------------------------------------------


def compare_codecs(parts: Parts, texts: list[list[int]]) -> list[dict[str, Any]]:
    """Each codec on the same moves: bits, error, and what later tokens make of it."""
    expected = [after_move(parts, text, None) for text in texts]
    rows = []
    for name, config in CODECS.items():
        sums: dict[str, float] = dict.fromkeys(("bits", "elements", "keys", "keys_all", "values", "values_all"), 0.0)
        logits = [after_move(parts, text, Codec(config), sums) for text in texts]
        kl, agreement = divergence(torch.cat(expected), torch.cat(logits))
        rows.append({
            "codec": name,
            "bits_per_element": sums["bits"] / sums["elements"],
            "keys_error": sums["keys"] / sums["keys_all"],
            "values_error": sums["values"] / sums["values_all"],
            "kl": kl,
            "agreement": agreement,
        })  # fmt: skip
    kl, agreement = divergence(torch.cat(expected), torch.cat([hidden_through(parts, text, LOSSY) for text in texts]))
    rows.append({"codec": "no move; hidden states with s 0.25", "kl": kl, "agreement": agreement})
    return rows


def after_move(
    parts: Parts, text: list[int], codec: Codec | None, sums: dict[str, float] | None = None
) -> torch.Tensor:
    """Logits of the tokens after all layers of the head went to the server, teacher-forced; exact hidden states."""
    head, tail = parts.head.part, parts.tail.part
    front, back = head.new_cache(last=parts.num_layers), tail.new_cache(first=parts.num_layers)
    before, after = torch.tensor([text[:NUM_BEFORE]]), torch.tensor([text[NUM_BEFORE:]])
    with torch.inference_mode():
        tail(head(before, front), back, num_logits=1)
        states = front.release(0, parts.num_layers, stays_at_front=True)
        if codec is not None:
            states = tuple(through(state, codec, sums) for state in states)
        back.adopt(0, parts.num_layers, states)
        return tail(head(after, front), back)[0]


def through(state: LayerState, codec: Codec, sums: dict[str, float] | None) -> LayerState:
    tensors = {}
    for name in ("keys", "values"):
        tensor = getattr(state, name)[0]
        frame = codec.encode(tensor)
        tensors[name] = decode(frame).unsqueeze(0)
        if sums is not None:
            sums["bits"] += 8 * len(frame)
            sums["elements"] += tensor.numel()
            sums[name] += float(((tensors[name][0] - tensor) ** 2).sum())
            sums[f"{name}_all"] += float((tensor**2).sum())
    return dataclasses.replace(state, **tensors)


def hidden_through(parts: Parts, text: list[int], config: CodecConfig) -> torch.Tensor:
    """Logits of the same tokens where nothing moves and hidden states are coded, a frame a token: the noise anyway."""
    head, tail, codec = parts.head.part, parts.tail.part, Codec(config)
    front, back = head.new_cache(last=parts.num_layers), tail.new_cache(first=parts.num_layers)
    with torch.inference_mode():
        hidden = head(torch.tensor([text]), front)
        coded = torch.cat([decode(codec.encode(token)) for token in hidden.split(1, dim=1)], dim=1)
        return tail(coded, back)[0, NUM_BEFORE:]


def divergence(expected: torch.Tensor, logits: torch.Tensor) -> tuple[float, float]:
    log_p, log_q = expected.double().log_softmax(-1), logits.double().log_softmax(-1)
    kl = float((log_p.exp() * (log_p - log_q)).sum(-1).mean())
    return kl, float((expected.argmax(-1) == logits.argmax(-1)).double().mean())


# -- the two ways -----------------------------------------------------------------------------------


def compare_ways(parts: Parts, text: list[int], repeats: int) -> Iterator[dict[str, Any]]:
    """Moves over links, of one layer and of all, after some tokens; and what would have been estimated."""
    cuts = [f"layers.{layer}" for layer in range(parts.num_layers + 1)]
    sizes = Footprint.measure(parts.head.part, None, parts.plan(parts.num_layers, LOSSY))
    with Server(parts.tail, cuts) as server:
        for link in LINKS:
            with LinkProxy(server.address, LinkConfig.parse(link)) as proxy:
                for on_limit in ("shallower", "server"):
                    cap = sizes.num_bytes(parts.num_layers, NUM_BEFORE)
                    caps = Caps(device_memory_bytes=cap, on_limit=on_limit)
                    yield {"link": link, **measure_ways(parts, proxy.address, text, caps, repeats)}


def measure_ways(parts: Parts, address: str, text: list[int], caps: Caps, repeats: int) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for way in ("shipped", "recomputed", "auto"):
        exits, estimates = [], []
        watched = Watch(estimates)
        with watched:
            for _ in range(repeats):
                client = DecoderClient(
                    [address], plan=parts.plan(parts.num_layers, LOSSY), head=parts.head,
                    caps=dataclasses.replace(caps, way=way),
                )  # fmt: skip
                # A prompt of 80 tokens, then 40 steps: so the link has shown small messages and a large one.
                made = client.generate(text[:80], max_new_tokens=NUM_BEFORE - 80 + 3, sampling=Sampling())
                exits.append(made.exits[0])
        if way == "auto":
            row["auto"] = [exit.way for exit in exits]
            row["estimate"] = {
                name: statistics.median(c.time_ms for n, c in estimates if n == name) for name, _ in estimates
            }
        else:
            row["layers"] = parts.num_layers - int(str(exits[0].to_cut).removeprefix("layers."))
            row[way] = {
                "bytes": statistics.median(exit.num_bytes for exit in exits),
                "ms": statistics.median(exit.cost_ms for exit in exits),
            }
    return row


class Watch:
    """Keeps the estimates that moves are decided by."""

    def __init__(self, estimates: list[tuple[str, MoveCost]]) -> None:
        self._estimates, self._cheaper = estimates, moving.cheaper

    def __enter__(self) -> None:
        def listen(ship: MoveCost, recompute: MoveCost) -> str:
            self._estimates += [("shipped", ship), ("recomputed", recompute)]
            return self._cheaper(ship, recompute)

        moving.cheaper = listen

    def __exit__(self, *_: object) -> None:
        moving.cheaper = self._cheaper


# -- putting it together ----------------------------------------------------------------------------


def draw_texts(parts: Parts, start: list[int]) -> list[list[int]]:
    loopback = DecoderLoopback(parts.plan(0, CodecConfig(profile="fp16")), parts.head, parts.tail)
    size = NUM_BEFORE + NUM_AFTER
    return [
        start + list(loopback.generate(start, max_new_tokens=size - len(start), sampling=Sampling(temperature=1.0, seed=i)))
        for i in range(NUM_TEXTS)
    ]  # fmt: skip


def markdown(report: dict[str, Any]) -> str:
    lines = [
        "# Moving a cut in mid-sequence",
        "",
        f"{report['date']}, {report['cpu']}, one thread on a busy machine; {report['model']}, {report['layers']} layers on the "
        f"device. Made by `python benchmarks/moved_cut.py` in {report['seconds']} s.",
        "",
        f"## Keys and values as frames: all layers go to the server after {NUM_BEFORE} tokens",
        "",
        "Error is squared error over squared signal. KL in nats and agreement of the likeliest token are against the "
        f"sequence that was not moved through a codec, over the {NUM_AFTER} tokens that follow, teacher-forced, hidden "
        f"states exact, {NUM_TEXTS} texts.",
        "",
        "| codec | bits/element | error, keys | error, values | KL | agreement |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for row in report["codecs"]:
        figures = (
            f"{row['bits_per_element']:.2f} | {row['keys_error']:.1e} | {row['values_error']:.1e}"
            if "keys_error" in row
            else " | | "
        )
        lines.append(f"| {row['codec']} | {figures} | {row['kl']:.1e} | {row['agreement']:.2%} |")
    lines += [
        "",
        f"## The two ways, after {NUM_BEFORE} tokens, hidden states with s 0.25",
        "",
        f"Medians of {report['repeats']}; in brackets the estimate that `auto` went by.",
        "",
        "| link | layers | shipped, bytes | shipped, ms | recomputed, bytes | recomputed, ms | auto took |",
        "| --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for row in report["ways"]:
        figures = " | ".join(
            f"{row[way]['bytes']:.0f} | {row[way]['ms']:.0f} ({row['estimate'][way]:.0f})"
            for way in ("shipped", "recomputed")
        )
        lines.append(f"| {row['link']} | {row['layers']} | {figures} | {', '.join(sorted(set(row['auto'])))} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(SHARED / "lm" / "stories260K_llama"))
    parser.add_argument("--layers", type=int, default=4, help="layers of the head")
    parser.add_argument("--start", default="1", help="token ids that texts begin with, with commas between")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    started_s = time.perf_counter()
    warm_up()
    parts = Parts(
        head=LoadedDecoder.head(args.model, f"layers.{args.layers}", dtype=torch.float32),
        tail=LoadedDecoder.tail(args.model, "layers.0", dtype=torch.float32),
        num_layers=args.layers,
    )
    texts = draw_texts(parts, [int(token) for token in args.start.split(",")])
    environment = describe_environment()
    report = {
        "date": time.strftime("%Y-%m-%d"),
        "model": pathlib.Path(args.model).name,
        "layers": args.layers,
        "repeats": args.repeats,
        "codecs": compare_codecs(parts, texts),
        "ways": list(compare_ways(parts, texts[0], args.repeats)),
        **environment,
    }
    report["seconds"] = round(time.perf_counter() - started_s)
    stem = re.sub("[^a-z0-9]+", "-", str(report["cpu"]).lower()).strip("-")
    target = HERE / "results" / f"moved_cut_{stem}_{report['date']}"
    target.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    target.with_suffix(".md").write_text(markdown(report))
    print(markdown(report))


if __name__ == "__main__":
    main()
