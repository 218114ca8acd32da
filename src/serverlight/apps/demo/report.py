"""The demo's figures: rows, the table, and what it says in a sentence."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serverlight.apps.demo.measure import Measured
from serverlight.apps.demo.modes import CODED, DEVICE, FP16, JPEG, OURS, PNG, RAW, SLICER, Mode
from serverlight.apps.terminal import format_bytes, format_times

__all__ = ["COLUMNS", "Row", "make_rows", "settings", "summary", "table_cells"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One mode, measured; ``None`` where a figure does not apply."""

    mode: str
    """``png``, ``jpeg``, ``fp16``, ``slicer``, ``serverlight`` or ``device``."""

    cut: str
    """Where the model was cut."""

    requests: int
    """Images classified, one a request."""

    uplink_bytes_per_request: float
    """Every byte of the message, gRPC and HTTP/2 framing included."""

    ratio_vs_fp16: float | None
    """How many times as many bytes plain half-precision features take: of the same cut, for raw images of the first."""

    ratio_vs_jpeg: float | None
    """How many times as many bytes the JPEG files take."""

    server_cpu_ms_per_request: float
    """CPU time of the whole server process, gRPC included."""

    server_time_ratio_vs_full: float | None
    """How many times as much CPU time the server takes for the whole model, from PNG or JPEG, whichever is less."""

    device_ms: float
    """The device's own work: file encoding, or preprocessing, head and codec; median."""

    latency_ms_p50: float
    """From pixels to class, median."""

    latency_ms_p95: float
    """The same, 95th percentile."""

    accuracy: float
    """Share of images classified correctly."""

    accuracy_delta_pp: float
    """Accuracy less that of the uncut model, in percentage points."""


def make_rows(modes: Sequence[Mode], measured: Mapping[str, Measured], labels: Sequence[int]) -> list[Row]:
    """One row for each mode, in the order given."""
    uplink = {mode.key: statistics.fmean(a.uplink_bytes for a in measured[mode.key].answers) for mode in modes}
    cpu_ms = {key: m.server_cpu_ms / max(m.server_requests, 1) for key, m in measured.items()}
    accuracy = {
        mode.key: statistics.fmean(a.predicted == labels[a.image] for a in measured[mode.key].answers) for mode in modes
    }
    fp16 = {mode.cut: uplink[mode.key] for mode in modes if mode.mode == FP16}
    shallow = next(iter(fp16.values()))
    jpeg = next(uplink[mode.key] for mode in modes if mode.mode == JPEG)
    full_ms = min(cpu_ms[mode.key] for mode in modes if mode.mode in RAW)
    uncut = next(accuracy[mode.key] for mode in modes if mode.mode == DEVICE)
    rows = []
    for mode in modes:
        answers, sent, spent_ms = measured[mode.key].answers, uplink[mode.key], cpu_ms[mode.key]
        latencies_ms = sorted(answer.latency_ms for answer in answers)
        rows.append(
            Row(
                mode=mode.mode,
                cut=mode.cut,
                requests=len(answers),
                uplink_bytes_per_request=sent,
                ratio_vs_fp16=fp16.get(mode.cut, shallow) / sent if sent else None,
                ratio_vs_jpeg=jpeg / sent if sent else None,
                server_cpu_ms_per_request=spent_ms,
                server_time_ratio_vs_full=full_ms / spent_ms if spent_ms else None,
                device_ms=statistics.median(answer.device_ms for answer in answers),
                latency_ms_p50=statistics.median(latencies_ms),
                latency_ms_p95=latencies_ms[round(0.95 * (len(latencies_ms) - 1))],
                accuracy=accuracy[mode.key],
                accuracy_delta_pp=100 * (accuracy[mode.key] - uncut),
            )
        )
    return rows


# -- for people ------------------------------------------------------------------------------------

COLUMNS = (
    "mode", "loses on", "bytes up", "x fp16", "x JPEG", "server CPU ms", "x full", "device ms", "p50 ms", "p95 ms",
    "accuracy", "pp",
)  # fmt: skip


def table_cells(rows: Sequence[Row], modes: Sequence[Mode]) -> list[list[str]]:
    """The table's rows; the second column says on what a codec loses to its rivals, and is empty elsewhere."""
    return [
        [
            mode.title,
            ", ".join(_losses(row, rows)),
            format_bytes(row.uplink_bytes_per_request),
            _ratio(row.ratio_vs_fp16),
            _ratio(row.ratio_vs_jpeg),
            f"{row.server_cpu_ms_per_request:.2f}",
            _ratio(row.server_time_ratio_vs_full),
            f"{row.device_ms:.1f}",
            f"{row.latency_ms_p50:.1f}",
            f"{row.latency_ms_p95:.1f}",
            f"{100 * row.accuracy:.2f} %",
            f"{row.accuracy_delta_pp:+.2f}",
        ]
        for row, mode in zip(rows, modes, strict=True)
    ]


def _losses(row: Row, rows: Sequence[Row]) -> list[str]:
    """On what a coded row is worse than the raw images, or slower than everything on the device."""
    if row.mode not in CODED:
        return []
    raw = [rival for rival in rows if rival.mode in RAW]
    lost = []
    if row.uplink_bytes_per_request > min(rival.uplink_bytes_per_request for rival in raw):
        lost.append("bytes")
    if row.server_cpu_ms_per_request > min(rival.server_cpu_ms_per_request for rival in raw):
        lost.append("server")
    if row.latency_ms_p50 > min(rival.latency_ms_p50 for rival in rows if rival.mode in (*RAW, DEVICE)):
        lost.append("latency")
    if row.accuracy_delta_pp < 0:
        lost.append("accuracy")
    return lost


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}" if value < 1 else f"{value:.1f}"


def summary(rows: Sequence[Row]) -> str:
    """What won, in plain sentences."""
    best = min((row for row in rows if row.mode == OURS), key=_cost)
    slicer = next(row for row in rows if row.mode == SLICER and row.cut == best.cut)
    image = min((row for row in rows if row.mode in RAW), key=_cost)
    device = next(row for row in rows if row.mode == DEVICE)
    fastest = min(rows, key=lambda row: row.latency_ms_p50)
    sent = best.uplink_bytes_per_request
    fastest_is = {
        DEVICE: "doing all on the device",
        PNG: "sending the PNG",
        JPEG: "sending the JPEG",
        FP16: f"fp16 at {fastest.cut}",
        SLICER: f"SLICER at {fastest.cut}",
        OURS: f"serverlight at {fastest.cut}",
    }[fastest.mode]
    return (
        f"serverlight at {best.cut} sends {format_times(best.ratio_vs_fp16 or 0, 'fewer', 'more')} bytes than fp16 features, "
        f"{format_times(slicer.uplink_bytes_per_request / sent, 'fewer', 'more')} than SLICER and "
        f"{format_times(image.uplink_bytes_per_request / sent, 'fewer', 'more')} than the {image.mode.upper()}; it takes "
        f"{format_times(best.server_time_ratio_vs_full or 0, 'less', 'more')} of the server's time than the whole model "
        f"and changes accuracy by {best.accuracy_delta_pp:+.2f} pp (one image is {100 / best.requests:.2f} pp). "
        f"Fastest here is {fastest_is} ({fastest.latency_ms_p50:.1f} ms); a device that can do it all in "
        f"{device.device_ms:.1f} ms needs no server."
    )


def _cost(row: Row) -> tuple[float, float]:
    return row.uplink_bytes_per_request, row.server_cpu_ms_per_request


def settings(modes: Sequence[Mode]) -> dict[str, Any]:
    """The codec's settings by mode and cut, for JSON."""
    return {
        coded: {mode.cut: mode.plan.codec.to_dict() for mode in modes if mode.mode == coded and mode.plan}
        for coded in CODED
    }
