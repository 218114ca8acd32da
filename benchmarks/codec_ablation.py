"""What each refinement of profile serverlight is worth: one is taken away at a time, and bits are compared at equal divergence.

    python benchmarks/codec_ablation.py                        # all nine tasks, some minutes each
    python benchmarks/codec_ablation.py --task ST-3 --samples 40

Needs the models and data of the tasks in the folder that `--data` or SERVERLIGHT_SHARED names. Writes a JSON file and a table of
Markdown under `benchmarks/results/`. Figures of the codec itself are bytes of whole frames without checksum. A variant that has
no frames is charged the length that its own tables would give, as said beside it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import pathlib
import re
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from serverlight.codec import Codec, CodecConfig, decode, inspect, tables
from serverlight.codec.activity import nearest_activity
from serverlight.codec.backends import cpu_model, cpu_writer
from serverlight.codec.backends.reference_quantiser import choose_raw_bits, split_raw
from serverlight.codec.coded import kind_of
from serverlight.codec.layout import grid_of, natural_layout
from serverlight.codec.rivals.plain_slicer import PlainSlicer
from serverlight.evaluation import describe_environment
from serverlight.evaluation.rates import Probe, bits_at_kl
from serverlight.evaluation.tasks import CodecTask, Feature, load_task

NAME = "codec_ablation"
HERE = pathlib.Path(__file__).parent
TASKS: dict[str, tuple[int, tuple[float, ...]]] = {  # samples, sparsities
    "R56-early": (150, (0.1, 0.3, 0.5, 0.6, 0.7, 0.8, 0.88)),
    "R56-mid": (150, (0.2, 0.4, 0.6, 0.7, 0.78, 0.86, 0.92)),
    "R56-late": (300, (0.5, 0.7, 0.83, 0.9, 0.93, 0.96, 0.98)),
    "MBv2-5": (50, (0.1, 0.2, 0.35, 0.5, 0.62, 0.74, 0.84)),
    "MBv2-13": (50, (0.1, 0.25, 0.4, 0.55, 0.68, 0.8, 0.88)),
    "ST-1": (80, (0.1, 0.25, 0.45, 0.6, 0.7, 0.8, 0.88)),
    "ST-3": (80, (0.1, 0.25, 0.45, 0.6, 0.7, 0.8, 0.88)),
    "ST-5": (80, (0.1, 0.25, 0.45, 0.6, 0.7, 0.8, 0.88)),
    "LM-0.26M": (120, (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)),
}
COMPARED_AT = slice(3, 6)
"""Differences are means over the divergences that the codec itself has at these of the sparsities."""

Ints = npt.NDArray[np.int64]
Sent = tuple[float, list[Feature]]
"""Bits of all messages together, and what arrives."""
Variant = Callable[[Sequence[Feature], float], Sent]


# -- the codec, and how its frames are taken apart ---------------------------------------------------------


def whole(features: Sequence[Feature], sparsity: float, **knobs: Any) -> Sent:
    """The profile as it is."""
    frames = frames_of(features, sparsity, **knobs)
    return size_of(frames), [decode(frame, "numpy") for frame in frames]


def frames_of(features: Sequence[Feature], sparsity: float, **knobs: Any) -> list[bytes]:
    codec = Codec(CodecConfig(sparsity=sparsity, checksum=False, **knobs))
    return [codec.encode(x) for x in features]


def size_of(frames: Sequence[bytes]) -> float:
    return 8.0 * sum(map(len, frames))


def without_its_shifts(frame: bytes) -> bytes:
    """The frame with all its shifts set to zero: it decodes to whole numbers of steps."""
    parts, bare = inspect(frame).part_bytes, bytearray(frame)
    start = parts["header"] + parts.get("model", 0)
    bare[start : start + parts.get("shifts", 0)] = bytes(parts.get("shifts", 0))
    return bytes(bare)


def numbers_of(frame: bytes) -> Ints:
    """The signed numbers of steps of a frame, in the tensor's shape."""
    values = decode(without_its_shifts(frame), "numpy").astype(np.float64)
    return np.rint(values / float(inspect(frame).config["step"])).astype(np.int64)


# -- one refinement less --------------------------------------------------------------------------------------


def no_shifts(features: Sequence[Feature], sparsity: float) -> Sent:
    """Frames without the bytes of the shifts, and values in the middle of nowhere: zero, or whole steps."""
    frames = frames_of(features, sparsity)
    spared = sum(inspect(frame).part_bytes.get("shifts", 0) for frame in frames)
    return size_of(frames) - 8 * spared, [decode(without_its_shifts(frame), "numpy") for frame in frames]


def no_contexts(features: Sequence[Feature], sparsity: float) -> Sent:
    """The tensor as a flat run: one context, and no neighbours for the shifts to tell classes by."""
    frames = frames_of([x.reshape(-1) for x in features], sparsity)
    return size_of(frames), [decode(f, "numpy").reshape(x.shape) for f, x in zip(frames, features, strict=True)]


def no_corrections(features: Sequence[Feature], sparsity: float) -> Sent:
    """The same numbers under levels of default and offset alone."""
    return at_another_length(features, sparsity, lambda x, numbers: model_bits(x, numbers, corrected=False))


def single_symbols(features: Sequence[Feature], sparsity: float) -> Sent:
    """The same numbers, the second of a pair under the distribution of the first: its context is not moved by the first."""
    return at_another_length(features, sparsity, lambda x, numbers: model_bits(x, numbers, paired=False))


def at_another_length(features: Sequence[Feature], sparsity: float, length: Callable[[Feature, Ints], float]) -> Sent:
    bits, received = 0.0, []
    for x, frame in zip(features, frames_of(features, sparsity), strict=True):
        numbers = numbers_of(frame)
        bits += 8 * len(frame) + length(x, numbers) - model_bits(x, numbers)
        received.append(decode(frame, "numpy"))
    return bits, received


def model_bits(x: Feature, numbers: Ints, *, corrected: bool = True, paired: bool = True) -> float:
    """Bits of parameters and symbols under the probability model; a pair without a symbol counts as the escape symbol."""
    layout = natural_layout(x.shape)
    grid, one_sided = grid_of(x.shape, layout), bool((x >= 0).all())
    kind = kind_of(layout, one_sided)
    one_sided_kind = kind == tables.ONE_SIDED_PLANES
    if not numbers.any():
        return 0.0
    flat = numbers.reshape(-1)
    raw_bits, half_escapes = choose_raw_bits(flat, kind)
    high, _ = split_raw(flat, raw_bits)
    start = nearest_activity(int(np.abs(high).sum()), len(high)) if kind == tables.TOKENS else 0
    num_contexts = tables.NUM_CONTEXTS[kind]
    per_unit = {0: 1, 1: (grid.rows + 1) // 2, 2: grid.rows * ((grid.columns + 1) // 2)}[int(layout)]
    index = np.empty(grid.units * per_unit, np.uint16)
    shape = (grid.planes, grid.rows, grid.columns)
    narrow = np.clip(high, -32767, 32767).astype(np.int16)
    cpu_writer.symbols_of(narrow, int(layout), one_sided_kind, start, *shape, num_contexts, index)
    histogram = cpu_writer.histogram_over(index, 2 * num_contexts)
    following, flips = tables.NEXT[kind], tables.FLIP_NEXT[kind]
    if not paired:
        following = np.repeat(np.arange(num_contexts)[:, None], 3, axis=1)
        flips = np.ones_like(following)
    defaults = tables.DEFAULT_LEVELS[kind]
    counts = cpu_model.count_decisions(histogram, following, flips, one_sided_kind)
    offsets, present, corrections = cpu_model.fit_levels(counts, defaults, one_sided_kind, tables.COST)
    if not corrected:
        present, corrections = np.zeros_like(present), np.zeros_like(corrections)
    levels = cpu_model.levels_of(defaults, offsets, corrections)
    frequencies = cpu_model.build_tables(levels, following, flips, one_sided_kind, True, half_escapes)
    room = np.empty(2 * num_contexts * 1024, np.uint32)
    bits, _ = cpu_model.encoder_tables(frequencies, histogram, tables.COST_OF_FREQUENCY, room)
    packed = cpu_model.pack_model(offsets, present, corrections, one_sided_kind, np.zeros(400, np.uint8))
    return float(bits + 8 * packed)


def equal_groups(features: Sequence[Feature], sparsity: float, distortion: float) -> Sent:
    """Eight groups of equal size with ranges of their own, under rANS; dropped elements come as their mean, for 16 bits."""
    rival = PlainSlicer(sparsity=sparsity, num_groups=8, distortion=distortion, coding="rans")
    messages = [rival.encode(x) for x in features]
    received = [rival.decode(message) for message in messages]
    for x, y in zip(features, received, strict=True):
        if (x >= 0).all() and not y.all():
            y[y == 0] = x[y == 0].mean()
    return size_of(messages) + 16.0 * len(features), received


def fixed_lengths(features: Sequence[Feature], sparsity: float) -> Sent:
    """The same numbers without an entropy coder: a bitmap, signs if any, and magnitudes in the width that suits best.

    The largest code of a width stands for larger ones, which take 28 bits more.
    """
    bits, received = 0.0, []
    for x, frame in zip(features, frames_of(features, sparsity), strict=True):
        numbers, parts = numbers_of(frame), inspect(frame).part_bytes
        magnitudes = np.abs(numbers[numbers != 0]) - 1
        head = 8 * (parts["header"] + parts.get("shifts", 0))
        signs = magnitudes.size if (x < 0).any() else 0
        codes = min(magnitudes.size * w + 28 * int((magnitudes >= (1 << w) - 1).sum()) for w in range(1, 29))
        bits += head + x.size + signs + codes
        received.append(decode(frame, "numpy"))
    return bits, received


VARIANTS: dict[str, tuple[Variant, ...]] = {
    "no shifts, no mean fill": (no_shifts,),
    "no contexts": (no_contexts,),
    "no corrections of the parameters": (no_corrections,),
    "second of a pair not conditioned on the first": (single_symbols,),
    **{
        f"step not tied: delta {delta:g}": (lambda x, s, d=delta: whole(x, s, distortion=d),)
        for delta in (0.1, 0.2, 0.8)
    },
    "8 equal groups for sizes of numbers": tuple(
        (lambda x, s, d=delta: equal_groups(x, s, d)) for delta in (0.04, 0.09, 0.13, 0.26)
    ),
    "no entropy coder": (fixed_lengths,),
}
"""By name; the best of several is taken."""


# -- measuring ---------------------------------------------------------------------------------------------------


def measure(task: CodecTask, variants: Sequence[Variant], sparsities: Sequence[float]) -> list[Probe]:
    features, probes = task.features(), []
    count = sum(x.size for x in features)
    for variant in variants:
        for sparsity in sparsities:
            bits, received = variant(features, sparsity)
            kl = task.evaluate(received).kl
            probes.append(Probe(codec="", config={"s": sparsity}, bits_per_element=bits / count, kl=kl, rel_mse=0.0))
    return probes


def ablate(task: CodecTask, sparsities: Sequence[float]) -> dict[str, Any]:
    """Bits of the codec at three divergences, and how many more each variant takes."""
    own = measure(task, (whole,), sparsities)
    divergences = [probe.kl for probe in own[COMPARED_AT]]
    report: dict[str, Any] = {"kl": divergences, "bits": [bits_at_kl(own, kl) for kl in divergences], "more": {}}
    for name, variants in VARIANTS.items():
        probes = measure(task, variants, sparsities)
        bits = [bits_at_kl(probes, kl) for kl in divergences]
        more = [None if b is None else b - o for b, o in zip(bits, report["bits"], strict=True)]
        report["more"][name] = {"at": more, "mean": mean_of(more)}
        print(f"{task.name}: {name}: {as_cell(report['more'][name]['mean'])}", file=sys.stderr, flush=True)
    return report


def mean_of(values: Sequence[float | None]) -> float | None:
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None


# -- report --------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = os.environ.get("SERVERLIGHT_SHARED", HERE.parents[1] / "shared" / "data")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(shared), help="folder of models and data")
    parser.add_argument("--task", action="append", choices=TASKS, help="one of the tasks; may be repeated")
    parser.add_argument("--samples", type=int, help="images, pairs or windows for each task")
    parser.add_argument("--out", type=pathlib.Path, default=HERE / "results", help="folder for the results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    started, reports = time.perf_counter(), {}
    for name in args.task or TASKS:
        samples, sparsities = TASKS[name]
        task = load_task(name, args.data, limit=args.samples or samples)
        reports[name] = {"messages": len(task.features()), **ablate(task, sparsities)}
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
            f"dash: the variant does not reach them on its grid. What each variant is, `benchmarks/{NAME}.py` says.",
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


if __name__ == "__main__":
    main()
