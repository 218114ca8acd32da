"""What the codec costs a device: time, memory and energy against the size of a feature, and the parts of its frames."""

from __future__ import annotations

import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any

from serverlight.codec import Codec, CodecConfig, inspect
from serverlight.evaluation.contenders import OURS, contenders
from serverlight.evaluation.extras import peak_memory
from serverlight.evaluation.speed import SHAPES, SWEEP_BYTES, sample_feature, sweep_shape, time_codecs
from serverlight.evaluation.tasks import load_task
from serverlight.search.energy import find_sources, measure_watts

__all__ = ["OURS", "energy", "frame_parts", "memory", "times"]

SHOWN = (
    OURS,
    "slicer (cpu)",
    "torch topk",
    "bitsandbytes int8 64",
    "int8 per token",
    "int4 per token",
    "fp16 in NumPy",
)
"""Beginnings of the names of those that are timed."""

FRAMES = 24
"""Looked into, of each task."""

SPARSITIES = (0.3, 0.6, 0.9)
ENERGY_SHAPE = (512, 4096)


def times(seconds: float, *, coarse: bool) -> dict[str, Any]:
    """Each codec on tensors from a kilobyte to 64 MB, and on the shapes of the benchmark."""
    found, sizes = [], SWEEP_BYTES[::3] if coarse else SWEEP_BYTES
    for shape in dict.fromkeys([*SHAPES, *map(sweep_shape, sizes)]):
        codecs = [codec for codec in contenders() if codec.name.startswith(SHOWN)]
        found += [row.to_dict() for row in time_codecs(codecs, shape, seconds=seconds, max_call_s=1.0)]
    return {"rows": found}


def memory(tokens: Sequence[int]) -> dict[str, Any]:
    """The most that coding takes beside the tensor itself, over the tensor's size, each in a process that has just begun."""
    found = {count: peak_memory(count) for count in tokens}
    rows = [{"tokens": count, "encode": both[0], "decode": both[1]} for count, both in found.items() if both]
    return {"elements_per_token": 4096, "rows": rows}


def energy() -> dict[str, Any]:
    """Energy of encoding and decoding a million elements, where the platform tells a power; else none of either."""
    sources, x = find_sources(), sample_feature(ENERGY_SHAPE)
    codec = Codec(CodecConfig(sparsity=0.5))
    found: dict[str, Any] = {"shape": list(ENERGY_SHAPE), "source": type(sources[0]).__name__ if sources else None}
    watts = measure_watts(lambda: codec.encode(x), sources)
    found["watts"] = watts
    found["encode_ms"] = 1e3 * _median(lambda: codec.encode(x))
    found["mj_per_million"] = None if watts is None else watts * found["encode_ms"] / x.numel() * 1e6
    return found


def frame_parts(task: str, data: str | None) -> dict[str, Any]:
    """Bytes of each part of the frames of a task's first features, for both profiles at some sparsities."""
    features = load_task(task, None if data is None else pathlib.Path(data), limit=FRAMES).features()[:FRAMES]
    configs = [CodecConfig(sparsity=s) for s in SPARSITIES]
    configs += [CodecConfig(profile="slicer", sparsity=s, num_groups=4) for s in SPARSITIES]
    rows = []
    for config in configs:
        codec, parts = Codec(config), dict[str, int]()
        for x in features:
            for part, size in inspect(codec.encode(x)).part_bytes.items():
                parts[part] = parts.get(part, 0) + size
        rows.append({"config": config.to_dict(), "parts": parts})
    return {"frames": len(features), "elements": sum(x.size for x in features), "rows": rows}


def _median(call: Callable[[], object], rounds: int = 15) -> float:
    """Seconds."""
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        taken.append(time.perf_counter() - started)
    return sorted(taken)[rounds // 2]
