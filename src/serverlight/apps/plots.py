"""Figures; the only file that imports matplotlib."""

from __future__ import annotations

import math
import pathlib
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from serverlight.apps.demo.report import Row

__all__ = ["plot_demo"]

COLOURS = {
    "png": "#56B4E9",
    "jpeg": "#56B4E9",
    "fp16": "#E69F00",
    "slicer": "#0072B2",
    "serverlight": "#D55E00",
    "device": "#999999",
}
"""Okabe and Ito's palette, which colour-blind readers can tell apart."""

FAINT, GREY, TEXT = "#D0D0D0", "#666666", "#222222"


def plot_demo(rows: Sequence[Row], titles: Sequence[str], caption: str, path: str) -> tuple[pathlib.Path, ...]:
    """Draws bytes, server time and latency of every row side by side; writes ``path`` as PNG and as SVG.

    A suffix ``.png`` or ``.svg`` of ``path`` is dropped first. Returns the two paths.
    """
    figure = Figure(
        figsize=(11.5, 1.7 + 0.4 * len(rows)), layout=ConstrainedLayoutEngine(w_pad=0.08), facecolor="white"
    )
    uplink, server, latency = figure.subplots(1, 3, sharey=True, width_ratios=(1, 1, 1.15))
    _draw_uplink(uplink, rows)
    _draw_server(server, rows)
    _draw_latency(latency, rows)
    uplink.set_yticks(range(len(rows)), titles)
    uplink.set_ylim(len(rows) - 0.5, -0.9)
    for label, row in zip(uplink.get_yticklabels(), rows, strict=True):
        label.set_fontweight("bold" if row.mode == "serverlight" else "normal")
    figure.suptitle("What cutting the network saves, and what it costs", x=0.005, ha="left", fontsize=13, color=TEXT)
    figure.supxlabel(caption, x=0.005, ha="left", fontsize=8, color=GREY)
    stem = path.removesuffix(".png").removesuffix(".svg")
    written = (pathlib.Path(f"{stem}.png"), pathlib.Path(f"{stem}.svg"))
    for target in written:
        figure.savefig(target, dpi=160)
    return written


def _draw_uplink(axes: Axes, rows: Sequence[Row]) -> None:
    """Points, not bars: on a logarithmic axis a bar's length means nothing."""
    sent = [row.uplink_bytes_per_request for row in rows]
    lowest = 10 ** math.floor(math.log10(min(filter(None, sent), default=1.0)))
    for i, (row, value) in enumerate(zip(rows, sent, strict=True)):
        if value:
            axes.plot([lowest, value], [i, i], color=FAINT, linewidth=1.5, zorder=1)
            axes.plot(value, i, "o", color=COLOURS[row.mode], markersize=8, zorder=2)
        _label(axes, i, max(value, lowest), f"{value:,.0f}" if value else "none")
    _finish(axes, "bytes sent per image (logarithmic)")
    axes.set(xscale="log", xlim=(lowest, 6 * max(*sent, lowest)))


def _draw_server(axes: Axes, rows: Sequence[Row]) -> None:
    spent_ms = [row.server_cpu_ms_per_request for row in rows]
    axes.barh(range(len(rows)), spent_ms, color=[COLOURS[row.mode] for row in rows], height=0.62)
    for i, value in enumerate(spent_ms):
        _label(axes, i, value, f"{value:.2f}" if value else "none")
    _finish(axes, "server CPU time per image, ms")
    axes.set_xlim(0, 1.2 * max(spent_ms))


def _draw_latency(axes: Axes, rows: Sequence[Row]) -> None:
    for i, row in enumerate(rows):
        axes.plot([row.latency_ms_p50, row.latency_ms_p95], [i, i], color=FAINT, linewidth=3, zorder=1)
        axes.plot(row.latency_ms_p95, i, "|", color=GREY, markersize=9, zorder=2)
        axes.plot(row.latency_ms_p50, i, "o", color=COLOURS[row.mode], markersize=8, zorder=3)
        _label(axes, i, row.latency_ms_p95, f"{row.latency_ms_p50:.1f} | {row.latency_ms_p95:.1f}")
        axes.annotate(
            f"{100 * row.accuracy:.2f} %", (1, i), xycoords=axes.get_yaxis_transform(), ha="right", va="center",
            fontsize=9, color=TEXT, fontweight="bold" if row.mode == "serverlight" else "normal",
        )  # fmt: skip
    axes.annotate(
        "accuracy", (1, -0.72), xycoords=axes.get_yaxis_transform(), ha="right", va="center", fontsize=9, color=GREY
    )
    _finish(axes, "latency, ms: median | 95th percentile")
    axes.set_xlim(0, 1.75 * max(row.latency_ms_p95 for row in rows))


def _label(axes: Axes, row: int, value: float, text: str) -> None:
    axes.annotate(text, (value, row), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9, color=TEXT)


def _finish(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=10, loc="left", color=TEXT)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", which="both", labelsize=8, labelcolor=GREY, color=FAINT)
    axes.grid(axis="x", color="#EEEEEE")
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(FAINT)
