"""What a message costs beside its time alone: in batches, in threads, in memory, and in a process that has just begun."""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serverlight.codec import Codec, decode, decode_batch
from serverlight.codec.tensors import Tensor
from serverlight.evaluation.checks import Check
from serverlight.evaluation.speed import SpeedRow, sample_feature

__all__ = ["extra_checks", "peak_memory"]

TOKEN = (1, 4096)
NUM_TOKENS = 64
PROMPT = (512, 4096)
ROUNDS = 15
MESSAGES_A_THREAD, HASH_ROUNDS = 4, 20_000
"""Some ten milliseconds of work for each thread, beside which it is nothing to wake one."""

IN_TWO_THREADS = " in each of two threads: speed over one thread"

T = TypeVar("T")

TOKEN_ENCODE_RATIO, TOKEN_DECODE_US, TOKEN_DECODE_RATIO = 0.6, 20.0, 1.5
"""One token: encoding in so much of the time of bitsandbytes' fastest encoder; decoding in so many microseconds, or in so much of
the time of its fastest decoder."""

MAX_BATCH_SHARE, MIN_THREADS_SPEEDUP, MAX_MEMORY_SHARE, MAX_WARM_START_S = 0.5, 1.7, 1.5, 1.0

WARM_START = "from serverlight.codec import warm_up; print(warm_up())"

PEAK_MEMORY = """
import pathlib, sys
import numpy as np
from serverlight.codec import Codec, decode_into
def kilobytes(field):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))
def extra(call):
    before = kilobytes("VmRSS")
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    call()
    return kilobytes("VmHWM") - before
codec, rng = Codec(), np.random.default_rng(0)
x, y = (rng.standard_normal(({tokens}, 4096), np.float32) for _ in range(2))
small = codec.encode(x[:1])
decode_into(small, y[:1])
frames = []
print(extra(lambda: frames.append(codec.encode(x))) / (x.nbytes / 1024))
print(extra(lambda: decode_into(frames[0], y)) / (x.nbytes / 1024))
"""
"""A process of its own, since memory that was used before does not count as new."""


def extra_checks(rows: Sequence[SpeedRow], codec: str) -> list[Check]:
    """One token, 64 tokens in a batch, two threads, peak memory and a warm start.

    Args:
        rows: times of single tokens, among others.
        codec: whose rows count.
    """
    return [*_token_times(rows, codec), _batch(), *_threads(), *_peak_memory(), _warm_start()]


def _token_times(rows: Sequence[SpeedRow], codec: str) -> list[Check]:
    of_token = [row for row in rows if row.shape == TOKEN]
    row = next((row for row in of_token if row.codec == codec), None)
    if row is None:
        return []
    rivals = [rival for rival in of_token if rival.codec.startswith("bitsandbytes")]
    encode_limit = TOKEN_ENCODE_RATIO * min(rival.encode_us for rival in rivals) if rivals else None
    fastest_decode_us = min((rival.decode_us for rival in rivals), default=0.0)
    decode_limit = max(TOKEN_DECODE_US, TOKEN_DECODE_RATIO * fastest_decode_us)
    times = (("encode", row.encode_us, encode_limit), ("decode", row.decode_us, decode_limit))
    return [
        Check(name=f"{codec}: {what} one token {_sides(TOKEN)}", value=value, unit="us", limit=limit)
        for what, value, limit in times
    ]


def _batch() -> Check:
    codec = Codec()
    frames = [codec.encode(sample_feature(TOKEN, seed)) for seed in range(NUM_TOKENS)]
    together, alone = _medians(lambda: decode_batch(frames), lambda: [decode(frame) for frame in frames])
    name = f"decode {NUM_TOKENS} tokens {_sides(TOKEN)} in one call: time over that of {NUM_TOKENS} calls"
    return Check(name=name, value=together / alone, unit="x", limit=MAX_BATCH_SHARE)


def _threads() -> list[Check]:
    """Two threads that encode; once each, too, of which waking a thread takes its share; and two that hash, which needs no memory:
    what the machine has to give.
    """
    if len(os.sched_getaffinity(0)) < 2:
        return []
    codec, tensors = Codec(), [sample_feature(PROMPT, seed) for seed in range(2)]

    def encode_often(tensor: Tensor) -> None:
        for _ in range(MESSAGES_A_THREAD):
            codec.encode(tensor)

    often = _speedup(encode_often, tensors)
    context = {f"encode once {_sides(PROMPT)}": _speedup(codec.encode, tensors), "hash": _speedup(_hash, [b"a", b"b"])}
    name = f"encode {MESSAGES_A_THREAD} times {_sides(PROMPT)}" + IN_TWO_THREADS
    return [
        Check(name=name, value=often, unit="x", bound=">=", limit=MIN_THREADS_SPEEDUP),
        *(Check(name=what + IN_TWO_THREADS, value=value, unit="x") for what, value in context.items()),
    ]


def _speedup(work: Callable[[T], object], items: Sequence[T]) -> float:
    """How many times as fast two threads are through two items as one."""
    with ThreadPoolExecutor(2) as pool:
        two, one = _medians(lambda: list(pool.map(work, items)), lambda: [work(item) for item in items])
    return one / two


def _hash(password: bytes) -> None:
    hashlib.pbkdf2_hmac("sha256", password, b"salt", HASH_ROUNDS)


def peak_memory(tokens: int) -> tuple[float, float] | None:
    """What encoding and decoding so many tokens of 4096 elements takes at most, over the tensor's own size; none but on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    encode, decode = _in_fresh_process(PEAK_MEMORY.replace("{tokens}", str(tokens))).split()
    return float(encode), float(decode)


def _peak_memory() -> list[Check]:
    return [
        Check(
            name=f"{what} {_sides(PROMPT)}: peak memory beside the tensor's own",
            value=share,
            unit="x",
            limit=MAX_MEMORY_SHARE,
        )
        for what, share in zip(("encode", "decode"), peak_memory(PROMPT[0]) or (), strict=False)
    ]


def _warm_start() -> Check:
    _in_fresh_process(WARM_START)  # compiles where nothing is compiled yet
    seconds = statistics.median(float(_in_fresh_process(WARM_START)) for _ in range(3))
    return Check(
        name="first message and back in a fresh process, compiled before",
        value=seconds,
        unit="s",
        limit=MAX_WARM_START_S,
    )


def _medians(first: Callable[[], object], second: Callable[[], object]) -> tuple[float, float]:
    """Seconds of two calls that take turns."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(ROUNDS + 1):
        for call, taken in zip((first, second), times, strict=True):
            started = time.perf_counter()
            call()
            taken.append(time.perf_counter() - started)
    return statistics.median(times[0][1:]), statistics.median(times[1][1:])


def _in_fresh_process(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return done.stdout


def _sides(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
