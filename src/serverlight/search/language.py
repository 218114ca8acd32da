"""What a language model costs: heads as the device runs them, tails as the server does, prompts and steps, alone and in batches."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serverlight.codec import Codec, decode
from serverlight.generation import LANGUAGE_CODEC
from serverlight.partition.decoder import DecoderHead, DecoderPart, DecoderTail
from serverlight.plan import Plan
from serverlight.runtime.decoder_session import DecoderSession
from serverlight.runtime.decoders import DecoderWorker
from serverlight.runtime.messages import OpenSession, Step
from serverlight.runtime.scheduler import Job
from serverlight.sampling import Sampling
from serverlight.search.depth import anchors_of, before_cuts, behind_cuts, shift_to
from serverlight.search.fitting import STEP_TERMS, Point, fit_curve
from serverlight.search.language_parts import LanguageParts, Sizes
from serverlight.search.profile import Curve, CutCost, Side
from serverlight.search.steady import CoreWatch, Steady
from serverlight.search.stopwatch import Clock, lower_quartile, quiet_collector, repeats_for, timed, work_clock

__all__ = ["HeadBench", "Lap", "TailBench", "measure_language", "run_laps"]

HEAD_POINTS = (
    Point(context=16), Point(tokens=64), Point(context=256), Point(tokens=4), Point(tokens=16), Point(tokens=128),
    Point(tokens=64, context=128), Point(tokens=128, context=128),
)  # fmt: skip
TAIL_POINTS = (
    Point(context=16), Point(tokens=64), Point(rows=2, context=16), Point(rows=4, context=64), Point(context=256),
    Point(rows=8, context=16), Point(rows=16, context=64), Point(rows=8, context=256), Point(tokens=16), Point(tokens=128),
    Point(tokens=64, context=128),
)  # fmt: skip
"""The most telling first: a slow model is measured at fewer of them."""

ENOUGH_POINTS = 5
"""So many of them make a rough curve."""

LEAST_ROUNDS = 8
"""With fewer of them at all points it is rather those first points alone."""

ROOM_TOKENS = 64
"""A sequence grows by a token with each repetition."""

MAX_KV_BYTES = 2**34
"""The worker's bound is not to be met here: what is measured holds a few hundred tokens."""


def measure_language(
    parts: LanguageParts,
    *,
    on: Side | None = None,
    budget_s: float = 30.0,
    watch: CoreWatch | None = None,
    advance: Callable[[], None],
) -> tuple[CutCost, ...]:
    """Costs of the cuts ``layers.0`` to ``layers.N``, and of ``output``, with all on the device.

    Args:
        parts: The model.
        on: The side that counts; the other is measured at the most telling points alone.
        budget_s: About how long it may take.
        watch: Tells what to take again.
        advance: Is called once for each side.
    """
    watch = watch or CoreWatch()
    head_points = HEAD_POINTS[: ENOUGH_POINTS if on == "server" else None]
    tail_points = TAIL_POINTS[: ENOUGH_POINTS if on == "device" else None]
    heads = _measure(HeadBench(parts), _that_fit(head_points, parts.head.part), budget_s / 2, watch)
    advance()
    tails = _measure(TailBench(parts), _that_fit(tail_points, parts.tail.part), budget_s / 2, watch)
    advance()
    sizes = Sizes(parts)
    cuts = [
        CutCost(
            name=f"layers.{depth}",
            elements=parts.head.part.hidden_size,
            head=heads[depth],
            tail=tails[depth],
            head_weight_bytes=sizes.before(depth),
            tail_weight_bytes=sizes.behind(depth),
            head_activation_bytes=sizes.activation_bytes if depth else sizes.hidden_bytes,
            head_kv_bytes=sum(sizes.kv_bytes[:depth]),
            tail_kv_bytes=sum(sizes.kv_bytes[depth:]),
        )
        for depth in range(parts.num_layers + 1)
    ]
    return (*cuts, _all_on_device(cuts[-1], sizes, parts.tail.part))


def _all_on_device(deepest: CutCost, sizes: Sizes, tail: DecoderPart) -> CutCost:
    both = {name: getattr(deepest.head, name) + getattr(deepest.tail, name) for name in STEP_TERMS}
    return CutCost(
        name="output",
        elements=tail.vocab_size,
        head=Curve(**both, residual=max(deepest.head.residual, deepest.tail.residual)),
        tail=Curve(fixed_ms=0.0, per_token_ms=0.0),
        head_weight_bytes=sizes.whole,
        tail_weight_bytes=0,
        head_activation_bytes=sizes.activation_bytes,
        head_kv_bytes=deepest.head_kv_bytes,
    )


def _that_fit(points: Sequence[Point], part: DecoderPart) -> list[Point]:
    longest = part.context_length or 10**9
    return [point for point in points if point.context + point.tokens + ROOM_TOKENS <= longest]


@dataclass(frozen=True, slots=True)
class Lap:
    """One run: all of it, and its layers."""

    total_ms: float
    layers_ms: list[float]
    point: Point


def _measure(bench: HeadBench | TailBench, points: Sequence[Point], budget_s: float, watch: CoreWatch) -> list[Curve]:
    """A curve for each cut."""
    run = bench.prepare(points[0], bench.anchors[0])
    run()  # brings everything into the caches
    started_s = time.perf_counter()
    run()
    first_ms = (time.perf_counter() - started_s) * 1e3
    if first_ms * len(points) * LEAST_ROUNDS > budget_s * 1e3:
        points = points[:ENOUGH_POINTS]
    steady = Steady[dict[int, list[Lap]]](watch)
    for point in points:
        steady.take(functools.partial(run_laps, bench, point, budget_s / len(points)))
    measured: list[list[tuple[Point, float]]] = [[] for _ in range(bench.num_layers + 1)]
    for laps in steady.settle():
        true_point = laps[bench.anchors[0]][len(laps[bench.anchors[0]]) // 2].point
        for depth, ms in enumerate(bench.at_cuts(laps)):
            measured[depth].append((true_point, ms))
    return [fit_curve(some, STEP_TERMS, piece_tokens=bench.piece_tokens) for some in measured]


def run_laps(bench: HeadBench | TailBench, point: Point, budget_s: float) -> dict[int, list[Lap]]:
    """Runs of a point at the anchors, in turn; the first of each is not counted."""
    runs = {depth: bench.prepare(point, depth) for depth in bench.anchors}
    started_s = time.perf_counter()
    for run in runs.values():
        run()
    repeats = repeats_for((time.perf_counter() - started_s) * 1e3, budget_s)
    with quiet_collector():
        rounds = [{depth: run() for depth, run in runs.items()} for _ in range(repeats)]
    return {depth: [laps[depth] for laps in rounds] for depth in runs}


class _LayerWatch:
    """Notes how long each layer of a part takes."""

    def __init__(self, part: DecoderPart, clock: Clock) -> None:
        self._clock = clock
        self._sums = [0.0] * part.num_layers
        self._began = 0.0
        for index, layer in enumerate(part.model.get_submodule(part.driver.layout.layers)):
            layer.register_forward_pre_hook(self._begin)
            layer.register_forward_hook(lambda *_, index=index: self._end(index))

    def _begin(self, *_: Any) -> None:
        self._began = self._clock()

    def _end(self, index: int) -> None:
        self._sums[index] += self._clock() - self._began

    def take(self) -> list[float]:
        """Sums since the last time."""
        sums, self._sums = self._sums, [0.0] * len(self._sums)
        return sums


class HeadBench:
    """Steps and chunks of a prompt through the head."""

    piece_tokens = 0

    def __init__(self, parts: LanguageParts, *, anchors: Sequence[int] | None = None) -> None:
        part = parts.head.part
        assert isinstance(part, DecoderHead)
        self._head, self.num_layers = part, parts.num_layers
        self._clock = work_clock()
        self._watch = _LayerWatch(part, self._clock)
        self.anchors = tuple(anchors or anchors_of(self.num_layers + 1)[::-1])  # the one that runs all layers first

    def prepare(self, point: Point, depth: int) -> Callable[[], Lap]:
        """What runs the point once at a cut, again and again."""
        cache = self._head.new_cache(last=depth)
        if point.context:
            self._head(torch.zeros(1, int(point.context), dtype=torch.int64), cache)
        piece = torch.zeros(1, int(point.tokens), dtype=torch.int64)

        @torch.inference_mode()
        def run() -> Lap:
            context = cache.num_tokens
            self._watch.take()
            before = self._clock()
            self._head(piece, cache)
            lap = Lap(self._clock() - before, self._watch.take(), Point(tokens=point.tokens, context=context))
            if point.tokens > 1:
                cache.crop(int(point.tokens))
            return lap

        return run

    def at_cuts(self, laps: dict[int, list[Lap]]) -> list[float]:
        """Milliseconds at every cut, from runs at the anchors."""
        layers = _layers_ms(laps[self.num_layers])
        return shift_to(before_cuts(layers), _totals(laps))


class TailBench:
    """Steps of one sequence or many, and prompts, through the server's worker, less the decoding of their frames."""

    piece_tokens: int = inspect.signature(DecoderWorker).parameters["prefill_tokens"].default

    def __init__(self, parts: LanguageParts, *, anchors: Sequence[int] | None = None) -> None:
        part = parts.tail.part
        assert isinstance(part, DecoderTail)
        self._tail, self.num_layers = part, parts.num_layers
        self._clock = work_clock()
        self.anchors = tuple(anchors or anchors_of(self.num_layers + 1))
        cuts = [f"layers.{depth}" for depth in range(self.num_layers + 1)]
        self._plans = {
            depth: Plan(model=parts.tail.name, revision=parts.tail.revision, cut=cut) for depth, cut in enumerate(cuts)
        }
        self._worker = DecoderWorker(parts.tail, cuts, max_tokens=2**20, max_kv_bytes=MAX_KV_BYTES)
        self._watch = _LayerWatch(part, self._clock)
        self._codec = Codec(LANGUAGE_CODEC)

    def prepare(self, point: Point, depth: int) -> Callable[[], Lap]:
        """What runs the point once at a cut, again and again."""
        sessions = [self._open(depth, int(point.context)) for _ in range(int(point.rows))]
        frame = self._codec.encode(self._hidden(int(point.tokens)))
        decode_ms = lower_quartile([timed(self._clock, decode, frame) for _ in range(8)])
        steps = 0

        def run() -> Lap:
            nonlocal sessions, steps
            if point.tokens > 1 and steps:
                sessions, steps = [self._open(depth, int(point.context)) for _ in sessions], 0
            steps += 1
            context = sessions[0].cache.num_tokens
            jobs = [self._job(session, steps, frame) for session in sessions]
            self._watch.take()
            before = self._clock()
            self._run(jobs)
            total_ms = self._clock() - before - len(jobs) * decode_ms
            return Lap(total_ms, self._watch.take(), Point(rows=point.rows, tokens=point.tokens, context=context))

        return run

    def at_cuts(self, laps: dict[int, list[Lap]]) -> list[float]:
        """Milliseconds at every cut, from runs at the anchors."""
        layers = _layers_ms(laps[0])
        return shift_to(behind_cuts(layers), _totals(laps))

    def _open(self, depth: int, context: int) -> DecoderSession:
        session = self._worker.open_session(self._plans[depth], OpenSession(sampling=Sampling()))
        assert isinstance(session, DecoderSession)
        if context:
            with torch.inference_mode():
                self._tail(self._hidden(context), session.cache, num_logits=1)
        return session

    def _hidden(self, tokens: int) -> Tensor:
        return torch.randn(1, tokens, self._tail.hidden_size).to(self._tail.dtype)

    def _job(self, session: DecoderSession, step: int, frame: bytes) -> Job:
        return Job(
            owner=session,
            cut=f"layers.{session.cache.first}",
            request=Step(step=step, frames=(frame,)),
            reply=lambda _: None,
            arrived_s=time.monotonic(),
            session=session,
        )

    def _run(self, jobs: Sequence[Job]) -> None:
        """Until every step has its answer: a prompt takes several turns."""
        while jobs:
            left = list[Job]()
            for job, answer in self._worker.run(jobs):
                if isinstance(answer, BaseException):
                    raise answer
                if answer is None:
                    left.append(job)
            jobs = left


def _layers_ms(laps: Sequence[Lap]) -> list[float]:
    return [*map(lower_quartile, zip(*(lap.layers_ms for lap in laps), strict=True))]


def _totals(laps: dict[int, list[Lap]]) -> dict[int, float]:
    return {depth: lower_quartile([lap.total_ms for lap in some]) for depth, some in laps.items()}
