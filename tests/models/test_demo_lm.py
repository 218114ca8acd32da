"""The shipped language model, ``demo-lm``."""

from __future__ import annotations

import json

import pytest
import torch

transformers = pytest.importorskip("transformers")

import serverlight as sl  # noqa: E402
from serverlight.errors import ModelError  # noqa: E402
from serverlight.evaluation.language import bits_per_byte  # noqa: E402
from serverlight.evaluation.tasks.tokens import token_ids  # noqa: E402
from serverlight.generation import LoadedDecoder  # noqa: E402
from serverlight.huggingface import SHIPPED, find_folder  # noqa: E402
from serverlight.models.loader import is_language_model  # noqa: E402

CONTEXT = 1024
MOST_BITS_PER_BYTE = 1.75
"""training/README.md states less; another CPU or torch may round otherwise."""

FOLDER = SHIPPED["demo-lm"]


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    """The shipped sample of a text that was held out, as token ids."""
    return torch.tensor(token_ids(FOLDER, [(FOLDER / "held_out.txt").read_text(encoding="utf-8")])[0])


@pytest.fixture(scope="module")
def uncut() -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def test_knows_english(ids: torch.Tensor, uncut: torch.nn.Module) -> None:
    """The stored weights foretell a book that they never saw about as well as stated."""
    windows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    assert len(windows) >= 2
    assert bits_per_byte(lambda x: uncut(x).logits, windows, tokenizer.decode) < MOST_BITS_PER_BYTE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cut_is_exact(ids: torch.Tensor, uncut: torch.nn.Module, dtype: torch.dtype) -> None:
    """By its name alone both sides load their parts, and together they give the uncut logits, bit for bit."""
    head = sl.load_head("demo-lm", layers=4, dtype=dtype)
    tail = sl.load_tail("demo-lm", layers=4, dtype=dtype)
    whole = uncut if dtype == torch.float32 else type(uncut).from_pretrained(FOLDER, dtype=dtype).eval()
    with torch.inference_mode():
        assert torch.equal(tail(head(ids[None, :50])), whole(ids[None, :50]).logits)


def test_sides_know_each_other() -> None:
    """Both sides name the model by its name, not by a path of their machine, and agree on its revision."""
    head, tail = LoadedDecoder.head("demo-lm", "layers.4"), LoadedDecoder.tail("demo-lm", "layers.4")
    assert head.name == tail.name == "demo-lm"
    assert head.revision == tail.revision
    assert head.part.dtype == torch.bfloat16


def test_tokenizer_gives_the_text_back(ids: torch.Tensor) -> None:
    """Every byte of a text survives, curly quotes included, and ids fit into the vocabulary."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(FOLDER)
    assert tokenizer.decode(ids.tolist()) == (FOLDER / "held_out.txt").read_text(encoding="utf-8")
    assert int(ids.max()) < len(tokenizer) == 4096


def test_folder_is_small_and_plain() -> None:
    """A plain Hugging Face folder of at most 16 MB, stored in bfloat16, that says where it comes from."""
    names = {path.name for path in FOLDER.iterdir()}
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "README.md"} <= names
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 16e6
    config = json.loads((FOLDER / "config.json").read_text())
    assert (config["architectures"], config["dtype"]) == (["LlamaForCausalLM"], "bfloat16")
    assert (config["hidden_size"], config["num_hidden_layers"], config["max_position_embeddings"]) == (256, 8, CONTEXT)


def test_is_no_single_shot_model() -> None:
    """``load_model`` refuses it by name and says what takes it."""
    assert is_language_model("demo-lm")
    assert not is_language_model("demo-vision")
    with pytest.raises(ModelError, match=r"generative language model.*load_head and load_tail"):
        sl.load_model("demo-lm")


def test_installation_without_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the folder is missing, the name is not looked up on the hub."""
    monkeypatch.setitem(SHIPPED, "demo-lm", FOLDER / "nowhere")
    with pytest.raises(ModelError, match="missing from this installation"):
        find_folder("demo-lm", ["config.json"])
