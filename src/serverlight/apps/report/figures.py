"""Figures of the report that no command draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from serverlight.apps.axes import GREY, TEXT, finish_axes

__all__ = ["Line", "plot_bars", "plot_memory", "plot_metadata", "plot_quality", "plot_uplink"]

Line = Sequence[tuple[float, float]]
"""Points by ascending x."""

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#C8102E", "#7F3C8D", "#56B4E9"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY)
COLUMNS = 3
PANEL_INCHES = (4.4, 3.3)

WORST_PP = 6.0
"""Losses are drawn down to here."""

BITS = (0.25, 0.5, 1, 2, 4, 8, 16)


def plot_quality(panels: Mapping[str, Mapping[str, Mapping[str, Line]]], max_loss_pp: float, path: str) -> None:
    """Quality lost against bits: a panel for each model, a colour for each cut, full for the first codec, dashed for the second.

    Args:
        panels: from model to cut to codec to points of (bits per element, percentage points).
        max_loss_pp: where a line is drawn.
        path: of the file; its end tells the format.
    """
    rows = -(-len(panels) // COLUMNS)
    columns = min(COLUMNS, len(panels))
    figure = Figure(
        figsize=(columns * PANEL_INCHES[0], rows * PANEL_INCHES[1]), layout="constrained", facecolor="white"
    )
    for i, (model, cuts) in enumerate(panels.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        for colour, (cut, codecs) in zip(_colours(len(cuts)), cuts.items(), strict=True):
            for dashes, (codec, line) in zip(("-", "--"), codecs.items(), strict=False):
                if line:
                    label = f"{cut}, {codec}"
                    axes.plot(*zip(*line, strict=True), dashes, color=colour, marker="o", markersize=3, label=label)
        axes.axhline(-max_loss_pp, color=GREY, linestyle=":", linewidth=1)
        axes.set(xscale="log", ylim=(-WORST_PP, 2.0))
        axes.set_xticks(BITS, [f"{tick:g}" for tick in BITS])
        axes.xaxis.set_minor_formatter(NullFormatter())
        finish_axes(axes, model, "bits per element", "percentage points against uncut")
        axes.legend(fontsize=7, frameon=False, loc="lower right", handlelength=3.2)
    figure.savefig(path, dpi=130)


def plot_uplink(rows: Sequence[tuple[str, float, float, str]], path: str) -> None:
    """How many times fewer bytes than plain halves at equal quality: ours, and the best rival with its name, row by row.

    Args:
        rows: label, ours, the rival's, its name.
        path: of the file.
    """
    figure = Figure(figsize=(10.5, 1.1 + 0.34 * len(rows)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for i, (_, ours, theirs, name) in enumerate(rows):
        axes.plot(sorted((ours, theirs)), [i, i], color="#CCCCCC", linewidth=2, zorder=1)
        axes.plot(theirs, i, "s", color=ORANGE, markersize=6, zorder=2, label="" if i else "best rival")
        axes.plot(ours, i, "o", color=BLUE, markersize=8, zorder=3, label="" if i else "serverlight")
        axes.annotate(
            name, (max(ours, theirs), i), xytext=(9, 0), textcoords="offset points", va="center", fontsize=8, color=GREY
        )
    axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    most = max(max(ours, theirs) for _, ours, theirs, _ in rows)
    axes.set_xscale("log")
    ticks = [tick for tick in (1, 2, 4, 8, 16, 32, 64, 128, 256) if tick <= 2 * most]
    axes.set_xticks(ticks, [f"{tick:g}x" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(1, 2.2 * most)
    axes.axvline(10, color=GREY, linestyle=":", linewidth=1)
    finish_axes(axes, "", "fewer bytes than fp16 (logarithmic; dotted: the 10x of the paper)", "")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def plot_bars(values: Mapping[str, float], x: str, path: str) -> None:
    """A horizontal bar for each value, in their order, with the figure beside it."""
    figure = Figure(figsize=(9.0, 0.9 + 0.32 * len(values)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.barh(range(len(values)), list(values.values()), height=0.62, color=BLUE)
    for i, value in enumerate(values.values()):
        axes.annotate(
            f"{value:+.2f}", (max(value, 0.0), i), xytext=(5, 0), textcoords="offset points", va="center", fontsize=8,
            color=TEXT,
        )  # fmt: skip
    axes.set_yticks(range(len(values)), list(values))
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.margins(x=0.12)
    finish_axes(axes, "", x, "")
    figure.savefig(path, dpi=130)


def plot_memory(panels: Mapping[str, Mapping[str, Line]], path: str) -> None:
    """What the device holds against the tokens of a sequence: a panel for each model, a line for each cut."""
    figure = Figure(figsize=(5.6 * len(panels), 3.7), layout="constrained", facecolor="white")
    for i, (model, lines) in enumerate(panels.items()):
        axes = figure.add_subplot(1, len(panels), i + 1)
        for colour, (cut, line) in zip(_colours(len(lines)), lines.items(), strict=True):
            axes.plot(*zip(*line, strict=True), color=colour, label=cut)
        axes.set_ylim(bottom=0)
        finish_axes(axes, model, "tokens of the sequence, w", "MiB on the device")
        axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def plot_metadata(lines: Mapping[str, Line], path: str) -> None:
    """Share of a frame's bytes that are not its symbols, against the bytes of the frame: points of each profile."""
    figure = Figure(figsize=(7.5, 3.9), layout="constrained", facecolor="white")
    axes = figure.subplots()
    for colour, mark, (name, points) in zip(_colours(len(lines)), "os^v", lines.items(), strict=False):
        x, y = zip(*points, strict=True)
        axes.scatter(x, y, s=26, marker=mark, color=colour, label=name, alpha=0.85)
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(NullLocator())
    finish_axes(axes, "", "bytes of a frame (logarithmic)", "percent of them metadata")
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def _colours(count: int) -> list[str]:
    return [COLOURS[i % len(COLOURS)] for i in range(count)]
