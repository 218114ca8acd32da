"""``serverlight calibrate``."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from serverlight.search.quality import QualityTable

Cli = Callable[..., Any]


def test_table_is_printed_and_saved(cli: Cli, tmp_path: pathlib.Path) -> None:
    """The shipped model needs no data; what is saved can be read, is within the budget, and its front is printed."""
    path = tmp_path / "quality.json"
    outcome = cli("calibrate", "demo-vision", "--cut", "layer3.1", "--limit", "24", "--save", str(path))
    assert outcome.code == 0, outcome.err
    table = QualityTable.load(path)
    assert (table.model, table.metric, table.num_samples) == ("demo-vision", "accuracy", 24)
    assert {row.cut for row in table.rows} == {"layer3.1"}
    assert outcome.out.count("layer3.1") == len(table.front()) < len(table.rows)
    assert "held out" in outcome.out


def test_language_model_is_judged_by_position(
    cli: Cli, tmp_path: pathlib.Path, save_byte_llama: Callable[..., str]
) -> None:
    """A language model takes a text file, and its table knows losses by position."""
    model = save_byte_llama(tmp_path / "llama", hidden_size=16, intermediate_size=32)
    text = tmp_path / "text.txt"
    text.write_text("The quick brown fox jumps over the lazy dog. " * 12)
    words = ["--data", str(text), "--cut", "layers.2", "--tokens", "24", "--limit", "6", "--json", "-"]
    outcome = cli("calibrate", model, *words)
    assert outcome.code == 0, outcome.err
    document = json.loads(outcome.out)
    assert document["metric"] == "agreement"
    assert document["position_edges"] == [0, 16, 24]
    assert document["num_samples"] == 6


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["demo-vision", "--budget", "0"], "budget"),
        (["demo-vision", "--cut", "nowhere", "--limit", "4"], "nowhere"),
        (["demo-lm", "--data", "/nowhere/text.txt"], "data"),
        (["demo-lm", "--tokens", "900000"], "tokens"),
    ],
)
def test_bad_words_are_named(cli: Cli, words: list[str], complaint: str) -> None:
    """A wrong option ends with exit code 2 and its name."""
    outcome = cli("calibrate", *words)
    assert outcome.code == 2
    assert complaint in outcome.err
