"""Tests of serverlight.partition.weights: each side loads its own weights, all of them and no others."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess
import sys
import textwrap
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")

from safetensors.torch import load_file, save_file  # noqa: E402

import serverlight as sl  # noqa: E402
from decoder_models import ARCHITECTURES, LAYERS, VOCABULARY, build  # noqa: E402
from serverlight import huggingface  # noqa: E402
from serverlight.errors import ConfigError, ModelError  # noqa: E402

TIED = {
    "Qwen3",
    "Gemma2",
    "Gemma3",
    "GPT-2",
    "OPT",
    "OPT-projected",
    "Falcon-rotary",
    "Falcon-ALiBi",
    "Bloom",
    "SmolLM3",
}
PROLOGUE = {"wpe", "embed_positions", "project_in", "word_embeddings_layernorm"}
"""Small modules before the layers that a tail runs too, for their shapes."""


def names(part: Any) -> set[str]:
    return {name for name, _ in part.named_parameters(remove_duplicate=False)}


def weights_file(folder: pathlib.Path, **changes: Any) -> None:
    """Rewrites the weights of a folder: takes out what is None, puts in what is not."""
    state = load_file(folder / "model.safetensors") | changes
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def llama(tmp_path: pathlib.Path) -> pathlib.Path:
    build("Llama").save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_side_has_only_its_own_parameters(tmp_path: pathlib.Path, name: str) -> None:
    """Together they have all; in common they have tied embeddings and the small modules before the layers."""
    build(name).save_pretrained(tmp_path)
    head, tail = names(sl.load_head(str(tmp_path), layers=2)), names(sl.load_tail(str(tmp_path), layers=2))
    whole = {f"model.{name}" for name, _ in build(name).named_parameters(remove_duplicate=False)}
    assert head | tail == whole
    tied = {"embed_tokens", "wte", "word_embeddings", "embed_in"} if name in TIED else set()
    assert {parameter.split(".")[-2] for parameter in head & tail} <= tied | PROLOGUE
    layer = re.compile(r"\.(?:layers|h)\.(\d+)\.")
    assert {int(found[1]) for found in map(layer.search, head) if found} == {0, 1}
    assert {int(found[1]) for found in map(layer.search, tail) if found} == set(range(2, LAYERS))


def test_middle_has_only_layers(llama: pathlib.Path) -> None:
    """A middle part has neither embeddings nor an end."""
    assert all(re.match(r"model\.model\.layers\.[23]\.", name) for name in names(sl.load_part(str(llama), 2, 4)))


@pytest.mark.parametrize(
    ("key", "side"),
    [
        ("model.embed_tokens.weight", "head"),
        ("model.layers.1.mlp.up_proj.weight", "head"),
        ("model.layers.2.mlp.up_proj.weight", "tail"),
        ("model.norm.weight", "tail"),
        ("lm_head.weight", "tail"),
    ],
)
def test_missing_weight_is_an_error_for_its_side_only(llama: pathlib.Path, key: str, side: str) -> None:
    """A weight that would be random is named; the other side does not miss it."""
    weights_file(llama, **{key: None})
    sides = {"head": sl.load_head, "tail": sl.load_tail}
    with pytest.raises(ModelError, match=f"lacks 1 weights of LlamaForCausalLM, '{key}' first, which would be random"):
        sides.pop(side)(str(llama), layers=2)
    sides.popitem()[1](str(llama), layers=2)


def test_renamed_weights_are_found(tmp_path: pathlib.Path) -> None:
    """GPT-NeoX files name the language-model head embed_out: it is loaded, and not left random in silence."""
    build("GPT-NeoX").save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    head_name = next(name for name in state if name.startswith(("embed_out", "lm_head")))
    weights_file(tmp_path, **{head_name: None, "embed_out.weight": state[head_name]})
    tail = sl.load_tail(str(tmp_path), layers=3)
    assert torch.equal(tail.model.get_output_embeddings().weight, build("GPT-NeoX").get_output_embeddings().weight)


def test_dtype(llama: pathlib.Path) -> None:
    """Weights stay as stored, or are converted where asked."""
    assert sl.load_head(str(llama), layers=1).dtype == torch.float32
    head = sl.load_head(str(llama), layers=1, dtype=torch.bfloat16)
    assert head.dtype == torch.bfloat16
    assert head(torch.tensor([[5]])).dtype == torch.bfloat16


# -- shards ----------------------------------------------------------------------------------------


@pytest.fixture
def sharded(tmp_path: pathlib.Path) -> pathlib.Path:
    """One file for the embeddings, one for each layer, and one for the end."""
    folder = tmp_path / "sharded"
    build("Llama").save_pretrained(folder)
    shards: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        place = re.search(r"layers\.(\d+)", key)
        number = int(place[1]) + 1 if place else 0 if "embed" in key else LAYERS + 1
        shards.setdefault(f"model-{number:05}-of-00008.safetensors", {})[key] = tensor
    for file, tensors in shards.items():
        save_file(tensors, folder / file, metadata={"format": "pt"})
    (folder / "model.safetensors").unlink()
    keys = {key: file for file, tensors in shards.items() for key in tensors}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": keys}))
    return folder


def test_only_own_shards_need_to_be_there(sharded: pathlib.Path) -> None:
    """A device needs no file of the server's side."""
    for number in range(3, 8):
        (sharded / f"model-{number:05}-of-00008.safetensors").unlink()
    head = sl.load_head(str(sharded), layers=2)
    assert torch.equal(head(torch.tensor([[7]])), build("Llama")(torch.tensor([[7]]), output_hidden_states=True)[2][2])
    with pytest.raises(ModelError, match="cannot load the weights"):
        sl.load_head(str(sharded), layers=3)


def test_only_own_shards_are_downloaded(
    sharded: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a hub id the settings come first, then the files of the part's own layers."""
    asked: list[set[str]] = []
    cache = tmp_path / "cache"
    cache.mkdir()

    def download(spec: str, allow_patterns: list[str]) -> str:
        assert spec == "shop/llama"
        asked.append(set(allow_patterns))
        for pattern in allow_patterns:
            for file in sharded.glob(pattern):
                shutil.copy(file, cache)
        return str(cache)

    monkeypatch.setattr(huggingface, "snapshot_download", download)
    tail = sl.load_tail("shop/llama", layers=4)
    assert tail(torch.zeros(1, 1, 32)).shape == (1, 1, VOCABULARY)
    assert not any(pattern.endswith(".safetensors") for pattern in asked[0])
    files = {pattern for pattern in asked[1] if pattern.endswith(".safetensors")}
    assert files == {f"model-{number:05}-of-00008.safetensors" for number in (0, 5, 6, 7)}


def test_index_cannot_name_files_elsewhere(sharded: pathlib.Path) -> None:
    """A hostile index does not make us read outside of the folder."""
    index = sharded / "model.safetensors.index.json"
    index.write_text(index.read_text().replace("model-00001", "../model-00001"))
    with pytest.raises(ModelError, match=r"names a file elsewhere, '\.\./model-00001"):
        sl.load_head(str(sharded), layers=2)


# -- memory ----------------------------------------------------------------------------------------

CHILD = """
    import pathlib, sys, torch
    torch.set_num_threads(1)
    import serverlight as sl

    def status(field):  # KiB
        lines = pathlib.Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(field)).split()[1])

    tiny, large = sys.argv[1:]
    sl.load_head(tiny, layers=2)(torch.tensor([[1]]))  # libraries, self-check
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before, anonymous = status("VmRSS"), status("RssAnon")
    head = sl.load_head(large, layers=2)
    head(torch.arange(64)[None])
    own = sum(parameter.nbytes for parameter in head.parameters()) // 1024
    print(own, status("VmHWM") - before, status("RssAnon") - anonymous)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_of_the_device(llama: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A process that loads 2 of 24 layers never holds more than these weights, and they stay mapped to the file."""
    config = transformers.LlamaConfig(
        vocab_size=2048, hidden_size=512, intermediate_size=1536, num_hidden_layers=24, num_attention_heads=8
    )
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(config)
    model.to_empty(device="cpu").to(torch.bfloat16)
    for parameter in model.parameters():
        parameter.data.zero_()
    model.save_pretrained(tmp_path / "large")
    whole = sum(parameter.nbytes for parameter in model.parameters()) // 1024
    command = [sys.executable, "-c", textwrap.dedent(CHILD), str(llama), str(tmp_path / "large")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    own, peak, anonymous = map(int, done.stdout.split())
    slack = 10 * 1024  # the modules themselves, the first forward
    assert own < whole / 8
    assert peak < own + slack < whole / 4
    assert anonymous < slack


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [-1, LAYERS + 1])
def test_layers_out_of_range(llama: pathlib.Path, layers: int) -> None:
    """The message says how many there are."""
    for load in (sl.load_head, sl.load_tail):
        with pytest.raises(ConfigError, match=rf"layers: must be 0 to 6, as many as the model has; got {layers}"):
            load(str(llama), layers=layers)
    with pytest.raises(ConfigError, match="layers: 4 to 2 runs backwards"):
        sl.load_part(str(llama), 4, 2)


def edit_config(folder: pathlib.Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("architectures", "message"),
    [
        (["OurOwnForCausalLM"], "needs code outside transformers .OurOwnForCausalLM., which is never run"),
        (["LlamaModel"], r"is no causal language model \(LlamaModel\); load_model takes"),
        (["LlamaForSequenceClassification"], "is no causal language model"),
    ],
)
def test_other_classes_are_refused(llama: pathlib.Path, architectures: list[str], message: str) -> None:
    """By name, before any weights are read."""
    edit_config(llama, architectures=architectures)
    (llama / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=message):
        sl.load_head(str(llama), layers=1)


def test_folder_without_generation_settings(llama: pathlib.Path) -> None:
    """Parts need config and weights only."""
    (llama / "generation_config.json").unlink()
    sl.load_head(str(llama), layers=1)


def test_config_without_architecture(llama: pathlib.Path) -> None:
    """The kind of model says enough."""
    edit_config(llama, architectures=None)
    assert "LlamaForCausalLM" in repr(sl.load_head(str(llama), layers=1))


@pytest.mark.parametrize("spec", ["./no/such/folder", "bad name"])
def test_no_such_model(spec: str) -> None:
    """A folder that is not there is not looked for on the network."""
    with pytest.raises(ModelError, match="no folder"):
        sl.load_head(spec, layers=1)


def test_folder_without_weights(llama: pathlib.Path) -> None:
    """The message says that it is the weights that are not there."""
    (llama / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="cannot load the weights"):
        sl.load_tail(str(llama), layers=1)
