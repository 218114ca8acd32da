"""Every model family that the README names: head then tail is the module, bit for bit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from serverlight.partition import CutPoint, Partition, partition

Built = tuple[nn.Module, Any]


def image(*, size: int = 32) -> Tensor:
    return torch.randn(2, 3, size, size)


def resnet() -> Built:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(layer_type="basic", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2])
    return transformers.ResNetForImageClassification(config), {"pixel_values": image()}


def mobilenet() -> Built:
    transformers = pytest.importorskip("transformers")
    config = transformers.MobileNetV2Config(depth_multiplier=0.25, image_size=32)
    return transformers.MobileNetV2ForImageClassification(config), {"pixel_values": image()}


def vit() -> Built:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32, patch_size=8
    )
    return transformers.ViTForImageClassification(config), {"pixel_values": image()}


def swin() -> Built:
    transformers = pytest.importorskip("transformers")
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=12, depths=[2, 2], num_heads=[2, 3], window_size=4
    )
    return transformers.SwinForImageClassification(config), {"pixel_values": image()}


def convnext() -> Built:
    transformers = pytest.importorskip("transformers")
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    return transformers.ConvNextForImageClassification(config), {"pixel_values": image()}


def bert() -> Built:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[0, 5:] = 0
    return transformers.BertModel(config), {"input_ids": torch.randint(0, 50, (2, 9)), "attention_mask": mask}


def detr() -> Built:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.ResNetConfig(
        layer_type="basic", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone_config=backbone,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        num_queries=5,
    )
    return transformers.DetrForObjectDetection(config), {"pixel_values": image(size=64)}


def yolos() -> Built:
    transformers = pytest.importorskip("transformers")
    config = transformers.YolosConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[32, 32],
        patch_size=8,
        num_detection_tokens=5,
    )
    return transformers.YolosForObjectDetection(config), {"pixel_values": image()}


def rt_detr() -> Built:
    transformers = pytest.importorskip("transformers")
    backbone = transformers.RTDetrResNetConfig(
        layer_type="basic",
        embedding_size=8,
        hidden_sizes=[8, 8, 16, 16],
        depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )
    config = transformers.RTDetrConfig(
        backbone_config=backbone,
        encoder_in_channels=[8, 16, 16],
        encoder_hidden_dim=16,
        encoder_layers=1,
        encoder_ffn_dim=16,
        encoder_attention_heads=2,
        d_model=16,
        decoder_in_channels=[16, 16, 16],
        decoder_ffn_dim=16,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_n_points=2,
        num_queries=5,
        num_denoising=0,
        anchor_image_size=None,
    )
    return transformers.RTDetrForObjectDetection(config), {"pixel_values": image(size=64)}


class Fire(nn.Module):
    """SqueezeNet's block: squeeze, then two expansions side by side."""

    def __init__(self, inputs: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.activation(self.squeeze(x))
        return torch.cat([self.activation(self.expand1x1(x)), self.activation(self.expand3x3(x))], dim=1)


def squeezenet() -> Built:
    features = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(8, 4, 8),
        nn.MaxPool2d(3, stride=2, ceil_mode=True),
        Fire(16, 4, 8),
        nn.Dropout(),
        nn.Conv2d(16, 10, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
    return features, image()


class UNet(nn.Module):
    """Two levels: the skip connections cross every cut between encoder and decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.bottom = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU())
        self.up2 = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.up1 = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.mix2 = nn.Conv2d(32, 16, 3, padding=1)
        self.mix1 = nn.Conv2d(16, 2, 3, padding=1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        skip1 = self.down1(x)
        skip2 = self.down2(self.pool(skip1))
        x = self.up2(self.bottom(self.pool(skip2)))
        x = self.up1(self.mix2(torch.cat([x, skip2], 1)))
        return self.mix1(torch.cat([x, skip1], 1))


def unet() -> Built:
    return UNet(), image()


def sequential() -> Built:
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 4)), torch.randn(2, 6)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Family:
    build: Callable[[], Built]
    named_cut: str
    """A cut that people would ask for, with one feature crossing."""
    in_both: tuple[str, ...] = ()
    """Beginnings of the names of parameters that may lie on both sides: they make constants that both need."""


FAMILIES = {
    "resnet": Family(build=resnet, named_cut="resnet.encoder.stages.0"),
    "mobilenet": Family(build=mobilenet, named_cut="mobilenet_v2.layer.3"),
    "vit": Family(build=vit, named_cut="vit.layers.0"),
    "swin": Family(build=swin, named_cut="swin.encoder.layers.0.blocks.1"),
    "convnext": Family(build=convnext, named_cut="convnext.encoder.stages.0"),
    "bert": Family(build=bert, named_cut="encoder.layer.0"),
    # The decoder starts from constant queries, so its first self-attention does not depend on the image.
    "detr": Family(
        build=detr,
        named_cut="model.backbone.model.encoder.stages.0",
        in_both=("model.query_position_embeddings", "model.decoder.layers.0.self_attn"),
    ),
    "yolos": Family(build=yolos, named_cut="vit.encoder.layer.0"),
    "rt_detr": Family(build=rt_detr, named_cut="model.backbone.model.encoder.stages.1"),
    "squeezenet": Family(build=squeezenet, named_cut="3"),
    "unet": Family(build=unet, named_cut="down1"),
    "sequential": Family(build=sequential, named_cut="2"),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    family: Family
    module: nn.Module
    example: Any
    parts: Partition


@pytest.fixture(scope="module", params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    family = FAMILIES[request.param]
    module, example = family.build()
    return Case(family=family, module=module, example=example, parts=partition(module, example))


def spread(cuts: tuple[CutPoint, ...], *, at_most: int) -> list[CutPoint]:
    """Cuts from the first to the last at even distances."""
    return (
        [cuts[round(i * (len(cuts) - 1) / (at_most - 1))] for i in range(at_most)]
        if len(cuts) > at_most
        else list(cuts)
    )


def call(module: nn.Module, example: Any) -> Any:
    return module(**example) if isinstance(example, dict) else module(example)


def resize(example: Any, batch: int) -> Any:
    return pytree.tree_map(lambda tensor: torch.cat([tensor, tensor.flip(0)])[:batch], example)


def assert_exact(case: Case, cuts: list[CutPoint]) -> None:
    case.module.eval()
    with torch.no_grad():
        expected = {batch: call(case.module, resize(case.example, batch)) for batch in (1, 3)}
        for cut in cuts:
            head, tail = case.parts.split(cut)
            for batch, wanted in expected.items():
                got = tail(*call(head, resize(case.example, batch)))
                assert type(got) is type(wanted), cut.name
                pairs = zip(pytree.tree_leaves(got), pytree.tree_leaves(wanted), strict=True)
                assert all(torch.equal(a, b) for a, b in pairs), (cut.name, batch)


def test_head_then_tail_equals_module(case: Case) -> None:
    """Cut anywhere, at any batch size, the two sides return what the uncut module returns, in its own structure."""
    assert_exact(case, spread(case.parts.cuts, at_most=32))


@pytest.mark.slow
def test_head_then_tail_equals_module_at_every_cut(case: Case) -> None:
    """No cut is left out."""
    assert_exact(case, list(case.parts.cuts))


def test_sides_hold_only_their_own_parameters(case: Case) -> None:
    """Neither side carries weights of the other, both share them with the module, and the cut's counts are right."""
    names = {id(parameter): name for name, parameter in case.module.named_parameters()}
    for cut in spread(case.parts.cuts, at_most=12):
        sides = [{id(p): p.numel() for p in side.parameters()} for side in case.parts.split(cut)]
        assert set(sides[0]) | set(sides[1]) == set(names), cut.name
        both = sorted(names[key] for key in set(sides[0]) & set(sides[1]))
        assert all(name.startswith(case.family.in_both) for name in both), (cut.name, both)
        assert [sum(side.values()) for side in sides] == [cut.head_parameters, cut.tail_parameters], cut.name


def test_cut_names_are_unique_and_familiar(case: Case) -> None:
    """Every cut has a name of its own, and the exit of a block goes by the block's path with one feature crossing."""
    names = [cut.name for cut in case.parts.cuts]
    assert len(set(names)) == len(names)
    assert names[0] == "input"
    assert names[-1] == "output"
    cut = case.parts.cut(case.family.named_cut)
    assert cut.name == case.family.named_cut
    assert cut.is_module_exit
    assert sum(spec.is_feature for spec in cut.tensors) == 1


def test_specs_describe_what_crosses(case: Case) -> None:
    """The head returns exactly the shapes and dtypes that the cut announces."""
    for cut in spread(case.parts.cuts, at_most=10):
        head, _ = case.parts.split(cut)
        with torch.no_grad():
            tensors = call(head, resize(case.example, 3))
        for spec, tensor in zip(cut.tensors, tensors, strict=True):
            assert tuple(tensor.shape) == tuple(3 * spec.batch_factor if n is None else n for n in spec.shape)
            assert str(tensor.dtype) == f"torch.{spec.dtype}"
            assert tensor.numel() == 3 * spec.elements_per_sample


def test_work_is_split_between_the_sides(case: Case) -> None:
    """Going deeper, the head's work only grows and the tail's only shrinks, from all of it to none."""
    cuts = case.parts.cuts
    assert cuts[0].head_macs == cuts[0].head_parameters == cuts[-1].tail_macs == cuts[-1].tail_parameters == 0
    assert cuts[0].tail_macs == cuts[-1].head_macs > 0
    for before, after in itertools.pairwise(cuts):
        assert before.head_macs <= after.head_macs
        assert before.tail_macs >= after.tail_macs


def test_half_precision_is_exact_too() -> None:
    """A bfloat16 model is cut as exactly as a float32 one."""
    torch.manual_seed(0)
    module, example = vit()
    module = module.to(torch.bfloat16).eval()
    example = {name: tensor.to(torch.bfloat16) for name, tensor in example.items()}
    parts = partition(module, example)
    for cut in parts.cuts:
        head, tail = parts.split(cut)
        with torch.no_grad():
            crossing = head(**example)
            assert torch.equal(tail(*crossing).logits, module(**example).logits), cut.name
    assert {spec.dtype for cut in parts.cuts for spec in cut.tensors} == {"bfloat16"}


def test_tail_takes_tensors_in_any_memory_layout(case: Case) -> None:
    """What comes off the wire is contiguous, whatever the layout was in the head; the result is the same to the bit."""
    case.module.eval()
    with torch.no_grad():
        wanted = pytree.tree_leaves(call(case.module, case.example))
        for cut in spread(case.parts.cuts, at_most=20):
            head, tail = case.parts.split(cut)
            crossing = [tensor.clone(memory_format=torch.contiguous_format) for tensor in call(head, case.example)]
            assert all(map(torch.equal, tail.flat(*crossing), wanted)), cut.name


def test_attention_mask_is_a_side_input() -> None:
    """A mask goes raw to both sides, so that the large mask made from it never crosses, and only where it is needed."""
    torch.manual_seed(0)
    module, example = bert()
    by_default, as_feature = partition(module, example), partition(module, example, side_inputs=())
    cut = by_default.cut("encoder.layer.0")
    assert [(spec.name, spec.side_input) for spec in cut.tensors] == [
        ("encoder.layer.0", False),
        ("attention_mask", True),
    ]
    assert [spec.name for spec in by_default.cut("encoder").tensors] == ["encoder"]  # the pooler needs no mask
    assert as_feature.cut("encoder.layer.0").elements_per_sample > cut.elements_per_sample
    head, tail = by_default.split(cut)
    assert torch.equal(head(**example)[1], example["attention_mask"])
    wanted = module.eval()(**example)
    assert torch.equal(tail(*head(**example)).last_hidden_state, wanted.last_hidden_state)
