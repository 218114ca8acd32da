"""What a part will take, known before it is loaded."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch

pytest.importorskip("transformers")

from serverlight.errors import ModelError
from serverlight.partition.stored import stored_bytes
from serverlight.partition.weights import load_part, load_tail


@pytest.fixture(scope="module", params=["tied", "untied", "sharded"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny Llama of random weights in bfloat16, in one file or in several."""
    import transformers

    path: pathlib.Path = tmp_path_factory.mktemp("models") / str(request.param)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=request.param == "tied", dtype="bfloat16",
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(path, max_shard_size="20KB" if request.param == "sharded" else "5GB")
    assert len(list(path.glob("*.safetensors"))) > 1 or request.param != "sharded"
    return str(path)


@pytest.mark.parametrize("dtype", [None, torch.float32])
@pytest.mark.parametrize("layers", [0, 3])
def test_bytes_of_a_tail(folder: str, layers: int, dtype: torch.dtype | None) -> None:
    """The figure is what the loaded weights take; where embeddings are not tied it counts them, though a tail has none."""
    tail = load_tail(folder, layers=layers, dtype=dtype)
    loaded = sum({weight.data_ptr(): weight.nbytes for weight in tail.parameters()}.values())
    embeddings = 96 * 32 * (2 if dtype is None else 4)
    tied = tail.model.config.tie_word_embeddings
    assert stored_bytes(folder, layers, finishes=True, dtype=dtype) == loaded + (0 if tied else embeddings)


def test_bytes_of_a_middle(folder: str) -> None:
    """A part between two cuts is counted without the ends of the model, but for the embeddings, which may run before it."""
    part = load_part(folder, 1, 3)
    loaded = sum(weight.nbytes for weight in part.parameters())
    assert stored_bytes(folder, 1, 3, finishes=False) == loaded + 96 * 32 * 2


def test_broken_file(tmp_path: pathlib.Path, folder: str) -> None:
    """A file that is no safetensors file is an error that names it."""
    (tmp_path / "config.json").write_text((pathlib.Path(folder) / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(json.dumps({}).encode())
    with pytest.raises(ModelError, match=r"model\.safetensors"):
        stored_bytes(str(tmp_path), 0, finishes=True)
