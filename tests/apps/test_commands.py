"""The commands that need no server."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from serverlight import __version__
from serverlight.codec import Codec, CodecConfig

Cli = Callable[..., Any]

COMMANDS = [
    "demo", "serve", "token", "run", "generate", "edge", "chaos", "link", "cuts", "profile", "calibrate", "search",
    "simulate", "eval", "inspect", "report", "bench",
]  # fmt: skip


def test_help_lists_the_commands_that_exist(cli: Cli) -> None:
    """The help names every command, and no other."""
    outcome = cli("--help")
    lines = outcome.out.split("Commands")[1].splitlines()
    assert outcome.code == 0
    assert [line.split()[1] for line in lines if re.match("│ [a-z]", line)] == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(cli: Cli, command: str) -> None:
    """Each command's help ends its description with an example."""
    outcome = cli(command, "--help")
    assert outcome.code == 0
    assert "Example" in outcome.out
    assert f"serverlight {command}" in outcome.out


def test_help_is_quick_to_load() -> None:
    """Nothing heavy is imported for --help."""
    heavy = {"torch", "numpy", "grpc", "transformers", "PIL", "matplotlib"}
    script = f"import sys, serverlight.apps.cli; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_version(cli: Cli) -> None:
    """--version prints the package's version."""
    assert cli("--version").out == f"serverlight {__version__}\n"


def test_cuts_lists_what_crosses(cli: Cli, tmp_path: pathlib.Path) -> None:
    """The table and the JSON list the cuts from the input to the output; shares and sums agree."""
    path = tmp_path / "cuts.json"
    outcome = cli("cuts", "demo-vision", "--json", str(path))
    listed = json.loads(path.read_text())
    names = [cut["name"] for cut in listed["cuts"]]
    assert (names[0], names[-1]) == ("input", "output")
    assert {"layer1", "layer2", "layer3.0"} <= set(names)
    assert all(name in outcome.out for name in names)
    assert len({cut["head_macs"] + cut["tail_macs"] for cut in listed["cuts"]}) == 1
    layer2 = listed["cuts"][names.index("layer2")]
    assert layer2["tensors"] == [
        {"name": "layer2", "shape": [None, 32, 16, 16], "dtype": "float32", "side_input": False}
    ]
    assert layer2["fp16_bytes_per_sample"] == 2 * 32 * 16 * 16


def test_cuts_all_lists_every_cut(cli: Cli) -> None:
    """--all leaves none out, and `--json -` prints nothing but JSON."""
    every = json.loads(cli("cuts", "--all", "--json", "-").out)
    assert len(every["cuts"]) == every["num_cuts"]
    assert any(len(cut["tensors"]) == 2 for cut in every["cuts"])


def test_eval_measures_every_combination(cli: Cli, tmp_path: pathlib.Path) -> None:
    """One row for each cut and setting; fewer elements kept take fewer bytes."""
    path = tmp_path / "rows.json"
    words = ["--cut", "layer2", "--cut", "layer3.0", "--sparsity", "0.5,0.9", "--groups", "1,2", "--distortion", "0.1"]
    outcome = cli("eval", "demo-vision", *words, "--limit", "8", "--json", str(path))
    document = json.loads(path.read_text())
    assert outcome.code == 0
    assert len(document["rows"]) == 8
    assert document["images"] == 8
    half, tenth = document["rows"][0], document["rows"][2]
    assert (half["config"]["sparsity"], tenth["config"]["sparsity"]) == (0.5, 0.9)
    assert tenth["bytes_per_sample"] < half["bytes_per_sample"]
    assert [score["metric"] for score in half["scores"]] == ["top-1", "top-5"]
    assert outcome.out.count("layer3.0") == 4


def test_inspect_accounts_for_every_byte(cli: Cli, tmp_path: pathlib.Path) -> None:
    """The parts of a frame sum to its length, in JSON and in the table."""
    x = np.random.default_rng(0).standard_normal((16, 64), np.float32)
    frame = Codec(CodecConfig(profile="slicer", sparsity=0.5, num_groups=2)).encode(x)
    path = tmp_path / "frame.sl"
    path.write_bytes(frame)
    info = json.loads(cli("inspect", str(path), "--json", "-").out)
    assert sum(info["part_bytes"].values()) == info["num_bytes"] == len(frame)
    assert info["shape"] == [16, 64]
    assert info["config"]["num_groups"] == 2
    text = cli("inspect", str(path)).out
    assert "float32 16 x 64" in text
    assert all(part in text for part in info["part_bytes"])
