"""What encoding and decoding a frame takes, by its size."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from serverlight.codec import Codec, CodecConfig, decode, warm_up
from serverlight.search.fitting import SIZE_TERMS, Point, fit_curve
from serverlight.search.profile import CodecCost
from serverlight.search.stopwatch import lower_quartile, quiet_collector, repeats_for, timed, work_clock

__all__ = [
    "ELEMENTS",
    "OTHER_SETTINGS",
    "OTHER_SETTINGS_OF_MAPS",
    "Sample",
    "cost_name",
    "measure_codec",
    "sample_map",
    "sample_signed_map",
    "sample_tokens",
]

ELEMENTS = (1_000, 4_000, 16_000, 64_000, 256_000, 1_000_000)

OTHER_SETTINGS = {"slicer": CodecConfig(profile="slicer", sparsity=0.5, num_groups=2, distortion=0.04)}
"""A setting of each profile that is searched beside the default: one in the middle of the grid."""

OTHER_SETTINGS_OF_MAPS = {
    **OTHER_SETTINGS,
    "cosine": CodecConfig(transform="cosine"),
    "corrected": CodecConfig(bias_correction=True),
}
"""The same for feature maps, which the default profile has other forms of."""

Sample = Callable[[int], Tensor]
"""A feature of about so many elements."""


def cost_name(config: CodecConfig) -> str:
    """By which name a profile has what frames of such settings take.

    >>> cost_name(CodecConfig(transform="cosine")), cost_name(CodecConfig(profile="slicer"))
    ('cosine', 'slicer')
    """
    if config.transform != "none":
        return config.transform
    return "corrected" if config.bias_correction else config.profile


def sample_map(elements: int) -> Tensor:
    """Rectified smooth maps, as in the middle of a convolutional network: float32 ``[1, channels, side, side]``."""
    side = 2 ** max(2, round(math.log2(elements / 16) / 3))
    channels = max(1, round(elements / side**2))
    noise = torch.randn(1, channels, side, side)
    smooth = sum(noise.roll(shift, axis) for shift in (-1, 1) for axis in (2, 3)) + noise
    return (smooth / math.sqrt(5) + 0.5).relu()


def sample_signed_map(elements: int) -> Tensor:
    """Maps as behind a linear layer."""
    return sample_map(elements) - 0.5


def sample_tokens(elements: int, hidden: int) -> Tensor:
    """Hidden states, whose channels differ in scale: float32 ``[1, tokens, hidden]``."""
    return torch.randn(1, max(1, round(elements / hidden)), hidden) * torch.exp(0.5 * torch.randn(hidden))


def measure_codec(
    config: CodecConfig, sample: Sample, *, elements: Sequence[int] = ELEMENTS, budget_s: float = 6.0
) -> CodecCost:
    """Times frames of features of these sizes with one setting."""
    warm_up()
    codec, clock = Codec(config), work_clock()
    encode, decoding = list[tuple[Point, float]](), list[tuple[Point, float]]()
    for count in elements:
        feature = sample(count)
        frame = codec.encode(feature)
        first_ms = timed(clock, codec.encode, feature)
        repeats = repeats_for(2 * first_ms, budget_s / len(elements))
        size = Point(rows=feature.numel() / 1e3)
        with quiet_collector():
            encode_ms = [timed(clock, codec.encode, feature) for _ in range(repeats)]
            decode_ms = [timed(clock, decode, frame) for _ in range(repeats)]
        encode.append((size, lower_quartile(encode_ms)))
        decoding.append((size, lower_quartile(decode_ms)))
    return CodecCost(encode=fit_curve(encode, SIZE_TERMS), decode=fit_curve(decoding, SIZE_TERMS))
