"""A plan rests on losses that were measured."""

from __future__ import annotations

import dataclasses

from made_up import plain_table, row, table, vision_profile
from serverlight.codec import CodecConfig
from serverlight.link import LinkConfig
from serverlight.search.constraints import Constraints
from serverlight.search.optimise import SearchResult, optimise
from serverlight.search.quality import QualityTable
from serverlight.search.settle import settle

DEVICE, SERVER = vision_profile(0.5), vision_profile(4.0)


def choose(rows: QualityTable) -> SearchResult:
    caps = Constraints(latency_ms=120, device_memory_mib=3.5, max_quality_loss=1.0)
    return optimise(device=DEVICE, server=SERVER, table=rows, link=LinkConfig.parse("2mbit,10ms"), constraints=caps)


def predicted(rows: QualityTable) -> QualityTable:
    """The same with every loss taken for small, and nothing measured."""
    return dataclasses.replace(
        rows, rows=tuple(dataclasses.replace(row, loss_pp=row.loss_pp / 10, is_measured=False) for row in rows.rows)
    )


def test_losses_too_good_to_be_true_are_found_out() -> None:
    """Where predictions are ten times too low, the plan is still that of the true table, after a few full runs."""
    truth, asked = plain_table(DEVICE), list[tuple[str, CodecConfig]]()

    def measure(cut: str, codec: CodecConfig) -> QualityTable:
        asked.append((cut, codec))
        return table([row for row in truth.rows if (row.cut, row.codec) == (cut, codec)])

    result, better = settle(predicted(truth), choose, measure)
    assert result.best.candidate.is_measured
    assert result.best.candidate == choose(truth).best.candidate
    assert sum(row.is_measured for row in better.rows) == len(asked) < len(truth.rows) / 2


def test_full_runs_are_bounded() -> None:
    """After so many, only measured rows are chosen from."""
    truth = predicted(plain_table(DEVICE))
    sure = table([*truth.rows, row("block1", 16_384, 3.0, 0.5)])
    result, _ = settle(sure, choose, lambda cut, codec: table([]), most=3)
    assert result.best.candidate.is_measured
