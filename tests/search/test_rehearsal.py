"""What a rehearsal says about curves, from exchanges that are made up."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from serverlight.search.fitting import Point
from serverlight.search.profile import CodecCost, Curve, CutCost
from serverlight.search.rehearsal import Exchange, as_rehearsed, codec_as_rehearsed, message_cost

MS = Curve(fixed_ms=2.0, per_token_ms=1.0)


def cut(depth: int) -> CutCost:
    return CutCost(name=f"cut{depth}", elements=2000, head=MS, tail=MS, head_weight_bytes=0, tail_weight_bytes=0)


CUTS = tuple(cut(depth) for depth in range(5))


def exchange(cut: str = "cut0", **fields: Any) -> Exchange:
    base = {
        "point": Point(), "head_ms": 3.0, "encode_ms": 1.0, "decode_ms": 1.0, "tail_ms": 3.0, "uplink_bytes": 1000.0,
        "message_ms": 1.0, "message_cpu_ms": 0.5,
    }  # fmt: skip
    return Exchange(cut=cut, **{**base, **fields})


def test_what_was_rehearsed_is_predicted() -> None:
    """At the cuts of the rehearsal one sample takes what it took; between them the difference goes by the place."""
    exchanges = [exchange("cut0", head_ms=3.4, tail_ms=2.8), exchange("cut4", head_ms=3.0, tail_ms=3.8)]
    found = as_rehearsed(CUTS, exchanges)
    assert [cut.head.ms() for cut in found] == pytest.approx([3.4, 3.3, 3.2, 3.1, 3.0])
    assert [cut.tail.ms() for cut in found] == pytest.approx([2.8, 3.05, 3.3, 3.55, 3.8])
    gains = [ours.head.ms(rows=9) - curve.head.ms(rows=9) for ours, curve in zip(found, CUTS, strict=True)]
    assert gains == pytest.approx([0.4, 0.3, 0.2, 0.1, 0.0])


def test_batches_do_not_tell_of_single_samples() -> None:
    """Only requests of one sample or token move the curves."""
    assert as_rehearsed(CUTS, [exchange(point=Point(rows=4), head_ms=9.0)]) == CUTS
    assert as_rehearsed(CUTS, [exchange(point=Point(tokens=32), head_ms=9.0)]) == CUTS


def test_a_disturbed_rehearsal_moves_curves_by_half_at_the_most() -> None:
    """One measurement gone wrong does not decide."""
    found = as_rehearsed(CUTS, [exchange(head_ms=50.0, tail_ms=0.001)])
    assert found[0].head.ms() == pytest.approx(4.5)
    assert found[0].tail.ms() == pytest.approx(1.5)


def test_the_codec_is_that_of_the_rehearsal() -> None:
    """Frames of two thousand elements take what they took, in the median."""
    codec = CodecCost(encode=Curve(fixed_ms=0.5, per_token_ms=0.1), decode=Curve(fixed_ms=0.5, per_token_ms=0.1))
    found = codec_as_rehearsed(codec, CUTS, [exchange(encode_ms=ms, decode_ms=0.6) for ms in (0.8, 0.9, 7.0)])
    assert found.encode.ms(rows=2) == pytest.approx(0.9)
    assert found.decode.ms(rows=2) == pytest.approx(0.6)
    dear = CodecCost(encode=Curve(fixed_ms=2.0, per_token_ms=0.3), decode=Curve(fixed_ms=2.0, per_token_ms=0.3))
    exchanges = [exchange(encode_ms=0.9, decode_ms=0.6)]
    alike = codec_as_rehearsed(dear, CUTS, exchanges, rehearsed=codec)
    assert alike.encode.ms(rows=2) == pytest.approx(2.6 + 0.2)
    assert alike.decode.ms(rows=2) == pytest.approx(2.6 - 0.1)


def test_messages_cost_by_the_kilobyte_and_by_the_stream() -> None:
    """Size and opening are told apart, for the latency and for the server's processor."""
    exchanges = [
        exchange(
            uplink_bytes=1e3 * size, point=Point(tokens=tokens), opens=opens,
            message_ms=1.0 + 0.01 * size + 3.0 * opens, message_cpu_ms=0.5 + 0.005 * size + 2.0 * opens,
        )
        for (size, tokens), opens in itertools.product([(0.1, 1), (100.0, 128)], [False, True])
        if opens or tokens == 1
    ]  # fmt: skip
    found = message_cost(exchanges)
    assert found.opening_ms == pytest.approx(3.0)
    assert found.latency.ms(rows=50) == pytest.approx(1.5, rel=0.01)
    assert found.server.ms(rows=50) == pytest.approx(0.75, rel=0.01)


def test_without_streams_of_their_own_nothing_opens() -> None:
    """Single-shot requests share a stream."""
    assert message_cost([exchange(), exchange(uplink_bytes=5000.0)]).opening_ms == 0


def test_a_rest_is_told_apart() -> None:
    """What takes longer after a rest does not move the curves; between the cuts of the rehearsal it goes by the place."""
    busy = [exchange("cut0"), exchange("cut4")]
    rested = [
        exchange("cut0", is_rested=True, head_ms=3.0, tail_ms=5.0, encode_ms=1.2, decode_ms=0.5, message_ms=1.5),
        exchange("cut4", is_rested=True, head_ms=5.0, tail_ms=3.0, encode_ms=1.4, decode_ms=0.9, message_cpu_ms=0.7),
    ]
    found = as_rehearsed(CUTS, [*busy, *rested])
    assert [cut.head_rest_ms for cut in found] == pytest.approx([0.0, 0.5, 1.0, 1.5, 2.0])
    assert [cut.tail_rest_ms for cut in found] == pytest.approx([2.0, 1.5, 1.0, 0.5, 0.0])
    assert [(cut.head, cut.tail) for cut in found] == [(cut.head, cut.tail) for cut in as_rehearsed(CUTS, busy)]
    codec = CodecCost(encode=MS, decode=MS)
    both, alone = codec_as_rehearsed(codec, CUTS, [*busy, *rested]), codec_as_rehearsed(codec, CUTS, busy)
    assert (both.encode, both.decode, alone.encode_rest_ms) == (alone.encode, alone.decode, 0.0)
    assert (both.encode_rest_ms, both.decode_rest_ms) == (pytest.approx(0.3), 0.0)
    messages = message_cost([*busy, *rested])
    assert messages.latency.ms() == pytest.approx(message_cost(busy).latency.ms())
    assert (messages.latency_rest_ms, messages.server_rest_ms) == (pytest.approx(0.25), pytest.approx(0.1))
