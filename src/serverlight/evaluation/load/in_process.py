"""The bound of a server: the same batches through the same tails in this process, without messages or a network."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch

from serverlight.codec import decode
from serverlight.evaluation.load.figures import Sample, Turn
from serverlight.evaluation.load.scripts import Requests, Text
from serverlight.generation import LoadedDecoder, layer_of
from serverlight.partition import Partition, Tail
from serverlight.partition.decoder import DecoderTail
from serverlight.partition.sweep import Sweep
from serverlight.runtime.messages import Frame

__all__ = ["Batch", "image_batches", "run_batches", "text_batches"]


class _Ran(NamedTuple):
    """What a batch was."""

    num_items: int
    batch_size: int
    is_first: bool = False
    """Whether its items are the first tokens of texts."""


Batch = Callable[[], _Ran]
"""Runs one batch."""


def image_batches(parts: Partition, scripts: Sequence[Requests]) -> list[Batch]:
    """A batch for each cut: one request of every device that has cut there. Features are decoded already."""
    found = list[Batch]()
    for cut in dict.fromkeys(script.plan.cut for script in scripts):
        peers = [script for script in scripts if script.plan.cut == cut]
        requests = [script.payloads[i % len(script.payloads)] for i, script in enumerate(peers)]
        _, tail = parts.split(cut)
        rows = [[decode(part.data) for part in request if isinstance(part, Frame)] for request in requests]
        tensors = [torch.cat(column) for column in zip(*rows, strict=True)]
        found.append(functools.partial(_run_images, tail, tensors, len(peers)))
    return found


def text_batches(tail: LoadedDecoder, scripts: Sequence[Text]) -> list[Batch]:
    """One batch, a step of every device at its own cut; prompts have been run, and hidden states are decoded already.

    Raises :class:`NotBatchable` where the model takes no batches.
    """
    assert isinstance(tail.part, DecoderTail)
    return [_Sweeps(tail.part, scripts)]


def run_batches(batches: Iterator[Batch], seconds: float) -> Turn:
    """Runs batches for so long, on this thread; the last one to its end."""
    turn = Turn(begin_s=time.perf_counter())
    due_s = turn.begin_s
    while due_s < turn.begin_s + seconds:
        ran = next(batches)()
        done_s, cpu_ms = time.perf_counter(), time.process_time() * 1e3
        turn.samples += [
            Sample(
                client=client, due_s=due_s, done_s=done_s, uplink_bytes=0, batch_size=ran.batch_size,
                process_cpu_ms=cpu_ms, is_first=ran.is_first,
            )
            for client in range(ran.num_items)
        ]  # fmt: skip
        due_s = done_s
    turn.end_s = time.perf_counter()
    return turn


@torch.inference_mode()
def _run_images(tail: Tail, tensors: Sequence[torch.Tensor], size: int) -> _Ran:
    tail.flat(*tensors)
    return _Ran(size, size)


class _Sweeps:
    """The steps of texts; when one ends, all begin anew."""

    def __init__(self, part: DecoderTail, scripts: Sequence[Text]) -> None:
        self._part, self._sweep, self._scripts = part, Sweep(part), scripts
        decoded = {script: [_state(frame) for frame in script.steps] for script in dict.fromkeys(scripts)}
        self._steps = [decoded[script] for script in scripts]
        self._begin()

    def __call__(self) -> _Ran:
        if self._done == min(map(len, self._steps)):
            self._begin()
            return _Ran(len(self._scripts), 1, is_first=True)
        self._sweep([steps[self._done] for steps in self._steps], self._caches)
        self._done += 1
        return _Ran(len(self._scripts), len(self._scripts))

    @torch.inference_mode()
    def _begin(self) -> None:
        self._done = 0
        self._caches = [self._part.new_cache(first=layer_of(script.plan.cut)) for script in self._scripts]
        for script, cache in zip(self._scripts, self._caches, strict=True):
            for frame in script.prompt:
                self._part(_state(frame), cache, num_logits=1)


def _state(frame: bytes) -> torch.Tensor:
    state: torch.Tensor = decode(frame)
    return state
