"""Writes the golden frames. Run by `make vectors` only, on purpose, and its diff is reviewed: they must decode for ever."""

from __future__ import annotations

import functools
import json
import pathlib
from typing import Any

import numpy as np
import torch

from serverlight.codec import Codec, CodecConfig, decode

HERE = pathlib.Path(__file__).parent / "short"
"""What writers write now; the folder ``v1`` has frames with long headers and sections, which are only read."""
COMPRESSED_FROM = 1 << 16
"""Arrays of this many elements are stored compressed."""

Case = tuple[torch.Tensor, CodecConfig]


def cases() -> dict[str, Case]:
    """Inputs and settings by name; small, and each feature of the format at least once."""
    rng = np.random.default_rng(20251111)
    # In this order: they share the generator.
    earlier = {**plain_cases(rng), **serverlight_cases(rng), **half_escape_cases(rng), **shifted_cases(rng)}
    return earlier | trellis_cases(rng) | segment_cases(rng) | corrected_cases(rng)


def normal(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Gaussian noise."""
    return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))


def smooth(rng: np.random.Generator, *shape: int) -> torch.Tensor:
    """Gaussian noise whose neighbours are alike, as in a feature map."""
    x = normal(rng, *shape)
    return sum(torch.roll(x, (i, j), (-2, -1)) for i in range(3) for j in range(3)) / 3


slicer = functools.partial(CodecConfig, profile="slicer", distortion=0.05)
serverlight = functools.partial(CodecConfig, profile="serverlight")


def plain_cases(rng: np.random.Generator) -> dict[str, Case]:
    """Profiles ``fp16`` and ``slicer``."""
    spikes = normal(rng, 4, 64)
    spikes[1, 7], spikes[3, 60] = 2000.0, -1800.0
    sparse = torch.zeros(8, 512)
    sparse[:, 500:505] = normal(rng, 8, 5)
    return {
        "fp16-halves": (normal(rng, 3, 5), CodecConfig(profile="fp16", distortion=0.05)),
        "fp16-of-bfloat16": (
            normal(rng, 3, 5).bfloat16(),
            CodecConfig(profile="fp16", distortion=0.05, checksum=False),
        ),
        "bitmap-signed": (normal(rng, 2, 3, 24), slicer(sparsity=0.5, num_groups=2)),
        "relu-one-sided": (normal(rng, 1, 4, 6, 6).relu(), slicer(sparsity=0.6, num_groups=2, distortion=0.1)),
        "csr-clustered": (sparse, slicer(sparsity=0.5, num_groups=1, positions="csr")),
        "rice-kept": (normal(rng, 16, 64), slicer(sparsity=0.93, distortion=0.2)),
        "rice-dropped": (normal(rng, 16, 64), slicer(sparsity=0.1, num_groups=8, distortion=0.02)),
        "all-kept": (normal(rng, 5, 7) + 10, slicer(sparsity=0.0, num_groups=3)),
        "three-groups-ties": (torch.round(normal(rng, 40) * 2), slicer(sparsity=0.4, num_groups=3)),
        "asymmetric": (normal(rng, 40), slicer(sparsity=0.5, asymmetry=0.5, num_groups=2)),
        "massive-activations": (spikes, slicer(sparsity=0.3, num_groups=64, distortion=0.05)),
        "float16": (normal(rng, 6, 10).half(), slicer(num_groups=4)),
        "bfloat16-no-checksum": (normal(rng, 6, 10).bfloat16(), slicer(num_groups=4, checksum=False)),
        "subnormal": (normal(rng, 20) * 1e-42, slicer(sparsity=0.5)),
        "zeros": (torch.zeros(2, 9), slicer()),
        "constant": (torch.full((3, 3), -2.5), slicer()),
        "empty": (torch.zeros(2, 0, 3), slicer()),
        "scalar": (torch.tensor(-0.1), slicer()),
        "widest-codes": (normal(rng, 64), slicer(sparsity=0, distortion=1e-4)),
        "no-codes": (normal(rng, 64), slicer(sparsity=0, distortion=1.0)),
    }


def serverlight_cases(rng: np.random.Generator) -> dict[str, Case]:
    """Profile ``serverlight``: every kind of context, number of lanes, odd end, escape and raw bit."""
    spikes = normal(rng, 5, 64)
    spikes[1, 7], spikes[3, 60] = 2000.0, -1800.0
    largest = normal(rng, 1, 2, 4, 4) * 60000
    two_segments = smooth(rng, 1, 16, 64, 129).relu() * (smooth(rng, 1, 16, 64, 129) > 0.8)
    return {
        "serverlight-flat": (normal(rng, 1, 300), serverlight(sparsity=0.5)),
        "serverlight-flat-odd-one-sided": (normal(rng, 45).relu(), serverlight(sparsity=0.3, distortion=0.1)),
        "serverlight-tokens": (normal(rng, 12, 40), serverlight(sparsity=0.6, asymmetry=0.5)),
        "serverlight-tokens-spikes-odd": (spikes, serverlight(sparsity=0.3)),
        "serverlight-tokens-one-sided": (normal(rng, 2, 3, 48).abs(), serverlight(sparsity=0.75)),
        "serverlight-tokens-two-lanes": (normal(rng, 16, 160), serverlight(sparsity=0.5, checksum=False)),
        "serverlight-tokens-eight-lanes": (normal(rng, 8, 1024), serverlight(sparsity=0.1)),
        "serverlight-tokens-raw-bits": (normal(rng, 7, 24), serverlight(sparsity=0.2, distortion=1e-4)),
        "serverlight-planes": (smooth(rng, 1, 6, 12, 12).relu(), serverlight(sparsity=0.7)),
        "serverlight-planes-odd-columns": (smooth(rng, 2, 3, 5, 7).relu(), serverlight(sparsity=0.4)),
        "serverlight-planes-signed": (smooth(rng, 1, 5, 9, 11), serverlight(sparsity=0.4)),
        "serverlight-planes-four-lanes": (smooth(rng, 1, 10, 20, 20), serverlight(sparsity=0.25)),
        "serverlight-planes-raw-bits": (smooth(rng, 1, 3, 6, 6).relu(), serverlight(sparsity=0.5, distortion=1e-3)),
        "serverlight-two-segments": (two_segments, serverlight(sparsity=0.9)),
        "serverlight-ties": (torch.round(normal(rng, 6, 20) * 2), serverlight(sparsity=0.7)),
        "serverlight-bfloat16": (normal(rng, 6, 20).bfloat16(), serverlight(sparsity=0.4)),
        "serverlight-float16-largest": (largest.clamp(-65504, 65504).half(), serverlight(sparsity=0.3)),
        "serverlight-subnormal": (normal(rng, 3, 20) * 1e-42, serverlight(sparsity=0.5)),
        "serverlight-zeros": (torch.zeros(2, 9), serverlight()),
        "serverlight-empty": (torch.zeros(2, 0, 3), serverlight()),
        "serverlight-scalar": (torch.tensor(-0.1), serverlight()),
    }


def half_escape_cases(rng: np.random.Generator) -> dict[str, Case]:
    """Profile ``serverlight`` with half escapes in every kind of context, with odd ends, with raw bits and without."""

    def tails(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.laplace(size=shape).astype(np.float32))

    dense, fine = serverlight(sparsity=0.35), serverlight(sparsity=0.1, distortion=0.2)
    return {
        "serverlight-half-flat": (tails(1, 301), dense),
        "serverlight-half-flat-raw-bits": (tails(1, 200), fine),
        "serverlight-half-tokens": (tails(13, 40), dense),
        "serverlight-half-tokens-raw-bits": (tails(16, 160), fine),
        "serverlight-half-planes": (tails(1, 5, 13, 15).abs(), serverlight(sparsity=0.1, distortion=0.75)),
        "serverlight-half-planes-raw-bits": (tails(1, 9, 12, 12).relu(), fine),
        "serverlight-half-planes-signed": (tails(2, 3, 9, 11), dense),
        "serverlight-half-planes-signed-raw-bits": (tails(1, 4, 10, 10), fine),
    }


def shifted_cases(rng: np.random.Generator) -> dict[str, Case]:
    """Short sections whose shifts are far from the default ones."""
    return {
        "serverlight-flat-shifts": (normal(rng, 1, 600) * 0.02 - 1, serverlight(sparsity=0.5, distortion=0.44)),
        "serverlight-tokens-shifts": (normal(rng, 20, 30) * 0.02 - 1, serverlight(sparsity=0.5, distortion=0.44)),
    }


def trellis_cases(rng: np.random.Generator) -> dict[str, Case]:
    """Tokens along a trellis: one lane and eight, an odd end, half escapes, two segments; and what has none."""
    along = functools.partial(CodecConfig, trellis=True)
    spikes = normal(rng, 24, 64)
    spikes[1, 7], spikes[3, 60] = 2000.0, -1800.0
    tails = torch.from_numpy(rng.laplace(size=(40, 48)).astype(np.float32))
    return {
        "serverlight-trellis": (normal(rng, 12, 40), along(sparsity=0.6)),
        "serverlight-trellis-odd-leaning": (normal(rng, 9, 30) + normal(rng, 30), along(sparsity=0.8)),
        "serverlight-trellis-eight-lanes": (normal(rng, 40, 512), along(sparsity=0.3)),
        "serverlight-trellis-spikes": (spikes, along(sparsity=0.5)),
        "serverlight-trellis-half-escapes": (tails, along(sparsity=0.45)),
        "serverlight-trellis-bfloat16": (normal(rng, 6, 20).bfloat16(), along(sparsity=0.7, distortion=0.3)),
        "serverlight-trellis-two-segments": (normal(rng, 512, 256) * normal(rng, 256), along(sparsity=0.97)),
        "serverlight-trellis-of-planes": (smooth(rng, 1, 2, 6, 6), along(sparsity=0.6)),
    }


def segment_cases(rng: np.random.Generator) -> dict[str, Case]:
    """Planes in segments of eight, eight and four: what is cut by is not a plane, but a block of them."""
    x = torch.round(4 * smooth(rng, 1, 20, 60, 132)) / 4
    return {"serverlight-planes-three-segments": (x * (x > 2), serverlight(sparsity=0.98))}


def as_float32(x: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """NumPy has no bfloat16, so all fixtures are stored as float32, which holds the others exactly."""
    return x.detach().float().numpy()


def save(folder: pathlib.Path, name: str, x: torch.Tensor) -> None:
    """One fixture, as ``name.npy``, or ``name.npz`` if it is large."""
    if x.numel() < COMPRESSED_FROM:
        np.save(folder / f"{name}.npy", as_float32(x), allow_pickle=False)
    else:
        np.savez_compressed(folder / f"{name}.npz", as_float32(x))


def cosine_cases() -> dict[str, Case]:
    """Planes as waves: of every dtype, of one row of frequencies only, along a trellis, with raw bits, a single plane."""
    rng, waves = np.random.default_rng(20261128), functools.partial(CodecConfig, transform="cosine")
    return {
        "maps": (smooth(rng, 2, 6, 7, 9), waves(sparsity=0.6)),
        "map": (smooth(rng, 1, 1, 8, 12).half(), waves(sparsity=0.5)),
        "trellis": (smooth(rng, 1, 9, 6, 6).bfloat16(), waves(sparsity=0.7, trellis=True)),
        "raw-bits": (smooth(rng, 1, 4, 5, 3) * 1e4, waves(sparsity=0.2, distortion=1e-4)),
        "large": (smooth(rng, 1, 5, 64, 72), waves(sparsity=0.97, checksum=False)),
    }


def corrected_cases(rng: np.random.Generator) -> dict[str, Case]:
    """Planes with a bias correction: rectified and signed, every dtype, raw bits, planes that lack nothing, many planes."""
    corrected = functools.partial(CodecConfig, bias_correction=True)
    return {
        "serverlight-corrected": (smooth(rng, 1, 12, 6, 6).relu(), corrected(sparsity=0.9)),
        "serverlight-corrected-signed": (smooth(rng, 2, 5, 4, 7).half(), corrected(sparsity=0.8, distortion=0.8)),
        "serverlight-corrected-bfloat16": (smooth(rng, 1, 9, 5, 5).relu().bfloat16(), corrected(sparsity=0.95)),
        "serverlight-corrected-raw-bits": (smooth(rng, 1, 4, 8, 9).relu(), corrected(sparsity=0.5, distortion=1e-3)),
        "serverlight-corrected-many": (smooth(rng, 1, 300, 4, 4).relu(), corrected(sparsity=0.93, checksum=False)),
        "serverlight-corrected-tokens": (normal(rng, 8, 24), corrected(sparsity=0.7)),
    }


def write_cosine() -> None:
    """Only to be read: what writers make of waves may differ in its last bits from machine to machine."""
    folder = HERE.parent / "cosine"
    folder.mkdir(exist_ok=True)
    for name, (x, config) in cosine_cases().items():
        frame = Codec(config, backend="reference").encode(x)
        (folder / f"{name}.bin").write_bytes(frame)
        np.save(folder / f"{name}.npy", as_float32(decode(frame, backend="reference")), allow_pickle=False)


def main() -> None:
    """Writes one folder a case; the reference is the backend that defines the format."""
    write_cosine()
    for name, (x, config) in cases().items():
        folder = HERE / name
        folder.mkdir(parents=True, exist_ok=True)
        frame = Codec(config, backend="reference").encode(x)
        save(folder, "input", x)
        save(folder, "decoded", decode(frame, backend="reference"))
        (folder / "frame.bin").write_bytes(frame)
        settings = {"dtype": str(x.dtype).removeprefix("torch."), "codec": config.to_dict()}
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main()
