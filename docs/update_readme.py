"""Writes the measured parts of README.md from docs/figures/demo.json and demo_lm.json: ``python docs/update_readme.py``."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

from serverlight.apps.demo.language_report import WritingRow, title_of
from serverlight.apps.demo.language_report import ratio as writing_ratio
from serverlight.apps.demo.modes import CODED, DEVICE, Mode

REPO = pathlib.Path(__file__).parents[1]
END = "<!-- end -->\n"

HEAD = (
    "| mode | bytes up | x fp16 | x JPEG | server ms | x full | latency ms, p50 | p95 | accuracy | pp |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
)
WRITING_HEAD = (
    "| mode | tokens/s | bytes up | x fp16 | server ms | x full | device ms | agreement | own text | same texts |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |\n"
)


def main() -> None:
    """Replaces what stands between the marks."""
    readme = REPO / "README.md"
    text = readme.read_text()
    text = replaced(text, "<!-- measured: docs/update_readme.py -->\n", "demo.json", measured)
    text = replaced(text, "<!-- written: docs/update_readme.py -->\n", "demo_lm.json", written)
    readme.write_text(text)


def replaced(text: str, begin: str, file: str, render: Callable[[dict[str, Any]], str]) -> str:
    """The text with one part anew, from its mark to the next end."""
    before, _, rest = text.partition(begin)
    _, _, after = rest.partition(END)
    return before + begin + render(json.loads((REPO / "docs" / "figures" / file).read_text())) + END + after


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


def written(document: dict[str, Any]) -> str:
    """The language model's table, and what the device could do alone."""
    settings, hardware = document["settings"], document["hardware"]
    rows = [WritingRow(**row) for row in document["rows"]]
    device = next(row for row in rows if row.mode == DEVICE)
    where = (
        f"{document['date']}, {hardware['cores']} shared cores ({hardware['cpu']}), torch {document['versions']['torch']}, one "
        f"thread a process, float32: `{settings['model']}` writes {settings['tokens']} greedy tokens after each of "
        f"{settings['prompts']} prompts; "
        f"{settings['link'] or 'no link imitated'}. All figures are a token written, prompt included."
    )
    table = WRITING_HEAD + "".join(f"| {' | '.join(writing_cells(row))} |\n" for row in rows)
    return f"{where}\n\n{table}\nA device that writes {device.tokens_per_s:.0f} tokens/s by itself needs no server.\n"


def writing_cells(row: WritingRow) -> list[str]:
    """One row of the language model's table."""
    title = title_of(row)
    return [
        f"**{title}**" if row.mode in CODED else title,
        f"{row.tokens_per_s:.0f}",
        f"{row.uplink_bytes_per_token:.1f}",
        writing_ratio(row.ratio_vs_fp16),
        f"{row.server_cpu_ms_per_token:.2f}",
        writing_ratio(row.server_time_ratio_vs_full),
        f"{row.device_ms_per_token:.2f}",
        f"{row.agreement:.1%}",
        f"{row.agreement_own_text:.1%}",
        f"{row.same_texts} of {row.texts}",
    ]


def ratio(value: float | None) -> str:
    """A ratio, with two digits where it is below one."""
    return "" if value is None else f"{value:.2f}" if value < 1 else f"{value:.1f}"


if __name__ == "__main__":
    main()
