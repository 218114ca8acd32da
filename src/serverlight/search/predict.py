"""What a request takes under a plan, from two profiles, a row of qualities, a link and a load. Pure functions: nothing is measured here."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from serverlight.codec.config import CodecConfig
from serverlight.frontier import Choice, Way
from serverlight.generation import CHUNK_TOKENS
from serverlight.link import LinkConfig
from serverlight.plan import Plan
from serverlight.search import message_sizes
from serverlight.search.constraints import Workload
from serverlight.search.profile import Curve, CutCost, Profile
from serverlight.search.queueing import BatchTime, Load, closed_loop, open_loop

__all__ = ["Candidate", "Prediction", "Scene", "predict", "token_budget"]

_MIB = 2**20
_KILO = 1e3
_OUTPUT_ELEMENT_BYTES = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """Everything but the plan."""

    device: Profile
    server: Profile
    link: LinkConfig
    workload: Workload

    @property
    def is_text(self) -> bool:
        """Whether the model is a language model."""
        return self.device.kind == "language-model"

    @property
    def context(self) -> float:
        """Tokens before the one that a mean decode step runs."""
        return self.workload.prompt_tokens + (self.workload.new_tokens - 1) / 2 if self.is_text else 0.0

    @property
    def kept_tokens(self) -> int:
        """Tokens whose keys and values are there in the end."""
        return self.workload.prompt_tokens + self.workload.new_tokens if self.is_text else 0

    @property
    def chunk_tokens(self) -> int:
        """The most tokens, or samples, that run together on the device."""
        return min(self.workload.prompt_tokens, CHUNK_TOKENS) if self.is_text else 1

    @property
    def asked_per_s(self) -> float:
        """Requests or steps of each device; zero where each follows the last answer."""
        return (self.workload.requests_per_s or 0.0) * (self.workload.new_tokens if self.is_text else 1)

    def transfer_ms(self, num_bytes: float) -> float:
        """How long the link is busy with so many bytes."""
        rate = self.link.rate_bits_per_s
        return 0.0 if rate is None else num_bytes * 8e3 / rate

    @property
    def one_way_ms(self) -> float:
        """Mean delay of a message."""
        return self.link.delay_ms + self.link.jitter_ms / 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """What may be chosen: who runs the model, where it is cut, and what crosses."""

    way: Way
    cut: str | None = None
    """None where the device does it all."""

    codec: CodecConfig | None = None
    frame_bytes: float = 0.0
    """Of a sample, or of the frame of one token."""

    prompt_token_bytes: float = 0.0
    """Of a token within a prompt."""

    loss_pp: float = 0.0
    loss_interval_pp: tuple[float, float] = (0.0, 0.0)
    is_measured: bool = True

    is_file: bool = False
    """Whether the input goes up as the file that it is, such as a JPEG: then the device computes nothing."""

    tokens: int | None = None
    """Of a language model: new tokens until the device's memory is full and it exits early; none where it holds all."""

    then: Candidate | None = None
    """Where it goes on, with the same settings."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """A request (of a language model: a mean decode step), part by part. Times are milliseconds."""

    candidate: Candidate
    head_ms: float
    """Device: the layers before the cut; all of them where it does it all."""

    encode_ms: float
    uplink_ms: float
    """The link being busy with the message."""

    rtt_ms: float
    """Delay there and back."""

    queue_ms: float
    """Waiting for the server; ``inf`` where more comes than it can do."""

    decode_ms: float
    """Frames of all requests that run in one batch."""

    tail_ms: float
    """Layers behind the cut, for all requests that run in one batch."""

    message_ms: float
    """Software on the way: serialising, sockets, threads, at both ends."""

    downlink_ms: float
    first_token_ms: float | None
    """Of a language model, from the prompt on."""

    server_busy_ms: float
    """Compute time of the server, messages included: the request's share of its batch."""

    batch_size: float
    """Mean requests in a batch."""

    throughput_per_s: float
    """Requests or steps answered, of all devices together."""

    server_utilisation: float
    uplink_bytes: int
    downlink_bytes: int
    device_memory_bytes: int
    energy_mj: float | None
    """Of the device's processor; none where nobody knows what it draws."""

    loss_pp: float
    stages: tuple[Prediction, ...] = ()
    """Before and after an early exit; then the figures above are means over all tokens, the move included."""

    @property
    def way(self) -> Way:
        """Who runs the model."""
        return self.candidate.way

    @property
    def latency_ms(self) -> float:
        """All parts together; none of them overlap in one request."""
        return self.head_ms + self.encode_ms + self.uplink_ms + self.rtt_ms + self.server_ms + self.downlink_ms

    @property
    def server_ms(self) -> float:
        """From the message's last byte up to the reply's first byte down."""
        return self.queue_ms + self.decode_ms + self.tail_ms + self.message_ms

    @property
    def device_memory_mib(self) -> float:
        """The same in MiB."""
        return self.device_memory_bytes / _MIB

    def plan(self, model: str, revision: str) -> Plan | None:
        """The plan of a model; none where the device does it all."""
        chosen = self.candidate
        if chosen.cut is None:
            return None
        return Plan(model=model, revision=revision, cut=chosen.cut, codec=chosen.codec or CodecConfig())

    def choice(self, model: str, revision: str) -> Choice:
        """What a running device needs to know of it."""
        return Choice(
            way=self.way,
            plan=self.plan(model, revision),
            head_ms=self.head_ms + self.encode_ms,
            server_ms=self.server_ms,
            server_busy_ms=self.server_busy_ms,
            uplink_bytes=self.uplink_bytes,
            downlink_bytes=self.downlink_bytes,
            device_memory_bytes=self.device_memory_bytes,
            loss_pp=self.loss_pp,
        )


def predict(candidate: Candidate, scene: Scene) -> Prediction:
    """Every part of a request under a candidate; raises :class:`ConfigError` for a cut that a profile does not have."""
    if candidate.cut is None:
        return _predict_local(candidate, scene)
    if candidate.then is not None:
        return _predict_exit(candidate, scene)
    parts = _Parts.of(candidate, scene)
    load = _load(parts, scene)
    first_ms = None
    if scene.is_text:
        first_ms = _first_token_ms(candidate, parts, scene) + load.wait_ms
    return Prediction(
        candidate=candidate,
        head_ms=parts.head_ms,
        encode_ms=parts.encode_ms,
        uplink_ms=parts.uplink_ms,
        rtt_ms=2 * scene.one_way_ms,
        queue_ms=load.wait_ms,
        decode_ms=load.batch_size * parts.decode_ms,
        tail_ms=load.run_ms - load.batch_size * (parts.decode_ms + parts.message_server_ms),
        message_ms=load.batch_size * parts.message_server_ms + parts.message_rest_ms,
        downlink_ms=parts.downlink_ms,
        first_token_ms=first_ms,
        server_busy_ms=load.busy_ms,
        batch_size=load.batch_size,
        throughput_per_s=load.throughput_per_s,
        server_utilisation=load.utilisation,
        uplink_bytes=parts.uplink_bytes,
        downlink_bytes=parts.downlink_bytes,
        device_memory_bytes=_memory_bytes(candidate, scene),
        energy_mj=_energy_mj(scene.device, parts.head_ms + parts.encode_ms),
        loss_pp=candidate.loss_pp,
    )


def token_budget(cut: str, scene: Scene, memory_mib: float) -> int:
    """How many new tokens a device of so much memory can make at a cut before it must exit early; at most the load's own.

    The ``w`` of the paper; less than one where not even the prompt fits.
    """
    cost = scene.device.cut(cut)
    free_bytes = memory_mib * _MIB - cost.head_weight_bytes - cost.head_activation_bytes * scene.chunk_tokens
    if not cost.head_kv_bytes:
        return scene.workload.new_tokens if free_bytes >= 0 else 0
    return min(scene.workload.new_tokens, int(free_bytes // cost.head_kv_bytes) - scene.workload.prompt_tokens)


def _predict_exit(candidate: Candidate, scene: Scene) -> Prediction:
    """Some tokens at one cut, the rest at another, whose server first computes anew what came before (``runtime/exits.py``)."""
    assert candidate.then is not None
    assert candidate.tokens is not None
    workload, made, then = scene.workload, candidate.tokens, candidate.then
    left = workload.new_tokens - made
    moved_tokens = workload.prompt_tokens + made
    begun = dataclasses.replace(scene, workload=dataclasses.replace(workload, new_tokens=made))
    load = dataclasses.replace(workload, prompt_tokens=moved_tokens, new_tokens=left)
    first = predict(dataclasses.replace(candidate, tokens=None, then=None), begun)
    second = predict(then, dataclasses.replace(scene, workload=load))
    assert then.cut is not None
    move_ms = scene.server.cut(then.cut).tail.ms(tokens=moved_tokens) / workload.new_tokens
    move_bytes = moved_tokens * then.prompt_token_bytes / workload.new_tokens
    means: dict[str, float] = {
        name: (getattr(first, name) * made + getattr(second, name) * left) / workload.new_tokens for name in _MEANS
    }
    means["tail_ms"] += move_ms
    means["server_busy_ms"] += move_ms
    means["uplink_ms"] += scene.transfer_ms(move_bytes)
    energies = first.energy_mj, second.energy_mj
    return dataclasses.replace(
        first,
        candidate=candidate,
        **means,
        energy_mj=None if None in energies else (energies[0] * made + energies[1] * left) / workload.new_tokens,  # type: ignore[operator]
        uplink_bytes=round((first.uplink_bytes * made + second.uplink_bytes * left) / workload.new_tokens + move_bytes),
        device_memory_bytes=max(first.device_memory_bytes, second.device_memory_bytes),
        stages=(first, second),
    )


_MEANS = (
    "head_ms", "encode_ms", "uplink_ms", "rtt_ms", "queue_ms", "decode_ms", "tail_ms", "message_ms", "downlink_ms",
    "server_busy_ms", "batch_size", "throughput_per_s", "server_utilisation", "loss_pp",
)  # fmt: skip


# -- parts ------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Parts:
    """What does not depend on how many others there are."""

    head_ms: float
    encode_ms: float
    uplink_ms: float
    downlink_ms: float
    decode_ms: float
    tail: BatchTime
    message_server_ms: float
    message_rest_ms: float
    uplink_bytes: int
    downlink_bytes: int

    @classmethod
    def of(cls, candidate: Candidate, scene: Scene) -> _Parts:
        assert candidate.cut is not None
        before, behind = scene.device.cut(candidate.cut), scene.server.cut(candidate.cut)
        payload_bytes = round(candidate.frame_bytes) + (0 if candidate.is_file else before.side_bytes)
        up_bytes, down_bytes = _message_bytes(payload_bytes, scene)
        kilo_elements = before.elements / _KILO
        message_ms, message_server_ms = _message_ms(up_bytes, scene)
        return cls(
            head_ms=0.0 if candidate.is_file else before.head.ms(context=scene.context),
            encode_ms=0.0 if candidate.is_file else scene.device.codec.encode.ms(tokens=kilo_elements),
            uplink_ms=scene.transfer_ms(up_bytes),
            downlink_ms=scene.transfer_ms(down_bytes),
            decode_ms=scene.server.codec.decode.ms(tokens=kilo_elements),
            tail=_batch_time(behind.tail, scene.context),
            message_server_ms=message_server_ms,
            message_rest_ms=max(0.0, message_ms - message_server_ms),
            uplink_bytes=up_bytes,
            downlink_bytes=down_bytes,
        )

    @property
    def batch(self) -> BatchTime:
        """What keeps the server: frames and messages one by one, the tail for all at once."""
        each_ms = self.decode_ms + self.message_server_ms + self.tail.each_ms
        return dataclasses.replace(self.tail, each_ms=each_ms)


def _batch_time(curve: Curve, context: float) -> BatchTime:
    """One token or sample of each request."""
    one, two, three = (curve.ms(rows=rows, context=context) for rows in (1, 2, 3))
    each_ms = three - two
    return BatchTime(fixed_ms=one - each_ms, each_ms=each_ms, together_ms=max(0.0, two - one - each_ms))


def _message_bytes(payload_bytes: int, scene: Scene) -> tuple[int, int]:
    """Up and down."""
    if scene.is_text:
        return message_sizes.step_bytes(payload_bytes), message_sizes.step_reply_bytes()
    output_bytes = scene.server.cuts[-1].elements * _OUTPUT_ELEMENT_BYTES
    return message_sizes.infer_request_bytes(payload_bytes), message_sizes.infer_reply_bytes(output_bytes)


def _message_ms(num_bytes: int, scene: Scene) -> tuple[float, float]:
    """There and back, half of it at each side's speed; and the server's processor time of it."""
    kilobytes = num_bytes / _KILO
    there_and_back = [profile.message.latency.ms(tokens=kilobytes) for profile in (scene.device, scene.server)]
    return sum(there_and_back) / 2, scene.server.message.server.ms(tokens=kilobytes)


def _load(parts: _Parts, scene: Scene) -> Load:
    """How the server fares with all devices, each of them alike."""
    workload = scene.workload
    elsewhere_ms = parts.head_ms + parts.encode_ms + parts.uplink_ms + 2 * scene.one_way_ms + parts.downlink_ms
    if workload.requests_per_s is None:
        return closed_loop(workload.devices, elsewhere_ms + parts.message_rest_ms, parts.batch)
    load = open_loop(workload.devices, workload.devices * scene.asked_per_s, parts.batch)
    device_keeps_up = scene.asked_per_s * max(parts.head_ms + parts.encode_ms, parts.uplink_ms) < _KILO
    return load if device_keeps_up else dataclasses.replace(load, wait_ms=math.inf)


def _first_token_ms(candidate: Candidate, parts: _Parts, scene: Scene) -> float:
    """The prompt in chunks, each on its way while the device computes the next and the server the one before."""
    assert candidate.cut is not None
    before, behind = scene.device.cut(candidate.cut), scene.server.cut(candidate.cut)
    device_ms = link_ms = server_ms = 0.0
    for start in range(0, scene.workload.prompt_tokens, CHUNK_TOKENS):
        tokens = min(CHUNK_TOKENS, scene.workload.prompt_tokens - start)
        kilo_elements = tokens * before.elements / _KILO
        device_ms += before.head.ms(tokens=tokens, context=start) + scene.device.codec.encode.ms(tokens=kilo_elements)
        payload_bytes = round(tokens * (candidate.prompt_token_bytes + before.side_bytes))
        link_ms = max(device_ms, link_ms) + scene.transfer_ms(message_sizes.step_bytes(payload_bytes))
        server_ms = max(link_ms + scene.one_way_ms, server_ms) + scene.server.codec.decode.ms(tokens=kilo_elements)
        server_ms += behind.tail.ms(tokens=tokens, context=start)
    message_ms = parts.message_server_ms + parts.message_rest_ms
    return server_ms + message_ms + scene.one_way_ms + parts.downlink_ms


def _memory_bytes(candidate: Candidate, scene: Scene) -> int:
    if candidate.is_file or candidate.cut is None:
        return 0
    cost = scene.device.cut(candidate.cut)
    return _held_bytes(cost.head_weight_bytes, cost.head_kv_bytes, cost, scene)


def _held_bytes(weight_bytes: int, kv_bytes: int, cost: CutCost, scene: Scene) -> int:
    return weight_bytes + kv_bytes * scene.kept_tokens + cost.head_activation_bytes * scene.chunk_tokens


def _energy_mj(device: Profile, busy_ms: float) -> float | None:
    return None if device.watts is None else device.watts * busy_ms


def _predict_local(candidate: Candidate, scene: Scene) -> Prediction:
    device = scene.device
    last = device.cuts[-1]
    run_ms = last.head.ms(context=scene.context) + last.tail.ms(context=scene.context)
    first_ms = None
    if scene.is_text:
        pieces = range(0, scene.workload.prompt_tokens, CHUNK_TOKENS)
        sizes = [min(CHUNK_TOKENS, scene.workload.prompt_tokens - start) for start in pieces]
        first_ms = sum(
            last.head.ms(tokens=size, context=start) + last.tail.ms(tokens=size, context=start)
            for size, start in zip(sizes, pieces, strict=True)
        )
    none = dict.fromkeys(("encode_ms", "uplink_ms", "rtt_ms", "decode_ms", "tail_ms", "message_ms", "downlink_ms"), 0.0)
    return Prediction(
        candidate=candidate,
        head_ms=run_ms,
        queue_ms=0.0 if scene.asked_per_s * run_ms < _KILO else math.inf,
        **none,
        first_token_ms=first_ms,
        server_busy_ms=0.0,
        batch_size=1.0,
        throughput_per_s=scene.workload.devices * _KILO / run_ms if run_ms else math.inf,
        server_utilisation=0.0,
        uplink_bytes=0,
        downlink_bytes=0,
        device_memory_bytes=_held_bytes(device.weight_bytes, last.head_kv_bytes + last.tail_kv_bytes, last, scene),
        energy_mj=_energy_mj(device, run_ms),
        loss_pp=0.0,
    )
