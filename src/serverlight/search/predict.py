"""What a request takes under a plan: from two profiles, a row of qualities, a link and a load, without measuring anything."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass

from serverlight.generation import CHUNK_TOKENS
from serverlight.search import message_sizes
from serverlight.search.codec_cost import cost_name
from serverlight.search.prediction import MIB, Candidate, Prediction, Scene
from serverlight.search.profile import CodecCost, Curve, CutCost, Profile, rested
from serverlight.search.queueing import BatchTime, Load, closed_loop, open_loop

__all__ = ["predict", "token_budget"]

_KILO = 1e3
_OUTPUT_ELEMENT_BYTES = 4

_OPENING_ROUND_TRIPS = 2.5
"""TCP's handshake, the server's settings of HTTP/2 on their way, and Hello and Welcome."""


def predict(candidate: Candidate, scene: Scene) -> Prediction:
    """Every part of a request under a candidate; raises :class:`ConfigError` for a cut that a profile does not have."""
    if candidate.cut is None:
        return _predict_local(candidate, scene)
    if candidate.then is not None:
        return _predict_exit(candidate, scene)
    parts = _Parts.of(candidate, scene)
    parts = parts.after(_gaps(parts, _load(parts, scene), scene), candidate, scene)
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
    free_bytes = memory_mib * MIB - cost.head_weight_bytes - cost.head_activation_bytes * scene.chunk_tokens
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

    def mean(of: Callable[[Prediction], float]) -> float:
        return (of(first) * made + of(second) * left) / workload.new_tokens

    return dataclasses.replace(
        first,
        candidate=candidate,
        head_ms=mean(lambda p: p.head_ms),
        encode_ms=mean(lambda p: p.encode_ms),
        uplink_ms=mean(lambda p: p.uplink_ms) + scene.transfer_ms(move_bytes),
        queue_ms=mean(lambda p: p.queue_ms),
        decode_ms=mean(lambda p: p.decode_ms),
        tail_ms=mean(lambda p: p.tail_ms) + move_ms,
        message_ms=mean(lambda p: p.message_ms),
        downlink_ms=mean(lambda p: p.downlink_ms),
        server_busy_ms=mean(lambda p: p.server_busy_ms) + move_ms,
        throughput_per_s=mean(lambda p: p.throughput_per_s),
        server_utilisation=mean(lambda p: p.server_utilisation),
        uplink_bytes=round(mean(lambda p: p.uplink_bytes) + move_bytes),
        device_memory_bytes=max(first.device_memory_bytes, second.device_memory_bytes),
        energy_mj=None if first.energy_mj is None else mean(lambda p: p.energy_mj or 0.0),
        loss_pp=mean(lambda p: p.loss_pp),
        stages=(first, second),
    )


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
        payload_bytes = round(candidate.frame_bytes) + (0 if candidate.is_raw else before.side_bytes)
        up_bytes, down_bytes = _message_bytes(payload_bytes, scene)
        kilo_elements = before.elements / _KILO
        message_ms, message_server_ms = _message_ms(up_bytes, scene)
        return cls(
            head_ms=0.0 if candidate.is_raw else before.head.ms(context=scene.context),
            encode_ms=0.0 if candidate.is_raw else _codec(candidate, scene.device).encode.ms(tokens=kilo_elements),
            uplink_ms=scene.transfer_ms(up_bytes),
            downlink_ms=scene.transfer_ms(down_bytes),
            decode_ms=_read_ms(candidate, scene, tokens=1, context=scene.context),
            tail=_batch_time(behind.tail, scene.context),
            message_server_ms=message_server_ms,
            message_rest_ms=max(0.0, message_ms - message_server_ms),
            uplink_bytes=up_bytes,
            downlink_bytes=down_bytes,
        )

    def after(self, gaps: _Gaps, candidate: Candidate, scene: Scene) -> _Parts:
        """The same where device and server rest so long between two pieces of work."""
        assert candidate.cut is not None
        device, server = rested(gaps.device_ms), rested(gaps.server_ms)
        before, behind = scene.device.cut(candidate.cut), scene.server.cut(candidate.cut)
        latency_ms, server_ms = _message_rest_ms(scene)
        message_server_ms = self.message_server_ms + server * server_ms
        message_ms = self.message_server_ms + self.message_rest_ms + (device + server) / 2 * latency_ms
        return dataclasses.replace(
            self,
            head_ms=self.head_ms + (0.0 if candidate.is_raw else device * before.head_rest_ms),
            encode_ms=self.encode_ms
            + (0.0 if candidate.is_raw else device * _codec(candidate, scene.device).encode_rest_ms),
            decode_ms=self.decode_ms
            + server * (behind.head_rest_ms if candidate.sends_ids else _codec(candidate, scene.server).decode_rest_ms),
            tail=dataclasses.replace(self.tail, fixed_ms=self.tail.fixed_ms + server * behind.tail_rest_ms),
            message_server_ms=message_server_ms,
            message_rest_ms=max(0.0, message_ms - message_server_ms),
        )

    @property
    def batch(self) -> BatchTime:
        """What keeps the server: frames and messages one by one, the tail for all at once."""
        each_ms = self.decode_ms + self.message_server_ms + self.tail.each_ms
        return dataclasses.replace(self.tail, each_ms=each_ms)


def _read_ms(candidate: Candidate, scene: Scene, *, tokens: int, context: float) -> float:
    """What it takes the server to make the features of a message: to decode a frame, or to look up embeddings."""
    assert candidate.cut is not None
    cost = scene.server.cut(candidate.cut)
    if candidate.sends_ids:
        return cost.head.ms(tokens=tokens, context=context)
    return _codec(candidate, scene.server).decode.ms(tokens=tokens * cost.elements / _KILO)


def _codec(candidate: Candidate, profile: Profile) -> CodecCost:
    return profile.codec_of(cost_name(candidate.codec)) if candidate.codec else profile.codec


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


def _message_rest_ms(scene: Scene) -> tuple[float, float]:
    """What :func:`_message_ms` is longer by after long rests."""
    latency_ms = [profile.message.latency_rest_ms for profile in (scene.device, scene.server)]
    return sum(latency_ms) / 2, scene.server.message.server_rest_ms


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Gaps:
    """How long each side has nothing to do between two pieces of work."""

    device_ms: float
    server_ms: float


def _gaps(parts: _Parts, load: Load, scene: Scene) -> _Gaps:
    """Under a load that was found without regard for them."""
    cycle_ms = scene.workload.devices * _KILO / load.throughput_per_s
    return _Gaps(
        device_ms=cycle_ms - parts.head_ms - parts.encode_ms,
        server_ms=(1 - load.utilisation) * load.batch_size * _KILO / load.throughput_per_s,
    )


def _first_token_ms(candidate: Candidate, parts: _Parts, scene: Scene) -> float:
    """A stream is opened; then the prompt in chunks, each on its way while the device computes the next and the server the one
    before.
    """
    assert candidate.cut is not None
    before, behind = scene.device.cut(candidate.cut), scene.server.cut(candidate.cut)
    device_ms = link_ms = server_ms = 0.0
    for start in range(0, scene.workload.prompt_tokens, CHUNK_TOKENS):
        tokens = min(CHUNK_TOKENS, scene.workload.prompt_tokens - start)
        if not candidate.is_raw:
            device_ms += before.head.ms(tokens=tokens, context=start)
            device_ms += _codec(candidate, scene.device).encode.ms(tokens=tokens * before.elements / _KILO)
        payload_bytes = round(tokens * (candidate.prompt_token_bytes + before.side_bytes))
        link_ms = max(device_ms, link_ms) + scene.transfer_ms(message_sizes.step_bytes(payload_bytes))
        server_ms = max(link_ms + scene.one_way_ms, server_ms)
        server_ms += _read_ms(candidate, scene, tokens=tokens, context=start)
        server_ms += behind.tail.ms(tokens=tokens, context=start)
    message_ms = parts.message_server_ms + parts.message_rest_ms
    opening_ms = (scene.device.message.opening_ms + scene.server.message.opening_ms) / 2
    opening_ms += _OPENING_ROUND_TRIPS * 2 * scene.one_way_ms
    return opening_ms + server_ms + message_ms + scene.one_way_ms + parts.downlink_ms


def _memory_bytes(candidate: Candidate, scene: Scene) -> int:
    if candidate.is_raw or candidate.cut is None:
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
    return Prediction(
        candidate=candidate,
        head_ms=run_ms,
        queue_ms=0.0 if scene.asked_per_s * run_ms < _KILO else math.inf,
        first_token_ms=first_ms,
        throughput_per_s=scene.workload.devices * _KILO / run_ms if run_ms else math.inf,
        device_memory_bytes=_held_bytes(device.weight_bytes, last.head_kv_bytes + last.tail_kv_bytes, last, scene),
        energy_mj=_energy_mj(device, run_ms),
    )
