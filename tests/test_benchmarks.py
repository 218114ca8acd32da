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
