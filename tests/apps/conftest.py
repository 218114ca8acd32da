"""The command line, in this process and in processes of its own."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch

import serverlight as sl
from serverlight import models
from serverlight.apps.cli import main
from serverlight.models import load_model
from serverlight.partition import partition

TESTS = str(pathlib.Path(__file__).parents[1])
if TESTS not in sys.path:  # makes tests/chat_model.py importable under its own name
    sys.path.append(TESTS)

# The package's own attribute of this name is the function.
partitioning = importlib.import_module("serverlight.partition")

READY_S = 120
"""The machine may be busy."""


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str


@functools.cache
def traced(spec: str) -> tuple[sl.LoadedModel, sl.Partition]:
    loaded = load_model(spec)
    return loaded, partition(loaded.module, loaded.example_inputs)


@pytest.fixture
def cli(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> Callable[..., Outcome]:
    """Runs a command in this process, where torch is loaded and the shipped model has been traced already; what commands keep
    between runs is the test's own.
    """
    monkeypatch.setenv("SERVERLIGHT_CACHE", str(tmp_path / "cache"))
    shipped = functools.partial(traced, "demo-vision")
    assert callable(sl.load_model)  # the package remembers what it finds at first: that must not be the stand-in
    monkeypatch.setattr(models, "load_model", lambda spec: shipped()[0] if spec == "demo-vision" else load_model(spec))
    monkeypatch.setattr(
        partitioning,
        "partition",
        lambda m, x, **more: shipped()[1] if m is shipped()[0].module else partition(m, x, **more),
    )

    def run(*words: str) -> Outcome:
        capfd.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(words)
        return Outcome(int(stop.value.code or 0), *capfd.readouterr())

    return run


def spawn(*words: str) -> subprocess.Popen[str]:
    """Starts a command in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "serverlight", *words],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )


Spawned = tuple[subprocess.Popen[str], dict[str, Any]]


def spawn_server(*words: str, model: str = "demo-vision") -> Spawned:
    process = spawn("serve", model, *words, "--port", "0", "--json", "-", "--until-eof")
    assert process.stdout
    assert process.stderr
    line = process.stdout.readline()
    assert line, process.stderr.read()
    return process, json.loads(line)


@pytest.fixture
def start_server() -> Iterator[Callable[..., Spawned]]:
    """Starts ``serve`` on a free port and returns when it is ready, with what it then says."""
    with contextlib.ExitStack() as stack:

        def start(*words: str, model: str = "demo-vision") -> Spawned:
            process, ready = spawn_server(*words, model=model)
            stack.enter_context(process)
            stack.callback(process.kill)
            return process, ready

        yield start


@pytest.fixture(scope="session")
def server() -> Iterator[dict[str, Any]]:
    """A server process with the cut layer3.0; what it said when it was ready."""
    process, ready = spawn_server("--cut", "layer3.0")
    with process:
        yield ready
        _, err = process.communicate(timeout=READY_S)  # ends its standard input, and with it the server
    assert (process.returncode, err.count("\n")) == (0, 1), err


@pytest.fixture
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts any command in a process of its own."""
    return spawn


def byte_llama(path: pathlib.Path, **settings: Any) -> str:
    """Saves a Llama of random weights, with a tokenizer whose tokens are bytes; returns the folder."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    raw = tokenizers.Tokenizer(tokenizers.models.BPE({symbol: i for i, symbol in enumerate(alphabet)}, []))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = tokenizers.decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(path)
    config = transformers.LlamaConfig(
        vocab_size=len(alphabet), num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, **settings
    )
    with torch.random.fork_rng():
        torch.manual_seed(3)
        transformers.LlamaForCausalLM(config).save_pretrained(path)
    return str(path)


@pytest.fixture(scope="session")
def save_byte_llama() -> Callable[..., str]:
    return byte_llama


# -- replicas ---------------------------------------------------------------------------------------


@dataclass
class Replicas:
    """Servers under Ray Serve, and their directory."""

    process: subprocess.Popen[str]
    address: str

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(self.address.removeprefix("ray+") + path, timeout=10) as answer:
            return json.load(answer)

    def replicas(self) -> dict[str, int]:
        """Addresses and process ids."""
        return {report["address"]: report["pid"] for report in self.ask("/replicas")["replicas"]}

    def until(self, condition: Callable[[dict[str, int]], bool]) -> dict[str, int]:
        give_up_s = time.monotonic() + READY_S
        while not condition(found := self.replicas()):
            assert time.monotonic() < give_up_s, found
            time.sleep(0.2)
        return found


@contextlib.contextmanager
def replicas(*words: str, folder: pathlib.Path | None = None) -> Iterator[Replicas]:
    """``serve --ray`` in a process of its own, started in ``folder``; in the end it must stop in good order."""
    process = subprocess.Popen(
        [sys.executable, "-m", "serverlight", "serve", *words, "--ray", "--port", "0", "--json", "-", "--until-eof"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
    )
    with process:
        try:
            assert process.stdout is not None
            yield Replicas(process, json.loads(process.stdout.readline())["address"])
            if process.returncode is None:
                process.communicate(timeout=READY_S)  # ends its standard input, and with it all of Ray
            assert process.returncode == 0
        finally:
            process.kill()


@pytest.fixture(scope="session")
def start_replicas() -> Callable[..., contextlib.AbstractContextManager[Replicas]]:
    return replicas
