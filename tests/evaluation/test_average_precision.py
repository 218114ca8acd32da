"""Average precision by hand, and over images that count several times or not at all."""

from __future__ import annotations

import numpy as np
import pytest

from serverlight.evaluation.average_precision import (
    METRICS,
    NUM_RESAMPLES,
    OVERLAPS,
    CategoryMatches,
    average_precision,
    resampled_precision,
)


def matches(images: list[int], hits: list[bool], num_objects: list[int]) -> CategoryMatches:
    """Detections that hit or miss at every overlap alike."""
    rows = np.tile(np.array(hits, bool), (len(OVERLAPS), 1))
    return CategoryMatches(
        images=np.array(images, np.int64), hits=rows, misses=~rows, num_objects=np.array(num_objects, np.int64)
    )


def test_by_hand() -> None:
    """Hit, miss, hit of four objects: precision 1 up to a recall of 1/4, then 2/3 up to 1/2, then nothing."""
    found = matches([0, 1, 0], [True, False, True], [3, 1])
    expected = (26 * 1 + 25 * 2 / 3) / 101  # recalls 0 to 0.25, and 0.26 to 0.50
    assert average_precision([found]) == pytest.approx([expected] * len(METRICS))


def test_overlaps_are_told_apart() -> None:
    """A detection that overlaps by 0.6 counts at the three lowest of ten overlaps."""
    found = matches([0], [True], [1])
    found.hits[3:] = False
    found.misses[3:] = True
    assert average_precision([found]) == pytest.approx([0.3, 1, 0])


def test_mean_over_categories_with_objects() -> None:
    """A category without objects does not count, one without detections counts as nothing found."""
    all_found, nothing_found, absent = matches([0], [True], [1]), matches([], [], [1]), matches([0], [False], [0])
    assert average_precision([all_found, nothing_found, absent]) == pytest.approx([0.5] * 3)
    assert average_precision([absent]).tolist() == [0, 0, 0]


def test_weights_are_copies() -> None:
    """An image of weight 2 is one that is there twice, one of weight 0 is not there."""
    rng = np.random.default_rng(0)
    num_images, weights = 12, rng.integers(0, 3, 12)
    images, hits = rng.integers(0, num_images, 60), rng.random(60) < 0.5
    num_objects = np.bincount(images[hits], minlength=num_images) + 1
    weighted = average_precision([matches(images.tolist(), hits.tolist(), num_objects.tolist())], weights.astype(float))
    copies = np.repeat(np.arange(num_images), weights)
    place = [np.flatnonzero(copies == i) for i in range(num_images)]
    spread = [(copy, hit) for image, hit in zip(images, hits, strict=True) for copy in place[image]]
    plain = average_precision(
        [matches([int(i) for i, _ in spread], [bool(h) for _, h in spread], num_objects[copies].tolist())]
    )
    assert weighted == pytest.approx(plain)


def test_resamples() -> None:
    """The draws are the same every time, and their mean is near the figure itself."""
    rng = np.random.default_rng(1)
    images, hits = rng.integers(0, 300, 900), rng.random(900) < 0.6
    found = [matches(images.tolist(), hits.tolist(), (np.bincount(images[hits], minlength=300) + 1).tolist())]
    draws = resampled_precision(found, 300)
    assert draws.shape == (NUM_RESAMPLES, len(METRICS))
    assert draws.mean(0) == pytest.approx(average_precision(found), abs=0.01)
    np.testing.assert_array_equal(draws, resampled_precision(found, 300))
