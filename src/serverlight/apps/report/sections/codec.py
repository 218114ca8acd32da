"""The codec taken apart: what each stage is worth, what it costs a device, and what its frames are made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from serverlight.apps.report import figures
from serverlight.apps.report.blocks import Block, Section, Table, Text
from serverlight.apps.report.found import Found, number
from serverlight.evaluation.ablation import STAGES
from serverlight.evaluation.speed import SpeedRow

__all__ = ["ablations", "device_cost", "metadata"]

OURS = "serverlight (cpu)"
ELEMENT_BYTES = 4

METADATA = frozenset({"header", "checksum", "model", "shifts", "segments", "groups"})
"""Parts of a frame that do not grow with each of its elements."""


def ablations(found: Found) -> Section:
    """Bits that each variant takes more at equal divergence."""
    reports = found.done("ablation")
    blocks: list[Block] = [
        Text(
            text="One thing is taken away from profile `serverlight` at a time. Figures are the bits an element that the variant "
            "takes more at equal divergence of the model's outputs, the mean over three divergences (negative: fewer); a dash: it "
            "does not reach them. The second row has the profile's own bits there. Features of one sign have no negative elements "
            "to weigh."
        ),
        *found.gaps("ablation"),
    ]
    if reports:
        means = {f"{stage}: {name}": mean for stage, name in _variants() if (mean := _mean(reports, name)) is not None}
        title = "Bits an element that a variant takes more at equal divergence, the mean over the tasks"
        blocks.append(found.draw("ablation.svg", lambda path: figures.plot_bars(means, "bits an element", path), title))
        rows = [
            ["", "messages", *(f"{report['messages']:,}" for report in reports.values())],
            ["", "profile serverlight, bits", *(_own(report) for report in reports.values())],
            *([stage, name, *(_more(report, name) for report in reports.values())] for stage, name in _variants()),
        ]
        blocks.append(Table(columns=("stage", "variant", *reports), rows=rows, words=(0, 1)))
    return Section(name="ablations", title="Ablations of each stage", blocks=blocks)


def device_cost(found: Found) -> Section:
    """Time, memory and energy against size."""
    done = found.done("device")
    blocks: list[Block] = [
        Text(
            text="What coding a feature takes a device, one thread. Times are medians of turns that all codecs take; memory is the "
            "most that a call adds to a process that has just begun, over the tensor's own size. The figure stands at Figure 3."
        ),
        *found.gaps("device"),
    ]
    if times := done.get("times"):
        blocks.append(_own_times([SpeedRow.from_dict(row) for row in times["rows"]]))
        blocks.append(_all_times([SpeedRow.from_dict(row) for row in times["rows"]]))
    if memory := done.get("memory"):
        blocks.append(_memory(memory))
    if energy := done.get("energy"):
        blocks.append(_energy(energy))
    return Section(name="device-cost", title="The codec's cost on a device", blocks=blocks)


def metadata(found: Found) -> Section:
    """The share of a frame that is not its elements."""
    tasks = found.done("frames")
    blocks: list[Block] = [
        Text(
            text="Header, probability model, shifts, lengths of segments, ranges of groups and checksum: bytes of a frame that do "
            "not grow with each of its elements. All other tables count them. Sparse frames of small features have the largest "
            "share."
        ),
        *found.gaps("frames"),
    ]
    if tasks:
        title = "Metadata against the size of a frame; each point is a task at one sparsity"
        blocks.append(found.draw("metadata.svg", lambda path: figures.plot_metadata(_points(tasks), path), title))
        columns = (
            "task",
            "profile",
            "s",
            "elements",
            "bytes a frame",
            "bits/element",
            "metadata bytes",
            "share",
            "made of",
        )
        rows = [cells for task, document in tasks.items() for cells in _frame_rows(task, document)]
        blocks.append(Table(columns=columns, rows=rows, words=(0, 1, 8), title="Bytes of a frame", folded=True))
    return Section(name="metadata", title="Metadata's share of the bytes", blocks=blocks)


def _variants() -> list[tuple[str, str]]:
    return [(stage, name) for stage, names in STAGES.items() for name in names]


def _mean(reports: Mapping[str, Any], name: str) -> float | None:
    means = [report["more"].get(name, {}).get("mean") for report in reports.values()]
    known = [mean for mean in means if mean is not None]
    return sum(known) / len(known) if known else None


def _own(report: Mapping[str, Any]) -> str:
    return " / ".join("-" if bits is None else f"{bits:.2f}" for bits in report["bits"])


def _more(report: Mapping[str, Any], name: str) -> str:
    mean = report["more"].get(name, {}).get("mean")
    return "-" if mean is None else f"{mean:+.3f}"


def _own_times(rows: Sequence[SpeedRow]) -> Table:
    own = sorted((row for row in rows if row.codec == OURS), key=lambda row: row.tensor_bytes)
    cells = [
        [
            " x ".join(map(str, row.shape)), f"{row.tensor_bytes / 1024:,.0f}", f"{row.bits_per_element:.2f}",
            f"{row.encode_us:,.1f}", f"{row.encode_gb_s:.2f}", f"{row.encode_vs_memcpy:,.1f}x",
            f"{row.decode_us:,.1f}", f"{row.decode_gb_s:.2f}", f"{row.decode_vs_memcpy:,.1f}x",
        ]
        for row in own
    ]  # fmt: skip
    columns = (
        "feature", "KiB of float32", "bits/element", "encode us", "GB/s", "of a copy", "decode us", "GB/s", "of a copy",
    )  # fmt: skip
    return Table(title="Profile serverlight, half of the elements kept", columns=columns, rows=cells)


def _all_times(rows: Sequence[SpeedRow]) -> Table:
    codecs = dict.fromkeys(row.codec for row in rows)
    shapes = sorted({row.shape: row.tensor_bytes for row in rows}.items(), key=lambda pair: pair[1])
    by = {(row.codec, row.shape): row for row in rows}
    cells = [
        [codec, *(f"{r.encode_us:,.0f} / {r.decode_us:,.0f}" if (r := by.get((codec, s))) else "-" for s, _ in shapes)]
        for codec in codecs
    ]
    columns = ("codec", *(" x ".join(map(str, shape)) for shape, _ in shapes))
    return Table(title="Encode / decode, us, beside what else there is", columns=columns, rows=cells, folded=True)


def _memory(memory: Mapping[str, Any]) -> Table:
    width = memory["elements_per_token"]
    rows = [
        [
            f"{row['tokens']:,} x {width:,}", f"{row['tokens'] * width * ELEMENT_BYTES / 1024:,.0f}",
            f"{row['encode']:.2f}x", f"{row['decode']:.2f}x",
        ]
        for row in memory["rows"]
    ]  # fmt: skip
    title = "Peak memory beside the tensor's own"
    return Table(title=title, columns=("feature", "KiB of float32", "encode", "decode"), rows=rows)


def _energy(energy: Mapping[str, Any]) -> Text:
    if energy["watts"] is None:
        return Text(
            text="**Energy:** the platform tells no power (RAPL, a Jetson's rails or NVML), so none is known here.",
            is_gap=True,
        )
    return Text(
        text=f"**Energy:** {energy['watts']:.1f} W above rest while encoding ({energy['source']}), "
        f"{energy['mj_per_million']:.2f} mJ for a million elements."
    )


def _split(parts: Mapping[str, int]) -> tuple[int, int]:
    """Bytes of metadata, and of all."""
    return sum(size for part, size in parts.items() if part in METADATA), sum(parts.values())


def _points(tasks: Mapping[str, Any]) -> dict[str, figures.Line]:
    lines = dict[str, list[tuple[float, float]]]()
    for document in tasks.values():
        for row in document["rows"]:
            own, total = _split(row["parts"])
            lines.setdefault(row["config"]["profile"], []).append((total / document["frames"], 100 * own / total))
    return dict(lines)


def _frame_rows(task: str, document: Mapping[str, Any]) -> Iterator[list[str]]:
    frames, elements = document["frames"], document["elements"]
    for row in document["rows"]:
        own, total = _split(row["parts"])
        made_of = ", ".join(f"{part} {number(size / frames)}" for part, size in row["parts"].items() if size)
        yield [
            task, row["config"]["profile"], f"{row['config']['sparsity']:g}", f"{elements / frames:,.0f}",
            f"{total / frames:,.0f}", f"{8 * total / elements:.2f}", f"{own / frames:,.1f}", f"{100 * own / total:.1f} %",
            made_of,
        ]  # fmt: skip
