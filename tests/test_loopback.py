from __future__ import annotations

import pytest
import torch
from torch import nn

from serverlight.codec import CodecConfig
from serverlight.errors import CutNotFound, NonFiniteTensor, PlanMismatch
from serverlight.loopback import Loopback
from serverlight.models import LoadedModel
from serverlight.partition import Partition, partition
from serverlight.plan import Plan

LOSSLESS = CodecConfig(profile="slicer", sparsity=0.0, num_groups=256, distortion=1e-9)


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    return LoadedModel.of("mlp", module, torch.zeros(2, 6))


@pytest.fixture(scope="module")
def parts(model: LoadedModel) -> Partition:
    return partition(model.module, model.example_inputs)


def plan_for(model: LoadedModel, cut: str, codec: CodecConfig) -> Plan:
    return Plan(model=model.name, revision=model.revision, cut=cut, codec=codec)


def test_near_lossless_codec_gives_the_models_answer(model: LoadedModel, parts: Partition) -> None:
    """With nothing filtered and codes of 12 bits, the loopback is the uncut model within the codes' width."""
    x = torch.rand(5, 6)
    outputs = Loopback(plan_for(model, "1", LOSSLESS), parts).infer(x)
    with torch.inference_mode():
        expected = model.module(x)
    # Features are below 4, a group's range is below that, and a code's error half of a 4096th of it; 16 of them
    # meet weights below 0.25 each.
    assert (outputs - expected).abs().max() <= 4 / 8192 * 16 * 0.25


def test_the_codec_is_really_in_the_loop(model: LoadedModel, parts: Partition) -> None:
    """A brutal filter changes the answer: the features have passed through frames."""
    x = torch.rand(5, 6)
    brutal = plan_for(model, "1", CodecConfig(profile="slicer", sparsity=0.95))
    assert not torch.equal(Loopback(brutal, parts).infer(x), Loopback(plan_for(model, "1", LOSSLESS), parts).infer(x))


def test_frames_are_counted(model: LoadedModel, parts: Partition) -> None:
    """The result tells the bytes and elements of its frames, so that bits per element follow."""
    result = Loopback(plan_for(model, "1", CodecConfig(profile="fp16")), parts).infer_detailed(torch.rand(5, 6))
    assert result.frame_elements == 5 * 16
    assert 2 * 5 * 16 < result.frame_bytes <= 2 * 5 * 16 + 24 + 4
    assert result.outputs.shape == (5, 3)


def test_model_and_partition_are_the_same(model: LoadedModel, parts: Partition) -> None:
    """A loopback may be given the model or its partition."""
    x, plan = torch.rand(2, 6), plan_for(model, "1", LOSSLESS)
    assert torch.equal(Loopback(plan, model).infer(x), Loopback(plan, parts).infer(x))


def test_rejects_unknown_cut(model: LoadedModel, parts: Partition) -> None:
    """A cut that the model does not have is refused."""
    with pytest.raises(CutNotFound):
        Loopback(plan_for(model, "7", LOSSLESS), parts)


@pytest.mark.parametrize("field", ["model", "revision"])
def test_rejects_plan_of_another_model(model: LoadedModel, field: str) -> None:
    """A plan for other weights is refused by the name of the field."""
    fields = {"model": model.name, "revision": model.revision, "cut": "1", field: "other"}
    with pytest.raises(PlanMismatch) as caught:
        Loopback(Plan(**fields), model)
    assert caught.value.field == field


def test_rejects_nonfinite_feature(model: LoadedModel, parts: Partition) -> None:
    """NaN and infinity never pass as something else."""
    with pytest.raises(NonFiniteTensor):
        Loopback(plan_for(model, "1", LOSSLESS), parts).infer(torch.full((1, 6), float("nan")))
