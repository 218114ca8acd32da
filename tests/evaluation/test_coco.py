"""COCO's annotation files, and what pycocotools makes of detections."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import pytest

pytest.importorskip("pycocotools", reason="needs pycocotools: pip install 'serverlight[detection]'")

from serverlight.errors import ConfigError
from serverlight.evaluation.average_precision import average_precision
from serverlight.evaluation.coco import CocoSet, Detections, load_coco, match

NUM_IMAGES, CATEGORIES = 9, {3: "cat", 7: "dog"}


def random_boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.concatenate([rng.uniform(0, 60, (count, 2)), rng.uniform(10, 40, (count, 2))], 1)


@pytest.fixture(scope="module")
def data() -> CocoSet:
    """Objects of two categories, crowds among them; the first and the last image show none."""
    rng = np.random.default_rng(0)
    objects = [
        {"image": image, "category_id": int(rng.choice([3, 7])), "bbox": box.tolist(), "area": float(box[2] * box[3]),
         "iscrowd": int(rng.random() < 0.1)}
        for image in range(1, NUM_IMAGES - 1)
        for box in random_boxes(rng, 6)
    ]  # fmt: skip
    return CocoSet(files=(pathlib.Path("x.png"),) * NUM_IMAGES, objects=tuple(objects), categories=CATEGORIES)


def detected(data: CocoSet, seed: int) -> list[Detections]:
    """Objects that are nearly found, others that are missed, and boxes around nothing."""
    rng = np.random.default_rng(seed)
    found = []
    for image in range(NUM_IMAGES):
        boxes = np.array([one["bbox"] for one in data.objects if one["image"] == image]).reshape(-1, 4)
        numbers = np.array([one["category_id"] for one in data.objects if one["image"] == image], np.int64)
        kept = rng.random(len(boxes)) < 0.8
        near = boxes[kept] + rng.normal(0, 2.5, (int(kept.sum()), 4))
        stray = random_boxes(rng, 3)
        found.append(
            Detections(
                category_ids=np.concatenate([numbers[kept], rng.choice([3, 7], 3)]),
                scores=rng.random(len(near) + 3).round(1),  # some are equal
                boxes=np.concatenate([near, stray]),
            )
        )
    return found


def nothing() -> Detections:
    return Detections(category_ids=np.zeros(0, np.int64), scores=np.zeros(0), boxes=np.zeros((0, 4)))


def test_figures_are_those_of_pycocotools(data: CocoSet) -> None:
    """What is computed from matches, with which images are drawn anew, equals what pycocotools says."""
    for seed in range(4):
        matched = match(data, detected(data, seed))
        assert 0.05 < matched.figures[0] < matched.figures[1] < 1
        assert average_precision(matched.categories) == pytest.approx(matched.figures, abs=1e-12)


def test_perfect_detections(data: CocoSet) -> None:
    """Who finds every object where it is has a mean average precision of 1; crowds are found by nobody, and cost nothing."""
    found = [nothing() for _ in range(NUM_IMAGES)]
    for image in range(NUM_IMAGES):
        here = [one for one in data.objects if one["image"] == image]
        found[image] = Detections(
            category_ids=np.array([one["category_id"] for one in here], np.int64),
            scores=np.ones(len(here)),
            boxes=np.array([one["bbox"] for one in here], float).reshape(-1, 4),
        )
    assert match(data, found).figures == pytest.approx([1, 1, 1])


def test_nothing_found(data: CocoSet, capfd: pytest.CaptureFixture[str]) -> None:
    """No detection at all is a figure of 0, and nothing is printed."""
    matched = match(data, [nothing() for _ in range(NUM_IMAGES)])
    assert matched.figures.tolist() == [0, 0, 0]
    assert average_precision(matched.categories).tolist() == [0, 0, 0]
    assert capfd.readouterr().out == ""


DOCUMENT: dict[str, Any] = {
    "images": [{"id": 40, "file_name": "b.png"}, {"id": 12, "file_name": "a.png"}],
    "categories": [{"id": 9, "name": "dog"}, {"id": 2, "name": "cat"}],
    "annotations": [
        {"id": 0, "image_id": 12, "category_id": 2, "bbox": [1, 2, 3, 4]},
        {"id": 1, "image_id": 40, "category_id": 9, "bbox": [5, 6, 7.5, 8], "area": 30, "iscrowd": 1},
    ],
}


def save(folder: pathlib.Path, document: Any) -> pathlib.Path:
    (folder / "objects.json").write_text(json.dumps(document))
    for name in ("a.png", "b.png"):
        (folder / name).touch()
    return folder / "objects.json"


def test_annotation_file(tmp_path: pathlib.Path) -> None:
    """Images keep the order of the file, whatever their ids; areas that are missing are those of the boxes."""
    data = load_coco(save(tmp_path, DOCUMENT), tmp_path)
    assert [file.name for file in data.files] == ["b.png", "a.png"]
    assert list(data.categories.items()) == [(2, "cat"), (9, "dog")]
    assert data.objects == (
        {"image": 1, "category_id": 2, "bbox": [1, 2, 3, 4], "area": 12, "iscrowd": 0},
        {"image": 0, "category_id": 9, "bbox": [5, 6, 7.5, 8], "area": 30, "iscrowd": 1},
    )
    first = load_coco(tmp_path / "objects.json", tmp_path, limit=1)
    assert [one["image"] for one in first.objects] == [0]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda d: d.pop("images"), "has no list 'images'"),
        (lambda d: d["images"].clear(), "lists no images"),
        (lambda d: d["images"].append({"id": "3", "file_name": "a.png"}), "entry of 'images' without 'id' .int."),
        (lambda d: d["images"].append({"id": 3, "file_name": "c.png"}), "images: c.png is not in .*--images"),
        (lambda d: d["annotations"].append(3), "entry of 'annotations' without"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3]), "has the bbox"),
        (lambda d: d["annotations"][0].update(bbox=[1, 2, 3, float("nan")]), "has the bbox"),
        (lambda d: d["annotations"][0].update(category_id=5), "object of category 5, which is not listed"),
    ],
)
def test_annotation_file_that_is_none(tmp_path: pathlib.Path, change: Any, complaint: str) -> None:
    """Each error names what is wrong with the file, and what to do."""
    document = json.loads(json.dumps(DOCUMENT))
    change(document)
    with pytest.raises(ConfigError, match=complaint):
        load_coco(save(tmp_path, document), tmp_path)
    for text, words in (("[]", "is no JSON object"), ("{", "cannot read")):
        (tmp_path / "objects.json").write_text(text)
        with pytest.raises(ConfigError, match=words):
            load_coco(tmp_path / "objects.json", tmp_path)
