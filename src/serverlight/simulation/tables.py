"""From profiles, links and crossings to the tables that the event loop looks times up in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from serverlight.errors import ConfigError
from serverlight.search.profile import Curve
from serverlight.simulation.parts import Group, ServerModel
from serverlight.simulation.records import GROUP, MESSAGE, WORK, Tables

__all__ = ["CHUNK_TOKENS", "chunk_tokens", "message_bytes", "message_ms", "tables_of", "wake_ms"]

CHUNK_TOKENS = 128
"""Tokens of a prompt that cross at a time, as ``generation.CHUNK_TOKENS``."""

_KILO = 1e3


def chunk_tokens(server: ServerModel) -> int:
    """The most tokens in a message: one step or sample, or a piece of a prompt."""
    return CHUNK_TOKENS if server.profile.kind == "language-model" else 1


def message_bytes(group: Group, tokens: int) -> float:
    """Of a message with so many tokens; that of a step is known as a whole, a prompt's has the same around what it carries."""
    crossing = group.crossing
    if tokens == 1:
        return crossing.request_bytes
    around = max(0.0, crossing.request_bytes - crossing.prompt_token_bytes)
    return around + tokens * crossing.prompt_token_bytes


def message_ms(group: Group, server: ServerModel, num_bytes: float) -> tuple[float, float]:
    """Of a message there and back: the server's processor time, and what else it takes, half of it at each side's speed."""
    kilobytes = num_bytes / _KILO
    latency = [profile.message.latency.ms(tokens=kilobytes) for profile in (group.device, server.profile)]
    busy_ms = server.profile.message.server.ms(tokens=kilobytes)
    return busy_ms, max(0.0, sum(latency) / 2 - busy_ms)


def wake_ms(server: ServerModel) -> float:
    """What the messages of a batch take once, however many there are, where the server has waited for them."""
    return (1 - server.message_share) * server.profile.message.server.ms(tokens=0.0)


def tables_of(groups: Sequence[Group], server: ServerModel, arrivals: NDArray[np.float64]) -> Tables:
    """Tables for these groups at this server; raises :class:`ConfigError` where a profile is of another model or cut."""
    for group in groups:
        _check(group, server)
    used = {group.crossing.cut for group in groups if group.crossing.way != "all-device"}
    cuts = [cut for cut in server.profile.cuts if cut.name in used] or [server.profile.cuts[0]]
    places = {cut.name: place for place, cut in enumerate(cuts)}
    return Tables(
        groups=np.array([_of_group(group, server, places) for group in groups], GROUP),
        messages=np.array(
            [[_of_message(group, server, tokens) for tokens in range(chunk_tokens(server) + 1)] for group in groups],
            MESSAGE,
        ),
        rows=_work([cut.tail for cut in cuts], server.max_batch, "rows"),
        prompts=_work([cut.tail for cut in cuts], server.prefill_tokens, "tokens"),
        arrivals=arrivals,
    )


def _of_group(group: Group, server: ServerModel, places: Mapping[str, int]) -> tuple[float, ...]:
    return (
        group.rate_per_s or 0.0,
        group.think_ms / _KILO,
        _opening_ms(group, server) / _KILO,
        group.link.delay_ms / _KILO,
        group.link.jitter_ms / _KILO,
        _link_ms(group, group.crossing.reply_bytes) / _KILO,
        server.message_share * message_ms(group, server, 0.0)[0] / 2 / _KILO,
        places.get(group.crossing.cut, 0),
        group.new_tokens,
        group.crossing.way == "all-device",
    )


def _of_message(group: Group, server: ServerModel, tokens: int) -> tuple[float, ...]:
    """What grows with the request is in the time to read it, not in that to reply."""
    if not tokens:
        return (0.0,) * len(MESSAGE.names or ())
    num_bytes = message_bytes(group, tokens)
    busy_ms, rest_ms = message_ms(group, server, num_bytes)
    return (
        _device_ms(group, tokens) / _KILO,
        _device_context_ms(group, tokens) / _KILO,
        _link_ms(group, num_bytes) / _KILO,
        num_bytes,
        rest_ms / 2 / _KILO,
        (busy_ms - (1 - server.message_share / 2) * message_ms(group, server, 0.0)[0]) / _KILO,
        _decode_ms(group, server, tokens) / _KILO,
    )


def _check(group: Group, server: ServerModel) -> None:
    for field in ("kind", "revision"):
        ours, theirs = getattr(group.device, field), getattr(server.profile, field)
        if ours != theirs:
            raise ConfigError(
                field, f"{ours!r} on {group.name!r}, {theirs!r} on the server; profile the same model on both"
            )
    if group.crossing.way != "all-device":
        server.profile.cut(group.crossing.cut)


def _link_ms(group: Group, num_bytes: float) -> float:
    rate = group.link.rate_bits_per_s
    return 0.0 if rate is None else num_bytes * 8 * _KILO / rate


def _device_ms(group: Group, tokens: int) -> float:
    crossing, device = group.crossing, group.device
    if not group.works or crossing.way == "full-server":
        return 0.0
    if crossing.way == "all-device":
        return device.cuts[-1].head.ms(tokens=tokens) + device.cuts[-1].tail.ms(tokens=tokens)
    cost = device.cut(crossing.cut)
    if crossing.encode_ms is not None:
        return cost.head.ms(tokens=tokens) + tokens * crossing.encode_ms
    return cost.head.ms(tokens=tokens) + device.codec.encode.ms(tokens=tokens * cost.elements / _KILO)


def _device_context_ms(group: Group, tokens: int) -> float:
    """For each token before these."""
    if not group.works or group.crossing.way == "full-server":
        return 0.0
    if group.crossing.way == "all-device":
        last = group.device.cuts[-1]
        return sum(_slope(curve, "tokens", tokens) for curve in (last.head, last.tail))
    return _slope(group.device.cut(group.crossing.cut).head, "tokens", tokens)


def _decode_ms(group: Group, server: ServerModel, tokens: int) -> float:
    crossing = group.crossing
    if crossing.way == "all-device":
        return 0.0
    if crossing.decode_ms is not None:
        return tokens * crossing.decode_ms
    elements = server.profile.cut(crossing.cut).elements
    return server.profile.codec.decode.ms(tokens=tokens * elements / _KILO)


def _opening_ms(group: Group, server: ServerModel) -> float:
    """Of a sequence's stream; a closed loop keeps its own."""
    if group.rate_per_s is None:
        return 0.0
    return (group.device.message.opening_ms + server.profile.message.opening_ms) / 2


def _work(curves: Sequence[Curve], most: int, what: str) -> NDArray[np.void]:
    """Nothing takes nothing, whatever the curves say of it."""
    counts = range(1, most + 1)
    rows = [
        [(0.0, 0.0)] + [(curve.ms(**{what: n}) / _KILO, _slope(curve, what, n) / _KILO) for n in counts]
        for curve in curves
    ]
    return np.array(rows, WORK)


def _slope(curve: Curve, what: str, count: int) -> float:
    """For each token before."""
    return curve.ms(**{what: count}, context=1.0) - curve.ms(**{what: count})
