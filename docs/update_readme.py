"""Writes the measured part of README.md from docs/figures/demo.json: ``python docs/update_readme.py``."""

from __future__ import annotations

import json
import pathlib
from typing import Any

from serverlight.apps.demo.modes import CODED, DEVICE, Mode

REPO = pathlib.Path(__file__).parents[1]
BEGIN, END = "<!-- measured: docs/update_readme.py -->\n", "<!-- end -->\n"

HEAD = (
    "| mode | bytes up | x fp16 | x JPEG | server ms | x full | latency ms, p50 | p95 | accuracy | pp |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
)


def main() -> None:
    """Replaces what stands between the two marks."""
    readme = REPO / "README.md"
    document = json.loads((REPO / "docs" / "figures" / "demo.json").read_text())
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text(before + BEGIN + measured(document) + END + after)


def measured(document: dict[str, Any]) -> str:
    """Where it was measured, the table, and what the device could do alone."""
    settings, hardware, rows = document["settings"], document["hardware"], document["rows"]
    device_ms = next(row["device_ms"] for row in rows if row["mode"] == DEVICE)
    where = (
        f"{document['date']}, {hardware['cores']} shared cores ({hardware['cpu']}), torch {document['versions']['torch']}, "
        f"one thread a process: the shipped classifier of 32 x 32 grey digits, {settings['images']} test images, "
        f"{settings['clients']} devices and the server on those same cores, {settings['link'] or 'no link imitated'}."
    )
    table = HEAD + "".join(f"| {' | '.join(cells(row))} |\n" for row in rows)
    return f"{where}\n\n{table}\nA device that can do it all in {device_ms:.1f} ms, as here, needs no server.\n"


def cells(row: dict[str, Any]) -> list[str]:
    """One row of the table."""
    title = Mode(mode=row["mode"], cut=row["cut"], plan=None).title
    return [
        f"**{title}**" if row["mode"] in CODED else title,
        f"{row['uplink_bytes_per_request']:,.0f}",
        ratio(row["ratio_vs_fp16"]),
        ratio(row["ratio_vs_jpeg"]),
        f"{row['server_cpu_ms_per_request']:.2f}",
        ratio(row["server_time_ratio_vs_full"]),
        f"{row['latency_ms_p50']:.1f}",
        f"{row['latency_ms_p95']:.1f}",
        f"{100 * row['accuracy']:.2f} %",
        f"{row['accuracy_delta_pp']:+.2f}",
    ]


def ratio(value: float | None) -> str:
    """A ratio, with two digits where it is below one."""
    return "" if value is None else f"{value:.2f}" if value < 1 else f"{value:.1f}"


if __name__ == "__main__":
    main()
