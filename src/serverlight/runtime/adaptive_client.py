"""A device whose plan follows its link: another choice of a frontier for each request, where that is better."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch

from serverlight.codec import Basis, Codec
from serverlight.errors import ConfigError, DeadlineExceeded
from serverlight.frontier import Choice, Frontier
from serverlight.models import LoadedModel
from serverlight.partition import Partition, partition
from serverlight.partition.inputs import as_call
from serverlight.plan import Plan
from serverlight.runtime.adapt import Adapter, Change, Observation, Rules
from serverlight.runtime.client import DEFAULT_DEADLINE_MS, Client, InferResult, dial
from serverlight.runtime.credentials import Credentials
from serverlight.runtime.messages import Timing

__all__ = ["AdaptedResult", "AdaptiveClient"]

_OPENING_TRIPS, _OPENING_MS = 3, 20.0
"""What a stream at another cut takes: round trips for TCP, HTTP/2 and the handshake, and the software."""

_NO_SERVER = Timing(queue_ms=0.0, decode_ms=0.0, tail_ms=0.0, cpu_ms=0.0, process_cpu_ms=0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptedResult:
    """The outputs of one request, what they cost, and which choice made them."""

    result: InferResult
    choice: Choice

    latency_ms: float
    """All of it, a stream that had to be opened included."""

    @property
    def outputs(self) -> Any:
        """In the module's own structure."""
        return self.result.outputs


class AdaptiveClient:
    """One device of a single-shot model, and a server. A context manager; one request at a time.

    A stream is opened when the first request at its cut is sent, and kept.

    Args:
        address: as for :func:`~serverlight.runtime.connecting.connect`; the server should serve all cuts of the frontier.
        model: the model that its plans name, or the partition if it has been made already.
        frontier: the choices, as a search makes them.
        rules: the deadline that requests should keep, and other caps. A request that misses it is answered nonetheless.
        bases: by cut, those that plans name.
        on_change: hears of each change; the logger ``serverlight.adapt`` does, too.
        timeout_s: how long connecting may take.
        give_up_ms: how long a request may take before it fails.
        credentials: whom to trust and who the client is.

    Raises:
        ConfigError: no choice keeps the caps, or a basis is missing.
    """

    def __init__(
        self,
        address: str,
        *,
        model: LoadedModel | Partition,
        frontier: Frontier,
        rules: Rules,
        bases: Mapping[str, Basis] | None = None,
        on_change: Callable[[Change], None] | None = None,
        timeout_s: float = 5.0,
        give_up_ms: int = DEFAULT_DEADLINE_MS,
        credentials: Credentials | None = None,
    ) -> None:
        self.adapter = Adapter(frontier, rules, price_ms=self._price_ms, on_change=on_change)
        self._address, self._bases, self._credentials = address, dict(bases or {}), credentials
        self._timeout_s, self._give_up_ms = timeout_s, give_up_ms
        self._parts = model if isinstance(model, Partition) else partition(model.module, model.example_inputs)
        for choice in self.adapter.choices:
            if (choice.plan is None) != (choice.way == "all-device"):
                raise ConfigError(
                    "frontier", f"a choice {choice.way!r} has {'no' if choice.plan is None else 'a'} plan"
                )
        self._codecs = {plan: self._codec_of(plan) for choice in self.adapter.choices if (plan := choice.plan)}
        self._clients = dict[str, Client]()
        self._alone = self._parts.split(self._parts.cuts[0])
        self._last_s = time.monotonic()

    def infer(self, inputs: Any, *, files: Sequence[bytes] = ()) -> Any:
        """The outputs for ``inputs``; raises what :meth:`Client.infer` raises.

        Args:
            inputs: a tensor, a tuple of arguments or a dict of keyword arguments.
            files: the same samples as PNG or JPEG files, which a full server gets in place of a tensor.
        """
        return self.infer_detailed(inputs, files=files).outputs

    def infer_detailed(self, inputs: Any, *, files: Sequence[bytes] = ()) -> AdaptedResult:
        """As :meth:`infer`, with times and bytes and the choice that was taken."""
        choice = self.adapter.choose(elapsed_s=self._lap_s())
        started_s = time.perf_counter()
        try:
            result = self._run(choice, inputs, files)
        except DeadlineExceeded:
            self._observe(
                choice.head_ms, choice.uplink_bytes, (time.perf_counter() - started_s) * 1e3 - choice.head_ms, 0.0
            )
            raise
        latency_ms = (time.perf_counter() - started_s) * 1e3
        server_ms = result.server.total_ms
        self._observe(result.head_ms + result.encode_ms, result.uplink_bytes, result.wait_ms - server_ms, server_ms)
        return AdaptedResult(result=result, choice=choice, latency_ms=latency_ms)

    def close(self) -> None:
        """Ends all streams; a second call does nothing."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, choice: Choice, inputs: Any, files: Sequence[bytes]) -> InferResult:
        if choice.plan is None:
            return self._run_alone(inputs)
        client = self._client_at(choice.plan)
        try:
            if choice.way == "full-server" and files:
                return client.infer_image(*files, deadline_ms=self._give_up_ms)
            return client.infer_detailed(inputs, deadline_ms=self._give_up_ms, codec=self._codecs[choice.plan])
        except DeadlineExceeded:
            raise
        except BaseException:  # the stream may be broken: the next request opens another
            self._clients.pop(choice.plan.cut).close()
            raise

    def _run_alone(self, inputs: Any) -> InferResult:
        started_s = time.perf_counter()
        head, tail = self._alone
        args, kwargs = as_call(inputs)
        with torch.inference_mode():
            outputs = tail(*head(*args, **kwargs))
        return InferResult(
            outputs=outputs,
            head_ms=(time.perf_counter() - started_s) * 1e3,
            encode_ms=0.0,
            wait_ms=0.0,
            uplink_bytes=0,
            downlink_bytes=0,
            frame_bytes=0,
            server=_NO_SERVER,
        )

    def _client_at(self, plan: Plan) -> Client:
        if plan.cut not in self._clients:
            self._clients[plan.cut] = dial(
                self._address,
                plan=plan,
                model=self._parts,
                basis=self._bases.get(plan.cut) if plan.basis else None,
                timeout_s=self._timeout_s,
                credentials=self._credentials,
            )
        return self._clients[plan.cut]

    def _codec_of(self, plan: Plan) -> Codec:
        basis = self._bases.get(plan.cut) if plan.basis else None
        plan.check_basis(basis)
        return Codec(plan.codec, basis=basis)

    def _price_ms(self, choice: Choice) -> float:
        if choice.plan is None or choice.plan.cut in self._clients:
            return 0.0
        return _OPENING_TRIPS * self.adapter.estimates.link.trip_ms() + _OPENING_MS

    def _observe(self, head_ms: float | None, num_bytes: int, way_ms: float, server_ms: float | None) -> None:
        seen = Observation(
            elapsed_s=self._lap_s(),
            head_ms=head_ms,
            num_bytes=num_bytes,
            way_ms=max(0.0, way_ms),
            server_ms=server_ms,
        )
        self.adapter.observe(seen)

    def _lap_s(self) -> float:
        """Seconds since the last call."""
        before_s, self._last_s = self._last_s, time.monotonic()
        return self._last_s - before_s
