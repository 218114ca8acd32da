"""Runs one request: payloads to tensors, tensors through the tail, outputs to the wire. The server's only tensor code."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from serverlight.codec import Basis, decode
from serverlight.errors import InputMismatch, ProtocolError
from serverlight.models import LoadedModel
from serverlight.models.images import decode_image
from serverlight.partition import CutPoint, Partition, TensorSpec
from serverlight.plan import Plan
from serverlight.runtime.messages import Frame, Image, InferReply, InferRequest, OpenSession, Payload, RawTensor, Timing
from serverlight.runtime.sessions import Session
from serverlight.runtime.tensors import from_raw, to_raw

__all__ = ["Worker"]


class Worker:
    """The tails of one model at the cuts that are served; they share their parameters.

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

    def run(self, cut: str, request: InferRequest, *, queue_ms: float) -> InferReply:
        """Runs the tail once.

        Raises:
            FrameError: a frame is damaged; the subclass names the rule that it breaks.
            InputMismatch: a tensor or image does not fit the cut.
            ProtocolError: the payloads are not of the kind or number that the cut takes.
        """
        started_s, started_cpu_s = time.perf_counter(), time.thread_time()
        with torch.inference_mode():
            tensors = self._decode(self._cuts[cut], request.payloads)
            decoded_s = time.perf_counter()
            leaves = self._tails[cut].flat(*tensors)
        outputs = tuple(to_raw(leaf, name=name) for leaf, name in zip(leaves, self._output_names, strict=True))
        timing = Timing(
            queue_ms=queue_ms,
            decode_ms=(decoded_s - started_s) * 1e3,
            tail_ms=(time.perf_counter() - decoded_s) * 1e3,
            cpu_ms=(time.thread_time() - started_cpu_s) * 1e3,
            process_cpu_ms=time.process_time() * 1e3,
        )
        return InferReply(request_id=request.request_id, outputs=outputs, timing=timing)

    def open_session(self, plan: Plan, opened: OpenSession) -> Session:
        """Refuses: sessions are for language models."""
        raise ProtocolError(f"{self._model.name!r} is no language model and has no sessions; send requests")

    def _decode(self, cut: CutPoint, payloads: Sequence[Payload]) -> list[torch.Tensor]:
        if payloads and all(isinstance(payload, Image) for payload in payloads):
            return [self._decode_images(cut, [payload.data for payload in payloads])]
        if len(payloads) != len(cut.tensors):
            raise ProtocolError(f"cut {cut.name!r} takes {len(cut.tensors)} payloads, {len(payloads)} came")
        basis = self._bases.get(cut.name)
        return [self._decode_one(spec, payload, basis) for spec, payload in zip(cut.tensors, payloads, strict=True)]

    def _decode_one(self, spec: TensorSpec, payload: Payload, basis: Basis | None) -> torch.Tensor:
        match payload:
            case Frame():
                limit = spec.elements_per_sample * self._max_batch
                tensor: torch.Tensor = decode(payload.data, basis=basis, max_elements=limit)
                check_fits(spec, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), self._max_batch)
                return tensor
            case RawTensor():
                check_fits(spec, payload.dtype, payload.shape, self._max_batch)
                return from_raw(payload)
            case Image():
                raise ProtocolError("images and tensors in one request; send the one or the other")

    def _decode_images(self, cut: CutPoint, images: list[bytes]) -> torch.Tensor:
        preprocess, image_shape = self._model.preprocess, self._model.image_shape
        if cut.index != 0 or len(cut.tensors) != 1 or preprocess is None or image_shape is None:
            raise ProtocolError(
                f"cut {cut.name!r} of {self._model.name!r} takes no images; use the cut 'input' of a vision model, "
                "or send tensors"
            )
        if len(images) > self._max_batch:
            raise InputMismatch(f"{len(images)} images in one request; at most {self._max_batch} are taken")
        return preprocess(np.stack([decode_image(image, image_shape) for image in images]))


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
