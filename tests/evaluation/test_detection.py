"""Detectors of transformers, cut: tiny ones of random weights on made-up images."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("pycocotools", reason="needs pycocotools: pip install 'serverlight[detection]'")

from serverlight.apps.cli import main  # noqa: E402
from serverlight.codec import CodecConfig  # noqa: E402
from serverlight.errors import ConfigError, ModelError  # noqa: E402
from serverlight.evaluation.coco import CocoSet, load_coco  # noqa: E402
from serverlight.evaluation.detection import category_of_class, evaluate_detection  # noqa: E402
from serverlight.huggingface import load_image_processor  # noqa: E402
from serverlight.models import LoadedModel, load_model  # noqa: E402
from serverlight.models.images import encode_png  # noqa: E402

LABELS = {0: "square", 1: "disc", 2: "cross"}
FP16, HARSH = CodecConfig(profile="fp16"), CodecConfig(profile="slicer", sparsity=0.98, distortion=0.3)
SIZE = {"height": 64, "width": 64}


def yolos() -> tuple[Any, Any]:
    config = transformers.YolosConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=[64, 64],
        patch_size=8, num_detection_tokens=6, id2label=LABELS,
    )  # fmt: skip
    return transformers.YolosForObjectDetection(config), transformers.YolosImageProcessorPil(size=SIZE)


def detr() -> tuple[Any, Any]:
    backbone = transformers.ResNetConfig(
        layer_type="basic", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_features=["stage2"]
    )
    config = transformers.DetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=backbone, d_model=16, encoder_layers=1,
        decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        num_queries=6, id2label=LABELS,
    )  # fmt: skip
    return transformers.DetrForObjectDetection(config), transformers.DetrImageProcessorPil(size=SIZE)


def rt_detr() -> tuple[Any, Any]:
    backbone = transformers.RTDetrResNetConfig(
        layer_type="basic", embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1],
        out_features=["stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = transformers.RTDetrConfig(
        backbone_config=backbone, encoder_in_channels=[8, 16, 16], encoder_hidden_dim=16, encoder_layers=1,
        encoder_ffn_dim=16, encoder_attention_heads=2, d_model=16, decoder_in_channels=[16, 16, 16], decoder_ffn_dim=16,
        decoder_layers=1, decoder_attention_heads=2, decoder_n_points=2, num_queries=6, num_denoising=0,
        id2label=LABELS,
    )  # fmt: skip
    return transformers.RTDetrForObjectDetection(config), transformers.RTDetrImageProcessorPil(size=SIZE)


DETECTORS = {
    "yolos": (yolos, "vit.encoder.layer.0"),
    "detr": (detr, "model.backbone.model.encoder.stages.0"),
    "rt_detr": (rt_detr, "model.backbone.model.encoder.stages.1"),
}


def save_detector(name: str, folder: pathlib.Path) -> str:
    torch.manual_seed(0)
    model, processor = DETECTORS[name][0]()
    model.eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter), alpha=0.5)  # so that answers depend on the image
    model.save_pretrained(folder / name)
    processor.save_pretrained(folder / name)
    return str(folder / name)


def save_images(folder: pathlib.Path, spec: str) -> pathlib.Path:
    """Six images of unlike shapes; the objects are what the model itself finds in them, but for one that it does not."""
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (40 + 10 * i, 90 - 10 * i, 3), np.uint8) for i in range(6)]
    model, processor = load_model(spec).module, load_image_processor(spec)
    objects = []
    for i, image in enumerate(images):
        (folder / f"{i}.png").write_bytes(encode_png(image))
        inputs = processor(
            images=[image], size=SIZE, do_pad=False, input_data_format="channels_last", return_tensors="pt"
        )
        with torch.inference_mode():
            outputs = model(pixel_values=inputs["pixel_values"])
        [found] = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=[image.shape[:2]])
        for label, (left, top, right, bottom) in zip(found["labels"][:4], found["boxes"][:4].tolist(), strict=True):
            box = [left, top, right - left, bottom - top]
            objects.append({"id": len(objects), "image_id": i, "category_id": 10 + int(label), "bbox": box})
    objects.append({"id": len(objects), "image_id": 0, "category_id": 10, "bbox": [0, 0, 1, 1]})
    document = {
        "images": [{"id": i, "file_name": f"{i}.png"} for i in range(6)],
        "categories": [{"id": 10 + i, "name": name} for i, name in LABELS.items()],
        "annotations": objects,
    }
    (folder / "objects.json").write_text(json.dumps(document))
    return folder / "objects.json"


@pytest.fixture(scope="module", params=DETECTORS)
def detector(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, pathlib.Path, str]:
    """Folder of a model, annotations, and a cut of it."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    spec = save_detector(request.param, folder)
    return spec, save_images(folder, spec), DETECTORS[request.param][1]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[LoadedModel, Any, CocoSet]:
    folder = tmp_path_factory.mktemp("small")
    spec = save_detector("yolos", folder)
    return load_model(spec), load_image_processor(spec), load_coco(save_images(folder, spec), folder)


def test_cut_beside_uncut(detector: tuple[str, pathlib.Path, str]) -> None:
    """Plain halves cost next to nothing and a harsh codec much; intervals hold the differences, figures fit together."""
    spec, annotations, cut = detector
    data = load_coco(annotations, annotations.parent)
    loaded = load_model(spec)
    seen: list[tuple[int, int]] = []
    gentle, harsh = evaluate_detection(
        loaded, load_image_processor(spec), data, [(cut, FP16), (cut, HARSH)],
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1] == (12, 12)
    for row in (gentle, harsh):
        assert [score.metric for score in row.scores] == ["mAP", "AP50", "AP75"]
        assert row.num_samples == 6
        for score in row.scores:
            assert score.difference.value == pytest.approx(score.cut - score.uncut)
            assert score.difference.low <= score.difference.value <= score.difference.high
    assert 0.3 < gentle.score.uncut < 1  # its own boxes are what is to be found, but for one
    assert gentle.score.cut == pytest.approx(gentle.score.uncut, abs=0.1)
    assert harsh.score.cut < gentle.score.cut - 0.1
    assert harsh.bytes_per_sample < gentle.bytes_per_sample / 10
    assert 16 <= gentle.bits_per_element < 17


def test_nothing_lost_is_nothing_changed(small: tuple[LoadedModel, Any, CocoSet]) -> None:
    """At the cut of the output, in halves, answers are those of the whole model but for rounding."""
    model, processor, data = small
    [row] = evaluate_detection(model, processor, data, [("output", FP16)])
    assert row.score.cut == pytest.approx(row.score.uncut, abs=0.05)


def test_categories_by_name_place_or_id() -> None:
    """The three ways in which detectors number what COCO numbers, and what is none of them."""
    assert category_of_class({1: "cat", 0: "dog", 5: "eel"}, {17: "cat", 18: "dog"}) == {1: 17, 0: 18}
    assert category_of_class({0: "a", 1: "b"}, {3: "x", 8: "y"}) == {0: 3, 1: 8}
    assert category_of_class({0: "a", 1: "b", 2: "c"}, {1: "x", 2: "y"}) == {1: 1, 2: 2}
    with pytest.raises(ConfigError, match=r"category 'x', which is none of the model's 3 classes"):
        category_of_class({0: "a", 1: "b", 2: "c"}, {5: "x", 2: "b"})


def test_what_is_no_detector(small: tuple[LoadedModel, Any, CocoSet], tmp_path: pathlib.Path) -> None:
    """A classifier is told by its outputs, a processor by what it cannot do, a folder without one by its file."""
    _, processor, data = small
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    transformers.ResNetForImageClassification(config).save_pretrained(tmp_path)
    classifier = load_model(str(tmp_path))
    with pytest.raises(ConfigError, match=r"gives logits, not logits and pred_boxes"):
        evaluate_detection(classifier, processor, data, [("output", FP16)])
    with pytest.raises(ModelError, match=r"no preprocessor_config\.json; save"):
        load_image_processor(str(tmp_path))
    transformers.ConvNextImageProcessorPil().save_pretrained(tmp_path)
    other = load_image_processor(str(tmp_path))
    with pytest.raises(ModelError, match="cannot read boxes"):
        evaluate_detection(small[0], other, data, [("output", FP16)])


def test_command(
    detector: tuple[str, pathlib.Path, str], capfd: pytest.CaptureFixture[str], tmp_path: pathlib.Path
) -> None:
    """`serverlight eval --coco` prints a table and writes JSON."""
    spec, annotations, cut = detector
    path = tmp_path / "rows.json"
    words = ["--coco", str(annotations), "--images", str(annotations.parent), "--cut", cut, "--sparsity", "0.5"]
    with pytest.raises(SystemExit) as stop:
        main(["eval", spec, *words, "--limit", "3", "--json", str(path)])
    out, err = capfd.readouterr()
    assert stop.value.code == 0, err
    document = json.loads(path.read_text())
    assert document["images"] == document["rows"][0]["num_samples"] == 3
    assert document["rows"][0]["agreement"] is None
    for metric in ("mAP", "AP50", "AP75"):
        assert metric in out
