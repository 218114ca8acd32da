"""A server with many devices: its time, Figure 2 left and right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serverlight.apps.bench_plots import plot_load
from serverlight.apps.load_tables import load_sections
from serverlight.apps.report.blocks import Block, Section, Table, Text
from serverlight.apps.report.found import Found, number
from serverlight.evaluation.load import LoadRow
from serverlight.evaluation.load.figures import FP16, FULL, OURS

__all__ = ["figure_two", "least_server_time", "server_time"]


def server_time(found: Found) -> Section:
    """What the server's processor takes for an item, and how much less that is."""
    rows = [cells for model, loaded in _loaded(found).items() for cells in _times(model, loaded)]
    blocks: list[Block] = [
        Text(
            text="Processor time of the whole server process for an image or a token, network and prompts included, with the "
            "number of devices at which it was measured. A deep cut leaves the server its tail and the decoding of a frame; what "
            "a message costs in sockets and threads stays, so small models gain less than their cut leaves of the layers."
        ),
        *found.gaps("load"),
    ]
    if rows:
        columns = (
            "model", "item", "devices", "full server, ms", "fp16 cut, ms", "deep cuts, serverlight, ms", "less than full",
            "less than fp16 cut", "throughput over full", "over fp16 cut",
        )  # fmt: skip
        blocks.append(Table(columns=columns, rows=rows, words=(0, 1)))
    return Section(name="server-time", title="Server time", blocks=blocks)


def figure_two(found: Found) -> Section:
    """Throughput, and the running time of device 0, as devices join."""
    blocks: list[Block] = [
        Text(
            text="Left: what the server answers in a second against the number of devices, all asking as fast as answers come. "
            "Right: how long device 0 takes for a hundred items of its own as others join. Devices replay recorded messages, so "
            "that the server is what is measured; latencies are corrected for coordinated omission."
        ),
        *found.gaps("load"),
    ]
    for model, document in found.done("load").items():
        rows = _rows(document)
        blocks.append(
            found.draw(
                f"load_{model}.svg",
                lambda path, rows=rows: plot_load(rows, path),  # type: ignore[misc]
                f"Figure 2 with {model}: throughput against devices (left), time of device 0 as devices join (right)",
            )
        )
        blocks += [
            Table(
                title=f"{model}: {section.title}", columns=section.columns, rows=section.rows, words=(0, 2), folded=True
            )
            for section in load_sections(rows, [])
        ]
    return Section(name="figure-2", title="Figure 2: many devices on one server", blocks=blocks)


def least_server_time(found: Found) -> str:
    """The range of factors by which the server's time falls, in words; nothing where there are none."""
    factors = sorted(
        full.server_cpu_s_per_item / ours.server_cpu_s_per_item
        for loaded in _loaded(found).values()
        for full, _, ours in loaded
        if ours.server_cpu_s_per_item
    )
    return f"{number(factors[0], 2)}x to {number(factors[-1], 2)}x less than a full server" if factors else ""


Triple = tuple[LoadRow, LoadRow, LoadRow]


def _loaded(found: Found) -> dict[str, list[Triple]]:
    """Of each model, full server, halves and ours with each number of devices that all three have."""
    return {model: list(_triples(_rows(document))) for model, document in found.done("load").items()}


def _triples(rows: Sequence[LoadRow]) -> Iterator[Triple]:
    by = {(row.system, row.clients): row for row in rows}
    for clients in sorted({row.clients for row in rows}):
        systems = [by.get((system, clients)) for system in (FULL, FP16, OURS)]
        if all(systems):
            yield tuple(systems)  # type: ignore[misc]


def _rows(document: Mapping[str, Any]) -> list[LoadRow]:
    return [LoadRow(**{**row, "cuts": tuple(row["cuts"])}) for row in document["rows"]]


def _times(model: str, loaded: Sequence[Triple]) -> Iterator[list[str]]:
    for full, halves, ours in loaded:
        own = ours.server_cpu_s_per_item
        if own:
            yield [
                model,
                {"vision": "image", "lm": "token"}[full.workload],
                f"{full.clients}",
                *(f"{1e3 * row.server_cpu_s_per_item:.2f}" for row in (full, halves, ours)),
                *(f"{row.server_cpu_s_per_item / own:.1f}x" for row in (full, halves)),
                *(f"{ours.throughput_per_s / max(row.throughput_per_s, 1e-9):.1f}x" for row in (full, halves)),
            ]
