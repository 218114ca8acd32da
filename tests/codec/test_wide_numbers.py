"""Numbers that do not fit the narrow integers that the compiled backend holds most of them in."""

from __future__ import annotations

import importlib.util
import itertools

import numpy as np
import pytest

from serverlight.codec import Codec, CodecConfig, decode, decode_batch

pytestmark = pytest.mark.skipif(importlib.util.find_spec("numba") is None, reason="numba not installed")

SHAPES = [(301,), (10, 24), (9, 24), (1, 4, 6, 8), (1, 4, 5, 7), (1, 9, 4, 1, 3)]
SPIKES = [3e2, 6e3, 1e5, 1e7]
"""Above 255, 4095 and 32767 steps, and so large that the mean of all numbers is too."""


def spiked(shape: tuple[int, ...], spike: float, one_sided: bool) -> np.ndarray:
    """A tensor of ordinary elements with a large one in every sixty, of either sign and next to each other now and then."""
    rng = np.random.default_rng(len(shape))
    x = rng.normal(size=shape)
    places = rng.choice(x.size, max(2, x.size // 60), replace=False)
    x.reshape(-1)[places] *= spike
    x.reshape(-1)[places[0] : places[0] + 2] = spike, -0.999 * spike
    return (np.abs(x) if one_sided else x).astype(np.float32)


@pytest.mark.parametrize("one_sided", [False, True])
@pytest.mark.parametrize(("shape", "spike"), list(itertools.product(SHAPES, SPIKES)), ids=str)
def test_large_numbers_are_the_same_on_both_backends(shape: tuple[int, ...], spike: float, one_sided: bool) -> None:
    """Frames byte for byte, and values bit for bit, one by one and in a batch, with raw bits and without."""
    x = spiked(shape, spike, one_sided)
    for distortion in (None, 0.01):
        config = CodecConfig(sparsity=0.4, distortion=distortion)
        frame = Codec(config, backend="cpu").encode(x)
        assert frame == Codec(config, backend="reference").encode(x)
        expected = decode(frame, "numpy", backend="reference")
        assert decode(frame, "numpy", backend="cpu").tobytes() == expected.tobytes()
        batch = decode_batch([frame, frame], "numpy", backend="cpu")
        assert batch.tobytes() == 2 * expected.tobytes()
