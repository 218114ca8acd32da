"""Profiles and tables that nobody measured."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from serverlight.codec import CodecConfig
from serverlight.search.profile import CodecCost, Curve, CutCost, MessageCost, Profile
from serverlight.search.quality import QualityRow, QualityTable

NAMES = ("input", "stem", "block1", "block2", "output")
ELEMENTS = (12_288, 65_536, 16_384, 4_096, 10)


def curve(fixed_ms: float, per_token_ms: float = 0.0, per_context_ms: float = 0.0) -> Curve:
    return Curve(fixed_ms=fixed_ms, per_token_ms=per_token_ms, per_context_ms=per_context_ms)


def vision_profile(speed: float = 1.0, *, whole_ms: float = 40.0, watts: float | None = None) -> Profile:
    """A network whose work is spread evenly over three blocks; a machine ``speed`` times as fast."""
    steps = len(NAMES) - 1
    cuts = tuple(
        CutCost(
            name=name,
            elements=elements,
            head=curve(0.0, whole_ms * i / steps / speed),
            tail=curve(0.2 * (steps - i) / speed, whole_ms * (steps - i) / steps / speed),
            head_weight_bytes=i * 2**20,
            tail_weight_bytes=(steps - i) * 2**20,
            head_activation_bytes=4 * max(ELEMENTS[: i + 1]) if i else 0,
        )
        for i, (name, elements) in enumerate(zip(NAMES, ELEMENTS, strict=True))
    )
    return Profile(
        model="made-up",
        revision="0123",
        kind="single-shot",
        machine={"cpu": "none"},
        dtype="float32",
        cuts=cuts,
        codec=CodecCost(encode=curve(0.05 / speed, 0.01 / speed), decode=curve(0.03 / speed, 0.005 / speed)),
        message=MessageCost(latency=curve(0.6 / speed, 0.001), server=curve(0.2 / speed, 0.0005)),
        watts=watts,
        weight_bytes=steps * 2**20,
    )


def text_profile(speed: float = 1.0, *, layers: int = 8, watts: float | None = None) -> Profile:
    """A language model of equal layers."""

    def cost(count: int, more_ms: float = 0.0) -> Curve:
        return curve(0.3 * count / speed + more_ms, 0.2 * count / speed, 1e-5 * count / speed)

    cuts = tuple(
        CutCost(
            name=f"layers.{i}",
            elements=512,
            head=cost(i),
            tail=cost(layers - i, 0.5 / speed),
            head_weight_bytes=(2 + i) * 2**20,
            tail_weight_bytes=(2 + layers - i) * 2**20,
            head_activation_bytes=4096,
            head_kv_bytes=i * 8192,
            tail_kv_bytes=(layers - i) * 8192,
        )
        for i in range(layers + 1)
    )
    base = vision_profile(speed)
    return dataclasses.replace(base, kind="language-model", cuts=cuts, weight_bytes=(4 + layers) * 2**20, watts=watts)


def row(cut: str, elements: int, bits: float, loss_pp: float, *, prompt_bits: float | None = None) -> QualityRow:
    """Rows of one cut are told apart by the sparsity that their bits stand for."""
    return QualityRow(
        cut=cut,
        codec=CodecConfig(sparsity=round(1 - min(bits, 7.9) / 8, 6)),
        bits_per_element=bits,
        frame_bytes=bits * elements / 8 + 12,
        prompt_bits_per_element=prompt_bits,
        rel_mse=0.1 / bits,
        kl=loss_pp / 100,
        loss_pp=loss_pp,
        loss_interval_pp=(0.0, 2 * loss_pp),
        is_measured=True,
    )


def table(rows: Sequence[QualityRow]) -> QualityTable:
    return QualityTable(model="made-up", revision="0123", metric="agreement", num_samples=100, rows=tuple(rows))


def plain_table(profile: Profile, bits: Sequence[float] = (0.5, 1.0, 2.0, 4.0)) -> QualityTable:
    """The more bits the better, at every cut alike."""
    is_text = profile.kind == "language-model"
    return table(
        [
            row(cut.name, cut.elements, b, 2.0 / b - 0.4, prompt_bits=b * 0.9 if is_text else None)
            for cut in profile.cuts
            for b in bits
        ]
    )


def random_table(profile: Profile, rng: random.Random, rows_per_cut: int = 6) -> QualityTable:
    return table(
        [
            row(cut.name, cut.elements, rng.uniform(0.2, 8.0), rng.choice([0.0, rng.uniform(0, 6)]))
            for cut in profile.cuts
            for _ in range(rng.randrange(rows_per_cut + 1))
        ]
    )
