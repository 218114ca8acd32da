"""A device and a server on this machine, over loopback: what messages cost, and how much slower all is between two waits.

A head in a loop of its own has everything in the processor's caches. After a wait for the server it has not, and so takes
longer; the same holds for a tail after a wait for the next request. The rehearsal tells by how much.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from serverlight.generation import LANGUAGE_CODEC, layer_of
from serverlight.models import LoadedModel
from serverlight.partition import Partition
from serverlight.partition.decoder import DecoderHead
from serverlight.partition.inputs import as_call
from serverlight.partition.sides import Head
from serverlight.plan import Plan
from serverlight.runtime.client import connect
from serverlight.runtime.decoder_client import DecoderClient
from serverlight.runtime.messages import Timing
from serverlight.search.language import LanguageParts
from serverlight.search.profile import CutCost
from serverlight.search.single_shot import example_batch
from serverlight.search.stopwatch import lower_quartile, timed, work_clock

__all__ = ["KILOBYTE", "Exchange", "Rehearsal", "rehearse_language", "rehearse_single_shot", "slowdowns"]

KILOBYTE = 1000

ROUNDS = 24

STEPS, PROMPT_ROUNDS = 12, 8
"""Of a text, and texts of a length."""

LEAST_MS = 0.2
"""What is shorter says nothing about how much longer it takes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange:
    """One kind of request, in the lower quartile of many."""

    cut: str
    rows: int
    tokens: int
    context: float
    head_ms: float
    tail_ms: float
    """With what follows it on the compute thread."""

    uplink_bytes: float
    message_ms: float
    """From the message's sending to the reply, less the server's work."""

    message_cpu_ms: float
    """The server's processor time beside its work."""


@dataclass(kw_only=True, slots=True)
class Rehearsal:
    """What came of the exchanges of one kind."""

    head_ms: list[float] = field(default_factory=list)
    tail_ms: list[float] = field(default_factory=list)
    uplink_bytes: list[int] = field(default_factory=list)
    message_ms: list[float] = field(default_factory=list)
    message_cpu_ms: list[float] = field(default_factory=list)
    _last: Timing | None = None

    def note(self, timing: Timing, *, wait_ms: float, uplink_bytes: int, head_ms: float) -> None:
        """Takes down one exchange."""
        work_ms = timing.decode_ms + timing.tail_ms + timing.sample_ms
        # Of one thread its processor time tells more than the clock on the wall, which runs on while others have the core.
        busy_ms = min(timing.cpu_ms, work_ms) if torch.get_num_threads() == 1 else work_ms
        self.head_ms.append(head_ms)
        self.tail_ms.append(busy_ms * (1 - timing.decode_ms / max(work_ms, 1e-9)))
        self.uplink_bytes.append(uplink_bytes)
        self.message_ms.append(max(0.0, wait_ms - work_ms))
        if self._last is not None:
            cpu_ms = timing.process_cpu_ms - self._last.process_cpu_ms - timing.cpu_ms
            self.message_cpu_ms.append(max(0.0, cpu_ms))
        self._last = timing

    def exchange(self, *, cut: str, rows: int = 1, tokens: int = 1, context: float = 0.0) -> Exchange:
        """What they have in common."""
        return Exchange(
            cut=cut,
            rows=rows,
            tokens=tokens,
            context=context,
            head_ms=lower_quartile(self.head_ms),
            tail_ms=lower_quartile(self.tail_ms),
            uplink_bytes=statistics.mean(self.uplink_bytes),
            message_ms=lower_quartile(self.message_ms),
            message_cpu_ms=lower_quartile(self.message_cpu_ms),
        )


def rehearse_single_shot(
    model: LoadedModel, parts: Partition, address: str, cuts: Sequence[str], *, batches: Sequence[int] = (1, 4, 16)
) -> tuple[Exchange, ...]:
    """Requests of some sizes at some cuts, in turn."""
    clock = work_clock()
    found = list[Exchange]()
    for cut in cuts:
        plan = Plan(model=model.name, revision=model.revision, cut=cut)
        head, _ = parts.split(cut)
        with connect(address, plan=plan, model=parts) as client:
            kinds = {batch: Rehearsal() for batch in batches}
            for batch, kind in kinds.items():
                inputs = example_batch(model, batch)
                args, kwargs = as_call(inputs)

                @torch.inference_mode()
                def run(head: Head = head, args: Any = args, kwargs: Any = kwargs) -> object:
                    return head(*args, **kwargs)

                client.infer_detailed(inputs)  # the first request of a kind is not like others
                for _ in range(ROUNDS):
                    done = client.infer_detailed(inputs)
                    head_ms = timed(run, clock)
                    kind.note(done.server, wait_ms=done.wait_ms, uplink_bytes=done.uplink_bytes, head_ms=head_ms)
            found += (kind.exchange(cut=cut, rows=batch) for batch, kind in kinds.items())
    return tuple(found)


def rehearse_language(
    parts: LanguageParts, address: str, cuts: Sequence[str], *, prompts: Sequence[int] = (1, 32, 128)
) -> tuple[Exchange, ...]:
    """Prompts of some lengths at some cuts, and steps after each of them."""
    found = list[Exchange]()
    longest = (parts.head.part.context_length or 10**9) - STEPS - 1
    for cut in cuts:
        plan = Plan(model=parts.head.name, revision=parts.head.revision, cut=cut, codec=LANGUAGE_CODEC)
        client = DecoderClient([address], plan=plan, head=parts.head)
        step = Rehearsal()
        for tokens in (tokens for tokens in prompts if tokens <= longest):
            prompt = Rehearsal()
            for number in range(PROMPT_ROUNDS):
                _one_text(client, parts, tokens, prompt, step if number else Rehearsal())
            found.append(prompt.exchange(cut=cut, tokens=tokens))
        middle = statistics.median(prompts) + STEPS / 2
        found.append(step.exchange(cut=cut, context=middle))
    return tuple(found)


def _one_text(client: DecoderClient, parts: LanguageParts, tokens: int, prompt: Rehearsal, step: Rehearsal) -> None:
    """Between the device's own turns its head runs once more, on a cache that it does not need, to be timed."""
    clock, head = work_clock(), parts.head.part
    assert isinstance(head, DecoderHead)
    cache = head.new_cache(last=layer_of(client.plan.cut))
    pieces = iter([torch.zeros(1, tokens, dtype=torch.int64)])

    @torch.inference_mode()
    def run(piece: torch.Tensor) -> object:
        return head(piece, cache)

    for number, token in enumerate(client.stream([1] * tokens, max_new_tokens=STEPS)):
        piece = next(pieces, torch.zeros(1, 1, dtype=torch.int64))
        head_ms = timed(lambda piece=piece: run(piece), clock)
        cost = token.cost
        kind = step if number else prompt
        kind.note(cost.server, wait_ms=cost.wait_ms, uplink_bytes=cost.uplink_bytes, head_ms=head_ms)


def slowdowns(cuts: Sequence[CutCost], exchanges: Sequence[Exchange]) -> tuple[float, float]:
    """How many times as long heads and tails took in the rehearsal as in loops of their own."""
    costs: Mapping[str, CutCost] = {cut.name: cut for cut in cuts}
    heads, tails = list[float](), list[float]()
    for done in exchanges:
        cost = costs[done.cut]
        for ratios, took_ms, curve in ((heads, done.head_ms, cost.head), (tails, done.tail_ms, cost.tail)):
            expected_ms = curve.ms(rows=done.rows, tokens=done.tokens, context=done.context)
            if expected_ms >= LEAST_MS:
                ratios.append(took_ms / expected_ms)
    return tuple(statistics.median(ratios) if ratios else 1.0 for ratios in (heads, tails))
