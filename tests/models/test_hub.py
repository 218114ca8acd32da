"""Tests of serverlight.models.hub, on tiny random models saved to disk."""

from __future__ import annotations

import json
import pathlib

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from serverlight import huggingface
from serverlight.errors import ModelError
from serverlight.models import load_model

TINY_TEXT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


def resnet() -> transformers.PreTrainedModel:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    return transformers.ResNetForImageClassification(config).eval()


def bert() -> transformers.PreTrainedModel:
    return transformers.BertModel(transformers.BertConfig(**TINY_TEXT)).eval()


def edit(path: pathlib.Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder with a tiny ResNet in it."""
    torch.manual_seed(0)
    resnet().save_pretrained(tmp_path)
    return tmp_path


def test_vision_folder(folder: pathlib.Path) -> None:
    """The class named in the config, the weights of the folder, images as example inputs."""
    model = load_model(str(folder))
    assert type(model.module) is transformers.ResNetForImageClassification
    assert model.example_inputs.shape == (2, 3, 224, 224)
    assert model.preprocess is None
    torch.manual_seed(0)
    images = torch.randn(1, 3, 32, 32)
    torch.manual_seed(0)
    assert torch.equal(model.module(images).logits, resnet()(images).logits)


def test_preprocessor_gives_size_and_normalisation(folder: pathlib.Path) -> None:
    """Crop size, mean, deviation and scale come from preprocessor_config.json."""
    settings = {"do_center_crop": True, "crop_size": {"height": 40, "width": 48}, "size": {"shortest_edge": 64}}
    settings |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.25, 0.5, 0.5], "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    model = load_model(str(folder))
    assert model.image_shape == (40, 48, 3)
    assert model.example_inputs.shape == (2, 3, 40, 48)
    tensor = model.preprocess(np.full((1, 40, 48, 3), 255, np.uint8))
    torch.testing.assert_close(tensor[0, :, 0, 0], torch.tensor([2.0, 1.0, 1.0]))


@pytest.mark.parametrize(
    ("processor", "shape"),
    [
        ({"size": {"height": 20, "width": 30}}, (20, 30, 3)),
        ({"size": {"shortest_edge": 25}}, (25, 25, 3)),
        ({"size": 28}, (28, 28, 3)),
        ({"size": 28, "crop_size": 20, "do_center_crop": True}, (20, 20, 3)),
        ({"size": 28, "crop_size": 20, "do_center_crop": False}, (28, 28, 3)),
    ],
)
def test_ways_to_write_a_size(folder: pathlib.Path, processor: dict, shape: tuple[int, int, int]) -> None:
    """Old and new preprocessors write sizes in several ways."""
    moments = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps({**processor, **moments}))
    assert load_model(str(folder)).image_shape == shape


def test_switched_off_steps_of_the_preprocessor(folder: pathlib.Path) -> None:
    """Without rescaling and normalising the pixels pass as they are."""
    settings = {"size": 8, "do_rescale": False, "do_normalize": False, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    assert load_model(str(folder)).preprocess(np.full((1, 8, 8, 3), 200, np.uint8)).unique().tolist() == [200.0]


def test_image_size_of_the_config(tmp_path: pathlib.Path) -> None:
    """Where there is no preprocessor the config's image size and channels count."""
    config = transformers.ViTConfig(image_size=16, patch_size=8, num_channels=1, **{**TINY_TEXT, "vocab_size": None})
    transformers.ViTModel(config).save_pretrained(tmp_path)
    assert load_model(str(tmp_path)).example_inputs.shape == (2, 1, 16, 16)


def test_text_encoder_folder(tmp_path: pathlib.Path) -> None:
    """Token ids within the vocabulary and an attention mask, both of batch 2."""
    bert().save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert {name: tuple(t.shape) for name, t in model.example_inputs.items()} == {
        "input_ids": (2, 16),
        "attention_mask": (2, 16),
    }
    assert model.module(**model.example_inputs).last_hidden_state.shape == (2, 16, 16)


def test_half_precision_is_widened(tmp_path: pathlib.Path) -> None:
    """A CPU computes in float32; the widening is exact, so two loads have one revision."""
    bert().half().save_pretrained(tmp_path)
    model = load_model(str(tmp_path))
    assert {p.dtype for p in model.module.parameters()} == {torch.float32}
    assert model.revision == load_model(str(tmp_path)).revision


def causal() -> transformers.PreTrainedModel:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**TINY_TEXT, num_key_value_heads=2))


def decoder_body() -> transformers.PreTrainedModel:
    return transformers.LlamaModel(transformers.LlamaConfig(**TINY_TEXT, num_key_value_heads=2))


def encoder_decoder() -> transformers.PreTrainedModel:
    config = transformers.T5Config(vocab_size=50, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)
    return transformers.T5ForConditionalGeneration(config)


def audio() -> transformers.PreTrainedModel:
    size = {k: v for k, v in TINY_TEXT.items() if k != "vocab_size"}
    return transformers.ASTForAudioClassification(transformers.ASTConfig(**size, max_length=32, num_mel_bins=32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (causal, "generative language model .*load_head and load_tail"),
        (decoder_body, "generative language model .*load_head and load_tail"),
        (encoder_decoder, "encoder-decoder .*package.module:function"),
        (audio, "takes 'input_values', neither images nor tokens"),
    ],
)
def test_other_kinds_of_model_are_refused(tmp_path: pathlib.Path, make, message: str) -> None:
    """The message names the kind and what to do instead."""
    make().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=message):
        load_model(str(tmp_path))


def test_folder_without_config(tmp_path: pathlib.Path) -> None:
    """A folder of something else."""
    with pytest.raises(ModelError, match=r"no config\.json; give a folder written by save_pretrained"):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": None}, "names no architecture"),
        ({"architectures": ["ShopNet"]}, "needs code outside transformers"),
        ({"model_type": "shop-net"}, "cannot read the config"),
        ({"architectures": ["ResNetBackbone"]}, None),
    ],
)
def test_config_that_does_not_serve(folder: pathlib.Path, changes: dict, message: str | None) -> None:
    """Each gets its message; a class that loads fully from these weights is fine."""
    edit(folder / "config.json", **changes)
    if message is None:
        assert load_model(str(folder)).module is not None
        return
    with pytest.raises(ModelError, match=message):
        load_model(str(folder))


def test_config_that_is_not_json(folder: pathlib.Path) -> None:
    """A damaged config is a ModelError."""
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot read the config"):
        load_model(str(folder))


def test_preprocessor_that_is_not_json(folder: pathlib.Path) -> None:
    """A damaged preprocessor is named."""
    (folder / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"preprocessor_config\.json is not JSON"):
        load_model(str(folder))


def test_missing_weights_are_never_random(tmp_path: pathlib.Path) -> None:
    """A checkpoint that lacks the classifier is refused instead of being filled with noise."""
    config = transformers.BertConfig(**TINY_TEXT)
    transformers.BertModel(config).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", architectures=["BertForSequenceClassification"])
    with pytest.raises(ModelError, match=r"lacks 2 weights of BertForSequenceClassification, 'classifier.bias' first"):
        load_model(str(tmp_path))


def test_folder_without_safetensors(folder: pathlib.Path) -> None:
    """Pickled weights are not read."""
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot load the weights"):
        load_model(str(folder))


def test_damaged_weights(folder: pathlib.Path) -> None:
    """A truncated weights file is a ModelError."""
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelError, match="cannot load the weights"):
        load_model(str(folder))


# -- the hub, without a network ----------------------------------------------------------------------


class Response:
    """As much of an HTTP response as the hub's errors look at."""

    headers: dict = {}
    request = None
    status_code = 404


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (RepositoryNotFoundError("404", response=Response()), "no model 'shop/net' on the hub; check the spelling"),
        (GatedRepoError("403", response=Response()), "is gated; ask for access"),
        (ConnectionError("no route"), "hub cannot be reached.*connect to the network"),
    ],
)
def test_failures_of_the_hub(monkeypatch: pytest.MonkeyPatch, failure: Exception, message: str) -> None:
    """Missing, gated and offline are told apart."""

    def fail(*args: object, **kwargs: object) -> str:
        raise failure

    monkeypatch.setattr(huggingface, "snapshot_download", fail)
    with pytest.raises(ModelError, match=message):
        load_model("shop/net")


@pytest.mark.parametrize("spec", ["./no/such/folder", "bad name", "a/b/c"])
def test_what_can_be_no_hub_id(spec: str) -> None:
    """A path that is not there is not asked for on the network."""
    with pytest.raises(ModelError, match=r"no folder .*no hub id"):
        load_model(spec)


def test_hub_id_is_downloaded_settings_first(monkeypatch: pytest.MonkeyPatch, folder: pathlib.Path) -> None:
    """The config is looked at before any weights are fetched, and only the weights needed are asked for."""
    asked: list[list[str]] = []

    def download(spec: str, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(folder)

    monkeypatch.setattr(huggingface, "snapshot_download", download)
    model = load_model("shop/net")
    assert model.name == "shop/net"
    assert asked[0] == ["config.json", "preprocessor_config.json"]
    assert not [pattern for pattern in asked[1] if pattern.startswith("*")]
