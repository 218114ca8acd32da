"""``serverlight profile``: what it prints and writes; what it measures, tests/search looks at."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import pytest

from serverlight.search.profile import CodecCost, Curve, CutCost, MessageCost, Profile

Cli = Callable[..., Any]

MS = Curve(fixed_ms=1.0, per_token_ms=0.5)
PROFILE = Profile(
    model="tiny",
    revision="0f",
    kind="language-model",
    machine={"cpu": "Some CPU", "torch_threads": 1},
    dtype="float32",
    cuts=tuple(
        CutCost(name=name, elements=64, head=MS, tail=MS, head_weight_bytes=1, tail_weight_bytes=2)
        for name in ("layers.0", "layers.1")
    ),
    codec=CodecCost(encode=MS, decode=MS),
    message=MessageCost(latency=MS, server=MS),
    weight_bytes=3,
)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Stands in for the measurement, and notes what was asked for."""
    calls = list[dict[str, Any]]()

    def profile_model(model: str, **more: Any) -> Profile:
        more.pop("progress")(1, 2)
        calls.append({"model": model, **more})
        return PROFILE

    monkeypatch.setattr("serverlight.search.measure.profile_model", profile_model)
    return calls


def test_prints_a_row_for_each_cut(cli: Cli, asked: list[dict[str, Any]], tmp_path: pathlib.Path) -> None:
    """The table has all cuts; the files of --save and --json are profiles."""
    saved, figures = tmp_path / "here.json", tmp_path / "figures.json"
    outcome = cli("profile", "tiny", "--on", "server", "--fresh", "--save", str(saved), "--json", str(figures))
    assert outcome.code == 0
    assert all(cut.name in outcome.out for cut in PROFILE.cuts)
    assert "tells no power" in outcome.out
    assert Profile.load(saved) == Profile.from_dict(json.loads(figures.read_text())) == PROFILE
    assert asked == [{"model": "tiny", "on": "server", "dtype": None, "threads": 1, "fresh": True}]


def test_describes_another_machine(cli: Cli, asked: list[dict[str, Any]]) -> None:
    """--speed and --name make a profile of a machine that is not at hand."""
    figures = json.loads(
        cli("profile", "tiny", "--speed", "0.25", "--name", "board", "--watts", "4", "--json", "-").out
    )
    assert (figures["machine"]["name"], figures["watts"]) == ("board", 4.0)
    assert Profile.from_dict(figures).cut("layers.1").tail.ms() == 4 * MS.ms()


@pytest.mark.parametrize(
    ("words", "field"),
    [
        (["--on", "cloud"], "on"),
        (["--speed", "2"], "name"),
        (["--speed", "0", "--name", "stone"], "speed"),
        (["--save", "no/such/folder/x.json"], "save"),
        (["--dtype", "int3"], "dtype"),
    ],
)
def test_refuses_nonsense(cli: Cli, asked: list[dict[str, Any]], words: list[str], field: str) -> None:
    """A wrong option ends with code 2 and the field's name."""
    outcome = cli("profile", "tiny", *words)
    assert outcome.code == 2
    assert outcome.err.startswith(f"error: {field}")
