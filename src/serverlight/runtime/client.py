"""The device's side: run the head, encode, send, wait, rebuild the outputs."""

from __future__ import annotations

import dataclasses
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch

from serverlight.codec import Basis, Codec, warm_up
from serverlight.errors import ConfigError, InputMismatch, MessageTooLarge, ModelLoading, PlanMismatch
from serverlight.models import LoadedModel
from serverlight.partition import Partition, partition
from serverlight.partition.inputs import as_call
from serverlight.plan import Plan
from serverlight.runtime.credentials import Credentials
from serverlight.runtime.grpc_transport import GrpcTransport
from serverlight.runtime.messages import Frame, Image, Payload, Timing
from serverlight.runtime.resolver import resolver_of
from serverlight.runtime.stream import ClientStream
from serverlight.runtime.tensors import from_raw, to_raw
from serverlight.runtime.transport import DEFAULT_MAX_MESSAGE_BYTES, Transport

__all__ = ["DEFAULT_DEADLINE_MS", "Client", "InferResult", "dial"]

DEFAULT_DEADLINE_MS = 60_000
"""How long a request may take unless told otherwise; no wait is endless."""

_MESSAGE_SLACK_BYTES = 1024
"""More than ids, names and shapes add to the payloads of a message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InferResult:
    """The outputs of one request, and what they cost."""

    outputs: Any
    """In the module's own structure."""

    head_ms: float
    """Running the head."""

    encode_ms: float
    """Encoding what crosses the cut."""

    wait_ms: float
    """From handing the message to the transport until the reply was there."""

    uplink_bytes: int
    """Every byte of the request's message, gRPC and HTTP/2 framing included."""

    downlink_bytes: int
    """Every byte of the reply's message."""

    frame_bytes: int
    """The encoded features alone."""

    server: Timing
    """Where the server's time went."""


def dial(
    address: str,
    *,
    plan: Plan,
    model: LoadedModel | Partition,
    basis: Basis | None = None,
    timeout_s: float = 5.0,
    deadline_ms: int = DEFAULT_DEADLINE_MS,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
    credentials: Credentials | None = None,
    load_timeout_s: float = 60.0,
) -> Client:
    """Connects to a server and agrees on the plan; see :func:`serverlight.runtime.connecting.connect`."""
    found = resolver_of([address]).resolve(timeout_s)[0]
    warm_up()  # before anything is traced: torch.export replaces functions that Numba looks up, for the whole process
    parts, give_up_s = _partition_of(model, plan), time.monotonic() + load_timeout_s
    while True:
        transport = GrpcTransport(found, max_message_bytes=max_message_bytes, credentials=credentials)
        try:
            return Client(transport, plan=plan, model=parts, basis=basis, timeout_s=timeout_s, deadline_ms=deadline_ms)
        except ModelLoading as error:
            if time.monotonic() + error.retry_after_ms / 1e3 > give_up_s:
                raise
            time.sleep(error.retry_after_ms / 1e3)


class Client:
    """One device: a head, a codec, and a stream to the server. A context manager; may be used by many threads.

    :func:`dial` makes one over gRPC; give a transport to use another.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        plan: Plan,
        model: LoadedModel | Partition,
        basis: Basis | None = None,
        timeout_s: float = 5.0,
        deadline_ms: int = DEFAULT_DEADLINE_MS,
    ) -> None:
        plan.check_basis(basis)
        warm_up()
        self._parts = _partition_of(model, plan)
        self._cut = self._parts.cut(plan.cut)
        # A cut may have aliases; the handshake compares its one name.
        self.plan = dataclasses.replace(plan, cut=self._cut.name)
        self._head, _ = self._parts.split(self._cut)
        self._codec, self._deadline_ms = Codec(plan.codec, basis=basis), deadline_ms
        self._stream = ClientStream(transport)
        self._welcome = self._stream.greet(self.plan, timeout_s)

    def infer(self, inputs: Any, *, deadline_ms: int | None = None) -> Any:
        """The outputs for ``inputs`` (a tensor, a tuple of arguments or a dict of keyword arguments).

        Raises:
            InputMismatch: the inputs do not fit the model.
            NonFiniteTensor: a feature holds NaN or infinity; nothing was sent.
            DeadlineExceeded: no reply within ``deadline_ms``.
            PeerUnavailable: the server is gone; connect again.
            ServerBusy: the server takes no more now; ``retry_after_ms`` says when.
            MessageTooLarge: the batch is too large for one message.
        """
        return self.infer_detailed(inputs, deadline_ms=deadline_ms).outputs

    def infer_detailed(self, inputs: Any, *, deadline_ms: int | None = None, codec: Codec | None = None) -> InferResult:
        """As :meth:`infer`, with times and bytes; with other settings of the codec than the plan's where they are given."""
        started_s, codec = time.perf_counter(), codec or self._codec
        args, kwargs = as_call(inputs)
        with torch.inference_mode():
            tensors = self._head(*args, **kwargs)
            head_done_s = time.perf_counter()
            self._check_batch(tensors)
            payloads = tuple(
                Frame(data=codec.encode(tensor)) if spec.is_feature else to_raw(tensor)
                for spec, tensor in zip(self._cut.tensors, tensors, strict=True)
            )
        encoded_s = time.perf_counter()
        head_ms, encode_ms = (head_done_s - started_s) * 1e3, (encoded_s - head_done_s) * 1e3
        return self._request(payloads, deadline_ms, head_ms=head_ms, encode_ms=encode_ms)

    def infer_image(self, *images: bytes, deadline_ms: int | None = None) -> InferResult:
        """Sends PNG or JPEG files, one per sample, and lets the server do it all; the plan's cut must be ``input``."""
        payloads = tuple(Image(data=image) for image in images)
        return self._request(payloads, deadline_ms, head_ms=0.0, encode_ms=0.0)

    @property
    def num_waiting(self) -> int:
        """Requests of this client that have no reply yet."""
        return self._stream.num_waiting

    def close(self) -> None:
        """Ends the stream; a second call does nothing."""
        self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _request(
        self, payloads: tuple[Payload, ...], deadline_ms: int | None, *, head_ms: float, encode_ms: float
    ) -> InferResult:
        self._check_size(payloads)
        deadline_ms = self._deadline_ms if deadline_ms is None else deadline_ms
        if deadline_ms < 1:
            raise ConfigError("deadline_ms", f"must be at least 1, got {deadline_ms}")
        sent_s = time.perf_counter()
        reply, uplink_bytes, downlink_bytes = self._stream.ask(payloads, deadline_ms)
        wait_ms = (time.perf_counter() - sent_s) * 1e3
        return InferResult(
            outputs=self._parts.unflatten_outputs([from_raw(output) for output in reply.outputs]),
            head_ms=head_ms,
            encode_ms=encode_ms,
            wait_ms=wait_ms,
            uplink_bytes=uplink_bytes,
            downlink_bytes=downlink_bytes,
            frame_bytes=sum(len(payload.data) for payload in payloads if isinstance(payload, Frame)),
            server=reply.timing,
        )

    def _check_batch(self, tensors: tuple[torch.Tensor, ...]) -> None:
        for spec, tensor in zip(self._cut.tensors, tensors, strict=True):
            for size, wanted in zip(tensor.shape, spec.shape, strict=True):
                if wanted is None and size > self._welcome.max_batch * spec.batch_factor:
                    raise InputMismatch(
                        f"a batch of {size // spec.batch_factor}; the server takes at most {self._welcome.max_batch}: "
                        "send smaller batches"
                    )

    def _check_size(self, payloads: tuple[Payload, ...]) -> None:
        num_bytes = sum(len(payload.data) for payload in payloads) + _MESSAGE_SLACK_BYTES
        if num_bytes > self._welcome.max_message_bytes:
            raise MessageTooLarge(
                f"a request of {num_bytes} bytes; the server takes at most {self._welcome.max_message_bytes}: "
                "send smaller batches"
            )


def _partition_of(model: LoadedModel | Partition, plan: Plan) -> Partition:
    if isinstance(model, Partition):
        return model
    for field, ours in (("model", model.name), ("revision", model.revision)):
        if getattr(plan, field) != ours:
            raise PlanMismatch(field, ours, getattr(plan, field))
    return partition(model.module, model.example_inputs)
