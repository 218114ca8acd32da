"""A device and a server on this machine, over loopback: what messages cost, and how much slower all is between two waits.

A head in a loop of its own has everything in the processor's caches. After a wait for the server it has not, and so takes
longer; the same holds for a tail after a wait for the next request. The rehearsal tells by how much: of each kind of
request some come one after the other, and some after a rest like that of a device on a far link.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from serverlight.codec import CodecConfig
from serverlight.models import LoadedModel
from serverlight.partition import Partition
from serverlight.partition.inputs import as_call
from serverlight.partition.sides import Head
from serverlight.plan import Plan
from serverlight.runtime.connecting import connect
from serverlight.runtime.messages import Timing
from serverlight.search.depth import between
from serverlight.search.fitting import SIZE_TERMS, Point, fit_curve
from serverlight.search.profile import CodecCost, Curve, CutCost, MessageCost
from serverlight.search.single_shot import example_batch
from serverlight.search.steady import CoreWatch, Steady
from serverlight.search.stopwatch import timed, work_clock

__all__ = [
    "Exchange",
    "Notes",
    "as_rehearsed",
    "codec_as_rehearsed",
    "message_cost",
    "rehearse_single_shot",
]

KILOBYTE = 1000

BATCHES, ROUNDS = (1, 4), 24
"""Samples of a request, and requests of each size."""

REST_S = 0.04
"""A rest after which a longer one makes hardly a difference."""

LARGE_BATCHES, LARGE_BYTES = (2, 8, 32), 4 * 2**20
"""Of requests that are to be large, and how large they may be."""

LEAST_MS = 1e-3
"""A clock that says less is not believed."""

MOST_CHANGE = 0.5
"""Of what a curve says of one sample or token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """One kind of request, in the median of many: as long as users see it take, with what usually disturbs."""

    cut: str
    point: Point
    """What was asked for."""

    head_ms: float
    encode_ms: float
    decode_ms: float
    tail_ms: float
    """With what follows it on the compute thread."""

    uplink_bytes: float
    message_ms: float
    """From the message's sending to the reply, less the server's work."""

    message_cpu_ms: float
    """The server's processor time beside its work."""

    opens: bool = False
    """Whether a connection, a stream and a session were opened for it."""

    is_rested: bool = False
    """Whether both sides had a rest before it."""

    @property
    def is_single(self) -> bool:
        """Whether it was of one sample or token."""
        return self.point.rows == self.point.tokens == 1


class Notes:
    """What was seen of one kind of request."""

    def __init__(self) -> None:
        self._seen: dict[str, list[float]] = {}

    def note(self, timing: Timing, before: Timing | None, *, wait_ms: float, **more: float) -> None:
        """Takes down one exchange; ``before`` is the last one's on the same server, if any."""
        work_ms = timing.decode_ms + timing.tail_ms + timing.sample_ms
        # Of one thread its processor time tells more than the clock on the wall, which runs on while others have the core.
        busy_ms = min(timing.cpu_ms, work_ms) if torch.get_num_threads() == 1 else work_ms
        self._add(
            tail_ms=busy_ms * (1 - timing.decode_ms / max(work_ms, 1e-9)),
            decode_ms=timing.decode_ms,
            message_ms=max(LEAST_MS, wait_ms - work_ms),
            **more,
        )
        if before is not None:
            cpu_ms = timing.process_cpu_ms - before.process_cpu_ms - timing.cpu_ms
            self._add(message_cpu_ms=max(LEAST_MS, cpu_ms))

    def exchange(self, cut: str, point: Point, *, opens: bool = False, is_rested: bool = False) -> Exchange:
        """What they have in common."""
        seen = {name: statistics.median(values) for name, values in self._seen.items()}
        return Exchange(cut=cut, point=point, opens=opens, is_rested=is_rested, **seen)

    def _add(self, **values: float) -> None:
        for name, value in values.items():
            self._seen.setdefault(name, []).append(value)


def rehearse_single_shot(
    model: LoadedModel,
    parts: Partition,
    address: str,
    cuts: Sequence[str],
    *,
    watch: CoreWatch | None = None,
    advance: Callable[[], None],
) -> tuple[Exchange, ...]:
    """Requests of some sizes at some cuts; ``advance`` is called for each cut, and once more;
    ``watch`` tells which to take again.

    The last are large: whole halves at the widest cut, so that it shows what a kilobyte costs.
    """
    steady = Steady[list[Exchange]](watch or CoreWatch())

    def take(plan: Plan, batches: Sequence[int]) -> None:
        steady.take(lambda: list(_at_cut(model, parts, address, plan, batches)))
        advance()

    for cut in cuts:
        take(Plan(model=model.name, revision=model.revision, cut=cut), BATCHES)
    widest = max(map(parts.cut, cuts), key=lambda cut: cut.elements_per_sample)
    plan = Plan(model=model.name, revision=model.revision, cut=widest.name, codec=CodecConfig(profile="fp16"))
    fitting = [batch for batch in LARGE_BATCHES if batch * 2 * widest.elements_per_sample <= LARGE_BYTES]
    take(plan, fitting)
    return tuple(itertools.chain.from_iterable(steady.settle()))


def _at_cut(
    model: LoadedModel, parts: Partition, address: str, plan: Plan, batches: Sequence[int]
) -> Iterator[Exchange]:
    clock, head = work_clock(), parts.split(plan.cut)[0]
    with connect(address, plan=plan, model=parts) as client:
        for batch in batches:
            inputs, one_by_one, rested = example_batch(model, batch), Notes(), Notes()
            kinds = [(one_by_one, 0.0), (rested, REST_S)] if batch == 1 else [(one_by_one, 0.0)]
            run = functools.partial(_run, head, *as_call(inputs))
            before = client.infer_detailed(inputs).server  # the first request of a kind is not like others
            for notes, rest_s in ROUNDS * kinds:  # in turn, so that what disturbs meets them alike
                time.sleep(rest_s)
                head_ms = timed(clock, run)
                time.sleep(rest_s)
                done = client.infer_detailed(inputs)
                notes.note(
                    done.server, before, wait_ms=done.wait_ms, encode_ms=done.encode_ms,
                    uplink_bytes=done.uplink_bytes, head_ms=head_ms,
                )  # fmt: skip
                before = done.server
            yield one_by_one.exchange(plan.cut, Point(rows=batch))
            if batch == 1:
                yield rested.exchange(plan.cut, Point(rows=batch), is_rested=True)


@torch.inference_mode()
def _run(head: Head, args: tuple[Any, ...], kwargs: dict[str, Any]) -> object:
    return head(*args, **kwargs)


# -- what it says about the curves ------------------------------------------------------------------


def message_cost(exchanges: Sequence[Exchange]) -> MessageCost:
    """Curves over the kilobytes of the request; what opening a stream takes is told apart by requests of one token."""
    busy = [done for done in exchanges if not done.is_rested]
    opening_ms, opening_cpu_ms = (_opening(busy, field) for field in ("message_ms", "message_cpu_ms"))
    latency, server = list[tuple[Point, float]](), list[tuple[Point, float]]()
    for done in busy:
        size = Point(rows=done.uplink_bytes / KILOBYTE)
        latency.append((size, max(LEAST_MS, done.message_ms - done.opens * opening_ms)))
        server.append((size, max(LEAST_MS, done.message_cpu_ms - done.opens * opening_cpu_ms)))
    return MessageCost(
        latency=fit_curve(latency, SIZE_TERMS),
        server=fit_curve(server, SIZE_TERMS),
        opening_ms=opening_ms,
        latency_rest_ms=_median(_after_rest(exchanges, "message_ms").values()),
        server_rest_ms=_median(_after_rest(exchanges, "message_cpu_ms").values()),
    )


def _opening(exchanges: Sequence[Exchange], field: str) -> float:
    first = [getattr(done, field) for done in exchanges if done.opens and done.point.tokens == 1]
    later = [getattr(done, field) for done in exchanges if not done.opens]
    return max(0.0, _median(first) - _median(later)) if first else 0.0


def as_rehearsed(cuts: Sequence[CutCost], exchanges: Sequence[Exchange]) -> tuple[CutCost, ...]:
    """The cuts with heads and tails that take, alone, what they took in the rehearsal.

    Memory gets warm once in a run, however much is run: the difference is the same for any batch. Between the cuts of the
    rehearsal it goes by their place.
    """
    places = {cut.name: place for place, cut in enumerate(cuts)}
    singles = [done for done in exchanges if done.is_single and not done.is_rested]
    heads = {places[done.cut]: done.head_ms - _of(cuts[places[done.cut]].head, done.point) for done in singles}
    tails = {places[done.cut]: done.tail_ms - _of(cuts[places[done.cut]].tail, done.point) for done in singles}
    head_rests = {places[cut]: ms for cut, ms in _after_rest(exchanges, "head_ms").items()}
    tail_rests = {places[cut]: ms for cut, ms in _after_rest(exchanges, "tail_ms").items()}
    return tuple(
        dataclasses.replace(
            cut,
            head=_raised(cut.head, between(heads, place)),
            tail=_raised(cut.tail, between(tails, place)),
            head_rest_ms=between(head_rests, place),
            tail_rest_ms=between(tail_rests, place),
        )
        for place, cut in enumerate(cuts)
    )


def codec_as_rehearsed(
    codec: CodecCost, cuts: Sequence[CutCost], exchanges: Sequence[Exchange], *, rehearsed: CodecCost | None = None
) -> CodecCost:
    """The same for the codec; with ``rehearsed``, the rehearsal was that one's, and this one takes as much longer."""
    rehearsed = rehearsed or codec
    elements = {cut.name: cut.elements for cut in cuts}
    pairs = [
        (Point(rows=elements[done.cut] / 1e3), done) for done in exchanges if done.is_single and not done.is_rested
    ]
    return CodecCost(
        encode=_raised(codec.encode, _median(done.encode_ms - _of(rehearsed.encode, point) for point, done in pairs)),
        decode=_raised(codec.decode, _median(done.decode_ms - _of(rehearsed.decode, point) for point, done in pairs)),
        encode_rest_ms=_median(_after_rest(exchanges, "encode_ms").values()),
        decode_rest_ms=_median(_after_rest(exchanges, "decode_ms").values()),
    )


def _after_rest(exchanges: Sequence[Exchange], field: str) -> dict[str, float]:
    """What a single sample or token takes longer after a rest, cut by cut; never less than nothing."""
    singles = [done for done in exchanges if done.is_single and not done.opens]
    busy = {done.cut: getattr(done, field) for done in singles if not done.is_rested}
    return {
        done.cut: max(0.0, getattr(done, field) - busy[done.cut])
        for done in singles
        if done.is_rested and done.cut in busy
    }


def _of(curve: Curve, point: Point) -> float:
    return curve.ms(rows=point.rows, tokens=point.tokens, context=point.context)


def _median(values: Iterable[float]) -> float:
    return statistics.median([*values] or [0.0])


def _raised(curve: Curve, by_ms: float) -> Curve:
    """With so much more however little there is to do, within bounds: one disturbed measurement must not decide."""
    alone_ms = curve.ms()
    by_ms = min(max(by_ms, -MOST_CHANGE * alone_ms), MOST_CHANGE * alone_ms)
    return dataclasses.replace(curve, fixed_ms=max(0.0, curve.fixed_ms + by_ms))
