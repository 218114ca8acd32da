"""Tests of serverlight.evaluation.vision, on the shipped model and a handful of its images."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch
from torch import nn

from serverlight.codec import Codec, CodecConfig, decode
from serverlight.errors import ConfigError, CutNotFound, InputMismatch
from serverlight.evaluation import ImageSet, PairedRow, evaluate_vision, load_images
from serverlight.evaluation import vision as module_under_test
from serverlight.models import LoadedModel, load_model
from serverlight.models.preprocess import Normalize
from serverlight.partition import Partition, partition

FP16 = CodecConfig(profile="fp16")
HARSH = CodecConfig(profile="slicer", sparsity=0.97, distortion=0.3)
FINE = CodecConfig(profile="slicer", sparsity=0.5, num_groups=2, distortion=0.05)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    torch.set_num_threads(1)
    return load_model("demo-vision")


@pytest.fixture(scope="module")
def parts(demo: LoadedModel) -> Partition:
    return partition(demo.module, demo.example_inputs)


@pytest.fixture(scope="module")
def digits() -> ImageSet:
    return load_images("demo-vision").first(24)


@pytest.fixture(scope="module")
def rows(demo: LoadedModel, parts: Partition, digits: ImageSet) -> tuple[PairedRow, ...]:
    settings = [("layer3.0", FP16), ("layer2.1", FINE), ("layer3.0", HARSH), ("layer1.3", FP16)]
    return evaluate_vision(demo, digits, settings, parts=parts)


def test_rows_come_in_the_order_asked(rows: tuple[PairedRow, ...]) -> None:
    """One row for each pair, though cuts are worked through one by one."""
    assert [(row.cut, row.config) for row in rows] == [
        ("layer3.0", FP16),
        ("layer2.1", FINE),
        ("layer3.0", HARSH),
        ("layer1.3", FP16),
    ]
    assert {row.num_samples for row in rows} == {24}


def test_plain_halves_change_nothing(rows: tuple[PairedRow, ...]) -> None:
    """With fp16 features the accuracy is the uncut one, the answers agree, and the ratio is just below 1."""
    for row in (rows[0], rows[3]):
        assert [score.metric for score in row.scores] == ["top-1", "top-5"]
        for score in row.scores:
            assert score.cut == score.uncut
            assert score.difference.value == 0
            assert score.difference.low < 0 < score.difference.high
        assert row.agreement == 1
        assert 0.99 < row.ratio_vs_fp16 < 1
        assert 16 < row.bits_per_element < 16.2


def test_figures_fit_together(rows: tuple[PairedRow, ...]) -> None:
    """Bits, bytes and ratio say the same; the interval holds the difference."""
    for row, elements in zip(rows, (3072, 8192, 3072, 16384), strict=True):
        assert row.bits_per_element == pytest.approx(8 * row.bytes_per_sample / elements)
        assert row.ratio_vs_fp16 == pytest.approx(16 / row.bits_per_element)
        for score in row.scores:
            assert score.difference.value == pytest.approx(score.cut - score.uncut)
            assert score.difference.low <= score.difference.value <= score.difference.high
        top_1, top_5 = row.scores
        assert top_1.cut <= top_5.cut


def test_equals_a_plain_loop(
    demo: LoadedModel, parts: Partition, digits: ImageSet, rows: tuple[PairedRow, ...]
) -> None:
    """Bytes and answers are those of encoding image by image and running the tail by hand."""
    head, tail = parts.split("layer3.0")
    num_bytes, right, near = 0, 0, 0
    with torch.inference_mode():
        for image, label in zip(digits.images, digits.labels, strict=True):
            frame = Codec(HARSH).encode(head(demo.preprocess(image[None]))[0])
            num_bytes += len(frame)
            logits = tail(decode(frame))
            right += int(logits.argmax()) == label
            near += int(label) in logits[0].argsort(descending=True)[:5].tolist()
    assert rows[2].bytes_per_sample == num_bytes / len(digits)
    assert [score.cut for score in rows[2].scores] == [right / len(digits), near / len(digits)]


def test_harsh_settings_cost_accuracy(rows: tuple[PairedRow, ...]) -> None:
    """The measure can tell: a codec that drops nearly everything scores worse and agrees less."""
    assert rows[2].score.cut < rows[2].score.uncut
    assert rows[2].agreement < 1
    assert rows[2].ratio_vs_fp16 > rows[1].ratio_vs_fp16


def test_batches_do_not_change_the_result(
    demo: LoadedModel, parts: Partition, digits: ImageSet, rows: tuple[PairedRow, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A last batch that is not full counts as it should."""
    monkeypatch.setattr(module_under_test, "BATCH", 7)
    again = evaluate_vision(demo, digits, [("layer2.1", FINE)], parts=parts)
    assert again == (rows[1],)


def test_progress_counts_to_the_end(demo: LoadedModel, parts: Partition, digits: ImageSet) -> None:
    """The callback sees a rising count that ends at images times settings."""
    seen: list[tuple[int, int]] = []
    settings = [("layer3.0", FP16), ("layer3.1", FP16)]
    evaluate_vision(demo, digits, settings, parts=parts, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (48, 48)


def test_row_survives_json(rows: tuple[PairedRow, ...]) -> None:
    """A row becomes plain JSON with its settings inside."""
    fields = json.loads(json.dumps(rows[1].to_dict()))
    assert CodecConfig.from_dict(fields["config"]) == FINE
    assert set(fields) == {field.name for field in dataclasses.fields(PairedRow)}
    assert fields["scores"][0]["difference"]["value"] == rows[1].score.difference.value


def test_unknown_cut(demo: LoadedModel, parts: Partition, digits: ImageSet) -> None:
    """The partition's own error, with close names."""
    with pytest.raises(CutNotFound, match=r"layer3\.0"):
        evaluate_vision(demo, digits, [("layer3.00", FP16)], parts=parts)


def test_images_of_another_shape(demo: LoadedModel, parts: Partition, digits: ImageSet) -> None:
    """Colour images do not go into a model for grey ones."""
    colour = ImageSet(images=np.repeat(digits.images, 3, axis=3), labels=digits.labels)
    with pytest.raises(InputMismatch, match="expected uint8 of shape"):
        evaluate_vision(demo, colour, [("layer3.0", FP16)], parts=parts)


def test_folders_that_are_not_the_classes(demo: LoadedModel, parts: Partition, digits: ImageSet) -> None:
    """The order of nine folders says nothing about ten classes, and there is no eleventh."""
    nine = dataclasses.replace(digits, num_classes=9)
    with pytest.raises(ConfigError, match=r"9 folders of images, the model 10 classes.*labels\.json"):
        evaluate_vision(demo, nine, [("layer3.0", FP16)], parts=parts)
    beyond = dataclasses.replace(digits, labels=digits.labels + 5)
    with pytest.raises(ConfigError, match=r"labels: have the class 1\d, but the model knows 10"):
        evaluate_vision(demo, beyond, [("layer3.0", FP16)], parts=parts)


def test_model_without_preprocessing(digits: ImageSet) -> None:
    """Images cannot be fed to a model whose normalisation nobody knows."""
    model = LoadedModel.of("shop:make", nn.Linear(4, 2), torch.zeros(2, 4))
    with pytest.raises(ConfigError, match="no known image preprocessing"):
        evaluate_vision(model, digits, [("input", FP16)])


class TwoOutputs(nn.Module):
    """Gives its pooled feature beside the logits, two tensors wide cuts in between, and an integer that crosses."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.first, self.second, self.names = nn.Conv2d(1, 2, 3), nn.Linear(2, 10), names

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        pooled = self.first(x).mean((2, 3))
        return dict(zip(self.names, (pooled, self.second(pooled)), strict=True))


def of_two_outputs(*names: str) -> LoadedModel:
    normalize = Normalize(image_shape=(32, 32, 1), mean=(0.0,), std=(1.0,))
    return LoadedModel.of_images("shop:make", TwoOutputs(*names), normalize)


def test_logits_are_found_by_name(digits: ImageSet) -> None:
    """Of several outputs the one named logits is the answer."""
    (row,) = evaluate_vision(of_two_outputs("pooled", "logits"), digits, [("first", FP16)])
    assert row.agreement > 0.9


def test_model_that_is_no_classifier(digits: ImageSet) -> None:
    """Several outputs and none named logits: the message lists them."""
    with pytest.raises(ConfigError, match=r"gives boxes, scores and no 'logits'"):
        evaluate_vision(of_two_outputs("boxes", "scores"), digits, [("first", FP16)])


def test_all_tensors_of_a_cut_count(demo: LoadedModel, parts: Partition, digits: ImageSet) -> None:
    """Inside a residual block two tensors cross; both are encoded and counted."""
    cut = next(cut for cut in parts.cuts if len(cut.tensors) == 2)
    (row,) = evaluate_vision(demo, digits.first(4), [(cut.name, FP16)], parts=parts)
    assert row.agreement == 1
    assert row.bytes_per_sample == pytest.approx(2 * cut.elements_per_sample, abs=2 * 40)
