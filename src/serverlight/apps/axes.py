"""How axes look in all figures of the benchmarks and of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["GREY", "GRID", "TEXT", "finish_axes"]

TEXT, GREY, GRID = "#222222", "#666666", "#E4E4E4"


def finish_axes(axes: Axes, title: str, x: str, y: str) -> None:
    """Title, names of the axes, a quiet grid."""
    axes.set_title(title, fontsize=10, loc="left", color=TEXT)
    axes.set_xlabel(x, fontsize=9, color=GREY)
    axes.set_ylabel(y, fontsize=9, color=GREY)
    axes.tick_params(which="both", labelsize=8, labelcolor=TEXT, color=GRID)
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(GRID)
