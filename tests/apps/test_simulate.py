"""``serverlight simulate``."""

from __future__ import annotations

import json
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("numba", reason="the event loop is compiled")
sys.path.append(str(pathlib.Path(__file__).parents[1]))

from made_up_profiles import make_profile, ms

Cli = Callable[..., Any]

TAILS = {"input": ms(2.0, 10.0), "early": ms(2.0, 6.0), "late": ms(1.0, 1.0), "output": ms(0.0)}
SHORT = ("--devices", "50", "--hours", "0.01", "--rate", "1")


@pytest.fixture
def profile(tmp_path: pathlib.Path) -> str:
    path = tmp_path / "profile.json"
    make_profile(TAILS, head=ms(1.0)).save(path)
    return str(path)


def test_three_systems_in_one_table(cli: Cli, profile: str, tmp_path: pathlib.Path) -> None:
    """Full server, halves and SLICER have a row each, in the table, the JSON and the figure."""
    pytest.importorskip("matplotlib")
    out, drawn = tmp_path / "fleet.json", tmp_path / "fleet.svg"
    outcome = cli("simulate", profile, *SHORT, "--p95", "400", "--json", str(out), "--plot", str(drawn))
    assert outcome.code == 0
    document = json.loads(out.read_text())
    assert [row["system"] for row in document["rows"]] == ["full-server", "fp16-cut", "slicer"]
    assert all(row["system"] in outcome.out for row in document["rows"])
    assert sum(document["settings"]["devices"].values()) == 50
    assert "cost of a million" in drawn.read_text() or drawn.stat().st_size > 1000


def test_a_language_model_has_first_tokens(cli: Cli, tmp_path: pathlib.Path) -> None:
    """Sequences are told in tokens, with their first ones apart."""
    path = tmp_path / "lm.json"
    make_profile(TAILS, kind="language-model").save(path)
    words = ("--devices", "6", "--hours", "0.01", "--closed", "--new-tokens", "4", "--servers", "2")
    found = json.loads(cli("simulate", str(path), *words, "--json", "-").out)
    figures = found["rows"][2]["figures"]
    assert figures["first_token"]["count"] > 0
    assert figures["items_per_s"] == pytest.approx(4 * figures["requests_per_s"], rel=0.05)


def test_kinds_of_a_file(cli: Cli, profile: str, tmp_path: pathlib.Path) -> None:
    """Kinds have their share, link and memory; a file that is not one is told what it lacks."""
    fleet = tmp_path / "kinds.json"
    fleet.write_text(json.dumps([
        {"name": "camera", "share": 3, "speed": 0.5, "link": "1mbit,10ms"}, {"name": "phone", "share": 1, "memory_mib": 5},
    ]))  # fmt: skip
    found = json.loads(cli("simulate", profile, *SHORT, "--fleet", str(fleet), "--servers", "1", "--json", "-").out)
    assert found["settings"]["devices"] == {"camera": 38, "phone": 12}
    assert found["settings"]["links"]["camera"] == "1mbit,10ms"
    for text, complaint in (
        ("{}", "is something else"),
        ('[{"name": "a"}]', "lacks its name or share"),
        ('[{"name": "a", "share": -1}]', "must be a positive number"),
        ('[{"name": "a", "share": 1, "colour": 2}]', "unknown field 'colour'"),
        ('[{"name": "a", "share": 1}, {"name": "a", "share": 1}]', "two kinds of one name"),
        ('[{"name": "a", "share": 1, "memory_mib": 0.1}]', "no head fits"),
    ):
        fleet.write_text(text)
        outcome = cli("simulate", profile, *SHORT, "--fleet", str(fleet), "--servers", "1")
        assert outcome.code == 2
        assert complaint in outcome.err


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "--servers: give one of them"),
        (("--p95", "100", "--servers", "2"), "--servers: give one of them"),
        (("--servers", "1", "--hours", "0"), "hours"),
        (("--servers", "1", "--arrivals", "tides"), "process"),
        (("--servers", "1", "--cut", "nowhere"), "nowhere"),
    ],
)
def test_a_wrong_word_is_told(cli: Cli, profile: str, words: tuple[str, ...], complaint: str) -> None:
    """Wrong settings end with exit code 2 and a line that names them."""
    outcome = cli("simulate", profile, *words)
    assert outcome.code == 2
    assert complaint in outcome.err
