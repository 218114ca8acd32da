"""Wrong input: one clear line, exit code 2, no traceback."""

from __future__ import annotations

import json
import pathlib
import socket
from collections.abc import Callable
from typing import Any

import pytest

import serverlight as sl
from serverlight.codec import Codec, CodecConfig

Cli = Callable[..., Any]

WRONG = {
    "unknown command": (["frobnicate"], "frobnicate"),
    "unknown option": (["cuts", "--frobnicate"], "see `serverlight cuts --help`"),
    "missing option": (["run", "demo-vision", "--cut", "layer2"], "--server"),
    "unknown cut": (["serve", "demo-vision", "--cut", "layr3.0"], "did you mean 'layer3.0'"),
    "unknown cut in eval": (["eval", "--cut", "layr3.0", "--limit", "2"], "did you mean 'layer3.0'"),
    "unknown cut in demo": (["demo", "--cut", "layr3.0"], "did you mean 'layer3.0'"),
    "too many cuts": (["demo", "--cut", "a", "--cut", "b", "--cut", "c", "--cut", "d"], "at most 3 cuts"),
    "outermost cut in demo": (["demo", "--cut", "input"], "shown anyway"),
    "token ids of images": (
        ["run", "demo-vision", "--server", "localhost:1", "--cut", "input", "--token-ids"],
        "token_ids: are for language models",
    ),
    "cut and plan": (["serve", "demo-vision", "--cut", "layer2", "--plan", "x.json"], "one of them"),
    "cut of another model": (["serve", "demo-vision", "demo-lm", "--cut", "demo=layer2"], "MODEL=NAME"),
    "plan for two models": (["serve", "demo-vision", "demo-lm", "--plan", "x.json"], "plan: is for one model"),
    "the same model twice": (["serve", "demo-vision", "demo-vision"], "is there twice"),
    "no second model": (["serve", "demo-vision", "demo-visoin"], "no model 'demo-visoin'"),
    "memory without unit": (["serve", "demo-vision", "--memory", "8"], "like 512MiB or 8GiB"),
    "memory for keys and values alone": (["serve", "demo-lm", "demo-vision", "--memory", "1GiB"], "--kv-memory"),
    "memory for one of two": (
        ["serve", "demo-vision", "demo-lm", "--preload", "--memory", "1025MiB", "--cut", "demo-vision=layer2"],
        "the weights up to 'demo-lm' take",
    ),
    "no shipped model": (["cuts", "demo-visoin"], "use 'demo-vision' or 'demo-lm'"),
    "no model file": (["cuts", "nowhere.safetensors"], "check the path"),
    "no model function": (["cuts", "nowhere.models:make"], "PYTHONPATH"),
    "no plan file": (["serve", "demo-vision", "--plan", "nowhere.json"], "cannot read nowhere.json"),
    "no such host": (["serve", "demo-vision", "--cut", "layer3.0", "--host", "nowhere.invalid"], "cannot resolve"),
    "public address": (
        ["serve", "demo-vision", "--cut", "layer3.0", "--host", "0.0.0.0"],
        "can be reached by others; give",
    ),
    "public address for HTTP": (
        ["serve", "demo-vision", "--cut", "layer3.0", "--http", "0", "--http-host", "0.0.0.0"],
        "behind a proxy or a tunnel",
    ),
    "certificate without key": (["serve", "demo-vision", "--cut", "layer3.0", "--tls-cert", "a.pem"], "go together"),
    "no token file": (
        ["serve", "demo-vision", "--cut", "layer3.0", "--tokens", "nowhere.toml"],
        "`serverlight token NAME",
    ),
    "token in the clear": (
        ["run", "demo-vision", "--server", "10.0.0.5:1", "--cut", "layer2", "--token", "sl_x"],
        "give --tls-ca",
    ),
    "two tokens": (
        ["run", "demo-vision", "--server", "localhost:1", "--cut", "layer2", "--token", "sl_x", "--token-file", "x"],
        "one of them",
    ),
    "no file of a token": (
        ["generate", "demo-lm", "x", "--server", "localhost:1", "--cut", "layers.2", "--token-file", "nowhere"],
        "token_file: cannot read nowhere",
    ),
    "no authority": (
        ["run", "demo-vision", "--server", "localhost:1", "--cut", "layer2", "--tls-ca", "nowhere.pem"],
        "tls_ca: cannot read nowhere.pem",
    ),
    "no name for a token": (["token", "a b"], "begin with a letter or digit"),
    "port out of range": (["serve", "demo-vision", "--cut", "layer3.0", "--port", "70000"], "65535"),
    "bad link": (["demo", "--link", "fast"], "10mbit,20ms"),
    "bad number list": (["eval", "--cut", "layer3.0", "--sparsity", "half"], "cannot read 'half'"),
    "sparsity out of range": (["eval", "--cut", "layer3.0", "--sparsity", "1.5"], "in [0, 1)"),
    "unknown profile": (
        ["run", "demo-vision", "--server", "localhost:1", "--cut", "layer2", "--profile", "zip"],
        "zip",
    ),
    "two kinds of eval": (
        ["eval", "x", "--sts", "a.csv", "--coco", "b.json", "--cut", "c"],
        "coco: does not go with --sts",
    ),
    "images for sentences": (["eval", "x", "--sts", "a", "--data", "b", "--cut", "c"], "data: is for classifiers"),
    "no images for coco": (["eval", "x", "--coco", "b.json", "--cut", "c"], "--images DIR"),
    "images alone": (["eval", "--images", "x", "--cut", "layer3.0"], "give --coco FILE as well"),
    "negative tolerance": (["eval", "--cut", "layer3.0", "--within", "-1"], "must not be negative"),
    "no pairs": (["eval", "x", "--sts", "nowhere.csv", "--cut", "c"], "cannot read 'nowhere.csv'"),
    "no data": (["eval", "--cut", "layer3.0", "--data", "nowhere.npz"], "no file or folder 'nowhere.npz'"),
    "no frame file": (["inspect", "nowhere.sl"], "check the path"),
    "no folder for JSON": (["cuts", "--json", "nowhere/cuts.json"], "create it first"),
    "no folder for the figure": (["demo", "--plot", "nowhere/demo"], "create it first"),
}


def check(outcome: Any, message: str) -> None:
    assert outcome.code == 2
    assert outcome.out == ""
    assert outcome.err.startswith("error: ")
    assert outcome.err.count("\n") == 1
    assert message in outcome.err
    assert "Traceback" not in outcome.err


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_wrong_input(cli: Cli, words: list[str], message: str) -> None:
    """Wrong input gives one line that says what is wrong and what to do, and exit code 2."""
    check(cli(*words), message)


def test_debug_shows_the_traceback(cli: Cli) -> None:
    """With --debug, before or after the command, the traceback is shown as well."""
    for words in (["--debug", "inspect", "nowhere.sl"], ["inspect", "nowhere.sl", "--debug"]):
        outcome = cli(*words)
        assert outcome.code == 2
        assert "Traceback" in outcome.err
        assert "error: frame: cannot read" in outcome.err


def test_port_in_use(cli: Cli) -> None:
    """A port that is taken is named, and what to do."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        check(cli("serve", "demo-vision", "--cut", "layer3.0", "--port", port), f"127.0.0.1:{port} is taken; choose")


def test_server_is_down(cli: Cli) -> None:
    """A server that is not there is reported at once."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    check(cli("run", "demo-vision", "--server", address, "--cut", "layer3.0", "--limit", "1"), address)


def test_plan_mismatch(cli: Cli, server: dict[str, Any]) -> None:
    """A client with another cut than the server's learns which field differs; the server goes on."""
    words = ["run", "demo-vision", "--server", server["address"], "--limit", "1"]
    check(cli(*words, "--cut", "layer2"), "plan mismatch in cut: this side has 'layer2'")
    assert cli(*words, "--cut", "layer3.0").code == 0


@pytest.mark.parametrize("command", ["serve", "run"])
@pytest.mark.parametrize("field", ["model", "revision"])
def test_plan_of_another_model(cli: Cli, tmp_path: pathlib.Path, command: str, field: str) -> None:
    """A plan made for other weights is refused before anything starts."""
    loaded = sl.load_model("demo-vision")
    fields = {"model": loaded.name, "revision": loaded.revision, field: "other"}
    sl.Plan(**fields, cut="layer3.0").save(tmp_path / "plan.json")
    more = ["--server", "localhost:1"] if command == "run" else []
    outcome = cli(command, "demo-vision", "--plan", str(tmp_path / "plan.json"), *more)
    check(outcome, f"plan mismatch in {field}")


def test_plan_that_is_none(cli: Cli, tmp_path: pathlib.Path) -> None:
    """A plan file that is no plan names the field that is wrong."""
    (tmp_path / "plan.json").write_text(json.dumps({"model": "demo-vision"}))
    check(cli("serve", "demo-vision", "--plan", str(tmp_path / "plan.json")), "missing from the plan")


def damage(frame: bytes) -> dict[str, bytes]:
    terabyte = b"SL\x01\x01\x10\x02" + 2 * b"\x80\x80\x80\x01"
    return {
        "text": b"not a frame at all",
        "nothing": b"",
        "truncated": frame[:-5],
        "altered": frame[:20] + bytes([frame[20] ^ 1]) + frame[21:],
        "longer": frame + b"\0",
        "terabyte": terabyte + frame[len(terabyte) :],
    }


@pytest.mark.parametrize("kind", damage(bytes(64)))
def test_inspect_refuses_damaged_frames(cli: Cli, tmp_path: pathlib.Path, kind: str) -> None:
    """A file that is no frame, or a damaged one, is refused with the rule that it breaks."""
    import numpy as np

    x = np.random.default_rng(0).standard_normal((16, 64), np.float32)
    frame = Codec(CodecConfig(profile="slicer")).encode(x)
    (tmp_path / "frame.sl").write_bytes(damage(frame)[kind])
    check(cli("inspect", str(tmp_path / "frame.sl")), "")


def test_failing_model_is_no_usage_error(cli: Cli, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of the user's own code keeps its name, on one line, and exit code 1."""
    (tmp_path / "broken_models.py").write_text("def make():\n    raise RuntimeError('no\\nluck')\n")
    monkeypatch.syspath_prepend(tmp_path)
    outcome = cli("cuts", "broken_models:make")
    assert outcome.code == 1
    assert outcome.err.startswith("error: RuntimeError: no luck; ")
    assert outcome.err.count("\n") == 1


def test_missing_package_names_the_extra(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a command's package is not installed, the message says what to install."""
    import serverlight.apps.commands.cuts as module

    def fail(path: str, field: str) -> None:
        raise ModuleNotFoundError("No module named 'grpc'", name="grpc")

    monkeypatch.setattr(module, "check_writable", fail)
    check(cli("cuts"), "pip install 'serverlight[grpc]'")


def test_ctrl_c_is_quiet(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends a command with exit code 130 and without a word."""
    import serverlight.apps.commands.cuts as module

    def interrupt(path: str, field: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "check_writable", interrupt)
    outcome = cli("cuts")
    assert (outcome.code, outcome.out, outcome.err) == (130, "", "")
