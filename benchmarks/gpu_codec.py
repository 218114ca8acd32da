"""The codec on a graphics processor, beside a copy of the same tensor there and beside the codec on the host.

    python benchmarks/gpu_codec.py                      # needs a CUDA device and Triton; says so where there is none
    python benchmarks/gpu_codec.py --json gpu.json

A time is the median of the rounds, of which there are at least thirty, for at least a fifth of a second, after as many that do not
count. The device is idle when a round begins. Encoding ends with the bytes on the host, which wait for the device; decoding begins
with them there, and ends when the device is idle again. The copy is from one tensor to another on the device. The last rows decode
64 frames in one call, beside 64 calls, and beside one call on the host whose tensor is copied to the device.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch

from serverlight.codec import Codec, CodecConfig, decode, decode_batch
from serverlight.errors import BackendUnavailable
from serverlight.evaluation import describe_environment
from serverlight.evaluation.speed import sample_feature

SHAPES = ((4096, 4096), (64, 4096), (1, 64, 56, 56), (1, 4096))
IN_BATCHES = ((1, 4096), (1, 64, 56, 56), (1, 96, 384))
SPARSITY = 0.5
LEAST_SECONDS = 0.2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=pathlib.Path, help="write the figures there, too")
    parser.add_argument("--rounds", type=int, default=30, help="at least so many are measured")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device: nothing to measure here")
        return 1
    try:
        rows = [measure(shape, args.rounds) for shape in SHAPES]
    except BackendUnavailable as error:
        print(error)
        return 1
    for row in rows:
        print(
            f"{row['shape']!s:18} encode {row['encode_us']:9.1f} us, decode {row['decode_us']:9.1f} us, "
            f"copy {row['copy_us']:7.1f} us; of its bandwidth {row['encode_of_copy']:.3f} and {row['decode_of_copy']:.3f}"
        )
    batches = [measure_batch(shape, args.rounds) for shape in IN_BATCHES]
    for batch in batches:
        print(
            f"{batch['num_frames']} x {batch['shape']} decode {batch['together_us']:9.1f} us, "
            f"one by one {batch['single_us']:9.1f} us, by the host {batch['host_us']:9.1f} us"
        )
    if args.json:
        args.json.write_text(json.dumps({**describe_environment(), "rows": rows, "batches": batches}, indent=2) + "\n")
    return 0


def measure(shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """One bfloat16 tensor."""
    x = sample_feature(shape).to("cuda", torch.bfloat16)
    codec, other = Codec(CodecConfig(sparsity=SPARSITY)), torch.empty_like(x)
    frame = codec.encode(x)
    encode_us = median_us(lambda: codec.encode(x), rounds, is_on_host=True)
    decode_us = median_us(lambda: decode(frame, device="cuda"), rounds)
    copy_us = median_us(lambda: other.copy_(x), rounds)
    return {
        "shape": list(shape), "dtype": "bfloat16", "bits_per_element": 8 * len(frame) / x.numel(),
        "encode_us": encode_us, "decode_us": decode_us, "copy_us": copy_us,
        "encode_of_copy": copy_us / encode_us, "decode_of_copy": copy_us / decode_us,
    }  # fmt: skip


def measure_batch(shape: tuple[int, ...], rounds: int, num_frames: int = 64) -> dict[str, Any]:
    """Many bfloat16 tensors, each with a frame of its own, into one tensor."""
    codec = Codec(CodecConfig(sparsity=SPARSITY))
    frames = [codec.encode(x[None]) for x in sample_feature((num_frames, *shape[1:])).bfloat16()]
    return {
        "num_frames": num_frames,
        "shape": list(shape),
        "together_us": median_us(lambda: decode_batch(frames, device="cuda"), rounds),
        "single_us": median_us(lambda: [decode(frame, device="cuda") for frame in frames], rounds),
        "host_us": median_us(lambda: decode_batch(frames).to("cuda"), rounds),
    }


def median_us(call: Callable[[], object], rounds: int, *, is_on_host: bool = False) -> float:
    """Median microseconds of a call, whose result lies on the host or is complete when the device is idle."""
    times: list[float] = []
    for _ in range(2):  # a processor and its caches take some time to settle
        times = []
        while len(times) < rounds or sum(times) < LEAST_SECONDS:
            torch.cuda.synchronize()
            started = time.perf_counter()
            call()
            if not is_on_host:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)


if __name__ == "__main__":
    sys.exit(main())
