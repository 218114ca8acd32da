"""``serve`` and ``generate`` with language models, over real sockets."""

from __future__ import annotations

import json
import pathlib
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

Cli = Callable[..., Any]
StartServer = Callable[..., tuple[subprocess.Popen[str], dict[str, Any]]]

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, save_byte_llama: Callable[..., str]) -> str:
    """A Llama of random weights, with a tokenizer whose tokens are bytes."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    return save_byte_llama(path, hidden_size=64, intermediate_size=96, max_position_embeddings=256, eos_token_id=None)


def test_a_server_writes_what_one_process_writes(cli: Cli, start_server: StartServer, folder: str) -> None:
    """The text over a socket is that of the loopback, greedy or drawn, and the figures are told."""
    _, ready = start_server("--cut", "layers.1", "--cut", "layers.3", model=folder)
    for cut, how in (("layers.1", ["--greedy"]), ("layers.3", ["--temperature", "1.2", "--seed", "3"])):
        words = ["generate", folder, PROMPT, "--cut", cut, "-n", "24", *how]
        remote, local = cli(*words, "--server", ready["address"]), cli(*words, "--local")
        assert (remote.code, local.code) == (0, 0), remote.err + local.err
        assert remote.out == local.out
        assert "24 tokens after a prompt of 16" in remote.err
    document = json.loads(cli(*words, "--server", ready["address"], "--json", "-").out)
    assert document["text"] == local.out.removesuffix("\n")
    assert 0 < document["uplink_bytes_per_token"] < document["prompt_uplink_bytes"]


def test_token_ids_from_the_command_line(
    cli: Cli, start_server: StartServer, folder: str, tmp_path: pathlib.Path
) -> None:
    """--token-ids, or a plan that says so, writes the uncut text over a server of all cuts, and sends a byte or two a token."""
    _, ready = start_server(model=folder)
    assert ready["cuts"] == [f"layers.{i}" for i in range(5)]
    words = ["generate", folder, PROMPT, "-n", "24", "--greedy", "--cut", "layers.0", "--token-ids"]
    outcome = cli(*words, "--server", ready["address"], "--json", "-")
    assert (outcome.code, outcome.err) == (0, "")
    document = json.loads(outcome.out)
    assert document["plan"]["sends"] == "token-ids"
    assert document["uplink_bytes_per_token"] < 64
    assert document["text"] == cli(*words, "--local").out.removesuffix("\n")
    (tmp_path / "plan.json").write_text(json.dumps(document["plan"]))
    by_plan = ["generate", folder, PROMPT, "-n", "24", "--greedy", "--plan", str(tmp_path / "plan.json")]
    assert cli(*by_plan, "--server", ready["address"]).out == cli(*words, "--local").out


def test_without_a_search_it_is_cut_in_the_middle(cli: Cli, folder: str) -> None:
    """Where no cut is given and none was searched for, a line says where it is cut and how to find a better one."""
    plain, auto = (cli("generate", folder, PROMPT, "-n", "8", "--local", *words) for words in ([], ["--cut", "auto"]))
    assert (plain.code, auto.code) == (0, 0)
    assert plain.out == auto.out == cli("generate", folder, PROMPT, "-n", "8", "--local", "--cut", "layers.2").out
    assert f"no search of {folder} was made here, so it is cut at layers.2" in plain.err
    assert f"`serverlight search {folder}`" in plain.err


def test_a_second_cut_from_the_command_line(cli: Cli, start_server: StartServer, folder: str) -> None:
    """With a second cut on both sides the text is that of the loopback."""
    _, ready = start_server("--cut", "layers.1", "--return-cut", "layers.3", model=folder)
    words = ["generate", folder, PROMPT, "--cut", "layers.1", "--return-cut", "layers.3", "-n", "12", "--greedy"]
    remote, local = cli(*words, "--server", ready["address"]), cli(*words, "--local")
    assert (remote.code, remote.out) == (0, local.out), remote.err


def test_caps_move_the_cut(cli: Cli, start_server: StartServer, folder: str) -> None:
    """A device that may remember little gives layers away on the way, and says so."""
    _, ready = start_server("--cut", "layers.1", "--cut", "layers.3", model=folder)
    words = ["generate", folder, PROMPT, "--cut", "layers.3", "--profile", "fp16", "-n", "24", "--greedy"]
    kept_mib = 30 * 3 * 2 * 2 * 16 * 4 / 2**20  # 30 tokens in 3 layers: keys and values of 2 heads of 16 floats
    moved = cli(*words, "--server", ready["address"], "--device-memory", str(kept_mib))
    assert moved.code == 0
    assert "memory: layers.3 to layers.1" in moved.err
    assert moved.out == cli(*words, "--local").out


def test_stop_text_and_prompts_from_a_pipe(
    cli: Cli, folder: str, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """The text ends before a stop string; ``-`` reads the prompt."""
    words = ["--local", "--cut", "layers.2", "-n", "20", "--greedy"]
    whole = cli("generate", folder, PROMPT, *words).out.removesuffix("\n")
    stop = whole[3:5]
    (tmp_path / "prompt").write_text(PROMPT)
    with (tmp_path / "prompt").open() as prompt:
        monkeypatch.setattr("sys.stdin", prompt)
        ended = cli("generate", folder, "-", *words, "--stop", stop).out.removesuffix("\n")
    assert ended == whole[: whole.index(stop)]


WRONG = {
    "no server": ([], "--server HOST:PORT, or --local"),
    "caps in one process": (["--local", "--device-memory", "1"], "no cut moves in one process"),
    "no such numbers": (["--local", "--dtype", "int3"], "dtype: must be one of auto"),
    "a wrong temperature": (["--local", "--temperature", "-1"], "temperature"),
    "an empty stop": (["--local", "--stop", ""], "stop"),
    "no such cut": (["--local", "--cut", "layers.9"], "layers: must be 0 to 4"),
    "too long": (["--local", "-n", "1000"], "context"),
    "token ids elsewhere": (["--local", "--token-ids"], "token_ids: go to a server that runs all layers"),
}


@pytest.mark.parametrize(("words", "message"), WRONG.values(), ids=WRONG)
def test_wrong_options(cli: Cli, folder: str, words: list[str], message: str) -> None:
    """What cannot be is refused in one line that names it."""
    outcome = cli("generate", folder, PROMPT, "--cut", "layers.2", *words)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_second_cuts_are_for_language_models(cli: Cli) -> None:
    """A vision model is served as it was; what it cannot have is refused by name."""
    outcome = cli("serve", "demo-vision", "--cut", "layer3.0", "--return-cut", "layers.2")
    assert outcome.code == 2
    assert "return_cut: is for language models" in outcome.err


def test_stories_over_processes(cli: Cli, start_server: StartServer, shared_data: pathlib.Path) -> None:
    """A trained Llama with halves across the cut writes 200 tokens as the uncut model does."""
    path = shared_data / "lm" / "stories260K_llama"
    if not path.is_dir():
        pytest.skip("needs lm/stories260K_llama of the shared data")
    model = transformers.AutoModelForCausalLM.from_pretrained(path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    expected = model.generate(ids, do_sample=False, max_new_tokens=200)[0, ids.shape[1] :]
    _, ready = start_server("--cut", "layers.2", model=str(path))
    words = ["generate", str(path), PROMPT, "--cut", "layers.2", "--profile", "fp16", "-n", "200", "--greedy"]
    document = json.loads(cli(*words, "--server", ready["address"], "--json", "-").out)
    assert document["token_ids"] == expected.tolist()
