"""The figure of ``serverlight simulate``."""

from __future__ import annotations

import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from serverlight.simulation import SystemRow

__all__ = ["plot_fleet"]

COLOURS = {"full-server": "#56B4E9", "fp16-cut": "#E69F00", "slicer": "#0072B2"}
OTHER, TEXT, GREY = "#999999", "#222222", "#666666"


def plot_fleet(rows: Sequence[SystemRow], path: str) -> None:
    """Draws servers, 95th percentile, uplink and cost of each system side by side; the name's end tells the format."""
    figure = Figure(figsize=(12.0, 1.6 + 0.5 * len(rows)), layout="constrained", facecolor="white")
    panels = (
        ("servers", [float(row.servers) for row in rows]),
        ("p95, ms", [row.figures.latency.p95 for row in rows]),
        ("uplink, Mbit/s", [row.figures.uplink_mbit_per_s for row in rows]),
        ("cost of a million", [row.cost_per_million for row in rows]),
    )
    all_axes = figure.subplots(1, len(panels), sharey=True)
    for axes, (title, values) in zip(all_axes, panels, strict=True):
        _draw(axes, title, [row.system for row in rows], values)
    all_axes[0].set_yticks(range(len(rows)), [row.system for row in rows])
    all_axes[0].set_ylim(len(rows) - 0.5, -0.5)
    figure.savefig(path, dpi=160)


def _draw(axes: Axes, title: str, systems: Sequence[str], values: Sequence[float]) -> None:
    shown = [value if math.isfinite(value) else 0.0 for value in values]
    axes.barh(range(len(shown)), shown, color=[COLOURS.get(system, OTHER) for system in systems], height=0.6)
    for i, value in enumerate(values):
        text = (
            f" {value:,.3g}"
            if math.isfinite(value) and value < 1e3
            else f" {value:,.0f}"
            if math.isfinite(value)
            else " none"
        )
        axes.text(shown[i], i, text, va="center", ha="left", color=TEXT, fontsize=9)
    axes.set_xlim(0, 1.3 * max([*shown, 1e-9]))
    axes.set_title(title, loc="left", fontsize=10, color=TEXT)
    axes.tick_params(colors=GREY, labelsize=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
