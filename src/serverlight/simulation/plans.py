"""Which crossing each kind of device takes: from a search's frontier, or from the cuts of a profile at so many bits an element."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from serverlight.errors import ConfigError
from serverlight.frontier import Frontier
from serverlight.search.profile import Profile
from serverlight.simulation.parts import Crossing, Group, ServerModel
from serverlight.simulation.tables import message_bytes, message_ms, wake_ms

__all__ = ["alone_ms", "best_crossing", "busy_ms", "cut_crossings", "frontier_crossings", "full_server"]

AROUND_BYTES = 60
"""A message beside what it carries."""

ID_BYTES, OUTPUT_ELEMENT_BYTES = 4, 4
FP16_BITS = 16.0

BATCH = 16
"""Of servers at work, for which plans are compared."""

SHARE = 0.7
"""Of a cap on latency that a request alone may take; the rest is for waiting."""


def full_server(profile: Profile, *, input_bytes: float | None = None) -> Crossing:
    """The raw input to a server that has the whole model; of a language model, its token ids.

    ``input_bytes`` is that of a file, such as a JPEG; by default a byte for each element.
    """
    first = profile.cuts[0]
    is_language = profile.kind == "language-model"
    carried = ID_BYTES if is_language else first.elements if input_bytes is None else input_bytes
    return Crossing(
        way="full-server",
        cut=first.name,
        request_bytes=AROUND_BYTES + carried,
        prompt_token_bytes=ID_BYTES,
        reply_bytes=_reply_bytes(profile),
        encode_ms=0.0,
        decode_ms=0.0,
    )


def cut_crossings(profile: Profile, *, bits: float, cuts: Iterable[str] = ()) -> tuple[Crossing, ...]:
    """Every cut between input and output, or those named, at so many bits an element; 16 are plain halves, which nobody codes.

    Raises :class:`ConfigError` for a cut that the profile does not have, and where there is none.
    """
    found = [profile.cut(name) for name in cuts] or [cut for cut in profile.cuts[1:] if cut.name != "output"]
    if not found:
        raise ConfigError("cuts", "the profile has none between input and output; name one")
    coding = {"encode_ms": 0.0, "decode_ms": 0.0} if bits == FP16_BITS else {}
    return tuple(
        Crossing(
            cut=cut.name,
            request_bytes=AROUND_BYTES + cut.side_bytes + cut.elements * bits / 8,
            prompt_token_bytes=cut.side_bytes + cut.elements * bits / 8,
            reply_bytes=_reply_bytes(profile),
            **coding,  # type: ignore[arg-type]
        )
        for cut in found
    )


def frontier_crossings(frontier: Frontier) -> tuple[Crossing, ...]:
    """What a search has found; a prompt's tokens are taken to need the bytes of a step's frame."""
    return tuple(
        Crossing(
            way=choice.way,
            cut=choice.plan.cut if choice.plan else "",
            request_bytes=choice.uplink_bytes,
            prompt_token_bytes=max(0, choice.uplink_bytes - AROUND_BYTES),
            reply_bytes=choice.downlink_bytes,
        )
        for choice in frontier.choices
    )


def best_crossing(
    group: Group,
    candidates: Sequence[Crossing],
    server: ServerModel,
    *,
    cap_ms: float | None = None,
    memory_bytes: float | None = None,
) -> Group:
    """The group with the candidate that takes least of the server's time and leaves room for waiting below a cap on latency.

    Where none does, the quickest. Raises :class:`ConfigError` where no head fits into the memory.
    """
    found = [dataclasses.replace(group, crossing=crossing) for crossing in candidates]
    fitting = [one for one in found if memory_bytes is None or _head_bytes(one) <= memory_bytes]
    if not fitting:
        raise ConfigError("memory_mib", f"no head fits on {group.name!r}; give it more, or a shallower cut")
    quick = [one for one in fitting if cap_ms is None or alone_ms(one, server) <= SHARE * cap_ms]
    if not quick:
        return min(fitting, key=lambda one: alone_ms(one, server))
    return min(quick, key=lambda one: (busy_ms(one, server), alone_ms(one, server)))


def alone_ms(group: Group, server: ServerModel) -> float:
    """A request, or a step half-way through a sequence, when nobody else asks."""
    crossing, context = group.crossing, _context(group)
    if crossing.way == "all-device":
        last = group.device.cuts[-1]
        return last.head.ms(context=context) + last.tail.ms(context=context)
    link, cost = group.link, group.device.cut(crossing.cut)
    crossed = 0.0
    if link.rate_bits_per_s is not None:
        crossed = (message_bytes(group, 1) + crossing.reply_bytes) * 8e3 / link.rate_bits_per_s
    device_ms = 0.0
    if group.works and crossing.way == "split":
        encode_ms = crossing.encode_ms
        if encode_ms is None:
            encode_ms = group.device.codec.encode.ms(tokens=cost.elements / 1e3)
        device_ms = cost.head.ms(context=context) + encode_ms
    message = sum(message_ms(group, server, message_bytes(group, 1)))
    tail_ms = server.profile.cut(crossing.cut).tail.ms(context=context)
    return device_ms + crossed + 2 * link.delay_ms + link.jitter_ms + message + _decode_ms(group, server) + tail_ms


def busy_ms(group: Group, server: ServerModel) -> float:
    """Of the server's time, what a request in a usual batch takes."""
    if group.crossing.way == "all-device":
        return 0.0
    rows = min(BATCH, server.max_batch)
    tail_ms = server.profile.cut(group.crossing.cut).tail.ms(rows=rows, context=_context(group)) / rows
    messages_ms = message_ms(group, server, message_bytes(group, 1))[0] - wake_ms(server) * (1 - 1 / rows)
    return messages_ms + _decode_ms(group, server) + tail_ms


def _decode_ms(group: Group, server: ServerModel) -> float:
    if group.crossing.decode_ms is not None:
        return group.crossing.decode_ms
    return server.profile.codec.decode.ms(tokens=server.profile.cut(group.crossing.cut).elements / 1e3)


def _context(group: Group) -> float:
    if group.device.kind != "language-model":
        return 0.0
    return sum(group.prompt_tokens) / len(group.prompt_tokens) + group.new_tokens / 2


def _head_bytes(group: Group) -> int:
    match group.crossing.way:
        case "full-server":
            return 0
        case "all-device":
            return group.device.weight_bytes
        case _:
            return group.device.cut(group.crossing.cut).head_weight_bytes


def _reply_bytes(profile: Profile) -> float:
    if profile.kind == "language-model":
        return AROUND_BYTES
    return AROUND_BYTES + profile.cuts[-1].elements * OUTPUT_ELEMENT_BYTES
