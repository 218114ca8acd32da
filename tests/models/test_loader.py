"""Tests of serverlight.models.loader, .loaded and .importing."""

from __future__ import annotations

import importlib
import pathlib
import sys

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from serverlight.errors import MissingDependency, ModelError
from serverlight.models import LoadedModel, load_model, weights_digest
from serverlight.models.cifar_resnet import CifarResNet


@pytest.fixture
def user_module(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    """Writes an importable module and gives its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(body: str, name: str = "shop_models") -> str:
        (tmp_path / f"{name}.py").write_text(f"import torch\nfrom torch import nn\n{body}\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
        importlib.invalidate_caches()
        return name

    return write


# -- state dicts -------------------------------------------------------------------------------------


def test_state_dict_file(tmp_path: pathlib.Path) -> None:
    """A CIFAR ResNet's state dict is recognised, loaded and named by its path."""
    network = CifarResNet(depths=(1, 1, 1)).eval()
    path = tmp_path / "net.safetensors"
    save_file(network.state_dict(), path)
    model = load_model(str(path))
    assert (model.name, model.revision) == (str(path), weights_digest(network))
    assert model.example_inputs.shape == (2, 3, 32, 32)
    assert torch.equal(model.module(model.example_inputs), network(model.example_inputs))


def test_state_dict_of_unusual_channels_has_no_preprocessing(tmp_path: pathlib.Path) -> None:
    """Without three channels there is no telling how the images were normalised."""
    save_file(CifarResNet(depths=(1, 1, 1), in_channels=2).state_dict(), tmp_path / "net.safetensors")
    model = load_model(str(tmp_path / "net.safetensors"))
    assert model.preprocess is None
    assert model.example_inputs.shape == (2, 2, 32, 32)


@pytest.mark.parametrize("content", [b"", b"junk" * 100, b"\xff" * 16])
def test_damaged_state_dict(tmp_path: pathlib.Path, content: bytes) -> None:
    """A damaged file is a ModelError that says so."""
    (tmp_path / "net.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match=r"cannot be read.*again"):
        load_model(str(tmp_path / "net.safetensors"))


def test_unknown_state_dict(tmp_path: pathlib.Path) -> None:
    """Weights of an unknown network: the message says how to bring one's own."""
    save_file({"w": torch.zeros(2)}, tmp_path / "net.safetensors")
    with pytest.raises(ModelError, match=r"no network known here.*package.module:function"):
        load_model(str(tmp_path / "net.safetensors"))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("missing.safetensors", "no file 'missing.safetensors'; check the path"),
        ("", "name is empty"),
        ("demo-visoin", "use 'demo-vision' or 'demo-lm'"),
    ],
)
def test_names_that_lead_nowhere(spec: str, message: str) -> None:
    """Each gets one clear error, without asking any network."""
    with pytest.raises(ModelError, match=message):
        load_model(spec)


def test_other_files_are_refused(tmp_path: pathlib.Path) -> None:
    """Pickled checkpoints in particular are never opened."""
    path = tmp_path / "net.pth"
    path.write_bytes(b"\x80\x04.")
    with pytest.raises(ModelError, match=r"not a \.safetensors file.*save_file"):
        load_model(str(path))


# -- functions of the user's own ---------------------------------------------------------------------


def test_function_gives_module_and_inputs(user_module) -> None:
    """The module comes back in evaluation mode, with its digest, under the name asked for."""
    name = user_module("def make():\n    return nn.Sequential(nn.Linear(4, 2), nn.Dropout()), torch.zeros(2, 4)")
    model = load_model(f"{name}:make")
    assert model.name == f"{name}:make"
    assert not model.module.training
    assert len(model.revision) == 16
    assert model.preprocess is None


def test_function_gives_loaded_model(user_module) -> None:
    """A LoadedModel is taken as it is, under the name asked for."""
    name = user_module(
        "from serverlight.models import LoadedModel\n"
        "def make():\n    return LoadedModel.of('anything', nn.Linear(4, 2), {'input': torch.zeros(2, 4)})"
    )
    model = load_model(f"{name}:make")
    assert model.name == f"{name}:make"
    assert set(model.example_inputs) == {"input"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("def make(): return 5", "returned int; return"),
        ("def make(): return nn.Linear(1, 1)", "returned Linear; return"),
        ("def make(): return torch.zeros(2), nn.Linear(1, 1)", "returned tuple; return"),
        ("def make(): return nn.Linear(1, 1), [1]", "example inputs must be a Tensor or tuple or dict, got list"),
        ("def make(depth): return 5", "needs arguments .*depth.* without any"),
        ("make = 5", "is int, not a function"),
        ("make = nn.Linear(1, 1)", "is Linear, not a function"),
        ("", "has no 'make'; check the part after the colon"),
    ],
)
def test_function_that_does_not_serve(user_module, body: str, message: str) -> None:
    """Each way to get it wrong has its own message."""
    with pytest.raises(ModelError, match=message):
        load_model(f"{user_module(body)}:make")


@pytest.mark.parametrize("spec", ["no_such_module_here:make", "shop_models.inner:make", "no_such.module:make"])
def test_module_that_is_not_there(user_module, spec: str) -> None:
    """The message says that the module is missing, not the function."""
    user_module("")
    with pytest.raises(ModelError, match=r"no module '.*PYTHONPATH"):
        load_model(spec)


def test_import_error_of_the_users_own_is_not_hidden(user_module) -> None:
    """A package that the user's module needs and lacks is named as such, not mistaken for the module."""
    name = user_module("import a_package_nobody_has")
    with pytest.raises(ModuleNotFoundError, match="a_package_nobody_has"):
        load_model(f"{name}:make")


def test_error_of_the_users_own_is_not_hidden(user_module) -> None:
    """What the function raises comes out as it is."""
    name = user_module("def make(): raise KeyError('mine')")
    with pytest.raises(KeyError, match="mine"):
        load_model(f"{name}:make")


# -- the value itself --------------------------------------------------------------------------------


def test_training_mode_is_refused() -> None:
    """Dropout at inference would be a quiet disaster."""
    with pytest.raises(ModelError, match="training mode"):
        LoadedModel(name="n", revision="r", module=nn.Linear(1, 1).train(), example_inputs=torch.zeros(2, 1))


def test_preprocess_and_shape_belong_together() -> None:
    """One without the other is of no use."""
    module = nn.Linear(1, 1).eval()
    with pytest.raises(ModelError, match="belong together"):
        LoadedModel(name="n", revision="r", module=module, example_inputs=torch.zeros(2, 1), image_shape=(1, 1, 1))


def test_missing_transformers_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    """Without transformers a folder cannot be loaded, and the message says what to install."""
    monkeypatch.setitem(sys.modules, "transformers", None)
    for module in ("serverlight.models.hub", "serverlight.huggingface"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(MissingDependency, match=r"transformers.*serverlight\[hf\]"):
        load_model(str(tmp_path))
