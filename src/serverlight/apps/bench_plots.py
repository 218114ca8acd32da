"""The figures of the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from serverlight.apps.axes import TEXT, finish_axes
from serverlight.evaluation.codec_bench import TaskReport
from serverlight.evaluation.load import LoadRow
from serverlight.evaluation.load.figures import FP16, FULL, IN_PROCESS, OURS, SERIAL
from serverlight.evaluation.speed import SpeedRow

__all__ = ["plot_codecs", "plot_drift", "plot_load"]

COLUMNS = 3
PANEL_INCHES = (5.2, 3.9)
LEGEND_INCHES = 1.0

BLUE, RED, ORANGE, GREEN, PURPLE, PINK, BROWN, TEAL, OLIVE = (
    "#0072B2", "#C8102E", "#E69F00", "#009E73", "#7F3C8D", "#CC79A7", "#8C564B", "#17A2B8", "#8A8A00",
)  # fmt: skip
STYLES = {
    # Colour by what a codec does; dashes are its form with an entropy coder or with another layout.
    "serverlight": (BLUE, "-", "o"), "serverlight-trellis": (BLUE, "--", "o"), "serverlight-steps": (BLUE, "--", "o"),
    "serverlight-cosine": (BLUE, ":", "o"), "serverlight-corrected": (BLUE, "-.", "o"),
    "slicer-rans": (RED, "--", "s"), "slicer-bitmap": (RED, "-", "s"), "slicer-csr": (RED, ":", "s"),
    "slicer": (ORANGE, "-", "^"),
    "int-token": (GREEN, "-", "v"), "int-token-rans": (GREEN, "--", "v"),
    "int-channel": ("#66C2A5", "-", "D"), "int-channel-rans": ("#66C2A5", "--", "D"),
    "rotated": (PURPLE, "-", "<"), "rotated-rans": (PURPLE, "--", "<"),
    "uniform-rans": (PINK, "-", ">"), "uniform-csr-rans": (PINK, "--", ">"),
    "topk-fp16-bitmap": (BROWN, "-", "p"), "topk-fp16-csr": (BROWN, "--", "p"),
    "ts-tabq": (GREEN, "-", "h"), "ts-tabq-rans": (GREEN, "--", "h"),
    "fourier": (TEAL, "-", "d"), "fourier-rans": (TEAL, "--", "d"),
    "low-rank": (OLIVE, "-", "8"), "low-rank-rans": (OLIVE, "--", "8"),
    "fp16": ("#444444", "-", "*"), "fp16-zstd": ("#444444", "--", "*"),
    "blockwise-int8": ("#888888", "-", "X"), "q80": ("#888888", "--", "P"),
    "serverlight (cpu)": (BLUE, "-", "o"), "serverlight (reference)": (BLUE, ":", "o"),
    "slicer (cpu)": (ORANGE, "-", "^"), "slicer (reference)": (ORANGE, ":", "^"),
    "torch topk + groups": (RED, "-", "s"),
    "bitsandbytes int8 64": (GREEN, "-", "v"), "bitsandbytes int8 4096": (GREEN, "--", "v"),
    "blockwise-int8 in NumPy": ("#66C2A5", ":", "v"), "q80 in NumPy": (PINK, "-", "P"),
    "int8 per token": (PURPLE, "-", "D"), "int4 per token": (PURPLE, "--", "D"),
    "fp16 in NumPy": ("#888888", "-", "*"),
}  # fmt: skip
OTHER = ("#BCBD22", "-", ".")


def plot_codecs(reports: Sequence[TaskReport], speed: Sequence[SpeedRow], path: str) -> None:
    """Draws error against rate for each task with both bounds, and time and rate against size; the name's end tells the format."""
    rate_rows, speed_rows = -(-len(reports) // COLUMNS), 2 if speed else 0
    columns = min(COLUMNS, max(len(reports), 2))
    heights = [rows * PANEL_INCHES[1] + LEGEND_INCHES for rows in (rate_rows, speed_rows) if rows] or [LEGEND_INCHES]
    figure = Figure(figsize=(columns * PANEL_INCHES[0], sum(heights)), layout="constrained", facecolor="white")
    parts = iter(figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0])
    if reports:
        _draw_all_rates(next(parts), reports, (rate_rows, columns))
    if speed:
        _draw_speed(next(parts), speed)
    figure.savefig(path, dpi=110)


# -- rate and distortion -----------------------------------------------------------------------------


def _draw_all_rates(figure: SubFigure, reports: Sequence[TaskReport], grid: tuple[int, int]) -> None:
    _title(figure, "Error against rate on real features: the front of each codec's settings, and what bounds them")
    for i, report in enumerate(reports):
        _draw_rates(figure.add_subplot(*grid, i + 1), report)
    handles, labels = _legend_of(figure)
    figure.legend(
        handles, labels, loc="outside lower center", ncols=7 if grid[1] == COLUMNS else 5, fontsize=9, frameon=False
    )


def _draw_rates(axes: Axes, report: TaskReport) -> None:
    """Relative error against bits: settings on each codec's front, and the curves that bound them."""
    for name in [comparison.codec for comparison in report.comparisons]:
        points = _front((p.bits_per_element, p.rel_mse) for p in report.probes if p.codec == name and p.rel_mse > 0)
        _draw_line(axes, points, name)
    ideal, bound = report.ecsq, report.rate_distortion
    axes.plot(ideal.bits, ideal.distortion, "k--", label="bound: ideal scalar quantiser (ECSQ)", linewidth=1.4)
    axes.plot(bound.bits, bound.distortion, "k:", label="bound: R(D), Blahut-Arimoto", linewidth=1.4)
    axes.set(xlim=(0.2, 20), ylim=(1e-4, 1.2), xscale="log", yscale="log")
    ticks = (0.25, 0.5, 1, 2, 4, 8, 16)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    finish_axes(
        axes, f"{report.task}: {report.model}, {report.cut}", "bits per element", "squared error / squared signal"
    )


# -- speed -------------------------------------------------------------------------------------------


def _draw_speed(figure: SubFigure, speed: Sequence[SpeedRow]) -> None:
    _title(figure, "Speed on one tensor of float32 tokens, against its size")
    flat = [row for row in speed if len(row.shape) == 2]
    for i, what in enumerate(("encode", "decode")):
        _draw_times(figure.add_subplot(2, 2, i + 1), flat, what)
        _draw_ratios(figure.add_subplot(2, 2, i + 3), flat, what)
    handles, labels = _legend_of(figure)
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=9, frameon=False)


def _draw_times(axes: Axes, rows: Sequence[SpeedRow], what: str) -> None:
    """Microseconds against bytes of the tensor."""
    for name in dict.fromkeys(row.codec for row in rows):
        _draw_line(axes, sorted((r.tensor_bytes, getattr(r, f"{what}_us")) for r in rows if r.codec == name), name)
    copies = sorted({row.tensor_bytes: row.tensor_bytes / row.memcpy_gb_s / 1e3 for row in rows}.items())
    axes.plot(*zip(*copies, strict=True), "k--", label="memcpy of the tensor", linewidth=1.4)
    axes.set(xscale="log", yscale="log")
    finish_axes(axes, f"time to {what}", "size of the tensor", "microseconds")
    _label_sizes(axes, rows)


def _draw_ratios(axes: Axes, rows: Sequence[SpeedRow], what: str) -> None:
    """Throughput over that of a copy of as many bytes."""
    for name in dict.fromkeys(row.codec for row in rows):
        points = sorted((r.tensor_bytes, 1 / getattr(r, f"{what}_vs_memcpy")) for r in rows if r.codec == name)
        _draw_line(axes, points, name)
    axes.axhline(1, color="black", linestyle="--", linewidth=1.4)
    axes.set(xscale="log", yscale="log")
    label = "size of the tensor, which is that of the buffer that memcpy copies"
    finish_axes(axes, f"throughput to {what}, over that of memcpy", label, "share of memcpy")
    _label_sizes(axes, rows)


def _label_sizes(axes: Axes, rows: Sequence[SpeedRow]) -> None:
    sizes = sorted({row.tensor_bytes for row in rows})
    powers = [size for size in sizes if size & (size - 1) == 0 and int(math.log2(size)) % 4 in (0, 2)]
    axes.set_xticks(powers or sizes)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: _as_size(size)))


def _as_size(num_bytes: float) -> str:
    """Bytes in the largest unit that leaves one or more.

    >>> _as_size(1024), _as_size(64 << 20)
    ('1 KB', '64 MB')
    """
    for unit in ("B", "KB"):
        if num_bytes < 1024:
            return f"{num_bytes:g} {unit}"
        num_bytes /= 1024
    return f"{num_bytes:g} MB"


# -- drift of language models ------------------------------------------------------------------------

SHADES = {
    "serverlight": ("#9ECAE1", "#4292C6", "#0072B2", "#08306B"),
    "slicer": ("#FDBE85", "#E69F00", "#A6611A", "#543005"),
}
"""From few bits to many."""

FRAMES = {1: ("-", "o"), 16: ("--", "s"), 128: (":", "^")}
"""Dashes and markers by tokens a frame."""


def plot_drift(rows: Sequence[Mapping[str, Any]], path: str) -> None:
    """Draws the rows of ``benchmarks/lm_drift.py``: divergence over positions and over rate, and texts that part.

    The name's end tells the format.
    """
    figure = Figure(figsize=(12.5, 9), layout="constrained", facecolor="white")
    read, rates, parted, own = figure.subplots(2, 2).flat
    coded = [row for row in rows if row["config"] and row["config"]["profile"] in SHADES]
    single = [row for row in coded if row["chunk_tokens"] == 1]
    for row, colour in zip(single, _shades(single), strict=True):
        _draw_positions(read, row["positions"], row["title"], colour)
        if written := row.get("drawn"):
            _draw_positions(own, written["positions"], row["title"], colour)
            _draw_parting(parted, written, row["title"], colour)
    _draw_frames(rates, coded)
    nats, place = "KL divergence from the uncut model, nats", "position, tokens"
    for axes in (read, own):
        axes.set(xscale="log", yscale="log")
    finish_axes(read, "the same text read by both, frames of one token", place, nats)
    finish_axes(rates, "the same, by bytes and by tokens of a frame", "bytes a token", nats)
    finish_axes(parted, "texts drawn with the same luck, still equal", place, "share of texts")
    finish_axes(own, "the cut model's own text, drawn", place, nats)
    rates.xaxis.set_minor_formatter(NullFormatter())
    rates.set_xticks(ticks := (16, 32, 64, 128, 256), [f"{tick}" for tick in ticks])
    rates.legend(fontsize=8, frameon=False)
    handles, labels = read.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, fontsize=9, frameon=False)
    figure.savefig(path, dpi=110)


def _shades(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    profiles = [row["config"]["profile"] for row in rows]
    return [SHADES[name][min(profiles[:i].count(name), len(SHADES[name]) - 1)] for i, name in enumerate(profiles)]


def _draw_positions(axes: Axes, buckets: Sequence[Mapping[str, Any]], name: str, colour: str) -> None:
    """Means over positions with their intervals, each in the middle of its bucket."""
    x = [math.sqrt(bucket["first"] * bucket["last"]) for bucket in buckets]
    low, high = zip(*(bucket["kl_interval"] for bucket in buckets), strict=True)
    axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
    axes.plot(x, [bucket["kl"] for bucket in buckets], color=colour, marker="o", markersize=3, label=name)


def _draw_frames(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Divergence against bytes, a line for each profile and length of a frame."""
    for profile, shades in SHADES.items():
        for chunk, (dashes, marker) in FRAMES.items():
            points = sorted(
                (row["bytes_per_token"], row["kl"])
                for row in rows
                if (row["config"]["profile"], row["chunk_tokens"]) == (profile, chunk)
            )
            if points:
                label = f"{profile}, {chunk} token{'s' if chunk > 1 else ''}"
                axes.plot(
                    *zip(*points, strict=True),
                    dashes,
                    color=shades[2 if profile == "serverlight" else 1],
                    marker=marker,
                    markersize=4,
                    label=label,
                )
    axes.set(xscale="log", yscale="log")


def _draw_parting(axes: Axes, written: Mapping[str, Any], name: str, colour: str) -> None:
    """Share of the texts that have not parted yet, as a staircase."""
    firsts = sorted(place for place in written["first_difference"] if place is not None)
    num_texts = len(written["first_difference"])
    shares = [1 - i / num_texts for i in range(len(firsts) + 1)]
    end = written["positions"][-1]["last"]
    axes.step([1, *firsts, end], [*shares, shares[-1]], where="post", color=colour, label=name)
    axes.set(xscale="log", ylim=(-0.03, 1.03))


# -- load --------------------------------------------------------------------------------------------

SYSTEM_STYLES = {
    FULL: ("full server", "#444444", "s"), FP16: ("shallow cut, fp16", ORANGE, "^"), OURS: ("deep cuts, serverlight", BLUE, "o"),
    SERIAL: ("deep cuts, one by one", RED, "X"), IN_PROCESS: ("deep cuts, in one process", GREEN, "*"),
}  # fmt: skip
FIXED_WORK = 100
"""Items of the first device's workload."""


def plot_load(rows: Sequence[LoadRow], path: str) -> None:
    """Draws throughput, and the first device's time for a fixed workload, against the number of devices (as Figure 2 of the
    paper), a row of panels for each workload; the name's end tells the format.

    Rows whose turns were too short to tell a rate are left out.
    """
    workloads = list(dict.fromkeys(row.workload for row in rows))
    figure = Figure(
        figsize=(2 * PANEL_INCHES[0], len(workloads) * PANEL_INCHES[1] + LEGEND_INCHES),
        layout="constrained",
        facecolor="white",
    )
    for axes, workload in zip(figure.subplots(len(workloads), 2, squeeze=False), workloads, strict=True):
        ours = [row for row in rows if row.workload == workload and not row.is_short]
        items = {"vision": "images", "lm": "tokens"}[workload]
        _draw_load(axes[0], [(row, row.throughput_per_s) for row in ours])
        finish_axes(axes[0], f"{workload}: throughput of the server", "devices", f"{items} a second")
        times = [(row, FIXED_WORK * row.device_0_s_per_item) for row in ours if row.device_0_s_per_item is not None]
        _draw_load(axes[1], times)
        finish_axes(axes[1], f"{workload}: {FIXED_WORK} {items} of device 0", "devices", "seconds")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=9, frameon=False)
    figure.savefig(path, dpi=110)


def _draw_load(axes: Axes, points: Sequence[tuple[LoadRow, float]]) -> None:
    """A line for each system, or a mark where there is one number of devices only."""
    for system, (label, colour, marker) in SYSTEM_STYLES.items():
        found = sorted((row.clients, value) for row, value in points if row.system == system)
        if found:
            axes.plot(
                *zip(*found, strict=True), color=colour, marker=marker, label=label, linewidth=2.4 if system == OURS else 1.2,
                markersize=9 if system in (SERIAL, IN_PROCESS) else 5, zorder=3 if system == OURS else 2,
            )  # fmt: skip
    axes.set(xscale="log", yscale="log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    clients = sorted({row.clients for row, _ in points})
    axes.set_xticks(clients, [str(count) for count in clients])
    axes.xaxis.set_minor_locator(NullLocator())


# -- parts -------------------------------------------------------------------------------------------


def _front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both rate and error, by rate."""
    best: list[tuple[float, float]] = []
    for bits, error in sorted(points):
        if not best or error < best[-1][1]:
            best.append((bits, error))
    return best


def _draw_line(axes: Axes, points: Sequence[tuple[float, float]], name: str) -> None:
    if not points:
        return
    ours = name.split(" ")[0] == "serverlight" and "reference" not in name
    colour, dashes, marker = STYLES.get(name, OTHER)
    x, y = zip(*points, strict=True)
    axes.plot(
        x, y, color=colour, linestyle=dashes, marker=marker, label=name, linewidth=2.4 if ours else 1.0,
        markersize=4 if ours else 3, zorder=3 if ours else 2,
    )  # fmt: skip


def _title(figure: SubFigure, text: str) -> None:
    figure.suptitle(text, x=0.005, ha="left", fontsize=13, color=TEXT)


def _legend_of(figure: SubFigure) -> tuple[list[Artist], list[str]]:
    """Every label once, from all panels."""
    found: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
