"""Profiles as data: files, other machines, two machines in one."""

from __future__ import annotations

import dataclasses
import json
import pathlib

import pytest

from serverlight.errors import ConfigError
from serverlight.search.profile import CodecCost, Curve, CutCost, MessageCost, Profile


def curve(ms: float) -> Curve:
    return Curve(fixed_ms=ms, per_token_ms=ms / 2, residual=0.01)


def profile(ms: float, **changes: object) -> Profile:
    cuts = tuple(
        CutCost(
            name=f"layers.{depth}", elements=64, head=curve(ms * (depth + 1)), tail=curve(ms * (3 - depth)),
            head_weight_bytes=100 * depth, tail_weight_bytes=200 - 100 * depth, head_kv_bytes=8 * depth,
        )
        for depth in range(3)
    )  # fmt: skip
    made = Profile(
        model="tiny", revision="0f", kind="language-model", machine={"cpu": f"{ms} ms"}, dtype="float32", cuts=cuts,
        codec=CodecCost(encode=curve(ms), decode=curve(2 * ms)), message=MessageCost(latency=curve(ms), server=curve(ms)),
        other_codecs={"slicer": CodecCost(encode=curve(5 * ms), decode=curve(7 * ms), decode_rest_ms=ms)},
        watts=5.0, weight_bytes=200,
    )  # fmt: skip
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


def test_a_file_holds_all_of_it(tmp_path: pathlib.Path) -> None:
    """What is saved is what is loaded; a person may leave out what has a default."""
    path = tmp_path / "profile.json"
    profile(1.0).save(path)
    assert Profile.load(path) == profile(1.0)
    fields = json.loads(path.read_text())
    for cut in fields["cuts"]:
        del cut["head"]["together_ms"], cut["tail"]["residual"]
    del fields["other_codecs"]
    path.write_text(json.dumps(fields))
    assert Profile.load(path).cut("layers.1").head.ms() == profile(1.0).cut("layers.1").head.ms()
    assert Profile.load(path).codec_of("slicer") == profile(1.0).codec


def test_batches_cost_more_than_prompts() -> None:
    """A row, its past, and the step from one token to several each count as they say."""
    made = Curve(fixed_ms=1.0, per_token_ms=0.5, per_row_ms=0.25, per_past_ms=0.01, together_ms=2.0)
    assert made.ms() == 1.75
    assert made.ms(tokens=4) == 1.0 + 2.0 + 0.25 + 4 * 0.5
    assert made.ms(rows=4, context=100) == 1.0 + 2.0 + 4 * (0.25 + 1.0 + 0.5)
    assert made.ms(rows=1.5) == pytest.approx(1.0 + 0.5 * 2.0 + 1.5 * 0.75)


def test_pieces_of_a_prompt_each_pay_what_is_fixed() -> None:
    """A hundred tokens, 64 at a time, are two runs; a faster machine takes pieces of the same length."""
    made = Curve(fixed_ms=1.0, per_token_ms=0.5, together_ms=2.0, per_past_ms=0.01, piece_tokens=64)
    assert made.ms() == 1.5
    assert made.ms(tokens=64, context=10) == 3.1 + 32
    assert made.ms(tokens=100, context=10) == 2 * 3.1 + 50
    assert made.times(0.5).ms(tokens=100, context=10) == made.ms(tokens=100, context=10) / 2


def test_a_slower_machine_takes_longer_at_everything() -> None:
    """A quarter of the speed is four times the time; bytes stay, residuals too."""
    ours, theirs = profile(1.0), profile(1.0).scaled(speed=0.25, name="board", watts=3.0)
    for mine, its in zip(ours.cuts, theirs.cuts, strict=True):
        assert its.head.ms(tokens=7) == 4 * mine.head.ms(tokens=7)
        assert its.tail.ms(rows=3) == 4 * mine.tail.ms(rows=3)
        assert (its.head_weight_bytes, its.head.residual) == (mine.head_weight_bytes, mine.head.residual)
    for name in ("serverlight", "slicer"):
        assert theirs.codec_of(name).decode.ms() == 4 * ours.codec_of(name).decode.ms()
    assert theirs.codec_of("slicer").decode_rest_ms == 4.0
    assert (theirs.machine["name"], theirs.watts) == ("board", 3.0)
    with pytest.raises(ConfigError, match="speed"):
        ours.scaled(speed=0.0, name="stone")


def test_two_machines_in_one() -> None:
    """Heads and encoding come from the device's profile, tails and decoding from the server's."""
    both = Profile.joined(device=profile(4.0), server=profile(1.0, watts=100.0))
    assert both.cut("layers.1").head == profile(4.0).cut("layers.1").head
    assert both.cut("layers.1").tail == profile(1.0).cut("layers.1").tail
    for name in ("serverlight", "slicer"):
        device, server = profile(4.0).codec_of(name), profile(1.0).codec_of(name)
        assert (both.codec_of(name).encode, both.codec_of(name).decode) == (device.encode, server.decode)
        assert both.codec_of(name).decode_rest_ms == server.decode_rest_ms
    assert both.message.latency.fixed_ms == 2.5
    assert both.watts == 5.0


@pytest.mark.parametrize(
    ("field", "other"),
    [
        ("revision", profile(1.0, revision="1e")),
        ("kind", profile(1.0, kind="single-shot")),
        ("cuts", profile(1.0, cuts=profile(1.0).cuts[:2])),
    ],
)
def test_unlike_profiles_are_not_joined(field: str, other: Profile) -> None:
    """Two models, or two ways to cut one, are no pair; the error names the field."""
    with pytest.raises(ConfigError, match=field):
        Profile.joined(device=profile(1.0), server=other)
