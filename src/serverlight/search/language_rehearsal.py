"""The rehearsal of a language model: texts from a device on this machine, whose tokens a server on it chooses."""

from __future__ import annotations

import statistics
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
from serverlight.search.rehearsal import Exchange, Notes
from serverlight.search.stopwatch import timed, work_clock

__all__ = ["PROMPTS", "rehearse_language"]

PROMPTS, TEXTS, STEPS = (1, 32, 128), 6, 12
"""Tokens of a prompt, texts of each length, and tokens that each of them gets."""


def rehearse_language(
    parts: LanguageParts, address: str, cuts: Sequence[str], *, advance: Callable[[], None]
) -> tuple[Exchange, ...]:
    """Prompts of some lengths at some cuts, and steps after each of them; ``advance`` is called for each cut, and once more.

    The last are prompts in whole halves, so that it shows what a kilobyte costs.
    """
    longest = (parts.head.part.context_length or 10**9) - STEPS - 1
    lengths = [min(tokens, longest) for tokens in PROMPTS]
    found = list[Exchange]()
    for cut in cuts:
        found += _at_cut(parts, address, cut, LANGUAGE_CODEC, lengths)
        advance()
    large = _at_cut(parts, address, cuts[-1], CodecConfig(profile="fp16"), lengths[1:])
    found += (done for done in large if done.opens)
    advance()
    return tuple(found)


def _at_cut(
    parts: LanguageParts, address: str, cut: str, codec: CodecConfig, lengths: Sequence[int]
) -> Iterator[Exchange]:
    plan = Plan(model=parts.head.name, revision=parts.head.revision, cut=cut, codec=codec)
    device = _Device(DecoderClient([address], plan=plan, head=parts.head), parts.head.part)
    steps = Notes()
    for tokens in lengths:
        prompts = Notes()
        device.write(tokens, Notes(), Notes())  # the first is not like others
        for _ in range(TEXTS):
            device.write(tokens, prompts, steps)
        yield prompts.exchange(cut, Point(tokens=tokens), opens=True)
    yield steps.exchange(cut, Point(context=statistics.mean(lengths) + STEPS / 2))


class _Device:
    """Writes texts; between its turns the head runs once more, on a cache of its own, to be timed as after every wait."""

    def __init__(self, client: DecoderClient, head: DecoderPart) -> None:
        assert isinstance(head, DecoderHead)
        self._client, self._head = client, head
        self._clock = work_clock()
        self._before: Timing | None = None

    def write(self, tokens: int, prompts: Notes, steps: Notes) -> None:
        """One text; its first token goes to the notes on prompts, the others to those on steps."""
        cache = self._head.new_cache(last=layer_of(self._client.plan.cut))
        piece = torch.zeros(1, tokens, dtype=torch.int64)

        @torch.inference_mode()
        def run() -> object:
            return self._head(piece, cache)

        for number, token in enumerate(self._client.stream([1] * tokens, max_new_tokens=STEPS)):
            cost = token.cost
            (steps if number else prompts).note(
                cost.server, self._before, wait_ms=cost.wait_ms, encode_ms=cost.encode_ms,
                uplink_bytes=cost.uplink_bytes, head_ms=timed(self._clock, run),
            )  # fmt: skip
            self._before, piece = cost.server, torch.zeros(1, 1, dtype=torch.int64)
