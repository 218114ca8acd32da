"""What a single-shot model costs: heads as the device runs them, tails as the server does, at every cut and some batches."""

from __future__ import annotations

import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from serverlight.models import LoadedModel
from serverlight.partition import CutPoint, Partition, TensorSpec
from serverlight.partition.inputs import Call, as_call
from serverlight.partition.sides import Head
from serverlight.runtime.messages import InferReply, InferRequest
from serverlight.runtime.scheduler import Job
from serverlight.runtime.tensors import to_raw
from serverlight.runtime.worker import Worker
from serverlight.search.depth import anchors_of, before_cuts, behind_cuts, shift_to
from serverlight.search.fitting import BATCH_TERMS, Point, fit_curve
from serverlight.search.profile import CutCost
from serverlight.search.steady import CoreWatch, Steady
from serverlight.search.stopwatch import lower_quartile, quiet_collector, repeats_for, timed, work_clock

__all__ = ["CutTimes", "SingleShotBench", "candidate_cuts", "example_batch", "measure_single_shot", "peak_bytes"]

BATCHES = (1, 2, 4, 8, 16)

MOST_MS = 4000.0
"""A batch that takes longer is left out, and so are larger ones."""

Advance = Callable[[], None]
"""Is told that another of the announced steps is done."""


def candidate_cuts(parts: Partition) -> tuple[CutPoint, ...]:
    """The cuts worth asking about: exits of modules with one feature at most, and the two ends."""
    first, *between, last = parts.cuts
    worth = (cut for cut in between if cut.is_module_exit and sum(spec.is_feature for spec in cut.tensors) <= 1)
    return (first, *worth, last)


def measure_single_shot(
    model: LoadedModel,
    parts: Partition,
    *,
    batches: Sequence[int] = BATCHES,
    budget_s: float = 15.0,
    watch: CoreWatch | None = None,
    advance: Advance,
) -> tuple[CutCost, ...]:
    """Costs of all candidate cuts; ``advance`` is called once for each batch size, ``watch`` tells which to take again."""
    bench, steady = SingleShotBench(model, parts, max(batches)), Steady[CutTimes](watch or CoreWatch())
    longest_ms = 0.0
    for batch in batches:
        if longest_ms < MOST_MS / 2:
            longest_ms = steady.take(functools.partial(bench.measure, batch, budget_s / len(batches))).behind[0]
        advance()
    times = steady.settle()
    heads = [parts.split(cut)[0] for cut in bench.cuts]
    tails = [parts.split(cut)[1] for cut in bench.cuts]
    return tuple(
        CutCost(
            name=cut.name,
            elements=sum(spec.elements_per_sample for spec in cut.tensors if spec.is_feature),
            side_bytes=sum(spec_bytes(spec) for spec in cut.tensors if not spec.is_feature),
            head=fit_curve([(Point(rows=at.batch), at.before[depth]) for at in times], BATCH_TERMS),
            tail=fit_curve([(Point(rows=at.batch), at.behind[depth]) for at in times], BATCH_TERMS),
            head_weight_bytes=weight_bytes(heads[depth]),
            tail_weight_bytes=weight_bytes(tails[depth]),
            head_activation_bytes=peak_bytes(parts, cut),
        )
        for depth, cut in enumerate(bench.cuts)
    )


def example_batch(model: LoadedModel, batch: int) -> Any:
    """Inputs like the example, of so many samples; numbers are noise around those of the example's first sample."""
    first = next(leaf for leaf in pytree.tree_leaves(model.example_inputs) if isinstance(leaf, Tensor))

    def of_batch(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.ndim == 0 or leaf.shape[0] != first.shape[0]:
            return leaf
        rows = leaf[:1].repeat(batch, *[1] * (leaf.ndim - 1))
        return rows + torch.randn_like(rows) if rows.is_floating_point() else rows

    return pytree.tree_map(of_batch, model.example_inputs)


def weight_bytes(module: nn.Module) -> int:
    """Of parameters and buffers."""
    return sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))


def spec_bytes(spec: TensorSpec) -> int:
    """Of one sample."""
    itemsize: int = getattr(torch, spec.dtype).itemsize
    return spec.elements_per_sample * itemsize


def peak_bytes(parts: Partition, cut: CutPoint) -> int:
    """About the most that the head of a cut holds at a time for one sample, beside its weights.

    What is alive after two operations that follow each other is alive while the second of them runs. Places where no cut is
    legal are left out.
    """
    names = [{spec.name: spec_bytes(spec) for spec in other.tensors} for other in parts.cuts[: cut.index + 1]]
    return max(sum((before | after).values()) for before, after in zip([{}, *names], names, strict=False))


@dataclass(frozen=True, kw_only=True, slots=True)
class CutTimes:
    """Milliseconds at one batch size, cut by cut."""

    batch: int
    before: list[float]
    behind: list[float]


class SingleShotBench:
    """The pieces between the candidate cuts, and heads and tails measured whole at some of them, by their place."""

    def __init__(
        self, model: LoadedModel, parts: Partition, most: int, *, anchors: Sequence[int] | None = None
    ) -> None:
        self.cuts = candidate_cuts(parts)
        self._model = model
        self._clock = work_clock()
        self._pieces = [parts.segment(first, last) for first, last in itertools.pairwise(self.cuts)]
        self._anchors = tuple(anchors or anchors_of(len(self.cuts)))
        self._input = parts.split(self.cuts[0])[0]
        self._heads: list[Head] = [parts.split(self.cuts[depth])[0] for depth in self._anchors]
        names = [self.cuts[depth].name for depth in self._anchors]
        self._worker = Worker(model, parts, names, max_batch=most)

    @torch.inference_mode()
    def measure(self, batch: int, budget_s: float) -> CutTimes:
        """At all cuts, for so many samples."""
        call = as_call(example_batch(self._model, batch))
        jobs = [list(self._jobs(depth, batch)) for depth in self._anchors]
        started_s = time.perf_counter()
        self._round(call, jobs)  # brings everything into the caches; not counted
        round_ms = (time.perf_counter() - started_s) * 1e3
        with quiet_collector():
            rounds = [self._round(call, jobs) for _ in range(repeats_for(round_ms, budget_s))]
        pieces, heads, tails = (
            [*map(lower_quartile, zip(*values, strict=True))] for values in zip(*rounds, strict=True)
        )
        return CutTimes(
            batch=batch,
            before=shift_to(before_cuts(pieces), dict(zip(self._anchors, heads, strict=True))),
            behind=shift_to(behind_cuts(pieces), dict(zip(self._anchors, tails, strict=True))),
        )

    def _round(self, call: Call, jobs: Sequence[Sequence[Job]]) -> tuple[list[float], list[float], list[float]]:
        """Pieces, heads and tails, one after the other, so that what disturbs meets them alike."""
        args, kwargs = call
        return (
            self._time_pieces(self._input(*args, **kwargs)),
            [timed(self._clock, head, *args, **kwargs) for head in self._heads],
            [timed(self._clock, _run, self._worker, some) for some in jobs],
        )

    def _time_pieces(self, crossing: tuple[Tensor, ...]) -> list[float]:
        marks = [self._clock()]
        for piece in self._pieces:
            crossing = piece(*crossing)
            marks.append(self._clock())
        return [after - before for before, after in itertools.pairwise(marks)]

    def _jobs(self, depth: int, batch: int) -> Iterator[Job]:
        """Requests of one sample each, from as many devices."""
        cut = self.cuts[depth]
        for number in range(batch):
            payloads = tuple(to_raw(_example(spec, 1)) for spec in cut.tensors)
            request = InferRequest(request_id=number + 1, payloads=payloads)
            yield Job(owner=number, cut=cut.name, request=request, reply=lambda _: None, arrived_s=time.monotonic())


def _run(worker: Worker, jobs: Sequence[Job]) -> None:
    for _, answer in worker.run(jobs):
        if not isinstance(answer, InferReply):
            raise answer if isinstance(answer, BaseException) else RuntimeError("a request without an answer")


def _example(spec: TensorSpec, batch: int) -> Tensor:
    """Values of no meaning; indices and masks are ones, which every embedding and every attention takes."""
    shape = [batch * spec.batch_factor if size is None else size for size in spec.shape]
    dtype: torch.dtype = getattr(torch, spec.dtype)
    return torch.randn(shape).to(dtype) if dtype.is_floating_point else torch.ones(shape, dtype=dtype)
