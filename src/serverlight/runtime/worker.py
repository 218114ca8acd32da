"""Runs one request: payloads to tensors, tensors through the tail, outputs to the wire. The server's only tensor code."""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from serverlight.codec import Basis, decode
from serverlight.errors import InputMismatch, ProtocolError, ServerlightError
from serverlight.models import LoadedModel
from serverlight.models.images import decode_image
from serverlight.partition import CutPoint, Partition, TensorSpec
from serverlight.partition.names import OUTPUT
from serverlight.plan import Plan
from serverlight.runtime.clock import Clock, read_clocks
from serverlight.runtime.messages import Frame, Image, InferReply, InferRequest, OpenSession, Payload, RawTensor
from serverlight.runtime.scheduler import Answer, Job
from serverlight.runtime.sessions import Session
from serverlight.runtime.tensors import from_raw, to_raw

__all__ = ["Worker"]

_PIECE_SAMPLES = 2
"""Of a request with more samples so many run at a time where others wait, so that they wait hardly longer than for one."""

_log = logging.getLogger(__name__)


@dataclass(kw_only=True, slots=True)
class _Ready:
    """A request whose payloads are tensors, and what has been done of it."""

    job_ref: weakref.ref[Job]
    """Weak, so that a request that was given up between two pieces is forgotten."""

    tensors: list[Tensor]
    num_samples: int | None
    """``None`` where it cannot be batched with others."""

    clock: Clock
    num_done: int = 0
    num_next: int = 0
    """Samples of the batch that it is in."""

    outputs: list[list[Tensor]] = field(default_factory=list)
    """Of each piece that was run."""

    @property
    def job(self) -> Job:
        """While it runs it is there."""
        job = self.job_ref()
        assert job is not None
        return job

    @property
    def num_left(self) -> int:
        return (self.num_samples or 0) - self.num_done

    def next_piece(self) -> list[Tensor]:
        """The samples that are to be run next."""
        if not self.num_samples or self.num_next == self.num_samples:
            return self.tensors
        first, last = self.num_done, self.num_done + self.num_next
        sizes = [tensor.shape[0] // self.num_samples for tensor in self.tensors]
        return [tensor[first * size : last * size] for tensor, size in zip(self.tensors, sizes, strict=True)]

    def all_outputs(self) -> list[Tensor]:
        if len(self.outputs) == 1:
            return self.outputs[0]
        return [torch.cat(parts) for parts in zip(*self.outputs, strict=True)]


class Worker:
    """The tails of one model at the cuts that are served; they share their parameters.

    Requests that come together run as one batch where every size that follows the batch is a first one. Samples do not
    mix in a model that is not training, so each gets what it gets alone, but for the order in which floats are summed.
    For the same reason a request with many samples may run in pieces, between which others have their turn.

    Raises :class:`CutNotFound` for a cut that the model does not have.
    """

    def __init__(
        self,
        model: LoadedModel,
        parts: Partition,
        cuts: Sequence[str],
        *,
        bases: Mapping[str, Basis] | None = None,
        max_batch: int,
    ) -> None:
        self._model, self._bases, self._max_batch = model, dict(bases or {}), max_batch
        self._output_names = parts.output_names
        self._cuts = {name: parts.cut(name) for name in cuts}
        self._tails = {name: parts.split(cut)[1] for name, cut in self._cuts.items()}
        follow = all(map(_follows_batch, parts.cut(OUTPUT).tensors))
        self._can_batch = {name: follow and all(map(_follows_batch, cut.tensors)) for name, cut in self._cuts.items()}
        self._begun = weakref.WeakKeyDictionary[Job, _Ready]()

    @torch.inference_mode()
    def prepare(self, job: Job) -> None:
        """Reads a request before its turn; what is wrong with it is said when that comes."""
        with contextlib.suppress(Exception):
            self._begun[job] = self._read(job)

    @torch.inference_mode()
    def run(self, jobs: Sequence[Job], *, is_shared: bool = False) -> Iterator[tuple[Job, Answer]]:
        """Runs the tail once for all requests at a cut, as far as they fit into a batch; of large ones a piece where others
        have work, too.

        A request may end with one of:

        - :class:`FrameError`: a frame is damaged; the subclass names the rule that it breaks.
        - :class:`InputMismatch`: a tensor or image does not fit the cut.
        - :class:`ProtocolError`: the payloads are not of the kind or number that the cut takes.
        """
        ready = list[_Ready]()
        for job in jobs:
            try:
                ready.append(request := self._begun.get(job) or self._read(job))
            except Exception as error:
                yield job, error
                continue
            request.num_next = min(request.num_left, _PIECE_SAMPLES) if is_shared else request.num_left
        for batch in self._batches(ready):
            yield from self._run_batch(batch)

    def open_session(self, plan: Plan, opened: OpenSession) -> Session:
        """Refuses: sessions are for language models."""
        raise ProtocolError(f"{self._model.name!r} is no language model and has no sessions; send requests")

    def _read(self, job: Job) -> _Ready:
        if not isinstance(job.request, InferRequest):
            raise ProtocolError(f"{self._model.name!r} is no language model and has no sessions; send requests")
        clock, cut = Clock(job.arrived_s), self._cuts[job.cut]
        tensors = self._decode(cut, job.request.payloads)
        clock.lap("decode")
        rows = {t.shape[0] // spec.batch_factor for t, spec in zip(tensors, cut.tensors, strict=True) if t.ndim}
        num_samples = rows.pop() if self._can_batch[job.cut] and len(rows) == 1 else None
        return _Ready(job_ref=weakref.ref(job), tensors=tensors, num_samples=num_samples, clock=clock)

    def _batches(self, ready: Sequence[_Ready]) -> Iterator[list[_Ready]]:
        """Requests at the same cut, in the order in which they came, up to the most samples that one may have."""
        open_batches: dict[str, list[_Ready]] = {}
        for request in ready:
            if request.num_samples is None:
                yield [request]
                continue
            batch = open_batches.setdefault(request.job.cut, [])
            if sum(other.num_next for other in batch) + request.num_next > self._max_batch:
                yield open_batches.pop(request.job.cut)
                batch = open_batches.setdefault(request.job.cut, [])
            batch.append(request)
        yield from open_batches.values()

    def _run_batch(self, batch: Sequence[_Ready]) -> Iterator[tuple[Job, Answer]]:
        now = read_clocks()
        for request in batch:
            request.clock.lap("queue", now=now)
        try:
            outputs = self._run_tail(batch)
        except Exception as error:
            if len(batch) == 1:
                yield batch[0].job, error
                return
            _log.exception("a batch of %d requests failed; each runs alone", len(batch))
            for request in batch:
                yield from self._run_batch([request])
            return
        now = read_clocks()
        for request in batch:
            request.clock.lap("tail", shared_by=len(batch), now=now)
        # All answers first: the first one that is handed out wakes the loop, which then takes turns with this thread.
        yield from [(request.job, self._take(request, leaves)) for request, leaves in zip(batch, outputs, strict=True)]

    def _take(self, request: _Ready, leaves: list[Tensor]) -> Answer:
        """Notes what was run of a request; its answer where that was all."""
        request.outputs.append(leaves)
        request.num_done += request.num_next
        if request.num_left:
            self._begun[request.job] = request
            return None
        return self._reply(request)

    def _run_tail(self, batch: Sequence[_Ready]) -> list[list[Tensor]]:
        """The outputs of each request of a batch."""
        tail = self._tails[batch[0].job.cut]
        if len(batch) == 1:
            return [list(tail.flat(*batch[0].next_piece()))]
        together = [torch.cat(parts) for parts in zip(*(request.next_piece() for request in batch), strict=True)]
        sizes = [request.num_next for request in batch]
        leaves = [
            torch.split(leaf, [size * (leaf.shape[0] // sum(sizes)) for size in sizes]) for leaf in tail.flat(*together)
        ]
        return [list(own) for own in zip(*leaves, strict=True)]

    def _reply(self, request: _Ready) -> Answer:
        request.clock.lap("queue")
        try:
            leaves = zip(request.all_outputs(), self._output_names, strict=True)
            outputs = tuple(to_raw(leaf, name=name) for leaf, name in leaves)
        except ServerlightError as error:
            return error
        request.clock.lap("tail")
        return InferReply(request_id=request.job.request.request_id, outputs=outputs, timing=request.clock.timing())

    def _decode(self, cut: CutPoint, payloads: Sequence[Payload]) -> list[Tensor]:
        if payloads and all(isinstance(payload, Image) for payload in payloads):
            return [self._decode_images(cut, [payload.data for payload in payloads])]
        if len(payloads) != len(cut.tensors):
            raise ProtocolError(f"cut {cut.name!r} takes {len(cut.tensors)} payloads, {len(payloads)} came")
        basis = self._bases.get(cut.name)
        return [self._decode_one(spec, payload, basis) for spec, payload in zip(cut.tensors, payloads, strict=True)]

    def _decode_one(self, spec: TensorSpec, payload: Payload, basis: Basis | None) -> Tensor:
        match payload:
            case Frame():
                limit = spec.elements_per_sample * self._max_batch
                tensor: Tensor = decode(payload.data, basis=basis, max_elements=limit)
                check_fits(spec, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), self._max_batch)
                return tensor
            case RawTensor():
                check_fits(spec, payload.dtype, payload.shape, self._max_batch)
                return from_raw(payload)
            case Image():
                raise ProtocolError("images and tensors in one request; send the one or the other")

    def _decode_images(self, cut: CutPoint, images: list[bytes]) -> Tensor:
        preprocess, image_shape = self._model.preprocess, self._model.image_shape
        if cut.index != 0 or len(cut.tensors) != 1 or preprocess is None or image_shape is None:
            raise ProtocolError(
                f"cut {cut.name!r} of {self._model.name!r} takes no images; use the cut 'input' of a vision model, "
                "or send tensors"
            )
        if len(images) > self._max_batch:
            raise InputMismatch(f"{len(images)} images in one request; at most {self._max_batch} are taken")
        return preprocess(np.stack([decode_image(image, image_shape) for image in images]))


def _follows_batch(spec: TensorSpec) -> bool:
    return spec.shape[:1] == (None,) and None not in spec.shape[1:]


def check_fits(spec: TensorSpec, dtype: str, shape: tuple[int, ...], max_batch: int) -> None:
    """Raises :class:`InputMismatch` unless a tensor of this dtype and shape may cross where ``spec`` says.

    >>> spec = TensorSpec(name="relu", shape=(None, 8), dtype="float32")
    >>> check_fits(spec, "float32", (3, 8), max_batch=4)
    >>> check_fits(spec, "float32", (5, 8), max_batch=4)
    Traceback (most recent call last):
    ...
    serverlight.errors.InputMismatch: relu: expected float32 of shape (1 to 4, 8), got float32 of shape (5, 8)
    """
    fits = len(shape) == len(spec.shape) and all(
        1 <= size <= max_batch * spec.batch_factor if wanted is None else size == wanted
        for size, wanted in zip(shape, spec.shape, strict=True)
    )
    if dtype != spec.dtype or not fits:
        rows = f"1 to {max_batch * spec.batch_factor}"
        wanted = ", ".join(rows if size is None else str(size) for size in spec.shape)
        raise InputMismatch(f"{spec.name}: expected {spec.dtype} of shape ({wanted}), got {dtype} of shape {shape}")
