"""Tests of serverlight.evaluation.ablation."""

from __future__ import annotations

import itertools
import json
import pathlib

import numpy as np
import pytest

pytest.importorskip("numba", reason="the model's own length is computed by compiled code")

from serverlight.codec import decode, inspect
from serverlight.evaluation.ablation import (
    STAGES,
    VARIANTS,
    ablate_task,
    numbers_of,
    own_frames,
    rounded,
    whole,
    without_its_shifts,
)

RNG = np.random.default_rng(0)
PLANES = [np.maximum(RNG.normal(0.5, 1, (1, 4, 16, 16)), 0).astype(np.float32) for _ in range(2)]
TOKENS = [RNG.standard_t(5, (1, 12, 64)).astype(np.float32) for _ in range(2)]


def test_every_variant_is_of_one_stage() -> None:
    """The table of stages names each variant once."""
    assert sorted(itertools.chain(*STAGES.values())) == sorted(VARIANTS)


@pytest.mark.parametrize("features", [PLANES, TOKENS], ids=["planes", "tokens"])
@pytest.mark.parametrize("name", VARIANTS)
def test_variants_keep_shape_and_about_the_values(features: list[np.ndarray], name: str) -> None:
    """What arrives has the shapes of what was sent, with an error that is not larger than the signal, for a length above zero."""
    for variant in VARIANTS[name]:
        bits, received = variant(features, 0.5)
        assert bits > 0
        for x, y in zip(features, received, strict=True):
            assert x.shape == y.shape
            assert np.square(x - y).sum() < 0.3 * np.square(x).sum()


def test_without_a_filter_rounding_decides() -> None:
    """Plain rounding keeps what is half a step or more, and nothing else; its error is then no larger than the filter's."""
    (_, ours), (_, rounding) = whole(TOKENS, 0.5), rounded(TOKENS, 0.5)
    for x, y, z in zip(TOKENS, ours, rounding, strict=True):
        assert np.count_nonzero(z) != np.count_nonzero(y)
        assert np.square(x - z).sum() <= np.square(x - y).sum()


def test_frames_of_their_own_cost_headers() -> None:
    """A frame for each of twelve tokens takes more bits than one for all."""
    assert own_frames(TOKENS, 0.5)[0] > whole(TOKENS, 0.5)[0]


def test_numbers_are_whole_steps() -> None:
    """The numbers of a frame are zero exactly where its filter dropped an element."""
    from serverlight.codec import Codec, CodecConfig

    numbers = numbers_of(Codec(CodecConfig(sparsity=0.5, checksum=False)).encode(TOKENS[0]))
    assert np.count_nonzero(numbers) == TOKENS[0].size // 2


def test_a_task_is_taken_apart() -> None:
    """Of the shipped model's features the whole codec takes fewest bits against the variants without its main parts."""
    report = ablate_task("demo", None, samples=6)
    json.dumps(report)
    assert report["messages"] == 6
    assert report["more"].keys() == VARIANTS.keys()
    for name in ("no entropy coder", "8 equal groups for sizes of numbers", "no contexts"):
        assert report["more"][name]["mean"] > 0


def test_frames_lose_their_shifts_in_either_form() -> None:
    """Golden frames, long and short, are whole numbers of steps once their shifts are gone."""
    seen = set()
    for path in (pathlib.Path(__file__).parents[1] / "vectors").glob("*/serverlight-tokens*/frame.bin"):
        frame = path.read_bytes()
        info, bare = inspect(frame), decode(without_its_shifts(frame), "numpy").astype(np.float64)
        steps = bare / float(info.config["step"])
        assert np.allclose(steps, np.rint(steps), rtol=0, atol=1e-6 * max(1.0, np.abs(steps).max()))
        assert (np.rint(steps) == numbers_of(frame)).all()
        seen.add(path.parts[-3])
    assert seen == {"v1", "short"}
