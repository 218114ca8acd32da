"""Language models on the server: its part of a loaded decoder, and which sequences go on together."""

from __future__ import annotations

import contextlib
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from serverlight.errors import ConfigError, CutNotFound, NotBatchable, ProtocolError
from serverlight.generation import PIECE_TOKENS, LoadedDecoder, layer_of
from serverlight.partition.decoder import DecoderMiddle, DecoderTail
from serverlight.partition.kv_cache import LayerSize
from serverlight.partition.sweep import Sweep
from serverlight.partition.sweep_check import make_sweep
from serverlight.plan import Plan
from serverlight.runtime.clock import read_clocks
from serverlight.runtime.decoder_session import DecoderSession, Room, Turn
from serverlight.runtime.messages import InferRequest, MoveCut, OpenSession, StepReply
from serverlight.runtime.scheduler import Answer, Job
from serverlight.runtime.sessions import Session

__all__ = ["DecoderWorker", "LoadedDecoder"]

Row = tuple[Job, Turn]

_log = logging.getLogger(__name__)


class DecoderWorker:
    """The tail of one language model at the cuts that are served, or the middle; cuts share their parameters.

    Steps of one token that come together run as one batch, whatever their cuts; a prompt runs alone, in pieces, one
    piece between two batches. A model that cannot be batched runs one sequence after the other, and says so in the log.

    Raises :class:`ConfigError` where the part is a head, :class:`CutNotFound` for a cut that it does not reach.
    """

    def __init__(
        self,
        model: LoadedDecoder,
        cuts: Sequence[str],
        *,
        max_tokens: int,
        max_kv_bytes: int,
        prefill_tokens: int = PIECE_TOKENS,
    ) -> None:
        part = model.part
        if not isinstance(part, DecoderTail | DecoderMiddle):
            raise ConfigError(
                "model", f"a server runs the tail or the middle of a language model, got a {type(part).__name__}"
            )
        for cut in cuts:
            if not part.first <= layer_of(cut) <= part.last:
                raise CutNotFound(cut, (f"layers.{part.first}", f"layers.{part.last}"))
        self._part, self._name, self._prefill_tokens = part, model.name, prefill_tokens
        most_tokens = min(max_tokens, part.context_length or max_tokens)
        self._room = Room(sizes=self._measure(), first=part.first, max_tokens=most_tokens, max_kv_bytes=max_kv_bytes)
        self._sweep = self._make_sweep()

    @property
    def most_elements(self) -> int:
        """Of a message: hidden states of all tokens that a sequence may have, or keys and values of a layer."""
        per_layer = max((size.num_heads * (size.key_size + size.value_size) for size in self._room.sizes), default=0)
        return self._room.max_tokens * max(self._part.hidden_size, per_layer)

    def open_session(self, plan: Plan, opened: OpenSession) -> Session:
        """Begins a sequence; raises :class:`ProtocolError` where a token is not of the vocabulary."""
        if opened.seen and max(opened.seen) >= self._part.vocab_size:
            raise ProtocolError(f"token {max(opened.seen)} of {self._part.vocab_size}; is it the same tokenizer?")
        return DecoderSession(self._part, plan, opened, self._room)

    @torch.inference_mode()
    def prepare(self, job: Job) -> None:
        """Reads a step before its turn; what is wrong with it is said when that comes."""
        if isinstance(job.request, MoveCut):  # to read it is to carry it out
            return
        with contextlib.suppress(Exception):
            self._begin(job)

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job], *, is_shared: bool = False) -> Iterator[tuple[Job, Answer]]:
        """Goes on with sequences by a step each; a prompt that is not through has no answer yet, shared or not."""
        rows, prompts = list[Row](), list[Row]()
        for job in jobs:
            try:
                begun = self._begin(job)
            except Exception as error:
                yield job, error
                continue
            if isinstance(begun, StepReply):
                yield job, begun
            else:
                (rows if begun.is_row else prompts).append((job, begun))
        for group in self._groups(rows):
            yield from self._run_rows(group)
        for number, (job, turn) in enumerate(prompts):
            yield job, _result_of(functools.partial(turn.advance, self._prefill_tokens)) if number == 0 else None

    def _begin(self, job: Job) -> Turn | StepReply:
        if isinstance(job.request, InferRequest):
            raise ProtocolError(f"{self._name!r} is a language model; open a session and send steps")
        assert isinstance(job.session, DecoderSession)
        return job.session.begin(job.request, job.reserve, arrived_s=job.arrived_s)

    def _groups(self, rows: list[Row]) -> Iterable[list[Row]]:
        """All rows, or where padding to the longest would take more than all sequences may have: those of like length."""
        longest = max(map(_length, rows), default=0)
        if self._room.num_bytes(self._room.first, len(rows) * longest) <= self._room.max_kv_bytes:
            return [rows]
        return _of_like_length(rows)

    def _run_rows(self, rows: Sequence[Row]) -> Iterator[tuple[Job, Answer]]:
        if self._sweep is not None and len(rows) > 1:
            turns, now = [turn for _, turn in rows], read_clocks()
            for turn in turns:
                turn.clock.lap("queue", now=now)
            try:
                outputs = self._sweep([turn.hidden for turn in turns], [turn.cache for turn in turns])
            except Exception:
                _log.exception("a batch of %d steps failed; each runs alone", len(rows))
            else:
                now = read_clocks()
                for turn in turns:
                    turn.clock.lap("tail", shared_by=len(rows), now=now)
                # All answers first: the first one that is handed out wakes the loop, which then takes turns with this thread.
                parts = zip(rows, torch.split(outputs, 1), strict=True)
                yield from [(job, _result_of(functools.partial(turn.finish, output))) for (job, turn), output in parts]
                return
        for job, turn in rows:
            yield job, _result_of(functools.partial(turn.advance, 1))

    def _make_sweep(self) -> Sweep | None:
        try:
            return make_sweep(self._part)
        except NotBatchable as error:
            _log.warning("%s", error)
            return None

    def _measure(self) -> tuple[LayerSize, ...]:
        cache = self._part.new_cache()
        with torch.inference_mode():
            self._part(torch.zeros(1, 1, self._part.hidden_size, dtype=self._part.dtype), cache)
        return cache.layer_sizes()


def _length(row: Row) -> int:
    return row[1].cache.num_tokens


def _of_like_length(rows: Iterable[Row]) -> Iterator[list[Row]]:
    """Groups in which the longest has at most twice the tokens of any: so padding at most doubles what they take."""
    group = list[Row]()
    for row in sorted(rows, key=_length, reverse=True):
        if group and _length(group[0]) > 2 * _length(row):
            yield group
            group = []
        group.append(row)
    yield group


def _result_of(work: Callable[[], StepReply | None]) -> Answer:
    try:
        return work()
    except Exception as error:  # of one sequence; the others go on
        return error
