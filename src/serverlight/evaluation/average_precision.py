"""Average precision of detections that have been matched with objects, and how far it may be from that of other images.

pycocotools matches (:mod:`serverlight.evaluation.coco`) and computes the figures of a set of images; what is here computes them
again for images that are drawn several times or not at all, which pycocotools cannot.
"""

# Shapes: N = images, D = detections of one category, T = overlaps (IoU), S = resamples, M = metrics.

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["METRICS", "OVERLAPS", "CategoryMatches", "Floats", "average_precision", "resampled_precision"]

Floats = NDArray[np.float64]

METRICS = ("mAP", "AP50", "AP75")
"""Mean over all overlaps, then at an overlap of one half and of three quarters."""

OVERLAPS = np.linspace(0.5, 0.95, 10)
"""Intersection over union from which on a detection counts as right; COCO's."""

RECALLS = np.linspace(0.0, 1.0, 101)
"""Where precision is read off; COCO's."""

NUM_RESAMPLES = 500
"""Each is a pass over all detections. Of a normal figure the ends of the interval then err by a thirtieth of its width."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class CategoryMatches:
    """The detections of one category, the surest first."""

    images: NDArray[np.int64]
    """Place of the image of each (D,)."""

    hits: NDArray[np.bool_]
    """Which found an object (T, D)."""

    misses: NDArray[np.bool_]
    """Which did not (T, D); what lies on a crowd is neither."""

    num_objects: NDArray[np.int64]
    """Objects to be found in each image (N,)."""


def average_precision(categories: Sequence[CategoryMatches], weights: Floats | None = None) -> Floats:
    """The figures (M,) of :data:`METRICS`, each the mean over the categories that have objects; 0 where none has.

    Args:
        categories: Matches of every category.
        weights: How often each image counts (N,); once by default.

    >>> found = CategoryMatches(
    ...     images=np.array([0, 1]), hits=np.tile([True, False], (10, 1)), misses=np.tile([False, True], (10, 1)),
    ...     num_objects=np.array([1, 0]))
    >>> average_precision([found])
    array([1., 1., 1.])
    """
    by_overlap = [found for one in categories if (found := _by_overlap(one, weights)) is not None]
    if not by_overlap:
        return np.zeros(len(METRICS))
    mean: Floats = np.mean(by_overlap, axis=0)
    return np.array([mean.mean(), mean[0], mean[5]])


def resampled_precision(categories: Sequence[CategoryMatches], num_images: int) -> Floats:
    """The figures (S, M) over images drawn with replacement; the draws are the same for every model."""
    rng = np.random.default_rng(0)
    draws = (rng.integers(0, num_images, num_images) for _ in range(NUM_RESAMPLES))
    counts = (np.bincount(draw, minlength=num_images).astype(np.float64) for draw in draws)
    return np.stack([average_precision(categories, weights) for weights in counts])


def _by_overlap(found: CategoryMatches, weights: Floats | None) -> Floats | None:
    """Mean precision over all recalls at each overlap (T,); ``None`` where there is nothing to find."""
    weights = np.ones(len(found.num_objects)) if weights is None else weights
    num_objects = float(weights @ found.num_objects)
    if num_objects == 0:
        return None
    count = weights[found.images]
    right, wrong = (found.hits * count).cumsum(1), (found.misses * count).cumsum(1)
    precision = right / np.maximum(right + wrong, np.finfo(np.float64).tiny)
    # At any recall what counts is the best precision at that recall or a higher one.
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    beyond = np.zeros((len(best), 1))
    places = np.stack([np.searchsorted(row, RECALLS) for row in right / num_objects])
    return np.asarray(np.take_along_axis(np.hstack([best, beyond]), places, 1).mean(1))
