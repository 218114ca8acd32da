"""The rehearsal of a language model: texts from a device on this machine, whose tokens a server on it chooses."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from serverlight.codec import CodecConfig
from serverlight.generation import LANGUAGE_CODEC, layer_of
from serverlight.partition.decoder import DecoderHead, DecoderPart
from serverlight.plan import Plan
from serverlight.runtime.decoder_client import DecoderClient
from serverlight.runtime.messages import Timing
from serverlight.search.fitting import Point
from serverlight.search.language_parts import LanguageParts
from serverlight.search.rehearsal import REST_S, Exchange, Notes
from serverlight.search.steady import CoreWatch, Steady
from serverlight.search.stopwatch import timed, work_clock

__all__ = ["PROMPTS", "rehearse_language"]

PROMPTS, TEXTS, STEPS = (1, 32, 128), 6, 12
"""Tokens of a prompt, texts of each length, and tokens that each of them gets."""


def rehearse_language(
    parts: LanguageParts,
    address: str,
    cuts: Sequence[str],
    *,
    watch: CoreWatch | None = None,
    advance: Callable[[], None],
) -> tuple[Exchange, ...]:
    """Prompts of some lengths at some cuts, and steps after each of them; ``advance`` is called for each cut, and once more;
    ``watch`` tells which to take again.

    The last are prompts in whole halves, so that it shows what a kilobyte costs.
    """
    longest = (parts.head.part.context_length or 10**9) - STEPS - 1
    lengths = [min(tokens, longest) for tokens in PROMPTS]
    steady = Steady[list[Exchange]](watch or CoreWatch())

    def take(cut: str, codec: CodecConfig, lengths: Sequence[int], *, with_rests: bool = True) -> None:
        steady.take(lambda: list(_at_cut(parts, address, cut, codec, lengths, with_rests=with_rests)))
        advance()

    for cut in cuts:
        take(cut, LANGUAGE_CODEC, lengths)
    take(cuts[-1], CodecConfig(profile="fp16"), lengths[1:], with_rests=False)
    *usual, large = steady.settle()
    return (*itertools.chain.from_iterable(usual), *(done for done in large if done.opens))


def _at_cut(
    parts: LanguageParts,
    address: str,
    cut: str,
    codec: CodecConfig,
    lengths: Sequence[int],
    *,
    with_rests: bool = True,
) -> Iterator[Exchange]:
    plan = Plan(model=parts.head.name, revision=parts.head.revision, cut=cut, codec=codec)
    device = _Device(DecoderClient([address], plan=plan, head=parts.head), parts.head.part)
    steps, rested = Notes(), Notes()
    for tokens in lengths:
        prompts = Notes()
        device.write(tokens, Notes(), Notes())  # the first is not like others
        for _ in range(TEXTS):
            device.write(tokens, prompts, steps)
            if with_rests and tokens == lengths[1]:
                device.write(tokens, Notes(), rested, rest_s=REST_S)  # in turn, so that what disturbs meets both alike
        yield prompts.exchange(cut, Point(tokens=tokens), opens=True)
    usual = Point(context=statistics.mean(lengths) + STEPS / 2)
    yield steps.exchange(cut, usual)
    if with_rests:
        yield rested.exchange(cut, usual, is_rested=True)


class _Device:
    """Writes texts; between its turns the head runs once more, on a cache of its own, to be timed as after every wait."""

    def __init__(self, client: DecoderClient, head: DecoderPart) -> None:
        assert isinstance(head, DecoderHead)
        self._client, self._head = client, head
        self._clock = work_clock()
        self._before: Timing | None = None

    def write(self, tokens: int, prompts: Notes, steps: Notes, *, rest_s: float = 0.0) -> None:
        """One text; its first token goes to the notes on prompts, the others, with a rest before each, to those on steps."""
        cache = self._head.new_cache(last=layer_of(self._client.plan.cut))
        piece = torch.zeros(1, tokens, dtype=torch.int64)

        @torch.inference_mode()
        def run() -> object:
            return self._head(piece, cache)

        began_s = time.perf_counter()
        for number, token in enumerate(self._client.stream([1] * tokens, max_new_tokens=STEPS)):
            cost = token.cost
            # The first one's own does not tell what it took to connect.
            opened_ms = (time.perf_counter() - began_s) * 1e3 - cost.head_ms - cost.encode_ms
            time.sleep(rest_s)
            (steps if number else prompts).note(
                cost.server, self._before, wait_ms=cost.wait_ms if number else opened_ms, encode_ms=cost.encode_ms,
                uplink_bytes=cost.uplink_bytes, head_ms=timed(self._clock, run),
            )  # fmt: skip
            time.sleep(rest_s)
            self._before, piece = cost.server, torch.zeros(1, 1, dtype=torch.int64)
