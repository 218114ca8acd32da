"""The language model's figures: rows, the table, and what they say in a few sentences."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serverlight.apps.demo.language import FULL, MODES, LanguageSetup, Text
from serverlight.apps.demo.modes import CODED, DEVICE, FP16, OURS, SLICER
from serverlight.apps.terminal import format_times

__all__ = ["COLUMNS", "WritingRow", "ratio", "summarise", "title_of", "writing_cells", "writing_rows"]


@dataclass(frozen=True, kw_only=True, slots=True)
class WritingRow:
    """One mode, measured over all texts; a token is one that was written, and has its share of the prompt."""

    mode: str
    """``tokens``, ``fp16``, ``slicer``, ``serverlight`` or ``device``."""

    cut: str | None
    """Where the model was cut, if it was."""

    texts: int
    tokens: int
    """Tokens written in all."""

    tokens_per_s: float
    """As the device sees it, prompts included."""

    uplink_bytes_per_token: float
    """Every byte sent, framing and prompt included."""

    uplink_bytes_per_step: float
    """The same for the tokens after the first alone, without the prompt."""

    ratio_vs_fp16: float | None
    """How many times as many bytes a token plain halves take."""

    server_cpu_ms_per_token: float
    """CPU time of the whole server process, network and prompt included."""

    server_time_ratio_vs_full: float | None
    """How many times as much CPU time a server takes that runs all layers."""

    device_ms_per_token: float
    """The device's own work: head and codec, or the whole model."""

    token_ms_p50: float
    """From one token to the next, median."""

    token_ms_p95: float
    """The same, 95th percentile."""

    agreement: float
    """Share of tokens that are those of the uncut model's greedy text, at the same place."""

    agreement_own_text: float
    """Share of tokens that the uncut model would have written too, given the same text so far."""

    same_texts: int
    """Texts that are the uncut model's, to the last token."""

    first_difference: float | None
    """Token at which a text parts from the uncut model's, median of those that do."""


def writing_rows(texts: Mapping[str, Sequence[Text]], setup: LanguageSetup) -> list[WritingRow]:
    """A row for each mode; the uncut text is the one that the device wrote alone."""
    rows = {mode: _row(mode, texts[mode], texts[DEVICE], setup.cut) for mode in MODES}
    halves, full = rows[FP16].uplink_bytes_per_token, rows[FULL].server_cpu_ms_per_token
    return [_beside(row, halves, full) for row in rows.values()]


def _row(mode: str, texts: Sequence[Text], uncut: Sequence[Text], cut: str) -> WritingRow:
    num_tokens = sum(len(text.token_ids) for text in texts)
    seconds = sorted(second for text in texts for second in text.seconds)
    same = [
        [ours == theirs for ours, theirs in zip(text.token_ids, base.token_ids, strict=True)]
        for text, base in zip(texts, uncut, strict=True)
    ]
    parted = [places.index(False) + 1 for places in same if not all(places)]
    return WritingRow(
        mode=mode,
        cut=None if mode in (FULL, DEVICE) else cut,
        texts=len(texts),
        tokens=num_tokens,
        tokens_per_s=num_tokens / sum(seconds),
        uplink_bytes_per_token=sum(text.uplink_bytes for text in texts) / num_tokens,
        uplink_bytes_per_step=sum(text.step_bytes for text in texts) / max(1, num_tokens - len(texts)),
        ratio_vs_fp16=None,
        server_cpu_ms_per_token=sum(text.server_cpu_ms for text in texts) / num_tokens,
        server_time_ratio_vs_full=None,
        device_ms_per_token=sum(text.device_ms for text in texts) / num_tokens,
        token_ms_p50=1e3 * statistics.median(seconds),
        token_ms_p95=1e3 * seconds[round(0.95 * (len(seconds) - 1))],
        agreement=sum(map(sum, same)) / num_tokens,
        agreement_own_text=sum(text.num_likeliest for text in texts) / num_tokens,
        same_texts=len(texts) - len(parted),
        first_difference=statistics.median(parted) if parted else None,
    )


def _beside(row: WritingRow, halves: float, full_ms: float) -> WritingRow:
    sent, spent_ms = row.uplink_bytes_per_token, row.server_cpu_ms_per_token
    return dataclasses.replace(
        row,
        ratio_vs_fp16=halves / sent if sent else None,
        server_time_ratio_vs_full=full_ms / spent_ms if spent_ms else None,
    )


# -- for people --------------------------------------------------------------------------------------------------

COLUMNS = (
    "mode", "loses on", "tokens/s", "bytes up", "x fp16", "server ms", "x full", "device ms", "p50 ms", "agree",
    "own text", "same",
)  # fmt: skip


def writing_cells(rows: Sequence[WritingRow]) -> list[list[str]]:
    """The table's rows, all figures a token; the second column says on what a codec loses to its rivals."""
    return [
        [
            title_of(row),
            ", ".join(_losses(row, rows)),
            f"{row.tokens_per_s:.0f}",
            f"{row.uplink_bytes_per_token:.1f}",
            ratio(row.ratio_vs_fp16),
            f"{row.server_cpu_ms_per_token:.2f}",
            ratio(row.server_time_ratio_vs_full),
            f"{row.device_ms_per_token:.2f}",
            f"{row.token_ms_p50:.2f}",
            f"{row.agreement:.1%}",
            f"{row.agreement_own_text:.1%}",
            f"{row.same_texts} of {row.texts}",
        ]
        for row in rows
    ]


def title_of(row: WritingRow) -> str:
    """For people."""
    names = {
        FULL: "full server, token ids",
        FP16: f"{row.cut}, fp16",
        SLICER: f"{row.cut}, SLICER",
        OURS: f"{row.cut}, serverlight",
        DEVICE: "all on the device",
    }
    return names[row.mode]


def ratio(value: float | None) -> str:
    """With two digits where it is below one; empty where there is none."""
    return "" if value is None else f"{value:.2f}" if value < 1 else f"{value:.1f}"


def _losses(row: WritingRow, rows: Sequence[WritingRow]) -> list[str]:
    if row.mode not in CODED:
        return []
    full, device = (next(rival for rival in rows if rival.mode == mode) for mode in (FULL, DEVICE))
    lost = {
        "bytes": row.uplink_bytes_per_token > full.uplink_bytes_per_token,
        "server": row.server_cpu_ms_per_token > full.server_cpu_ms_per_token,
        "speed": row.tokens_per_s < max(full.tokens_per_s, device.tokens_per_s),
        "text": row.agreement < 1,
    }
    return [what for what, is_lost in lost.items() if is_lost]


def summarise(rows: Sequence[WritingRow]) -> str:
    """What won and what lost, in plain sentences."""
    by = {row.mode: row for row in rows}
    ours, slicer, full, device = by[OURS], by[SLICER], by[FULL], by[DEVICE]
    sent = ours.uplink_bytes_per_token
    fastest = max(rows, key=lambda row: row.tokens_per_s)
    return (
        f"At {ours.cut} serverlight sends {format_times(ours.ratio_vs_fp16 or 0, 'fewer', 'more')} bytes than plain halves and "
        f"{format_times(slicer.uplink_bytes_per_token / sent, 'fewer', 'more')} than SLICER, and "
        f"{format_times(full.uplink_bytes_per_token / sent, 'fewer', 'more')} than token ids, which no feature can beat. It takes "
        f"{format_times(ours.server_time_ratio_vs_full or 0, 'less', 'more')} of the server's time than running all layers, and "
        f"{ours.agreement_own_text:.1%} of its tokens are the uncut model's choice after the same text, though only "
        f"{ours.agreement:.1%} are those of the uncut text in that place: a text that has parted stays another. "
        f"Fastest here is {title_of(fastest)} "
        f"({fastest.tokens_per_s:.0f} tokens/s); a device that writes {device.tokens_per_s:.0f} tokens/s by itself needs no server."
    )
