"""Figures of a search: the plans that no other beats, and where the time goes as the cut moves."""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from serverlight.search.optimise import SearchResult
from serverlight.search.prediction import Prediction

__all__ = ["plot_search"]

FAINT, GREY, TEXT = "#D0D0D0", "#666666", "#222222"
PARTS: tuple[tuple[str, str, Callable[[Prediction], float]], ...] = (
    ("head (device)", "#0072B2", lambda p: p.head_ms),
    ("codec (both sides)", "#D55E00", lambda p: p.encode_ms + p.decode_ms),
    ("link", "#E69F00", lambda p: p.uplink_ms + p.rtt_ms + p.downlink_ms),
    ("messages, waiting", "#999999", lambda p: p.message_ms + p.queue_ms),
    ("tail (server)", "#009E73", lambda p: p.tail_ms),
)
"""Okabe and Ito's palette."""

MARKS = {"split": "o", "full-server": "s", "all-device": "D"}
MAX_LABELS = 24
WORST_PP = 5.0
"""Colours tell losses up to here."""


def plot_search(result: SearchResult, path: str) -> pathlib.Path:
    """Draws both; the name's end says whether as PNG or SVG. Returns the path."""
    figure = Figure(figsize=(12.5, 5.0), layout=ConstrainedLayoutEngine(w_pad=0.1), facecolor="white")
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.15))
    _draw_frontier(left, result)
    _draw_depth(right, result)
    device, link = result.scene.device, result.scene.link
    figure.suptitle(f"{device.model} over {link}", x=0.005, ha="left", fontsize=13, color=TEXT)
    target = pathlib.Path(path)
    figure.savefig(target, dpi=150)
    return target


def _draw_frontier(axes: Axes, result: SearchResult) -> None:
    """Server time against bytes up, coloured by quality; all plans small, those of the frontier large."""
    losses = [p.loss_pp for p in result.predictions]
    worst = min(max(*losses, 0.1), max(WORST_PP, 2 * (result.constraints.max_quality_loss or 0)))
    kept = {id(point) for point in result.points}
    for way, mark in MARKS.items():
        for large in (False, True):
            some = [p for p in result.predictions if p.way == way and (id(p) in kept) is large]
            axes.scatter(
                [p.uplink_bytes for p in some], [p.server_busy_ms for p in some], c=[p.loss_pp for p in some],
                s=52 if large else 16, marker=mark, alpha=1.0 if large else 0.6,
                edgecolors=TEXT if large else "none", linewidths=0.6, zorder=3 if large else 2,
                vmin=0.0, vmax=worst, cmap="viridis_r",
            )  # fmt: skip
    best = result.best
    axes.scatter(
        [best.uplink_bytes], [best.server_busy_ms], s=230, marker="o", facecolors="none", edgecolors="#CC0000", linewidths=2,
        zorder=4,
    )  # fmt: skip
    axes.annotate(
        "chosen", (best.uplink_bytes, best.server_busy_ms), xytext=(11, 9), textcoords="offset points", color="#CC0000"
    )
    fewest = min((p.uplink_bytes for p in result.predictions if p.uplink_bytes), default=1)
    axes.set_xscale("symlog", linthresh=fewest)
    axes.set_xlim(left=-0.3 * fewest)
    axes.set_ylim(bottom=-0.04 * max(p.server_busy_ms for p in result.predictions))
    axes.set_xlabel("bytes up, a request (logarithmic; 0: nothing crosses)")
    axes.set_ylabel("server's compute time, ms")
    axes.set_title(
        "Large: no other plan beats it. Circle: cut; square: full server; diamond: device", fontsize=9, loc="left"
    )
    axes.figure.colorbar(
        axes.collections[0], ax=axes, label="quality loss, percentage points", shrink=0.9, extend="max"
    )
    _finish(axes)


def _draw_depth(axes: Axes, result: SearchResult) -> None:
    """Stacked times of the best plan at each cut; the last bar is the device alone."""
    shown = _best_of_each_cut(result)
    names = [p.candidate.cut or "all on device" for p in shown]
    below = [0.0] * len(shown)
    for label, colour, part in PARTS:
        heights = [part(p) for p in shown]
        axes.bar(range(len(shown)), heights, bottom=below, color=colour, width=0.75, label=label)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    if (cap := result.constraints.latency_ms) is not None:
        axes.axhline(cap, color=GREY, linestyle="--", linewidth=1)
        axes.annotate(
            "cap on latency", (len(shown) - 0.5, cap), xytext=(0, 3), textcoords="offset points", ha="right", fontsize=8,
            color=GREY,
        )  # fmt: skip
    for i, point in enumerate(shown):
        if point.candidate.cut == result.best.candidate.cut and point.way == result.best.way:
            axes.annotate(
                "chosen", (i, below[i]), xytext=(0, 4), textcoords="offset points", ha="center", color="#CC0000"
            )
    step = max(1, -(-len(names) // MAX_LABELS))
    axes.set_xticks(range(0, len(names), step), names[::step], rotation=60, ha="right", fontsize=8)
    axes.set_ylim(0, 1.12 * max(*below, 0.0 if cap is None else cap))
    axes.set_ylabel("time of a request, ms")
    axes.set_title("The least time at each depth of the cut that keeps the quality", fontsize=9, loc="left")
    axes.legend(fontsize=8, frameon=False, ncols=2)
    _finish(axes)


def _best_of_each_cut(result: SearchResult) -> Sequence[Prediction]:
    """Within the cap on quality, or else of the least loss; from the input to the output, the device alone last."""
    cap = result.constraints.max_quality_loss
    shown = list[Prediction]()
    for cut in [*(cut.name for cut in result.scene.device.cuts), None]:
        here = [p for p in result.predictions if p.candidate.cut == cut and not p.stages]
        kept = [p for p in here if cap is None or p.loss_pp <= cap]
        if here:
            shown.append(min(kept, key=lambda p: p.latency_ms) if kept else min(here, key=lambda p: p.loss_pp))
    return shown


def _finish(axes: Axes) -> None:
    axes.tick_params(labelsize=8, labelcolor=GREY, color=FAINT)
    axes.grid(axis="y", color="#EEEEEE")
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
