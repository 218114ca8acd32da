"""Writes the golden frames. Run by `make vectors` only, on purpose, and its diff is reviewed: they must decode for ever."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy as np
import torch

from serverlight.codec import Codec, CodecConfig, decode

HERE = pathlib.Path(__file__).parent / "v1"


def cases() -> dict[str, tuple[torch.Tensor, CodecConfig]]:
    """Inputs and settings by name; small, and each feature of the format at least once."""
    rng = np.random.default_rng(20251111)

    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    spikes = normal(4, 64)
    spikes[1, 7], spikes[3, 60] = 2000.0, -1800.0
    sparse = torch.zeros(8, 512)
    sparse[:, 500:505] = normal(8, 5)
    return {
        "fp16-halves": (normal(3, 5), CodecConfig(profile="fp16")),
        "fp16-of-bfloat16": (normal(3, 5).bfloat16(), CodecConfig(profile="fp16", checksum=False)),
        "bitmap-signed": (normal(2, 3, 24), CodecConfig(sparsity=0.5, num_groups=2)),
        "relu-one-sided": (normal(1, 4, 6, 6).relu(), CodecConfig(sparsity=0.6, num_groups=2, distortion=0.1)),
        "csr-clustered": (sparse, CodecConfig(sparsity=0.5, num_groups=1, positions="csr")),
        "rice-kept": (normal(16, 64), CodecConfig(sparsity=0.93, distortion=0.2)),
        "rice-dropped": (normal(16, 64), CodecConfig(sparsity=0.1, num_groups=8, distortion=0.02)),
        "all-kept": (normal(5, 7) + 10, CodecConfig(sparsity=0.0, num_groups=3)),
        "three-groups-ties": (torch.round(normal(40) * 2), CodecConfig(sparsity=0.4, num_groups=3)),
        "asymmetric": (normal(40), CodecConfig(sparsity=0.5, asymmetry=0.5, num_groups=2)),
        "massive-activations": (spikes, CodecConfig(sparsity=0.3, num_groups=64, distortion=0.05)),
        "float16": (normal(6, 10).half(), CodecConfig(num_groups=4)),
        "bfloat16-no-checksum": (normal(6, 10).bfloat16(), CodecConfig(num_groups=4, checksum=False)),
        "subnormal": (normal(20) * 1e-42, CodecConfig(sparsity=0.5)),
        "zeros": (torch.zeros(2, 9), CodecConfig()),
        "constant": (torch.full((3, 3), -2.5), CodecConfig()),
        "empty": (torch.zeros(2, 0, 3), CodecConfig()),
        "scalar": (torch.tensor(-0.1), CodecConfig()),
        "widest-codes": (normal(64), CodecConfig(sparsity=0, distortion=1e-4)),
        "no-codes": (normal(64), CodecConfig(sparsity=0, distortion=1.0)),
    }


def as_float32(x: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    """NumPy has no bfloat16, so all fixtures are stored as float32, which holds the others exactly."""
    return x.detach().float().numpy()


def main() -> None:
    """Writes one folder a case."""
    for name, (x, config) in cases().items():
        folder = HERE / name
        folder.mkdir(parents=True, exist_ok=True)
        frame = Codec(config).encode(x)
        np.save(folder / "input.npy", as_float32(x), allow_pickle=False)
        np.save(folder / "decoded.npy", as_float32(decode(frame)), allow_pickle=False)
        (folder / "frame.bin").write_bytes(frame)
        settings = {"dtype": str(x.dtype).removeprefix("torch."), "codec": config.to_dict()}
        (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


if __name__ == "__main__":
    main()
