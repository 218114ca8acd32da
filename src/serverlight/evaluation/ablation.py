"""What each stage of profile serverlight is worth: one thing is taken away at a time, and bits are compared at equal divergence.

Bits of the codec itself are those of whole frames without checksum. A variant that has no frames is charged the length that
its own tables would give, as said beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from serverlight.codec import Codec, CodecConfig, contextual, decode, inspect, tables
from serverlight.codec.activity import NO_SPREADS, nearest_activity
from serverlight.codec.backends.reference.quantiser import choose_raw_bits, split_raw
from serverlight.codec.coded import AUTO_DISTORTION, is_short, kind_of, segments_of
from serverlight.codec.layout import grid_of, natural_layout
from serverlight.codec.rivals.plain_slicer import PlainSlicer
from serverlight.codec.wire import DEFAULT_MAX_ELEMENTS, Reader, Writer
from serverlight.evaluation.rates import Probe, bits_at_kl
from serverlight.evaluation.tasks import CodecTask, Feature, load_task

__all__ = ["COMPARED_AT", "SPARSITIES", "STAGES", "VARIANTS", "ablate", "ablate_task"]

SPARSITIES: dict[str, tuple[int, tuple[float, ...]]] = {
    "demo": (150, (0.3, 0.5, 0.65, 0.75, 0.82, 0.88, 0.93)),
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
"""Tasks with how many samples are enough, and the grid from many bits to few."""

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
    """A frame for each tensor."""
    codec = Codec(CodecConfig(sparsity=sparsity, checksum=False, **knobs))
    return [codec.encode(x) for x in features]


def size_of(frames: Sequence[bytes]) -> float:
    """Bits of all frames."""
    return 8.0 * sum(map(len, frames))


def without_its_shifts(frame: bytes) -> bytes:
    """The frame with all its shifts set to zero: it decodes to whole numbers of steps."""
    reader, writer = Reader(frame), Writer()
    header = reader.header(DEFAULT_MAX_ELEMENTS)
    coded = contextual.read(reader, header)
    if coded is None:
        return frame
    writer.header(dataclasses.replace(header, checksum=False))
    contextual.write(writer, dataclasses.replace(coded, shifts=np.zeros_like(coded.shifts)))
    return writer.finish(checksum=False)


def numbers_of(frame: bytes) -> Ints:
    """The signed numbers of steps of a frame, in the tensor's shape."""
    values = decode(without_its_shifts(frame), "numpy").astype(np.float64)
    numbers: Ints = np.rint(values / float(inspect(frame).config["step"])).astype(np.int64)
    return numbers


# -- one refinement less --------------------------------------------------------------------------------------


def no_shifts(features: Sequence[Feature], sparsity: float) -> Sent:
    """Frames without the bytes of the shifts, and values in the middle of nowhere: zero, or whole steps."""
    frames = frames_of(features, sparsity)
    spared = sum(inspect(frame).part_bytes.get("shifts", 0) for frame in frames)
    return size_of(frames) - 8 * spared, [decode(without_its_shifts(frame), "numpy") for frame in frames]


def at_measured_means(features: Sequence[Feature], sparsity: float) -> Sent:
    """The same steps, asked for as a budget: then signed tokens have the shifts with the least squared error, as planes have."""
    x = features[0]
    budget = AUTO_DISTORTION[kind_of(natural_layout(x.shape), bool((x >= 0).all()))]
    return whole(features, sparsity, distortion=budget)


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
    """Frames as they are, charged what ``length`` says of their numbers."""
    bits, received = 0.0, []
    for x, frame in zip(features, frames_of(features, sparsity), strict=True):
        numbers = numbers_of(frame)
        bits += 8 * len(frame) + length(x, numbers) - model_bits(x, numbers)
        received.append(decode(frame, "numpy"))
    return bits, received


def model_bits(x: Feature, numbers: Ints, *, corrected: bool = True, paired: bool = True) -> float:
    """Bits of parameters and symbols under the probability model; a pair without a symbol counts as the escape symbol."""
    from serverlight.codec.backends.cpu import model, symbols, writer  # they bring Numba

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
    writer.symbols_of(narrow, kind, int(layout), start, NO_SPREADS, *shape, index)
    histogram = symbols.histogram_over(index, 2 * num_contexts)
    firsts, following, flips = tables.FIRST[kind], tables.NEXT[kind], tables.FLIP_NEXT[kind]
    if not paired:
        following = np.repeat(np.arange(num_contexts)[:, None], 3, axis=1)
        flips = np.ones_like(following)
    defaults = tables.DEFAULT_LEVELS[kind]
    counts = model.count_decisions(histogram, firsts, following, flips, one_sided_kind)
    offsets, present, corrections = model.fit_levels(counts, defaults, one_sided_kind, tables.COST)
    if not corrected:
        present, corrections = np.zeros_like(present), np.zeros_like(corrections)
    levels = model.levels_of(defaults, offsets, corrections)
    frequencies = model.build_tables(levels, firsts, following, flips, one_sided_kind, True, half_escapes)
    room = np.empty(2 * num_contexts * 1024, np.uint32)
    bits, _ = model.encoder_tables(frequencies, histogram, tables.COST_OF_FREQUENCY, room)
    short = is_short(len(segments_of(x.shape, kind)[1]) - 1, raw_bits, kind)
    packed = model.pack_model(offsets, present, corrections, one_sided_kind, short, np.zeros(400, np.uint8))
    return float(bits + 8 * packed)


def rounded(features: Sequence[Feature], sparsity: float) -> Sent:
    """No filter: plain rounding to the same steps decides which elements are zero; each class at its mean, free of charge."""
    bits, received = 0.0, []
    for x, frame in zip(features, frames_of(features, sparsity), strict=True):
        step = float(inspect(frame).config["step"])
        numbers = np.rint(x / step).astype(np.int64)
        bits += 8 * len(frame) + model_bits(x, numbers) - model_bits(x, numbers_of(frame))
        received.append(at_means(x, numbers, step))
    return bits, received


def at_means(x: Feature, numbers: Ints, step: float) -> Feature:
    """Values of whole steps, moved so that zeros, ones and larger numbers have the mean of what they stand for."""
    y = (numbers * step).astype(np.float32)
    sizes, signs = np.abs(numbers), np.sign(numbers)
    for chosen in (sizes == 1, sizes > 1):
        if chosen.any():
            y[chosen] += signs[chosen] * np.mean(signs[chosen] * (x[chosen] - y[chosen]))
    if (x >= 0).all() and not numbers.all():
        y[numbers == 0] = x[numbers == 0].mean()
    return y


def own_frames(features: Sequence[Feature], sparsity: float) -> Sent:
    """A frame for each token, or for each plane of a feature map, instead of one for the tensor."""
    bits, received = 0.0, []
    for x in features:
        frames = frames_of(np.split(x, x.shape[1], axis=1), sparsity)
        bits += size_of(frames)
        received.append(np.concatenate([decode(frame, "numpy") for frame in frames], axis=1))
    return bits, received


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
    "no filter: plain rounding": (rounded,),
    "no shifts, no mean fill": (no_shifts,),
    "shifts at the means, of tokens too": (at_measured_means,),
    "8 equal groups for sizes of numbers": tuple(
        functools.partial(equal_groups, distortion=delta) for delta in (0.04, 0.09, 0.13, 0.26)
    ),
    **{f"step not tied: delta {delta:g}": (functools.partial(whole, distortion=delta),) for delta in (0.1, 0.2, 0.8)},
    "no entropy coder": (fixed_lengths,),
    "no contexts": (no_contexts,),
    "second of a pair not conditioned on the first": (single_symbols,),
    "no corrections of the parameters": (no_corrections,),
    **{f"negative elements worth {worth:g}": (functools.partial(whole, asymmetry=worth),) for worth in (0.7, 1.4)},
    "a frame for each token or plane": (own_frames,),
    "with a trellis, of tokens": (functools.partial(whole, trellis=True),),
}
"""By name; the best of several is taken."""

STAGES: dict[str, tuple[str, ...]] = {
    "filter": ("no filter: plain rounding", "no shifts, no mean fill", "shifts at the means, of tokens too"),
    "groups": ("8 equal groups for sizes of numbers",),
    "allocation": tuple(name for name in VARIANTS if name.startswith("step not tied")),
    "entropy": (
        "no entropy coder",
        "no contexts",
        "second of a pair not conditioned on the first",
        "no corrections of the parameters",
    ),
    "asymmetry": tuple(name for name in VARIANTS if name.startswith("negative elements")),
    "scope": ("a frame for each token or plane",),
    "trellis": ("with a trellis, of tokens",),
}
"""Which stage of the codec a variant is about."""


# -- measuring ---------------------------------------------------------------------------------------------------


def ablate_task(
    name: str, data: str | None, *, samples: int | None = None, note: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """One of the tasks of :data:`SPARSITIES`, on its first samples; raises :class:`ConfigError` where it is not there."""
    limit, sparsities = SPARSITIES[name]
    task = load_task(name, None if data is None else pathlib.Path(data), limit=min(samples or limit, limit))
    found = ablate(task, sparsities, lambda variant, mean: note(f"{name}: {variant}: {mean}"))
    return {"messages": len(task.features()), **found}


def ablate(
    task: CodecTask, sparsities: Sequence[float], note: Callable[[str, float | None], None] = lambda name, mean: None
) -> dict[str, Any]:
    """Bits of the codec at three divergences, and how many more each variant takes."""
    own = measure(task, (whole,), sparsities)
    divergences = [probe.kl for probe in own[COMPARED_AT]]
    report: dict[str, Any] = {"kl": divergences, "bits": [bits_at_kl(own, kl) for kl in divergences], "more": {}}
    for name, variants in VARIANTS.items():
        probes = measure(task, variants, sparsities)
        bits = [bits_at_kl(probes, kl) for kl in divergences]
        more = [None if b is None or o is None else b - o for b, o in zip(bits, report["bits"], strict=True)]
        report["more"][name] = {"at": more, "mean": mean_of(more)}
        note(name, report["more"][name]["mean"])
    return report


def measure(task: CodecTask, variants: Sequence[Variant], sparsities: Sequence[float]) -> list[Probe]:
    """What each variant takes and does at each sparsity."""
    features, probes = task.features(), []
    count = sum(x.size for x in features)
    for variant in variants:
        for sparsity in sparsities:
            bits, received = variant(features, sparsity)
            kl = task.evaluate(received).kl
            probes.append(Probe(codec="", config={"s": sparsity}, bits_per_element=bits / count, kl=kl, rel_mse=0.0))
    return probes


def mean_of(values: Sequence[float | None]) -> float | None:
    """Of those that are there."""
    found = [value for value in values if value is not None]
    return math.fsum(found) / len(found) if found else None
