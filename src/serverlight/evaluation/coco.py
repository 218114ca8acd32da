"""Images with objects in boxes, as COCO's annotation files have them; the one file that imports pycocotools."""

# Shapes: D = detections of one image, M = metrics.

from __future__ import annotations

import contextlib
import io
import math
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serverlight.errors import ConfigError, MissingDependency
from serverlight.evaluation.average_precision import OVERLAPS, CategoryMatches, Floats
from serverlight.json_files import load_json

try:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
except ModuleNotFoundError as exc:
    if exc.name != "pycocotools":
        raise
    raise MissingDependency("pycocotools", "detection") from None

__all__ = ["CocoSet", "Detections", "Matches", "load_coco", "match"]

HINT = "give an annotation file of COCO's form, such as instances_val2017.json"

MAX_DETECTIONS = 100
"""The surest of an image and category that count; COCO's."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CocoSet:
    """Images, and the objects in them."""

    files: tuple[pathlib.Path, ...]
    """Image files, all there."""

    objects: tuple[Mapping[str, Any], ...]
    """``image`` (place among the files), ``category_id``, ``bbox`` (left, top, width, height in pixels), ``area``, ``iscrowd``."""

    categories: Mapping[int, str]
    """Names by category id, in the order of ids."""

    def __len__(self) -> int:
        return len(self.files)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Detections:
    """What a model finds in one image."""

    category_ids: NDArray[np.int64]
    """Category id of each (D,)."""

    scores: Floats
    """How sure the model is (D,)."""

    boxes: Floats
    """Left, top, width and height in pixels (D, 4)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Matches:
    """Detections beside the objects that they found."""

    figures: Floats
    """pycocotools' own figures (M,) of :data:`~serverlight.evaluation.average_precision.METRICS`."""

    categories: tuple[CategoryMatches, ...]
    """Matches of every category."""


def load_coco(annotations: str | pathlib.Path, folder: str | pathlib.Path, *, limit: int | None = None) -> CocoSet:
    """The images that an annotation file lists, the first ``limit`` of them where given.

    Raises :class:`ConfigError` where the file is of another form, and where an image is not in the folder.
    """
    document = load_json(annotations, "coco", HINT)
    if not isinstance(document, dict):
        raise ConfigError("coco", f"{annotations} is no JSON object; {HINT}")
    images = _entries(document, "images", id=int, file_name=str)[:limit]
    categories = {entry["id"]: entry["name"] for entry in _entries(document, "categories", id=int, name=str)}
    if not images or not categories:
        raise ConfigError("coco", f"{annotations} lists no images or no categories; {HINT}")
    places = {entry["id"]: place for place, entry in enumerate(images)}
    found = _entries(document, "annotations", image_id=int, category_id=int, bbox=list)
    files = tuple(pathlib.Path(folder).expanduser() / entry["file_name"] for entry in images)
    if missing := next((file for file in files if not file.is_file()), None):
        raise ConfigError(
            "images", f"{missing.name} is not in {str(folder)!r}; give the folder that has it with --images"
        )
    return CocoSet(
        files=files,
        objects=tuple(_object(entry, places, categories) for entry in found if entry["image_id"] in places),
        categories=dict(sorted(categories.items())),
    )


def match(data: CocoSet, detections: Sequence[Detections]) -> Matches:
    """Matches the detections of each image with its objects, by pycocotools.

    Boxes of every size count, the surest 100 of each image and category.
    """
    with _silenced():
        evaluation = COCOeval(_as_coco(data, data.objects), _as_coco(data, _detected(detections)), "bbox")
        evaluation.params.iouThrs = OVERLAPS
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        evaluation.evaluate()
        evaluation.accumulate()
    num_images, categories = len(data), len(data.categories)
    by_category = [evaluation.evalImgs[k * num_images : (k + 1) * num_images] for k in range(categories)]
    return Matches(
        figures=_figures(evaluation.eval["precision"]),
        categories=tuple(_category_matches(found) for found in by_category),
    )


# -- reading ---------------------------------------------------------------------------------------


def _entries(document: Mapping[str, Any], field: str, **kinds: type) -> list[dict[str, Any]]:
    """A list of objects that have at least these fields."""
    entries = document.get(field)
    if not isinstance(entries, list):
        raise ConfigError("coco", f"has no list {field!r}; {HINT}")
    for entry in entries:
        for name, kind in kinds.items():
            if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
                raise ConfigError("coco", f"has an entry of {field!r} without {name!r} ({kind.__name__}); {HINT}")
    return entries


def _object(entry: Mapping[str, Any], places: Mapping[int, int], categories: Mapping[int, str]) -> Mapping[str, Any]:
    box, category_id = entry["bbox"], entry["category_id"]
    if len(box) != 4 or not all(isinstance(x, int | float) and math.isfinite(x) for x in box):
        raise ConfigError("coco", f"has the bbox {box!r}; make it left, top, width and height in pixels")
    if category_id not in categories:
        raise ConfigError(
            "coco", f"has an object of category {category_id}, which is not listed; add it to 'categories'"
        )
    area = entry.get("area")
    return {
        "image": places[entry["image_id"]],
        "category_id": category_id,
        "bbox": box,
        "area": area if isinstance(area, int | float) else box[2] * box[3],
        "iscrowd": int(bool(entry.get("iscrowd"))),
    }


# -- pycocotools -----------------------------------------------------------------------------------


def _as_coco(data: CocoSet, entries: Sequence[Mapping[str, Any]]) -> Any:
    """pycocotools' own index, with images by their places; it takes an object of id 0 for none, so ids begin at 1."""
    coco = COCO()
    coco.dataset = {
        "images": [{"id": place} for place in range(len(data))],
        "categories": [{"id": number, "name": name} for number, name in data.categories.items()],
        "annotations": [{**entry, "id": i + 1, "image_id": entry["image"]} for i, entry in enumerate(entries)],
    }
    coco.createIndex()
    return coco


def _detected(detections: Sequence[Detections]) -> list[Mapping[str, Any]]:
    return [
        {"image": place, "category_id": category_id, "score": score, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        for place, found in enumerate(detections)
        for category_id, score, box in zip(
            found.category_ids.tolist(), found.scores.tolist(), found.boxes.tolist(), strict=True
        )
    ]


def _figures(precision: NDArray[np.float64]) -> Floats:
    """From precision by overlap, recall, category, area and number of detections; -1 where there is nothing to find."""

    def mean(part: NDArray[np.float64]) -> float:
        told = part[part > -1]
        return float(told.mean()) if told.size else 0.0

    return np.array([mean(precision), mean(precision[0]), mean(precision[5])])


def _category_matches(found: Sequence[Mapping[str, Any] | None]) -> CategoryMatches:
    """From what pycocotools has of each image; ``None`` where there is neither an object nor a detection."""
    told = [(place, one) for place, one in enumerate(found) if one is not None]
    num_objects = np.zeros(len(found), np.int64)
    for place, one in told:
        num_objects[place] = np.count_nonzero(np.asarray(one["gtIgnore"]) == 0)
    scores = np.array([score for _, one in told for score in one["dtScores"]], np.float64)
    images = np.array([place for place, one in told for _ in one["dtScores"]], np.int64)
    empty = np.zeros((len(OVERLAPS), 0), np.bool_)
    matched = np.hstack([empty, *(np.asarray(one["dtMatches"]) > 0 for _, one in told)])
    ignored = np.hstack([empty, *(np.asarray(one["dtIgnore"]) != 0 for _, one in told)])
    order = np.argsort(-scores, kind="stable")
    return CategoryMatches(
        images=images[order],
        hits=(matched & ~ignored)[:, order],
        misses=~matched[:, order],  # whatever lies on a crowd is matched with it
        num_objects=num_objects,
    )


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """pycocotools tells on standard output what it does."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
