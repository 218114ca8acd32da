"""The fleet simulation: full server, fp16 cut and SLICER side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from serverlight.apps.fleet_plots import plot_fleet
from serverlight.apps.report.blocks import Block, Section, Table, Text
from serverlight.apps.report.found import Found, number
from serverlight.apps.report.stages import BITS, P95_MS
from serverlight.simulation import SystemRow
from serverlight.simulation.figures import Figures, Latencies

__all__ = ["fleet"]

COLUMNS = (
    "system", "cuts", "servers", "items/s", "p50 ms", "p95 ms", "p99 ms", "load", "batch", "bytes/item", "Mbit/s up",
    "cost of a million",
)  # fmt: skip


def fleet(found: Found) -> Section:
    """A table and a figure for each model."""
    blocks: list[Block] = [
        Text(
            text="Devices of three made-up kinds (a small board, a phone, a laptop) with links of their own, whose requests come "
            f"at random, and as many servers as keep a 95th percentile of {P95_MS:g} ms. Frames have {BITS:g} bits an element at "
            "every cut. Where head and link alone take longer, servers are counted for twice that, as the table then says. The "
            "cost is in hours of a server at a price of 1."
        ),
        *found.gaps("fleet"),
    ]
    for model, document in found.done("fleet").items():
        rows = [_system(row) for row in document["rows"]]
        settings = document["settings"]
        devices = sum(settings["devices"].values())
        title = f"{model}: {devices:,} devices for {60 * settings['hours']:.3g} simulated minutes"
        blocks.append(found.draw(f"fleet_{model}.svg", lambda path, rows=rows: plot_fleet(rows, path), title))  # type: ignore[misc]
        blocks.append(Table(title=title, columns=COLUMNS, rows=[_cells(row) for row in rows], words=(0, 1)))
        blocks += [
            Text(
                text=f"{row.system}: no number of servers keeps the cap; counted for {row.p95_cap_ms:.0f} ms.",
                is_note=True,
            )
            for row in rows
            if not row.keeps_cap
        ]
    return Section(name="fleet", title="A simulated fleet", blocks=blocks)


def _system(row: Mapping[str, Any]) -> SystemRow:
    figures = row["figures"]
    latencies = {name: _latencies(figures[name]) for name in ("latency", "first_token") if figures[name]}
    groups = {name: _latencies(values) for name, values in figures["by_group"].items()}
    plain = {**figures, "first_token": None, **latencies, "by_group": groups, "trace": np.zeros(0)}
    cost = row["cost_per_million"]
    return SystemRow(**{**row, "figures": Figures(**plain), "cost_per_million": math.inf if cost is None else cost})


def _latencies(values: Mapping[str, float | None]) -> Latencies:
    return Latencies(**{name: math.inf if value is None else value for name, value in values.items()})  # type: ignore[arg-type]


def _cells(row: SystemRow) -> list[str]:
    figures, latency = row.figures, row.figures.latency
    return [
        row.system, ", ".join(dict.fromkeys(row.cuts.values())), f"{row.servers:,}", f"{figures.items_per_s:,.1f}",
        *(f"{value:,.1f}" for value in (latency.p50, latency.p95, latency.p99)), f"{100 * figures.utilisation:.0f} %",
        f"{figures.mean_batch:.1f}", f"{figures.uplink_bytes_per_item:,.0f}", f"{figures.uplink_mbit_per_s:,.1f}",
        number(row.cost_per_million),
    ]  # fmt: skip
