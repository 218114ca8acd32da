"""The benchmark scripts run; what they measure on a busy machine is not looked at."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys

import pytest

REPO = pathlib.Path(__file__).parents[1]


def test_step_of_a_language_model(tmp_path: pathlib.Path) -> None:
    """All parts of a step are told, and beside its frame a step takes at most 64 bytes on the socket, either way."""
    pytest.importorskip("transformers")
    out = tmp_path / "step.json"
    script = REPO / "benchmarks" / "lm_step.py"
    command = [sys.executable, script, "--hidden", "64", "--steps", "6", "--warm-up", "2", "--json", out]
    subprocess.run(command, check=True, capture_output=True)
    result = json.loads(out.read_text())
    assert result["median_ms"].keys() >= {
        "head",
        "encode",
        "wire",
        "queue",
        "decode",
        "tail",
        "sample",
        "total",
        "link",
    }
    assert all(result["median_ms"][part] > 0 for part in ("head", "encode", "decode", "tail", "sample", "link"))
    assert 0 < result["bytes"]["up"]["DATA"] <= 64
    assert 0 < result["bytes"]["down"]["DATA"] <= 64


@pytest.mark.parametrize(
    ("minutes", "clients"), [(1 / 6, 4), pytest.param(1.0, 16, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_soak(tmp_path: pathlib.Path, minutes: float, clients: int) -> None:
    """While faults strike, no text and no answer is lost or wrong, and nothing is left on the server when all have gone."""
    pytest.importorskip("transformers")
    out, figure = tmp_path / "soak.json", tmp_path / "soak.png"
    script = REPO / "benchmarks" / "soak.py"
    words = ["--minutes", minutes, "--clients", clients, "--pause", 0.1, "--faults", 4, "--json", out, "--plot", figure]
    done = subprocess.run([sys.executable, script, *map(str, words)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert all(check["holds"] for check in result["checks"])
    assert sum(result["faults"]["relay"].values()) + sum(result["faults"]["server"].values()) >= 5
    assert figure.stat().st_size > 0


def test_abuse(tmp_path: pathlib.Path) -> None:
    """Each abuser is let loose, the others are served meanwhile, and both are measured."""
    out = tmp_path / "abuse.json"
    script = REPO / "benchmarks" / "abuse.py"
    words = ["--window", 0.3, "--rounds", 1, "--abusers", "flood,liar,half-open", "--json", out]
    subprocess.run([sys.executable, script, *map(str, words)], check=True, capture_output=True)
    rows = json.loads(out.read_text())["rows"]
    assert [row["abuser"] for row in rows] == ["flood", "liar", "half-open"]
    assert all(row["abuser_sends_per_s"] > 10 for row in rows)
    assert all(row["requests_with"] > 0 < row["requests_without"] and row["errors"] == 0 for row in rows)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_search(tmp_path: pathlib.Path) -> None:
    """Plans are drawn, measured and compared with what was predicted; and a grid with what is chosen from a part of it."""
    accuracy, regret = tmp_path / "accuracy.json", tmp_path / "regret.json"
    few = ["--models", "demo-vision", "--plans", 4, "--requests", 5, "--samples", 30, "--plot", tmp_path / "a.png"]
    for name, words in (
        ("search_accuracy.py", [*few, "--json", accuracy]),
        (
            "search_regret.py",
            ["--settings", 4, "--cuts", 2, "--requests", 4, "--rounds", 1, "--samples", 30, "--json", regret],
        ),
    ):
        subprocess.run([sys.executable, REPO / "benchmarks" / name, *map(str, words)], check=True, capture_output=True)
    result = json.loads(accuracy.read_text())
    assert len(result["rows"]) == 4
    assert result["errors"]["demo-vision"].keys() >= {"latency", "uplink bytes", "server time", "quality"}
    assert result["errors"]["demo-vision"]["uplink bytes"] < 25
    assert len(json.loads(regret.read_text())["rows"]) == 24
