"""The device's side: run the head, encode, send, wait, rebuild the outputs."""

from __future__ import annotations

import dataclasses
import threading
import time
from concurrent.futures import Future
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch

from serverlight.codec import Codec
from serverlight.errors import (
    ConfigError,
    ConnectTimeout,
    DeadlineExceeded,
    InputMismatch,
    MessageTooLarge,
    PlanMismatch,
    ProtocolError,
    ServerlightError,
    TransportError,
)
from serverlight.models import LoadedModel
from serverlight.partition import Partition, partition
from serverlight.partition.inputs import as_call
from serverlight.plan import Plan
from serverlight.runtime import failure
from serverlight.runtime.grpc_transport import GrpcTransport
from serverlight.runtime.messages import (
    PROTOCOL_VERSION,
    Failure,
    Frame,
    Hello,
    Image,
    InferReply,
    InferRequest,
    Payload,
    ServerMessage,
    Timing,
    Welcome,
)
from serverlight.runtime.tensors import from_raw, to_raw
from serverlight.runtime.transport import DEFAULT_MAX_MESSAGE_BYTES, Transport

__all__ = ["Client", "InferResult", "connect"]

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


def connect(
    address: str,
    *,
    plan: Plan,
    model: LoadedModel | Partition,
    timeout_s: float = 5.0,
    deadline_ms: int = DEFAULT_DEADLINE_MS,
    max_message_bytes: int = DEFAULT_MAX_MESSAGE_BYTES,
) -> Client:
    """Connects to a server and agrees on the plan.

    Args:
        address: ``HOST:PORT`` of a :class:`~serverlight.runtime.server.Server`.
        plan: which model, cut where, compressed how.
        model: the model that the plan names, or its partition if it has been made already.
        timeout_s: how long connecting may take.
        deadline_ms: how long a request may take that does not say otherwise.
        max_message_bytes: the largest message to send or read.

    Raises:
        PeerUnavailable: nobody listens at the address.
        ConnectTimeout: nobody answered in time.
        PlanMismatch: the server has another model, revision, cut or codec; the error names the field.
        CutNotFound: the model has no such cut.
    """
    transport = GrpcTransport(address, max_message_bytes=max_message_bytes)
    return Client(transport, plan=plan, model=model, timeout_s=timeout_s, deadline_ms=deadline_ms)


class Client:
    """One device: a head, a codec, and a stream to the server. A context manager; may be used by many threads.

    :func:`connect` makes one over gRPC; give a transport to use another.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        plan: Plan,
        model: LoadedModel | Partition,
        timeout_s: float = 5.0,
        deadline_ms: int = DEFAULT_DEADLINE_MS,
    ) -> None:
        self._parts = _partition_of(model, plan)
        self._cut = self._parts.cut(plan.cut)
        # A cut may have aliases; the handshake compares its one name.
        self.plan = dataclasses.replace(plan, cut=self._cut.name)
        self._head, _ = self._parts.split(self._cut)
        self._codec, self._deadline_ms = Codec(plan.codec), deadline_ms
        self._stream = _Stream(transport)
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

    def infer_detailed(self, inputs: Any, *, deadline_ms: int | None = None) -> InferResult:
        """As :meth:`infer`, with times and bytes."""
        started_s = time.perf_counter()
        args, kwargs = as_call(inputs)
        with torch.inference_mode():
            tensors = self._head(*args, **kwargs)
            head_done_s = time.perf_counter()
            self._check_batch(tensors)
            payloads = tuple(
                Frame(data=self._codec.encode(tensor)) if spec.is_feature else to_raw(tensor)
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


class _Stream:
    """Tells replies apart by their request's id, so that threads can share one stream; a Listener."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._lock = threading.RLock()  # guards all below; a reply may come while its request is being sent
        self._last_id = 0
        self._waiting: dict[int, Future[tuple[InferReply, int]]] = {}
        self._error: ServerlightError | None = None
        self._welcome: Future[Welcome] = Future()

    def greet(self, plan: Plan, timeout_s: float) -> Welcome:
        """Opens the stream and agrees on the plan."""
        self._transport.open(self)
        try:
            self._transport.send(Hello(plan_json=plan.to_json()))
            welcome = self._welcome.result(timeout_s)
            if welcome.protocol_version != PROTOCOL_VERSION:
                raise ProtocolError(
                    f"the server speaks protocol version {welcome.protocol_version}, this client {PROTOCOL_VERSION}; "
                    "install the same serverlight on both"
                )
            return welcome
        except TimeoutError:
            self.close()
            raise ConnectTimeout(f"no answer within {timeout_s} s; is the address right, is the server up?") from None
        except BaseException:
            self.close()
            raise

    def ask(self, payloads: tuple[Payload, ...], deadline_ms: int) -> tuple[InferReply, int, int]:
        """Sends a request and waits for its reply; returns it with the bytes up and down."""
        future: Future[tuple[InferReply, int]] = Future()
        with self._lock:
            if self._error is not None:
                raise _copy(self._error)
            self._last_id += 1
            request_id = self._last_id
            self._waiting[request_id] = future
            try:
                request = InferRequest(request_id=request_id, payloads=payloads, deadline_ms=deadline_ms)
                uplink_bytes = self._transport.send(request)
            except BaseException:
                del self._waiting[request_id]
                raise
        try:
            reply, downlink_bytes = future.result(deadline_ms / 1e3)
        except TimeoutError:
            raise DeadlineExceeded(f"no reply within {deadline_ms} ms; allow more time, or try a faster link") from None
        finally:
            with self._lock:
                self._waiting.pop(request_id, None)
        return reply, uplink_bytes, downlink_bytes

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def close(self) -> None:
        self._transport.close()

    def on_message(self, message: ServerMessage, num_bytes: int) -> None:
        """Hands a message to the thread that waits for it; what nobody waits for any more is dropped."""
        match message:
            case Welcome():
                if not self._welcome.done():
                    self._welcome.set_result(message)
            case Failure(request_id=0):
                self._end(message.error)
            case Failure():
                if future := self._take(message.request_id):
                    future.set_exception(message.error)
            case InferReply():
                if future := self._take(message.request_id):
                    future.set_result((message, num_bytes))

    def on_closed(self, error: TransportError) -> None:
        """Everybody who waits is told."""
        self._end(error)

    def _take(self, request_id: int) -> Future[tuple[InferReply, int]] | None:
        with self._lock:
            return self._waiting.pop(request_id, None)

    def _end(self, error: ServerlightError) -> None:
        with self._lock:
            if self._error is None:  # the first reason is the true one
                self._error = error
            waiting, self._waiting = self._waiting, {}
        if not self._welcome.done():
            self._welcome.set_exception(_copy(self._error))
        for future in waiting.values():
            future.set_exception(_copy(self._error))


def _copy(error: ServerlightError) -> ServerlightError:
    """A fresh error for each thread that raises it, since raising writes a traceback into it."""
    return failure.rebuild(*failure.describe(error))


def _partition_of(model: LoadedModel | Partition, plan: Plan) -> Partition:
    if isinstance(model, Partition):
        return model
    for field, ours in (("model", model.name), ("revision", model.revision)):
        if getattr(plan, field) != ours:
            raise PlanMismatch(field, ours, getattr(plan, field))
    return partition(model.module, model.example_inputs)
