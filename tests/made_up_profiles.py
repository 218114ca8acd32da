"""Made-up profiles, whose queues have closed forms."""

from __future__ import annotations

from serverlight.search.profile import CodecCost, Curve, CutCost, Kind, MessageCost, Profile


def ms(fixed: float, each: float = 0.0, **more: float) -> Curve:
    """A curve of so many milliseconds, and so many for each token or sample."""
    return Curve(fixed_ms=fixed, per_token_ms=each, **more)


NOTHING = ms(0.0)


def make_profile(
    tails: dict[str, Curve],
    *,
    head: Curve = NOTHING,
    decode: Curve = NOTHING,
    latency: Curve = NOTHING,
    server: Curve = NOTHING,
    kind: Kind = "single-shot",
    encode: Curve = NOTHING,
) -> Profile:
    """A model with these cuts, of a thousand elements each, that takes what it is told and nothing else."""
    cuts = tuple(
        CutCost(name=name, elements=1000, head=head, tail=tail, head_weight_bytes=1 << 20, tail_weight_bytes=0)
        for name, tail in tails.items()
    )
    return Profile(
        model="made-up", revision="0", kind=kind, machine={}, dtype="float32", cuts=cuts,
        codec=CodecCost(encode=encode, decode=decode), message=MessageCost(latency=latency, server=server),
        weight_bytes=1 << 21,
    )  # fmt: skip
