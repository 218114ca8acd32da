"""The tables of ``serverlight bench runtime``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from serverlight.apps.bench_tables import Section, check_sections

if TYPE_CHECKING:
    from serverlight.evaluation.checks import Check
    from serverlight.evaluation.load import LoadRow

__all__ = ["load_heading", "load_sections"]

ITEMS = {"vision": "image", "lm": "token"}
NONE = "-"


def load_sections(rows: Sequence[LoadRow], checks: Sequence[Check]) -> list[Section]:
    """A table for each workload, and what is claimed."""
    workloads = dict.fromkeys(row.workload for row in rows)
    return [*(_section([row for row in rows if row.workload == name]) for name in workloads), *check_sections(checks)]


def load_heading(document: dict[str, Any]) -> str:
    """A title, and a line of where and with what it was measured."""
    settings, versions = document["settings"], document["versions"]
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"A server under the load of many devices\n\n{document['date']}, {document['cpu']}, devices and server "
        f"{'on a core each' if settings['own_cores'] else 'on the same cores'}, load average before it "
        f"{document['load_before']:.1f}; "
        f"{settings['rounds']} turns of {settings['duration_s']:g} s; Python {document['python']}, {named}. "
        "Made by `serverlight bench runtime`."
    )


def _section(rows: Sequence[LoadRow]) -> Section:
    item = ITEMS[rows[0].workload]
    notes = list(dict.fromkeys(f"{row.system}: {row.note}." for row in rows if row.note))
    if short := [f"{row.system} with {row.clients}" for row in rows if row.is_short]:
        notes.append(
            f"Less than an answer a device in a turn: {', '.join(short)}; a longer --duration tells their rate."
        )
    return Section(
        title=f"{rows[0].workload}, one item is one {item}; latencies corrected for coordinated omission:",
        columns=(
            "system", "clients", "cuts", f"{item}s/s", "p50 ms", "p95 ms", "p99 ms", "server CPU ms", "bytes up",
            "batch", "device 0 ms", "refused",
        ),
        rows=tuple(_cells(row) for row in rows),
        note=" ".join(notes),
    )  # fmt: skip


def _cells(row: LoadRow) -> tuple[str, ...]:
    device_0 = NONE if row.device_0_s_per_item is None else f"{1e3 * row.device_0_s_per_item:.1f}"
    return (
        row.system,
        str(row.clients),
        ", ".join(row.cuts),
        f"{row.throughput_per_s:,.1f}",
        f"{row.latency_ms_p50:,.1f}",
        f"{row.latency_ms_p95:,.1f}",
        f"{row.latency_ms_p99:,.1f}",
        f"{1e3 * row.server_cpu_s_per_item:.2f}",
        f"{row.uplink_bytes_per_item:,.0f}",
        f"{row.mean_batch:.1f}",
        device_0,
        str(row.refused + row.unanswered),
    )
