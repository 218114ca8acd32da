"""The bound of a server: the same batches through the same tails in this process, without messages or a network."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Sequence

import torch

from serverlight.codec import decode
from serverlight.evaluation.load.clients import Pace
from serverlight.evaluation.load.figures import Sample, Turn
from serverlight.evaluation.load.scripts import Requests
from serverlight.partition import Partition, Tail
from serverlight.runtime.messages import Frame

__all__ = ["image_batches", "run_batches"]

Batch = Callable[[], int]
"""Runs one batch, and returns how many items it has."""


def image_batches(parts: Partition, scripts: Sequence[Requests]) -> list[Batch]:
    """A batch for each cut: one request of every device that has cut there. Features are decoded already."""
    found = list[Batch]()
    for cut in dict.fromkeys(script.plan.cut for script in scripts):
        peers = [script for script in scripts if script.plan.cut == cut]
        requests = [script.payloads[i % len(script.payloads)] for i, script in enumerate(peers)]
        _, tail = parts.split(cut)
        rows = [[decode(part.data) for part in request if isinstance(part, Frame)] for request in requests]
        tensors = [torch.cat(column) for column in zip(*rows, strict=True)]
        found.append(functools.partial(_run, tail, tensors, len(peers)))
    return found


def _run(tail: Tail, tensors: Sequence[torch.Tensor], size: int) -> int:
    with torch.inference_mode():
        tail.flat(*tensors)
    return size


def run_batches(batches: Sequence[Batch], pace: Pace) -> Turn:
    """Runs the batches in turn, again and again, on this thread."""
    turn, source = Turn(), itertools.cycle(batches)
    turn.begin_s = time.perf_counter() + pace.warmup_s
    turn.end_s = turn.begin_s + pace.duration_s
    due_s = time.perf_counter()
    while due_s < turn.end_s:
        size = next(source)()
        done_s, cpu_ms = time.perf_counter(), time.process_time() * 1e3
        for client in range(size):
            turn.samples.append(
                Sample(
                    client=client, due_s=due_s, done_s=done_s, uplink_bytes=0, batch_size=size, process_cpu_ms=cpu_ms
                )
            )
        due_s = done_s
    return turn
