"""The figure of ``serverlight bench codec``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from serverlight.evaluation.codec_bench import TaskReport
from serverlight.evaluation.speed import SpeedRow

__all__ = ["plot_codecs"]

COLUMNS = 3
PANEL_INCHES = 4.0
OURS = {"serverlight": "#0072B2", "slicer": "#D55E00"}
"""This package's profiles stand out; a backend of theirs in brackets does not change the colour."""

OTHERS = ("#56B4E9", "#009E73", "#E69F00", "#CC79A7", "#999999", "#8C564B", "#BCBD22", "#17BECF", "#7F3C8D", "#666666")
MARKERS = "osv^D<>pXP"

MAX_BITS = 6.0
"""Where the rate axis ends: beyond it nothing tells codecs apart."""


def plot_codecs(reports: Sequence[TaskReport], speed: Sequence[SpeedRow], path: str) -> None:
    """Draws error against rate for each task with both bounds, and time against size; the format is that of the name's end."""
    num_rate_rows = -(-len(reports) // COLUMNS)
    num_rows = num_rate_rows + (1 if speed else 0)
    figure = Figure(figsize=(COLUMNS * PANEL_INCHES, max(num_rows, 1) * PANEL_INCHES), layout="constrained")
    for i, report in enumerate(reports):
        _draw_rates(figure.add_subplot(num_rows, COLUMNS, i + 1), report)
    if reports:
        handles, labels = _legend_of(figure)
        figure.legend(handles, labels, loc="outside upper center", ncols=5, fontsize=8)
    if speed:
        first = num_rate_rows * COLUMNS + 1
        encode, decode = (figure.add_subplot(num_rows, COLUMNS, first + i) for i in (0, 1))
        _draw_times(encode, speed, "encode")
        _draw_times(decode, speed, "decode")
        decode.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize=8)
    figure.savefig(path, dpi=130)


def _draw_rates(axes: Axes, report: TaskReport) -> None:
    """Relative error against bits: settings on each codec's front, and the curves that bound them."""
    names = [comparison.codec for comparison in report.comparisons]
    for name in names:
        points = _front((p.bits_per_element, p.rel_mse) for p in report.probes if p.codec == name and p.rel_mse > 0)
        _draw_line(axes, points, name, names)
    axes.plot(report.ecsq.bits, report.ecsq.distortion, "k--", label="ideal scalar quantiser (ECSQ)", linewidth=1.2)
    bound = report.rate_distortion
    axes.plot(bound.bits, bound.distortion, "k:", label="R(D), Blahut-Arimoto", linewidth=1.2)
    axes.set(xlim=(0, MAX_BITS), ylim=(1e-4, 1), yscale="log", title=f"{report.task}: {report.model}, {report.cut}")
    axes.set(xlabel="bits per element", ylabel="squared error / squared signal")
    axes.title.set_fontsize(9)
    axes.grid(color="#DDDDDD", linewidth=0.5)


def _draw_times(axes: Axes, rows: Sequence[SpeedRow], what: str) -> None:
    """Microseconds against bytes of the tensor, flat shapes only."""
    names = list(dict.fromkeys(row.codec for row in rows))
    flat = [row for row in rows if len(row.shape) == 2]
    for name in names:
        points = sorted((row.tensor_bytes, getattr(row, f"{what}_us")) for row in flat if row.codec == name)
        _draw_line(axes, points, name, names)
    copies = sorted({row.tensor_bytes: row.tensor_bytes / row.memcpy_gb_s / 1e3 for row in flat}.items())
    axes.plot(*zip(*copies, strict=True), "k--", label="memcpy", linewidth=1.2)
    axes.set(xscale="log", yscale="log", xlabel="bytes of the float32 tensor", ylabel=f"{what}, microseconds")
    axes.grid(color="#DDDDDD", linewidth=0.5)


def _front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats in both rate and error, by rate."""
    best: list[tuple[float, float]] = []
    for bits, error in sorted(points):
        if not best or error < best[-1][1]:
            best.append((bits, error))
    return best


def _draw_line(axes: Axes, points: Sequence[tuple[float, float]], name: str, names: Sequence[str]) -> None:
    if not points:
        return
    x, y = zip(*points, strict=True)
    colour, marker = _style(name, names)
    axes.plot(x, y, color=colour, marker=marker, label=name, linewidth=1, markersize=3)


def _style(name: str, names: Sequence[str]) -> tuple[str, str]:
    """Colour and marker."""
    profile = name.split(" ")[0]
    if profile in OURS:
        return OURS[profile], "o" if name in (profile, f"{profile} (cpu)") else "x"
    i = [other for other in names if other.split(" ")[0] not in OURS].index(name)
    return OTHERS[i % len(OTHERS)], MARKERS[i // 2 % len(MARKERS)]


def _legend_of(figure: Figure) -> tuple[list[Artist], list[str]]:
    """Every label once, from all panels so far."""
    found: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    return list(found.values()), list(found)
