"""``serve`` and ``run`` over a real socket."""

from __future__ import annotations

import json
import pathlib
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import torch

import serverlight as sl
from serverlight.apps.limit_options import LimitOptions
from serverlight.errors import PeerUnavailable
from serverlight.runtime import ServerConfig

Cli = Callable[..., Any]
StartServer = Callable[..., tuple[subprocess.Popen[str], dict[str, Any]]]

END_S = 60


def test_limits_are_those_of_the_config() -> None:
    """A server that is told nothing on the command line has the limits of one that is told nothing in Python."""
    assert LimitOptions().read() == ServerConfig()


def test_run_says_what_it_takes(cli: Cli, server: dict[str, Any], tmp_path: pathlib.Path) -> None:
    """``run`` gives accuracy, bytes, ratios and times; its bytes are those of the frames plus the message."""
    path = tmp_path / "run.json"
    words = ["--cut", "layer3.0", "--sparsity", "0.8", "--distortion", "0.25", "--limit", "20", "--json", str(path)]
    outcome = cli("run", "demo-vision", "--server", server["address"], *words)
    assert (outcome.code, outcome.err) == (0, "")
    figures = json.loads(path.read_text())
    assert figures["requests"] == 20
    assert figures["accuracy"] >= 0.9
    assert 0 < figures["uplink_bytes_per_request"] - figures["frame_bytes_per_request"] < 100
    assert figures["ratio_vs_fp16"] == pytest.approx(2 * 3072 / figures["uplink_bytes_per_request"])
    assert figures["ratio_vs_jpeg"] > 1
    assert {"head", "encode", "wait", "server tail"} <= set(figures["ms"])
    server_ms = sum(figures["ms"][f"server {part}"]["mean"] for part in ("queue", "decode", "tail"))
    assert server_ms < figures["ms"]["wait"]["mean"]
    assert "accuracy" in outcome.out


def test_fp16_features_take_two_bytes_an_element(cli: Cli, server: dict[str, Any]) -> None:
    """With profile fp16 the frames hold bare halves, whose size is known."""
    words = ["--cut", "layer3.0", "--profile", "fp16", "--limit", "2", "--json", "-"]
    figures = json.loads(cli("run", "demo-vision", "--server", server["address"], *words).out)
    assert 2 * 3072 < figures["frame_bytes_per_request"] < 2 * 3072 + 24


def test_either_name_of_a_cut_will_do(cli: Cli, server: dict[str, Any]) -> None:
    """A cut may be named by any module that ends there; it is agreed on by the outermost one's name."""
    outcome = cli("run", "demo-vision", "--server", server["address"], "--cut", "layer3.2", "--limit", "1")
    assert "this side has 'layer3'" in outcome.err


def test_plan_file_binds_the_codec(cli: Cli, start_server: StartServer, tmp_path: pathlib.Path) -> None:
    """A server started with a plan takes that plan and no other codec settings."""
    loaded = sl.load_model("demo-vision")
    codec = sl.CodecConfig(profile="slicer", sparsity=0.5)
    path = str(tmp_path / "plan.json")
    sl.Plan(model=loaded.name, revision=loaded.revision, cut="layer3.0", codec=codec).save(path)
    _, ready = start_server("--plan", path)
    words = ["run", "demo-vision", "--server", ready["address"], "--limit", "1"]
    assert cli(*words, "--plan", path).code == 0
    refused = cli(*words, "--cut", "layer3.0", "--profile", "slicer", "--sparsity", "0.6")
    assert refused.code == 2
    assert "plan mismatch in codec.sparsity" in refused.err


def ask_for_ever(client: sl.Client, inputs: Any) -> None:
    while True:
        client.infer(inputs)


def test_server_drains_on_sigterm(start_server: StartServer) -> None:
    """On SIGTERM the server tells the client that keeps asking, and ends with exit code 0 and a last line."""
    process, ready = start_server("--cut", "layer3.0")
    loaded = sl.load_model("demo-vision")
    plan = sl.Plan(model=ready["model"], revision=ready["revision"], cut="layer3.0")
    with sl.connect(ready["address"], plan=plan, model=loaded) as client:
        assert client.infer(loaded.example_inputs).shape == (2, 10)
        process.terminate()
        with pytest.raises(PeerUnavailable):
            ask_for_ever(client, loaded.example_inputs)
    _, err = process.communicate(timeout=END_S)
    assert process.returncode == 0
    assert err.startswith("stopped; ")
    assert err.count("\n") == 1


TEXT_MODEL = """
import torch

def make():
    torch.manual_seed(0)
    layers = torch.nn.Embedding(50, 16), torch.nn.Linear(16, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3)
    return torch.nn.Sequential(*layers), torch.randint(50, (2, 7))
"""


def test_run_takes_models_without_images(cli: Cli, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any other model runs on its example inputs; there is no accuracy, but bytes and times are as ever."""
    (tmp_path / "text_models.py").write_text(TEXT_MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    with sl.Server(sl.load_model("text_models:make"), ["2"]) as server:
        words = ["--server", server.address, "--cut", "2", "--limit", "3", "--json", "-"]
        figures = json.loads(cli("run", "text_models:make", *words).out)
        refused = cli("run", "text_models:make", *words, "--data", "demo-vision")
    assert figures["requests"] == 3
    assert figures["accuracy"] is None
    assert figures["ratio_vs_jpeg"] is None
    assert 0 < figures["frame_bytes_per_request"] < figures["uplink_bytes_per_request"]
    assert "leave --data away" in refused.err


def test_features_in_a_basis(cli: Cli, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A plan that names a basis runs with the file that holds it, and not without."""
    (tmp_path / "text_models.py").write_text(TEXT_MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    loaded = sl.load_model("text_models:make")
    basis = sl.calibrate_basis([torch.randn(200, 16, generator=torch.Generator().manual_seed(0))])
    plan, file = str(tmp_path / "plan.json"), str(tmp_path / "basis.npz")
    basis.save(file)
    sl.Plan(model=loaded.name, revision=loaded.revision, cut="2", basis=basis.digest.hex()).save(plan)
    with sl.Server(loaded, ["2"], bases={"2": basis}) as server:
        words = ["run", "text_models:make", "--server", server.address, "--plan", plan, "--limit", "2", "--json", "-"]
        assert json.loads(cli(*words, "--basis", file).out)["requests"] == 2
        refused = cli(*words)
    assert refused.code == 2
    assert "basis: the plan names" in refused.err
    refused = cli("serve", "text_models:make", "--plan", plan, "--port", "0")
    assert refused.code == 2
    assert "basis: the plan names" in refused.err


def test_injected_faults_strike(start_server: StartServer, cli: Cli) -> None:
    """A server with --inject does what was asked for: a frame is damaged, and the client is told how."""
    _, ready = start_server("--cut", "layer3.0", "--inject", "corrupt:1", "--inject-seed", "1")
    refused = cli("run", "demo-vision", "--server", ready["address"], "--cut", "layer3.0", "--limit", "1")
    assert refused.code == 2
    assert "checksum" in refused.err
    wrong = cli("serve", "demo-vision", "--cut", "layer3.0", "--inject", "explode:1")
    assert wrong.code == 2
    assert "none of kill, stall" in wrong.err


def test_two_models(cli: Cli, start_server: StartServer) -> None:
    """``serve A B`` says what it serves, loads a model when a client asks for it, and answers clients of either."""
    pytest.importorskip("transformers")
    words = ["demo-lm", "--cut", "demo-lm=layers.6", "--cut", "demo-vision=layer3.0", "--memory", "2GiB"]
    process, ready = start_server(*words)
    names = ["demo-vision", "demo-lm"]
    assert ready["models"] == [{"model": name, "revision": None, "cuts": []} for name in names]
    text = ["--server", ready["address"], "--cut", "layers.6", "--max-new-tokens", "4", "--greedy", "--json", "-"]
    apart = cli("generate", "demo-lm", "Once upon a time", "--local", *text[2:])
    together = cli("generate", "demo-lm", "Once upon a time", *text)
    assert json.loads(together.out)["token_ids"] == json.loads(apart.out)["token_ids"]
    images = cli("run", "demo-vision", "--server", ready["address"], "--cut", "layer3.0", "--limit", "2", "--json", "-")
    assert json.loads(images.out)["requests"] == 2
    process.terminate()
    assert process.wait(END_S) == 0


def test_two_models_from_the_start(start_server: StartServer) -> None:
    """With ``--preload`` all models are there when the server says that it is ready, without ``--cut`` at all their cuts."""
    pytest.importorskip("transformers")
    _, ready = start_server("demo-lm", "--preload", "--cut", "demo-vision=layer3.0")
    vision, text = ready["models"]
    assert (vision["model"], vision["cuts"]) == ("demo-vision", ["layer3.0"])
    assert (text["model"], text["cuts"]) == ("demo-lm", [f"layers.{layer}" for layer in range(9)])
    assert vision["revision"]
    assert text["revision"]
